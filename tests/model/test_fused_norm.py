"""The fused batch normalisation: on a GPU, and in Triton's interpreter on machines without one."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detection3d.model.fused_norm import fused_for, sites_for
from tests.conftest import ROOT
from tests.triton_interpreter import needs_interpreter


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernels_do_what_torch_does() -> None:
    from tests.model import norm_checks  # imports Triton

    assert fused_for(torch.zeros(3, 4, device="cuda")) is not None
    for check in norm_checks.CHECKS:
        check("cuda")


@pytest.mark.slow
@needs_interpreter
@pytest.mark.parametrize("checks", ["norm_checks", "site_checks"])
def test_the_kernels_do_what_torch_does_in_the_interpreter(checks: str) -> None:
    # In a process of its own: Triton reads the variable when the kernels are imported.
    command = [sys.executable, "-W", "ignore", "-m", f"tests.model.{checks}"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr


def test_the_cpu_is_left_to_torch() -> None:
    assert fused_for(torch.zeros(3, 4)) is None


def test_a_layer_has_sites_for_both_ways_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detection3d.model.fused_norm._kernels", lambda: SimpleNamespace(programs_for=lambda _: 1))
    for room, wanted in ((2, ("a site", "a site")), (1, (None, None)), (0, (None, None))):
        left = iter(["a site"] * room)
        exchange: Any = SimpleNamespace(site=lambda _, left=left: next(left, None))
        assert sites_for(16, exchange) == wanted
    assert sites_for(16, None) == (None, None)
