"""The processes that a launcher such as torchrun started for one run, and what they agree on outside of the network.

What is agreed on here lies on the host and goes over gloo, so that no GPU waits for it; the collectives of the training
step have the default process group to themselves.
"""

import errno
import gc
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from detection3d.errors import UserError
from detection3d.training.launch import Launch, host_name
from detection3d.training.lost_rank import explain_lost_rank, first_line
from detection3d.training.neighbour_watch import watched_neighbour
from detection3d.training.rendezvous import Card, meet
from detection3d.training.stop import Interrupted
from detection3d.types.tensors import make_current

Value = TypeVar("Value")

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for the others in a collective: one of them may be reading from a slow disk."""

NAME_PATIENCE = 30.0  # seconds for the name of a host, which a cluster may make known only when its jobs start


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
def joined_team(
    launch: Launch, device: torch.device, keep: Callable[[Exception], None] = lambda _: None
) -> Iterator[Team]:
    """Join the ranks that a launcher started.

    Args:
        launch: what the launcher says of this process.
        device: of this rank; NCCL serves CUDA devices, gloo the CPU.
        keep: is given what this process ends with where it can't be raised: see `neighbour_watch`.

    Raises:
        UserError: the ranks can't find each other or don't fit together, or one of them ended while the others were at
            work.
    """
    if launch.size == 1:
        yield Team()
        return
    make_current(device)
    try:
        store = meet(_store(launch), _card(launch, device), PATIENCE)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.size, timeout=PATIENCE)
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(control, dist.ProcessGroup)  # else this rank would not be in it
    except RuntimeError as error:  # torch's own errors of this kind are RuntimeErrors
        raise UserError(_could_not_join(error, launch)) from error
    try:
        with watched_neighbour(launch, control, keep):
            yield Team(launch.rank, launch.size, control)
    except RuntimeError as error:
        if (explanation := explain_lost_rank(error, PATIENCE)) is None:
            raise
        raise UserError(explanation) from error
    except Interrupted:  # which all ranks have agreed on, so nothing is under way
        if device.type == "cpu":  # NCCL's communicator is held by graphs, and those by the traceback
            dist.destroy_process_group()
        raise
    gc.collect()  # recorded graphs, which lie in cycles, hold NCCL's communicator: it would wait for them to go
    dist.destroy_process_group()  # not after an error: NCCL would wait for a collective that can't end


def _store(launch: Launch) -> Store:
    """Return the launcher's store, or open one on rank 0; whatever lies in it, the run's keys are apart."""
    _find_host(launch)
    opens = launch.rank == 0 and not launch.store_is_there
    # Not waiting for the workers: `meet` does that, and says for whom.
    store = TCPStore(
        launch.address,
        launch.port,
        launch.size,
        is_master=opens,
        timeout=PATIENCE,
        wait_for_workers=False,
        multi_tenant=opens,
    )
    return PrefixStore(f"detection3d/{launch.run}", store)


def _find_host(launch: Launch) -> None:
    """Refuse an address that has no host: torch would look for it, with warning after warning, for ten minutes."""
    deadline = time.monotonic() + NAME_PATIENCE
    while True:
        try:
            socket.getaddrinfo(launch.address, launch.port)
        except (socket.gaierror, UnicodeError) as error:  # the second, of what can be no name
            if time.monotonic() > deadline or isinstance(error, UnicodeError):
                raise UserError(
                    f"no host is known as {launch.address!r}, where the ranks should meet ({error}); give a"
                    " name that every node can resolve, or an IP address (torchrun --master-addr or --rdzv-endpoint,"
                    " or MASTER_ADDR)"
                ) from None
            time.sleep(0.5)
        else:
            return


def _card(launch: Launch, device: torch.device) -> Card:
    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
    return Card(launch.rank, launch.size, host_name(), device.type, gpu, torch.__version__.partition("+")[0])


def _could_not_join(error: RuntimeError, launch: Launch) -> str:
    where = f"{launch.address}:{launch.port}"
    if "EADDRINUSE" in str(error) or f"errno: {errno.EADDRINUSE}" in str(error):
        return (
            f"port {launch.port} is in use, by another run perhaps; choose another (torchrun --master-port or"
            " --rdzv-endpoint, or MASTER_PORT)"
        )
    return (
        f"could not join the others at {where} ({first_line(error)}); check that rank 0 runs and that the nodes"
        " reach each other. Where a node has several networks, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the"
        " interface that does"
    )
