"""From recordings on disk to batches: readers, the prepared store, the loader."""
