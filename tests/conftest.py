"""Where the shared test data lie, how tests that need them skip, and what all test processes start from."""

import os
import signal
from pathlib import Path

import pytest

# Tests run in as many processes as there are cores; threads in each would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell lets its background jobs ignore Ctrl-C, and what they start inherits that: tools under test would, too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as nohup leaves it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).resolve().parent.parent
EVALUATION_PYTHON = Path(os.environ.get("DETECTION3D_EVALUATION_PYTHON", ROOT / ".evaluation-env/bin/python"))
SHARED = Path(os.environ.get("DETECTION3D_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real scans and official results; their licences forbid committing them."""
    if not (SHARED / "waymo").is_dir():
        pytest.skip(f"no real data at {SHARED} (set DETECTION3D_SHARED): their licences forbid committing them")
    return SHARED


@pytest.fixture(scope="session")
def evaluation_python() -> Path:
    """Interpreter of the evaluation environment, which has Waymo's own package."""
    if not EVALUATION_PYTHON.exists():
        pytest.skip(
            f"no evaluation environment at {EVALUATION_PYTHON}: `make evaluation-env` builds it; "
            "DETECTION3D_EVALUATION_PYTHON names the interpreter of another"
        )
    return EVALUATION_PYTHON
