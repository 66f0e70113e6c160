"""Run independent tasks on a Ray cluster: many machines that see the same files under the same paths."""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from detection3d.data.preparation_pool import WORKER_KILLED, available_cores
from detection3d.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

LOCAL = "local"
"""Address of a cluster that is started on this machine, and ends with the preparation."""

_AHEAD = 2  # tasks for each core of the cluster that wait there: enough to keep it busy, few to cancel
_PATIENCE = 10.0  # seconds
_RETRIES = 3  # of a task whose machine was lost, as preemptible ones are


def run_on_ray(
    function: Callable[[Task], Result], tasks: Sequence[Task], address: str, workers: int | None = None
) -> Iterator[Result]:
    """Call `function` on every task, on a cluster's cores, and yield the results as they come.

    Leaving the loop early, by an exception or Ctrl-C, cancels what has not come back. A task whose machine is lost is
    run again on another, so it must bear to be begun twice.

    Args:
        function: picklable; the package must be installed on every machine, in the same version.
        tasks: picklable.
        address: of a running cluster, as `ray.init` takes it ("auto", "host:6379", "ray://host:10001"), or `LOCAL`.
        workers: tasks at a time, each with a core of its own; None takes every core that the cluster has.

    Yields:
        One result for each task, in the order of their completion.

    Raises:
        UserError: Ray is not installed, there is no cluster at the address, or a task's worker was killed again and
            again.
    """
    ray = _connect(address, workers)
    try:
        at_a_time = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        # A core a task, and so a thread: numba would otherwise start as many as the machine has cores.
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES, runtime_env={"env_vars": {"NUMBA_NUM_THREADS": "1"}})
        call = remote(_plain(function))
        waiting = iter(tasks)
        running: list[Any] = []
        try:
            for task in waiting:
                running.append(call.remote(task))
                if len(running) >= (at_a_time if workers else _AHEAD * at_a_time):
                    yield _next(ray, running)
            while running:
                yield _next(ray, running)
        except BaseException:
            for reference in running:
                ray.cancel(reference, force=True)
            raise
    finally:
        ray.shutdown()


def _plain(function: Callable[[Task], Result]) -> Callable[[Task], Result]:
    """Return a plain function that calls `function`: Ray takes no partial ones."""

    def run(task: Task) -> Result:
        return function(task)

    return run


def _connect(address: str, workers: int | None) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is to be sent anywhere without being asked
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--ray needs Ray, which is not installed: pip install 'detection3d[cluster]'") from None
    own: dict[str, Any] = {}
    if address == LOCAL:
        own = {"num_cpus": workers or available_cores(), "include_dashboard": False}
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--ray {address}: no Ray cluster answers there ({reason}); start one with `ray start --head`, or give"
            f" {LOCAL} to use this machine's cores"
        ) from error
    return ray


def _knock(address: str) -> None:
    """Connect to the port and hang up: where nobody listens, Ray itself would go on trying for a quarter of an hour."""
    place = address.removeprefix("ray://")
    host, separator, port = place.rpartition(":")
    if separator and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()


def _next(ray: Any, running: list[Any]) -> Any:
    """Take the first result that is there out of `running`."""
    (done,), rest = ray.wait(running, num_returns=1)
    running[:] = rest
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        raise UserError(WORKER_KILLED) from error
