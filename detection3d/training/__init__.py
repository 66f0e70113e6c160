"""The training loop and what belongs to a run: optimiser, checkpoints, logs, provenance."""
