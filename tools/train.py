"""Train a detector: python tools/train.py tiny training.steps=100 --output runs/tiny."""

from detection3d.cli.train import entry

if __name__ == "__main__":
    entry()
