"""A Slurm cluster of this one machine, on loopback, from the daemons that are installed here; it ends with the test."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from tests.conftest import ROOT
from tests.small_run import environment

DAEMONS = ("munged", "slurmctld", "slurmd")
# cred_expire: for so long a job that was queued again has to wait, 120 s unless told.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE OverSubscribe=FORCE:4
"""


def missing() -> str | None:
    """Return why no cluster can be started here, or None."""
    if os.geteuid() != 0:
        return "slurmd needs root"
    absent = [name for name in (*DAEMONS, "sbatch") if shutil.which(name) is None]
    return f"no {', '.join(absent)} (Debian: apt-get install slurm-wlm munge)" if absent else None


class SlurmNode:
    """The running cluster; use it in a `with` statement."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="slurm")  # short: a socket's path has 108 bytes at most
        self._processes: list[subprocess.Popen[bytes]] = []
        self.folder = Path(self._folder.name)

    def __enter__(self) -> "SlurmNode":
        host = socket.gethostname().partition(".")[0]
        config = self.folder / "slurm.conf"
        config.write_text(CONFIG.format(host=host, folder=self.folder, port=_free_port(), node_port=_free_port()))
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(64))
        key.chmod(0o600)
        files = {name: str(self.folder / f"munge.{name}") for name in ("socket", "pid", "log", "seed")}
        options = [f"--{name}{'' if name == 'socket' else '-file'}={path}" for name, path in files.items()]
        self._start("munged", "--foreground", "--force", f"--key-file={key}", *options)
        self._wait(lambda: Path(files["socket"]).exists(), "munged")
        self._start("slurmctld", "-D", "-f", str(config))
        self._start("slurmd", "-D", "-f", str(config))
        self._wait(lambda: "idle" in self.call("sinfo", "-h", "-o", "%T", check=False), "the node")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["scancel", "--signal=KILL", "--full", "--me"], env=self.environment(), check=False)
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            process.wait(30)
        self._folder.cleanup()

    def environment(self) -> dict[str, str]:
        return environment(SLURM_CONF=str(self.folder / "slurm.conf"), PYTHONPATH=str(ROOT))

    def call(
        self, *command: str, cwd: Path = ROOT, check: bool = True, variables: Mapping[str, str] | None = None
    ) -> str:
        variables = {**self.environment(), **(variables or {})}
        answer = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
        assert answer.returncode == 0 or not check, answer.stderr
        return answer.stdout

    def wait_for_end(self, job: str, seconds: float = 180.0) -> dict[str, str]:
        """Return what Slurm says of a job that has ended, having been queued again as often as it asked for."""
        deadline = time.monotonic() + seconds
        while True:
            shown = self.call("scontrol", "-o", "show", "job", job)
            fields = dict(part.split("=", 1) for part in shown.split() if "=" in part)
            if fields["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
                return fields
            assert time.monotonic() < deadline, f"{shown}\n{self.log('slurmctld')}"
            time.sleep(0.5)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text(errors="replace")[-4000:]

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("wb") as output:
            process = subprocess.Popen(command, env=self.environment(), stdout=output, stderr=output)
        self._processes.append(process)

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 30
        while not ready():
            logs = "\n".join(self.log(name) for name in DAEMONS[: len(self._processes)])
            assert time.monotonic() < deadline, f"{what} did not come up:\n{logs}"
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
