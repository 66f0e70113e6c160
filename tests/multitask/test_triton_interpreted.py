"""The fused kernels in Triton's interpreter, so that what they compute is tested on machines without a GPU, too."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.triton_interpreter import needs_interpreter

pytestmark = [
    pytest.mark.slow,
    needs_interpreter,
]


def test_the_kernels_do_what_torch_does() -> None:
    # In a process of its own: Triton reads the variable when the kernels are imported.
    command = [sys.executable, "-W", "ignore", "-m", "tests.multitask.kernel_checks"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
