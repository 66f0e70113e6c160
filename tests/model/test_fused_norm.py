"""The fused batch normalisation: on a GPU, and in Triton's interpreter on machines without one."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from detection3d.model.fused_norm import fused_for
from tests.conftest import ROOT


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernels_do_what_torch_does() -> None:
    from tests.model import norm_checks  # imports Triton

    assert fused_for(torch.zeros(3, 4, device="cuda")) is not None
    for check in norm_checks.CHECKS:
        check("cuda")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, which has wheels for Linux on x86-64")
@pytest.mark.parametrize("checks", ["norm_checks", "site_checks"])
def test_the_kernels_do_what_torch_does_in_the_interpreter(checks: str) -> None:
    # In a process of its own: Triton reads the variable when the kernels are imported.
    command = [sys.executable, "-W", "ignore", "-m", f"tests.model.{checks}"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr


def test_the_cpu_is_left_to_torch() -> None:
    assert fused_for(torch.zeros(3, 4)) is None
