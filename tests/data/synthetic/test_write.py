import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detection3d.cli.make_synthetic import main
from detection3d.cli.run import run
from detection3d.data.synthetic import write
from detection3d.data.synthetic.rigs import RigConfig, tiny_rig
from detection3d.data.synthetic.write import write_segments
from detection3d.data.waymo import read_segment
from detection3d.errors import UserError
from tests.conftest import ROOT
from tests.small_run import group_ends


def _small_rig() -> RigConfig:
    """The tiny rig with fewer columns yet: these tests are about files."""
    lidars = tuple(dataclasses.replace(lidar, columns=lidar.columns // 6) for lidar in tiny_rig().lidars)
    return RigConfig("small", lidars)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def test_one_worker_and_two_write_the_same_bytes(tmp_path: Path) -> None:
    for workers in (1, 2):
        reports = write_segments(tmp_path / str(workers), 2, 2, 3, _small_rig(), interval=0.5, workers=workers)
        assert [len(report.frames) for report in reports] == [2, 2]
    contents = _contents(tmp_path / "1")
    assert contents == _contents(tmp_path / "2")
    names = [name for name in contents if name.endswith(".tfrecord")]
    assert len(names) == 2
    assert len({contents[name] for name in names}) == 2
    for name in names:
        frames = list(read_segment(tmp_path / "1" / name))
        assert name == f"segment-{frames[0].context_name}_with_camera_labels.tfrecord"
        stamps = [frame.timestamp_micros for frame in frames]
        assert stamps[1] - stamps[0] == 500_000


def test_finished_segments_are_kept_and_more_can_be_added(tmp_path: Path) -> None:
    first = write_segments(tmp_path, 1, 1, 3, _small_rig())
    before = first[0].path.stat().st_mtime_ns
    second = write_segments(tmp_path, 2, 1, 3, _small_rig(), workers=1)
    assert [report.skipped for report in second] == [True, False]
    assert first[0].path.stat().st_mtime_ns == before


def test_other_settings_need_another_folder(tmp_path: Path) -> None:
    write_segments(tmp_path, 1, 1, 3, _small_rig())
    before = _contents(tmp_path)
    with pytest.raises(UserError, match="other settings"):
        write_segments(tmp_path, 1, 2, 3, _small_rig())
    assert _contents(tmp_path) == before


def test_an_interrupted_segment_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = write.record_segment

    def interrupted(*arguments):
        yield next(iter(record(*arguments)))
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "record_segment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_segments(tmp_path, 1, 2, 3, _small_rig())
    assert list(_contents(tmp_path)) == ["synthetic.json"]


def test_what_a_killed_run_left_is_removed_and_a_cut_file_written_again(tmp_path: Path) -> None:
    (report,) = write_segments(tmp_path, 1, 1, 3, _small_rig())
    whole = _contents(tmp_path)
    os.truncate(report.path, report.path.stat().st_size - 5)
    report.path.with_name(f"{report.path.name}.123.partial").write_bytes(b"half")
    (again,) = write_segments(tmp_path, 1, 1, 3, _small_rig())
    assert not again.skipped
    assert _contents(tmp_path) == whole


def test_two_runs_into_one_folder_are_refused(tmp_path: Path) -> None:
    refusals = []

    def write_too(_: object) -> None:
        with pytest.raises(UserError, match="another run is writing segments into it"):
            write_segments(tmp_path, 1, 1, 3, _small_rig())
        refusals.append(True)

    write_segments(tmp_path, 1, 1, 3, _small_rig(), on_segment=write_too)
    assert refusals == [True]


class DeadlyRig:
    """Ends the process that unpickles it, as the system ends one for want of memory."""

    name = "deadly"

    def __reduce__(self):
        return os._exit, (9,)


def test_a_killed_worker_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a worker process was killed.*fewer --workers"):
        write_segments(tmp_path, 2, 1, 3, DeadlyRig(), workers=2)


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    tool = [sys.executable, ROOT / "tools" / "make_synthetic.py", "--output", tmp_path, "--rig", "tiny"]
    command = [*tool, "--segments", "2", "--frames", "1000", "--seed", "5", "--workers", "2"]
    with subprocess.Popen(command, start_new_session=True) as process:
        while len(list(tmp_path.glob("*.partial"))) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert group_ends(process.pid, seconds=5)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--frames", "0", "frames is 0; give 1 or more"),
        ("--seed", "-1", "seed is -1; give 0 or more"),
        ("--interval", "0", "interval is 0.0 seconds"),
        ("--workers", "0", "workers is 0"),
    ],
)
def test_numbers_out_of_range_are_named(
    option: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--output", str(tmp_path / "out"), "--segments", "1", "--frames", "1", "--seed", "0", option, value]
    assert run(main, command) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_tool_says_what_it_wrote_and_what_it_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--output", str(tmp_path), "--segments", "1", "--frames", "2", "--seed", "5", "--rig", "tiny"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "2 frames" in first
    assert "ms a frame in ray casting" in first
    assert main(command) == 0
    assert "already there, skipped" in capsys.readouterr().out


def _tell_threads(job: write._Job) -> write.SegmentReport:
    from detection3d.compiled_code import numba

    return write.SegmentReport(job.path.with_name(str(numba.config.NUMBA_NUM_THREADS)), (), 0.0)


def test_each_worker_starts_no_more_than_its_share_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(write, "_write", _tell_threads)
    told: list[str] = []
    jobs = [write._Job(tmp_path / str(number), number, 1, _small_rig(), None, 0.1) for number in range(2)]
    write._write_side_by_side(jobs, 2, 1, lambda report: told.append(report.path.name))
    assert told == ["1", "1"]
