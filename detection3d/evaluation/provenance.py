"""Which program on which machine computed something: for metrics.json and the report. Works without torch."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("detection3d", "numpy", "numba", "pyarrow", "protobuf")


def describe_program(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Return time, command, commit, versions and machine, as plain values.

    Args:
        packages: whose versions to name; None stands for one that isn't installed.
    """
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(sys.argv),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "device": processor(),
        "cores": os.cpu_count(),
    }


def processor() -> str:
    """Return the processor's name as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, names), platform.processor() or "CPU")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the checkout that the package lies in, with '+' if files differ; None when installed."""
    try:
        here = ["git", "-C", str(Path(__file__).parent)]
        # An installed package may lie inside a checkout of something else, which does not track it.
        subprocess.run([*here, "ls-files", "--error-unmatch", __file__], capture_output=True, check=True)
        commit = subprocess.run([*here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*here, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
