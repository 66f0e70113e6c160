"""Where the shared test data lie, and how tests that need them skip."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("DETECTION3D_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real scans and official results; their licences forbid committing them."""
    if not (SHARED / "waymo").is_dir():
        pytest.skip(f"no real data at {SHARED} (set DETECTION3D_SHARED): their licences forbid committing them")
    return SHARED
