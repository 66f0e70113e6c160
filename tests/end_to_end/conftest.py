"""The fixtures of the training tests, which whole runs need as well."""

from tests.training.conftest import one_thread, store

__all__ = ["one_thread", "store"]
