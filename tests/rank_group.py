"""Processes that train together, started once and given many things to do."""

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

TIMEOUT = 60.0  # seconds, after which ranks count as hanging


class RankGroup:
    """`size` processes in one process group; use it in a `with` statement.

    Args:
        size: number of ranks.
        backend: gloo, or nccl, for which each rank has a GPU of its own.
    """

    def __init__(self, size: int, backend: str = "gloo") -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        # Forked from a server that has imported torch once: the import takes longer than most tests.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.rank_group", "detection3d.training.loop"])
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            store = Path(self._folder.name) / "store"
            process = context.Process(target=_serve, args=(theirs, rank, size, str(store), backend), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def __enter__(self) -> "RankGroup":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float = TIMEOUT) -> list[Any]:
        """Call `function(rank, *arguments)` on every rank, and return what it returned, by rank.

        Raises:
            EOFError: a rank ended.
            AssertionError: a rank raised, or did not answer in time.
        """
        for connection in self._connections:
            _send(connection, (function, arguments))
        results: dict[int, Any] = {}
        failures: list[str] = []
        while len(results) < self.size:
            waiting = [connection for rank, connection in enumerate(self._connections) if rank not in results]
            ready = wait(waiting, timeout)
            if not ready:
                raise AssertionError(f"ranks {sorted(set(range(self.size)) - set(results))} hang for {timeout:g} s")
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = self._connections.index(connection)
                failed, results[rank] = pickle.loads(connection.recv_bytes())
                if failed:
                    failures.append(f"rank {rank}: {results[rank]}")
        if failures:
            raise AssertionError("\n".join(failures))
        return [results[rank] for rank in range(self.size)]


def _serve(connection: Connection, rank: int, size: int, store: str, backend: str) -> None:
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT))
    while True:
        try:
            function, arguments = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = False, function(rank, *arguments)
        except BaseException:
            answer = True, traceback.format_exc()
        _send(connection, answer)


def _send(connection: Connection, content: Any) -> None:
    # Not `connection.send`, for which torch hands tensors over in shared memory, slowly.
    connection.send_bytes(pickle.dumps(content))
