"""The fixtures of the training tests, which whole runs need as well; and the run that all others are compared with."""

from pathlib import Path

import pytest

from tests.end_to_end.processes import WAITING, start_ranks
from tests.small_run import small_settings
from tests.training.conftest import one_thread, store

__all__ = ["one_thread", "ranks_command", "script", "store", "two_ranks_straight"]


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchrun starts files."""
    path = tmp_path_factory.mktemp("script") / "train_waiting.py"
    path.write_text(WAITING)
    return path


@pytest.fixture(scope="session")
def ranks_command(store: Path) -> list[str]:
    """The settings of a short run."""
    return ["tiny", *small_settings(data=store)]


@pytest.fixture(scope="session")
def two_ranks_straight(script: Path, ranks_command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on two ranks that was never stopped."""
    run = tmp_path_factory.mktemp("straight") / "run"
    process = start_ranks(script, [*ranks_command, "--output", str(run)], run.parent)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.count("trained 6 steps") == 1, "one rank tells"
    return run
