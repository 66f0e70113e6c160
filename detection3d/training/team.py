"""The processes that a launcher such as torchrun started for one run, and what they agree on outside of the network.

What is agreed on here lies on the host and goes over gloo, so that no GPU waits for it; the collectives of the training
step have the default process group to themselves.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed as dist

from detection3d.errors import UserError

Value = TypeVar("Value")

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for the others in a collective: one of them may be reading from a slow disk."""


_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True)
class Team:
    """The ranks of a run.

    Every rank must call the same methods in the same order.

    Attributes:
        rank: this process's number, from 0.
        size: number of ranks.
        control: their process group on the host; None on one rank.
    """

    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this rank writes what one rank writes for all: the log and the checkpoints."""
        return self.rank == 0

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Return what `make` returns on the first rank, which alone calls it; its error is every rank's error.

        Args:
            make: returns something picklable.

        Raises:
            UserError: on the other ranks, whatever the first one raised.
        """
        if self.size == 1:
            return make()
        value, error = None, None
        if self.first:
            try:
                value = make()
            except Exception as caught:
                error = caught
        outcome = [value, None if error is None else str(error)]
        dist.broadcast_object_list(outcome, src=0, group=self.control)
        if error is not None:
            raise error
        if outcome[1] is not None:
            raise UserError(f"rank {self.rank} ends with rank 0: {outcome[1]}")
        return outcome[0]  # pyright: ignore[reportReturnType]

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier(group=self.control)


class StopAgreement:
    """Whether any rank was asked to stop, so that all of them stop after the same step.

    A cluster may send its signal to one process alone, or to each at another step. The answer on several ranks is that
    of the step before: nobody waits for the slowest.
    """

    def __init__(self, team: Team) -> None:
        self._team = team
        self._asked: tuple[torch.Tensor, dist.Work] | None = None

    def reached(self, requested: bool) -> bool:
        """Tell, once after every step, whether to stop now.

        Args:
            requested: whether this rank was asked to.
        """
        if self._team.size == 1:
            return requested
        answer = False
        if self._asked is not None:
            flag, work = self._asked
            work.wait()
            answer = bool(flag.item())
        flag = torch.tensor(int(requested))
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, self._team.control, async_op=True)
        assert work is not None
        self._asked = flag, work
        return answer


@contextmanager
def joined_team(device: torch.device) -> Iterator[Team]:
    """Join the ranks that a launcher started, by the variables that torchrun sets; one rank where none did.

    Args:
        device: of this rank; NCCL serves CUDA devices, gloo the CPU.

    Raises:
        UserError: the ranks can't find each other, or one of them ended while the others were at work.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" in os.environ or size > 1:
        _stop_with_launcher()
    if size == 1:
        yield Team()
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UserError(f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set; start the ranks with torchrun")
    rank = int(os.environ["RANK"])
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(control, dist.ProcessGroup)  # else this rank would not be in it
    except (RuntimeError, ValueError) as error:  # torch's own errors of this kind are RuntimeErrors
        raise UserError(
            f"rank {rank} of {size} could not join the others at {where} ({_first_line(error)}); check that the port is"
            " free and that the nodes reach each other"
        ) from error
    try:
        yield Team(rank, size, control)
    except RuntimeError as error:
        if not _of_a_lost_rank(error):
            raise
        raise UserError(
            f"rank {rank} of {size}: another rank has ended, look for its message ({_first_line(error)}). The last"
            " checkpoint is intact; run the same command to go on"
        ) from error
    dist.destroy_process_group()  # not after an error: NCCL would wait for a collective that can't end


def _stop_with_launcher() -> None:
    """Have the system ask this process to stop when its parent ends: launchers start ranks in sessions of their own."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _of_a_lost_rank(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
