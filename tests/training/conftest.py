"""One thread for torch: two of them on two busy cores wait for each other a hundred times longer than they compute."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.small_run import write_small_store


@pytest.fixture(autouse=True, scope="module")
def one_thread_for_what_tests_share() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:  # numba sets them anew when it first runs in parallel
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_store(tmp_path_factory.mktemp("data") / "store")
