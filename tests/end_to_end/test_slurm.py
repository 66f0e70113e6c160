"""Training under a real Slurm of one node: what its batch scripts promise happens, to the same bits."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from detection3d.training.recorder import read_metrics
from tests.conftest import ROOT
from tests.end_to_end.processes import assert_same_run, logged
from tests.end_to_end.slurm_node import SlurmNode, missing

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]
NO_GPU = ("--gpus-per-node=0", "--cpus-per-task=1", "--time=10")


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmNode]:
    with SlurmNode() as node:
        yield node


def submit(slurm: SlurmNode, batch: str, cwd: Path, script: Path, arguments: list[str], *options: str) -> str:
    variables = {"PROJECT": str(ROOT), "PYTHON": sys.executable, "TRAIN": str(script), "RANKS": "2"}
    variables |= {"RUN": str(cwd / "run"), "AGAIN": "2"}
    command = ["sbatch", "--parsable", *NO_GPU, "--output", str(cwd / "job-%a.out"), *options]
    return slurm.call(*command, str(ROOT / "tools" / "slurm" / batch), *arguments, cwd=cwd, variables=variables).strip()


def wait_for_step(slurm: SlurmNode, job: str, run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not any(row["step"] == step for row in read_metrics(run / "metrics.jsonl")):
        assert time.monotonic() < deadline, slurm.call("scontrol", "show", "job", job)
        time.sleep(0.1)


def test_a_job_whose_time_is_up_saves_is_queued_again_and_ends_in_the_same_bits(
    slurm: SlurmNode, script: Path, ranks_command: list[str], two_ranks_straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = submit(slurm, "train.sbatch", tmp_path, script, ["2", "2.0", *ranks_command, "--device", "cpu"])
    wait_for_step(slurm, job, run, 3)
    slurm.call("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@180 does
    ended = slurm.wait_for_end(job)
    said = "".join(path.read_text() for path in tmp_path.glob("job-*.out"))
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), said
    assert "notice to stop: handing it on to the ranks" in said
    assert "queueing the job again" in said
    assert "training on from step" in said
    assert len(json.loads((run / "provenance.json").read_text())) == 2
    assert not (run / "stopped").exists()
    assert_same_run(run, two_ranks_straight)


def test_a_job_that_fails_is_not_queued_again(
    slurm: SlurmNode, script: Path, ranks_command: list[str], tmp_path: Path
) -> None:
    wrong = ["99", "0", *ranks_command, "training.batch_size=1", "--device", "cpu"]
    ended = slurm.wait_for_end(submit(slurm, "train.sbatch", tmp_path, script, wrong))
    assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("FAILED", "0", "1:0")
    assert "2 ranks would not have a sample each" in next(tmp_path.glob("job-*.out")).read_text()


def test_an_array_trains_a_seed_in_each_job(
    slurm: SlurmNode, script: Path, ranks_command: list[str], two_ranks_straight: Path, tmp_path: Path
) -> None:
    arguments = ["99", "0", *ranks_command, "--device", "cpu"]
    job = submit(slurm, "train_array.sbatch", tmp_path, script, arguments, "--array=0-1")
    for index in (0, 1):
        assert slurm.wait_for_end(f"{job}_{index}")["JobState"] == "COMPLETED"
    assert_same_run(tmp_path / "run" / "seed_0", two_ranks_straight)
    assert logged(tmp_path / "run" / "seed_1") != logged(two_ranks_straight)


def test_srun_without_torchrun_starts_ranks_too_and_their_status_asks_for_more(
    slurm: SlurmNode, script: Path, ranks_command: list[str], two_ranks_straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    training = [sys.executable, str(script), "2", "2.0", *ranks_command, "--device", "cpu", "--output", str(run)]
    quoted = " ".join(f"'{part}'" for part in training)
    command = ["sbatch", "--parsable", "--ntasks=2", "--overcommit", "--output", str(tmp_path / "job.out")]
    job = slurm.call(*command, "--wrap", f"srun --overcommit {quoted}", cwd=tmp_path).strip()
    wait_for_step(slurm, job, run, 3)
    slurm.call("scancel", "--signal=USR1", job)
    ended = slurm.wait_for_end(job)
    assert ended["ExitCode"] == "75:0", (tmp_path / "job.out").read_text()
    assert (run / "stopped").exists()
    job = slurm.call(*command, "--wrap", f"srun --overcommit {quoted}", cwd=tmp_path).strip()
    assert slurm.wait_for_end(job)["JobState"] == "COMPLETED"
    assert_same_run(run, two_ranks_straight)
