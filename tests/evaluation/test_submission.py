"""Submissions to Waymo's server: what is refused, what goes in, and that Waymo's own messages read it."""

import json
import os
import subprocess

import numpy as np
import pytest
from google.protobuf import json_format

from detection3d.cli import make_submission
from detection3d.cli.run import run
from detection3d.errors import DataError, UserError
from detection3d.evaluation.files.objects import read_detections, write_detections, write_ground_truth
from detection3d.evaluation.files.submission import check_coverage, problems_of, read_information, select_detections
from detection3d.evaluation.files.submission_files import write_submission
from detection3d.evaluation.files.submission_frames import read_frame_list
from detection3d.protos import waymo_pb2
from tests.conftest import ROOT
from tests.data.made_frames import make_frame, write_store
from tests.evaluation.builders import box, found, truth
from tests.evaluation.test_objects import assert_same

INFORMATION = """
task: DETECTION_3D
account_name: "someone@example.com"
unique_method_name: "GradDrop, voxel"
authors: "First Author"
authors: "Zweite Autorin"
affiliation: "Nowhere"
description: "A voxel detector."
method_link: "https://arxiv.org/abs/2010.06808"
sensor_type: LIDAR_ALL
number_past_frames_exclude_current: 2
number_future_frames_exclude_current: 0
object_types: TYPE_VEHICLE
object_types: TYPE_PEDESTRIAN
object_types: TYPE_CYCLIST
latency_second: 0.0625
"""


def random_frames(count: int, boxes: int = 9) -> list:
    rng = np.random.default_rng(0)
    return [
        found(
            np.abs(rng.normal(20, 5, (boxes, 7))),
            rng.uniform(0.03, 1, boxes),
            rng.choice([1, 2, 4], boxes),
            rng.random(boxes) < 0.2,
            key=("segment-1", 10 * k),
        )
        for k in range(count)
    ]


@pytest.fixture
def information(tmp_path) -> waymo_pb2.Submission:
    (tmp_path / "me.txtpb").write_text(INFORMATION)
    return read_information(tmp_path / "me.txtpb")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("task: DETECTION_3D", "", "task is UNKNOWN; it must be DETECTION_3D"),
        ("task: DETECTION_3D", "task: TRACKING_3D", "task is TRACKING_3D; it must be DETECTION_3D"),
        ("someone@example.com", "someone", "account_name is 'someone'; the server wants the account's e-mail address"),
        ('account_name: "someone@example.com"', "", "account_name is missing"),
        ("GradDrop, voxel", "x" * 26, "unique_method_name 'xxxxxxxxxxxxxxxxxxxxxxxxxx' has 26 characters"),
        ("GradDrop, voxel", " ", "unique_method_name is missing"),
        ("Zweite Autorin", "", "authors is missing or has an empty entry"),
        ("Nowhere", "", "affiliation is missing"),
        ("A voxel detector.", "", "description is missing"),
        ("https://", "", "method_link is 'arxiv.org/abs/2010.06808'; give a whole address"),
        ("sensor_type: LIDAR_ALL", "", "sensor_type is missing"),
        ("number_past_frames_exclude_current: 2", "", "number_past_frames_exclude_current is missing"),
        ("future_frames_exclude_current: 0", "future_frames_exclude_current: -1", "_exclude_current is -1"),
        ("TYPE_CYCLIST", "TYPE_VEHICLE", "object_types is VEHICLE, PEDESTRIAN, VEHICLE; name each"),
        ("TYPE_CYCLIST", "TYPE_UNKNOWN", "object_types is VEHICLE, PEDESTRIAN, UNKNOWN; name each"),
        ("0.0625", "-1", r"latency_second is -1\.0; it must be positive"),
        ("0.0625", "nan", "latency_second is nan; it must be positive"),
        ("task: DETECTION_3D", "inference_results {}", "inference_results is there already"),
        ("authors", "author", "not a Submission message in protobuf's text format: .*author"),
        ("DETECTION_3D", "DETECTION", "not a Submission message in protobuf's text format: .*DETECTION"),
    ],
)
def test_fields_that_the_server_refuses(tmp_path, old, new, problem):
    path = tmp_path / "me.txtpb"
    assert old in INFORMATION
    path.write_text(INFORMATION.replace(old, new, 1))
    with pytest.raises(DataError, match=problem):
        read_information(path)


def test_all_problems_are_named_at_once(information):
    assert problems_of(information) == []
    information.unique_method_name = "x" * 25
    assert problems_of(information) == []
    assert len(problems_of(waymo_pb2.Submission())) == 9


def test_boxes_are_left_out_as_by_the_official_tool(information):
    low = found([box(k) for k in range(4)], [0.029, 0.03, 0.5, 0.4])
    flat = found([(1, 2, 3, 0, -1, 5, 0.1)], 0.9, key=("segment", 1))
    selection = select_detections([low, flat, found([], key=("segment", 2))], information)
    assert [selection.boxes, selection.below_min_score, selection.enlarged, selection.beyond_max_boxes] == [4, 1, 1, 0]
    np.testing.assert_array_equal(selection.detections[0].boxes, low.boxes[1:])
    np.testing.assert_array_equal(selection.detections[1].boxes[0], np.float32([1, 2, 3, 1e-6, 1e-6, 5, 0.1]))
    assert flat.boxes[0, 3] == 0, "the given arrays stay as they are"
    assert len(selection.detections[2].boxes) == 0
    best = select_detections([low], information, min_score=0, max_boxes=2)
    np.testing.assert_array_equal(best.detections[0].scores, np.float32([0.5, 0.4]))
    assert best.beyond_max_boxes == 2
    with pytest.raises(UserError, match=r"no box is left to submit: 4 have a score below 0\.95"):
        select_detections([low], information, min_score=0.95)
    signs = found([box(), box(), box()], types=[3, 1, 3])
    with pytest.raises(UserError, match="the detections have 2 of type SIGN, which the submission doesn't name"):
        select_detections([signs], information)
    information.ClearField("object_types")
    assert select_detections([signs], information).boxes == 3
    with pytest.raises(UserError, match="1 of type UNKNOWN"):
        select_detections([found([box()], types=0)], information)


def test_frames_are_compared_with_the_expected_ones():
    frames = random_frames(4)
    keys = {item.key for item in frames}
    assert check_coverage(frames, keys) == 0
    with pytest.raises(UserError, match=r"1 of 4 frames aren't among the 3 expected ones .* such as segment-1 at 20"):
        check_coverage(frames, keys - {("segment-1", 20)})
    with pytest.raises(UserError, match="2 of 6 expected frames have no detections, such as segment-1 at 99"):
        check_coverage(frames, keys | {("segment-1", 99), ("segment-2", 1)})
    assert check_coverage(frames, keys | {("segment-1", 99), ("segment-2", 1)}, allow_missing=True) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 1\na 1\n", "line 2: frame a at 1 occurs twice"),
        ("a 1\nb\n", "line 2 is 'b'; write CONTEXT_NAME TIMESTAMP_MICROS"),
        ("a x\n", "line 1 is 'a x'"),
        ("# nothing\n\n", "names no frame"),
    ],
)
def test_frame_lists_that_make_no_sense(tmp_path, text, message):
    (tmp_path / "frames.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_frame_list(tmp_path / "frames.txt")


def test_what_is_submitted_is_read_back(tmp_path, information):
    frames = random_frames(7)
    files = write_submission(tmp_path / "out", information, [*frames, found([], key=("empty", 0))], shards=3)
    assert files.archive == tmp_path / "out/GradDrop_voxel.tar.gz"
    assert [path.name for path in files.shards] == ["GradDrop_voxel0", "GradDrop_voxel1", "GradDrop_voxel2"]
    for path in (files.archive, tmp_path / "out/shards"):
        by_key = {item.key: item for item in read_detections(path)}
        assert len(by_key) == 7
        for item in frames:
            assert_same(by_key[item.key], item)
    for path in files.shards:
        parsed = waymo_pb2.Submission.FromString(path.read_bytes())
        assert 18 <= len(parsed.inference_results.objects) <= 27
        parsed.ClearField("inference_results")
        assert parsed == information
    again = write_submission(tmp_path / "again", information, frames, shards=3)
    assert again.archive.read_bytes() == files.archive.read_bytes()
    with pytest.raises(UserError, match=r"GradDrop_voxel\.tar\.gz is there already; choose another folder"):
        write_submission(tmp_path / "out", information, frames)
    with pytest.raises(UserError, match="8 shards for 7 frames with boxes; give a number from 1 to 7"):
        write_submission(tmp_path / "new", information, frames, shards=8)
    assert not (tmp_path / "new").exists()


def test_a_shard_that_protobuf_could_not_read(tmp_path, information, monkeypatch):
    monkeypatch.setattr("detection3d.evaluation.files.submission_files.MAX_MESSAGE", 1000)
    with pytest.raises(UserError, match="but protobuf reads at most 1,000; use more shards"):
        write_submission(tmp_path / "out", information, random_frames(7), shards=2)


def test_the_tool(tmp_path, capfd):
    frames = random_frames(6)
    (tmp_path / "me.txtpb").write_text(INFORMATION)
    write_detections(tmp_path / "d.parquet", frames)
    (tmp_path / "frames.txt").write_text("".join(f"segment-1 {10 * k}\n" for k in range(6)))
    write_ground_truth(tmp_path / "g.bin", [truth([box()], key=("segment-1", 10 * k)) for k in range(7)])
    command = ["--predictions", str(tmp_path / "d.parquet"), "--information", str(tmp_path / "me.txtpb")]
    out = ["--output", str(tmp_path / "out")]
    assert run(make_submission.main, [*command, *out, "--frames", str(tmp_path / "g.bin")]) == 1
    assert "error: 1 of 7 expected frames have no detections, such as segment-1 at 60" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(make_submission.main, [*command, *out, "--frames", str(tmp_path / "frames.txt")]) == 0
    said = capfd.readouterr().out
    assert "frames    6 expected, 0 without detections, none besides" in said
    assert "boxes     54; left out: 0 with a score below 0.03" in said
    assert f"upload    {tmp_path / 'out/GradDrop_voxel.tar.gz'}" in said
    assert len(read_detections(tmp_path / "out/GradDrop_voxel.tar.gz")) == 6
    others = [
        "--output",
        str(tmp_path / "second"),
        "--frames",
        str(tmp_path / "g.bin"),
        "--allow-missing",
        "--shards=1",
    ]
    assert run(make_submission.main, [*command, *others, "--max-boxes", "2"]) == 0
    said = capfd.readouterr().out
    assert "frames    7 expected, 1 without detections" in said
    assert "boxes     12; " in said
    assert "42 beyond the best of their frame" in said
    assert run(make_submission.main, [*command, *out, "--min-score", "3"]) == 1
    assert "error: --min-score 3.0: scores lie in [0, 1]" in capfd.readouterr().err


def test_the_frames_of_a_store(tmp_path, capfd):
    made = [make_frame("one", 1), make_frame("one", 2), make_frame("two", 3, boxes=None)]
    write_store(tmp_path / "store", {"one": made[:2], "two": made[2:]})
    keys = [frame.key for frame in made]
    write_detections(tmp_path / "d.parquet", [found([box()], key=key) for key in keys[1:]])
    (tmp_path / "me.txtpb").write_text(INFORMATION)
    command = ["--predictions", str(tmp_path / "d.parquet"), "--information", str(tmp_path / "me.txtpb")]
    command += ["--frames", str(tmp_path / "store"), "--output", str(tmp_path / "out"), "--shards", "1"]
    assert run(make_submission.main, command) == 1
    assert f"1 of {len(keys)} expected frames have no detections" in capfd.readouterr().err
    write_detections(tmp_path / "d.parquet", [found([box()], key=key) for key in keys])
    assert run(make_submission.main, command) == 0
    assert f"frames    {len(keys)} expected, 0 without" in capfd.readouterr().out


OFFICIAL = """
import json, sys
from google.protobuf import json_format
from waymo_open_dataset.protos import submission_pb2
for path in sys.argv[1:]:
    message = submission_pb2.Submission.FromString(open(path, "rb").read())
    print(json.dumps(json_format.MessageToDict(message, preserving_proto_field_name=True)))
"""


@pytest.mark.slow
def test_official_messages_read_the_shards(tmp_path, information, evaluation_python):
    information.docker_image_source = "gs://bucket/image.tar.gz"
    files = write_submission(tmp_path / "out", information, random_frames(10), shards=3)
    read = subprocess.run(
        [str(evaluation_python), "-c", OFFICIAL, *map(str, files.shards)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    lines = read.stdout.splitlines()
    assert len(lines) == 3
    for line, path in zip(lines, files.shards, strict=True):
        ours = waymo_pb2.Submission.FromString(path.read_bytes())
        expected = json_format.MessageToDict(ours, preserving_proto_field_name=True)
        assert json.loads(line) == expected
        assert len(expected["inference_results"]["objects"]) >= 27
        assert set(expected) == {field.name for field in waymo_pb2.Submission.DESCRIPTOR.fields}
