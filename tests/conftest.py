"""Where the shared test data lie, and how tests that need them skip."""

import os
from pathlib import Path

import pytest

# Tests run in as many processes as there are cores; threads in each would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("DETECTION3D_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real scans and official results; their licences forbid committing them."""
    if not (SHARED / "waymo").is_dir():
        pytest.skip(f"no real data at {SHARED} (set DETECTION3D_SHARED): their licences forbid committing them")
    return SHARED
