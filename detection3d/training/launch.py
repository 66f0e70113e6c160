"""Who this process is among those that a launcher started, by its environment: torchrun's, Slurm's or one's own.

Needs no torch, so that a tool knows it from its first line on.
"""

import ctypes
import os
import re
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from detection3d.errors import UserError

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_SLURM_PORTS = range(20000, 32000)  # below those that Linux gives to outgoing connections


@dataclass(frozen=True)
class Launch:
    """What a launcher says of this process.

    Attributes:
        rank: number among all processes, from 0.
        size: number of processes.
        local_rank: number among those of this node; None where the launcher does not say.
        local_size: processes on this node; None where the launcher does not say.
        address: where the processes meet: the host of the store.
        port: its port.
        store_is_there: the launcher keeps the store, and keeps it over restarts; else rank 0 opens it.
        run: name of the run, which keeps its keys apart in a store that others use too.
        restarts_left: how often the launcher will start the processes again when one of them fails.
    """

    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    local_size: int | None = None
    address: str = "127.0.0.1"
    port: int = 0
    store_is_there: bool = False
    run: str = ""
    restarts_left: int = 0


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Return what the environment says; one process where it says nothing.

    Understood are torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, LOCAL_RANK ...), which may also be
    set by hand, and those of a Slurm step of several tasks that `srun` started without torchrun.

    Raises:
        UserError: some are missing, or are no numbers.
    """
    if _number(environment, "WORLD_SIZE", 1) > 1 or {"RANK", "WORLD_SIZE"} <= environment.keys():
        return _of_torchrun(environment)
    # Only in what srun started: a batch script has SLURM_PROCID and SLURM_NTASKS too, but is one process.
    if _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _of_slurm(environment)
    return Launch()


def host_name() -> str:
    """Return the name of this node."""
    return socket.gethostname()


def end_with_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Have the system end this process when its parent ends, if that is a launcher: ranks have sessions of their own.

    The rank is asked to stop, and takes the others along with a checkpoint. Where other nodes' launchers can start
    ranks again it is killed: they would take ranks that have stopped for ranks that are done.

    Raises:
        UserError: the environment makes no sense.
    """
    launch = read_launch(environment)
    if sys.platform != "linux" or ("TORCHELASTIC_RUN_ID" not in environment and launch.size == 1):
        return
    number = signal.SIGKILL if launch.restarts_left else signal.SIGTERM
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, number)
    if os.getppid() != parent:  # it ended just before, so no signal will come
        os.kill(os.getpid(), number)


def _of_torchrun(environment: Mapping[str, str]) -> Launch:
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in environment]:
        there = ", ".join(f"{name}={environment[name]}" for name in needed if name in environment)
        raise UserError(f"{there} is set, but {', '.join(missing)} is not; start the ranks with torchrun")
    rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if not 0 <= rank < size:
        raise UserError(f"RANK is {rank} and WORLD_SIZE {size}: ranks count from 0 to WORLD_SIZE - 1")
    restarts = _number(environment, "TORCHELASTIC_MAX_RESTARTS", 0)
    restarts -= _number(environment, "TORCHELASTIC_RESTART_COUNT", 0)
    return Launch(
        rank,
        size,
        _number(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else None,
        _number(environment, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else None,
        environment["MASTER_ADDR"],
        _number(environment, "MASTER_PORT"),
        environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        environment.get("TORCHELASTIC_RUN_ID", ""),
        restarts,
    )


def _of_slurm(environment: Mapping[str, str]) -> Launch:
    needed = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID", "SLURM_STEP_TASKS_PER_NODE")
    if missing := [name for name in (*needed, "SLURM_STEP_NODELIST") if name not in environment]:
        raise UserError(
            f"srun started {environment['SLURM_STEP_NUM_TASKS']} tasks, but {', '.join(missing)} is not set; start one"
            " task a node with torchrun in it (tools/slurm/train.sbatch)"
        )
    job, step = _number(environment, "SLURM_JOB_ID"), _number(environment, "SLURM_STEP_ID", 0)
    port = _SLURM_PORTS[(job * 31 + step) % len(_SLURM_PORTS)]
    tasks = _tasks_by_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    return Launch(
        _number(environment, "SLURM_PROCID"),
        _number(environment, "SLURM_STEP_NUM_TASKS"),
        _number(environment, "SLURM_LOCALID"),
        tasks[_number(environment, "SLURM_NODEID")],
        environment.get("MASTER_ADDR", first_host(environment["SLURM_STEP_NODELIST"])),
        _number(environment, "MASTER_PORT", port),
        run=f"slurm-{job}.{step}",
    )


def first_host(nodes: str) -> str:
    """Return the first host of a list as Slurm writes it: `gpu[03-05,9],login` gives `gpu03`."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


def _tasks_by_node(text: str) -> list[int]:
    """Expand `2(x3),1` to 2, 2, 2, 1."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts


def _number(environment: Mapping[str, str], name: str, otherwise: int | None = None) -> int:
    text = environment.get(name)
    if text is None and otherwise is not None:
        return otherwise
    try:
        return int(text or "")
    except ValueError as error:
        raise UserError(
            f"the environment variable {name} is {text!r}, not a number; start ranks with torchrun"
        ) from error
