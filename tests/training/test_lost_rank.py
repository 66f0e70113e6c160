"""What torch says when a rank is lost, as torch 2.13 says it, in our words."""

from datetime import timedelta

import pytest
from torch import distributed as dist

from detection3d.training.lost_rank import explain_lost_rank

PATIENCE = timedelta(minutes=10)
CLOSED = "[../third_party/gloo/gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:3029"
SLOW = "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 600000ms for recv operation"
NCCL = (
    "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:328, unhandled cuda error, NCCL version 2.21.5\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 'out of memory'"
)
REMOTE = NCCL.replace("unhandled cuda error", "remote process exited or there was a network error")


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (RuntimeError(CLOSED), "another rank has ended, look for its message"),
        (dist.DistNetworkError("Connection reset by peer"), "another rank has ended"),
        (RuntimeError(SLOW), "another rank did not come to the same point within 10 min"),
        (dist.DistBackendError(NCCL), "NCCL failed (NCCL error in: "),
        (dist.DistBackendError(NCCL), "Cuda failure 'out of memory')"),
        (dist.DistBackendError(REMOTE), "another rank has ended"),
    ],
)
def test_lost_ranks(error: RuntimeError, wanted: str) -> None:
    explanation = explain_lost_rank(error, PATIENCE)
    assert explanation is not None
    assert wanted in explanation
    assert "run the same command to go on" in explanation


@pytest.mark.parametrize(
    "message",
    ["[enforce fail at gloo/allreduce.cc:30] output.size() == count. 3 vs 4", "shape '[2]' is invalid", "CUDA error"],
)
def test_defects_keep_their_traceback(message: str) -> None:
    assert explain_lost_rank(RuntimeError(message), PATIENCE) is None
