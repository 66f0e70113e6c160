import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detection3d.errors import DataError, UserError
from detection3d.evaluation.files.objects import (
    read_detections,
    read_ground_truth,
    write_detections,
    write_ground_truth,
)
from detection3d.evaluation.inputs import count_not_finite
from detection3d.protos import waymo_pb2
from tests.evaluation.builders import box, found, truth

DETECTIONS = (
    found([box(10, heading=3.1), box(20)], scores=[0.25, 0.9], types=[1, 4], in_zone=[True, False], key=("a", 2)),
    found([box(30)], key=("a", 1)),
)
TRUTH = (truth([box(10), box(20)], levels=[1, 2], types=[1, 2], key=("a", 2)), truth([box(30)], key=("b", 1)))


def assert_same(left, right):
    assert type(left) is type(right)
    assert left.key == right.key
    for field in dataclasses.fields(left):
        a, b = getattr(left, field.name), getattr(right, field.name)
        np.testing.assert_array_equal(a, b)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype, field.name


@pytest.mark.parametrize("suffix", [".parquet", ".bin"])
def test_what_is_written_is_read(tmp_path, suffix):
    write_detections(tmp_path / f"detections{suffix}", DETECTIONS)
    for read, written in zip(read_detections(tmp_path / f"detections{suffix}"), DETECTIONS, strict=True):
        assert_same(read, written)
    write_ground_truth(tmp_path / f"truth{suffix}", TRUTH)
    for read, written in zip(read_ground_truth(tmp_path / f"truth{suffix}"), TRUTH, strict=True):
        assert_same(read, written)
    assert len(list(tmp_path.iterdir())) == 2, "no temporary file is left"


def test_parquet_keeps_frames_without_boxes(tmp_path):
    path = tmp_path / "detections.parquet"
    for frames in ([found([], key=("a", 1)), DETECTIONS[0], found([], key=("a", 3))], [found([])], []):
        write_detections(path, frames)
        read = read_detections(path)
        assert [item.key for item in read] == [item.key for item in frames]
        for left, right in zip(read, frames, strict=True):
            assert_same(left, right)
    path = tmp_path / "truth.parquet"
    write_ground_truth(path, [truth([], key=("a", 1)), *TRUTH])
    assert [len(item) for item in read_ground_truth(path)] == [0, 2, 1]


@pytest.mark.parametrize("suffix", [".parquet", ".bin"])
def test_detections_keep_their_velocity(tmp_path, suffix):
    path = tmp_path / f"detections{suffix}"
    speeds = (np.float32([[1, -2], [30, 0.5]]), np.float32([[-7, 8]]))
    moving = [dataclasses.replace(item, velocity=speed) for item, speed in zip(DETECTIONS, speeds, strict=True)]
    write_detections(path, moving)
    for read, written in zip(read_detections(path), moving, strict=True):
        assert_same(read, written)
    write_detections(path, [moving[0], DETECTIONS[1]])  # one frame's alone can't be told in columns
    assert (read_detections(path)[0].velocity is None) == (suffix == ".parquet")
    assert read_detections(path)[1].velocity is None
    with pytest.raises(UserError, match=r"2 detections, but velocity has shape \(1, 2\); it must be \(2, 2\)"):
        write_detections(path, [dataclasses.replace(DETECTIONS[0], velocity=speeds[1])])


@pytest.mark.parametrize("suffix", [".parquet", ".bin"])
def test_unknown_velocity_stays_unknown(tmp_path, suffix):
    path = tmp_path / f"truth{suffix}"
    write_ground_truth(path, [dataclasses.replace(TRUTH[0], velocity=None), TRUTH[1]])
    first, second = read_ground_truth(path)
    assert first.velocity is None
    assert_same(second, TRUTH[1])


def test_official_files_survive_a_round_trip(shared, tmp_path):
    folder = shared / "waymo/metrics"
    detections = read_detections(folder / "fake_predictions.bin")
    assert len(detections) == 20
    assert sum(len(item.boxes) for item in detections) == 2263
    ground_truth = read_ground_truth(folder / "fake_ground_truths.bin")
    assert sum(len(item) for item in ground_truth) == 905
    for suffix in (".bin", ".parquet"):
        write_detections(tmp_path / f"d{suffix}", detections)
        write_ground_truth(tmp_path / f"g{suffix}", ground_truth)
        for left, right in zip(read_detections(tmp_path / f"d{suffix}"), detections, strict=True):
            assert_same(left, right)
        for left, right in zip(read_ground_truth(tmp_path / f"g{suffix}"), ground_truth, strict=True):
            assert_same(left, dataclasses.replace(right, without_points=0))  # what is left out is not written


@pytest.mark.parametrize("read", [read_detections, read_ground_truth])
@pytest.mark.parametrize("suffix", [".parquet", ".bin"])
@pytest.mark.parametrize("content", [b"", b"not what it seems\n" * 20, bytes(500), b"PAR1" + bytes(40) + b"PAR1"])
def test_files_of_another_kind_are_refused(tmp_path, read, suffix, content):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="file"):
        read(path)


@pytest.mark.parametrize("suffix", [".parquet", ".bin"])
def test_a_file_cut_short_is_refused(tmp_path, suffix):
    path = tmp_path / f"detections{suffix}"
    write_detections(path, DETECTIONS)
    content = path.read_bytes()
    for length in range(1, len(content), 7 if suffix == ".bin" else 97):
        path.write_bytes(content[:length])
        # Cut between two objects, a .bin is a shorter list: the format can't tell.
        try:
            read = read_detections(path)
        except DataError:
            continue
        assert suffix == ".bin"
        assert 0 < sum(len(item.boxes) for item in read) < 3


def test_detections_and_ground_truth_are_told_apart(tmp_path):
    for suffix in (".parquet", ".bin"):
        write_detections(tmp_path / f"d{suffix}", DETECTIONS)
        write_ground_truth(tmp_path / f"g{suffix}", TRUTH)
    with pytest.raises(DataError, match="not a file of ground truth: it says 'detections'"):
        read_ground_truth(tmp_path / "d.parquet")
    with pytest.raises(DataError, match="not a file of detections: it says 'ground truth'"):
        read_detections(tmp_path / "g.parquet")
    with pytest.raises(DataError, match="no object has num_lidar_points_in_box"):
        read_ground_truth(tmp_path / "d.bin")
    with pytest.raises(DataError, match=r"g\.bin, record 0: the object has no score"):
        read_detections(tmp_path / "g.bin")


def rewritten(path, change):
    table = change(pq.read_table(path))
    pq.write_table(table, path)


def test_damaged_columns_are_named(tmp_path):
    path = tmp_path / "detections.parquet"

    def without_score(table):
        return table.drop_columns(["score"])

    def other_version(table):
        return table.replace_schema_metadata({"detection3d": "detections", "detection3d_version": "99"})

    def foreign(table):
        return table.replace_schema_metadata({})

    def shorter_list(table):
        index = table.column_names.index("type")
        return table.set_column(index, "type", pa.array([[1], [1]], pa.list_(pa.uint8())))

    def null_in_a_list(table):
        index = table.column_names.index("score")
        return table.set_column(index, "score", pa.array([[0.5, None], [0.5]], pa.list_(pa.float32())))

    def nameless(table):
        return table.set_column(0, "context_name", pa.array(["a", None], pa.string()))

    def score_beyond_one(table):
        index = table.column_names.index("score")
        return table.set_column(index, "score", pa.array([[0.5, 2.0], [0.5]], pa.list_(pa.float32())))

    for change, message in (
        (without_score, "column score is missing"),
        (other_version, "has version '99'"),
        (foreign, "doesn't say what it holds"),
        (shorter_list, "column type has other lengths"),
        (null_in_a_list, "column score holds nulls"),
        (nameless, "doesn't name its frame"),
        (score_beyond_one, r"frame a at 2: detection 1 has score 2\.0"),
    ):
        write_detections(path, DETECTIONS)
        rewritten(path, change)
        with pytest.raises(DataError, match=message):
            read_detections(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.ClearField("context_name"), "record 1: the object doesn't name its frame"),
        (lambda entry: entry.object.ClearField("box"), "record 1: the object has no box"),
        (lambda entry: setattr(entry, "camera_name", 1), "record 1: the object belongs to a camera"),
        (lambda entry: setattr(entry, "score", float("nan")), "frame a at 2: detection 1 has score nan"),
    ],
)
def test_damaged_objects_are_named(tmp_path, change, message):
    path = tmp_path / "detections.bin"
    write_detections(path, DETECTIONS)
    objects = waymo_pb2.Objects.FromString(path.read_bytes())
    change(objects.objects[1])
    path.write_bytes(objects.SerializeToString())
    with pytest.raises(DataError, match=message):
        read_detections(path)


def test_numbers_beyond_float32_become_infinite(tmp_path):
    path = tmp_path / "detections.bin"
    write_detections(path, DETECTIONS)
    objects = waymo_pb2.Objects.FromString(path.read_bytes())
    objects.objects[1].object.box.length = 1e300
    path.write_bytes(objects.SerializeToString())
    assert count_not_finite(read_detections(path)) == 1
    assert count_not_finite(DETECTIONS) == 0


def test_what_cannot_be_evaluated_is_not_written(tmp_path):
    path = tmp_path / "detections.parquet"
    write_detections(path, DETECTIONS)
    before = path.read_bytes()
    with pytest.raises(UserError, match="not finite"):
        write_detections(path, [found([box(float("nan"))])])
    assert path.read_bytes() == before
    with pytest.raises(UserError, match=r"can't hold frames without boxes; use \.parquet"):
        write_detections(tmp_path / "detections.bin", [found([])])
    with pytest.raises(UserError, match=r"the suffix is '\.json'; use \.parquet"):
        write_detections(tmp_path / "detections.json", DETECTIONS)
