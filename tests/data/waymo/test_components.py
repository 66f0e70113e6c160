"""Waymo v2: the same frames as v1 whatever the order and the types of the rows, and an error for what doesn't join."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detection3d.cli import prepare_waymo
from detection3d.data.store import Store
from detection3d.data.waymo import component_frames, decode_frame, read_component_segment
from detection3d.data.waymo.component_frames import COMPONENTS
from detection3d.errors import DataError, UserError
from detection3d.types.scene import Lidar
from tests.data.waymo.made_components import (
    IMAGE,
    NAME,
    NAN,
    POSE,
    MakeFrame,
    Tables,
    assert_same,
    change,
    components,
    messages,
    write,
)


def test_the_same_frames_as_v1_in_any_order_of_the_rows(make_frame: MakeFrame, tmp_path: Path) -> None:
    frames = messages(make_frame)
    wanted = [decode_frame(frame.SerializeToString()) for frame in frames]
    rng = np.random.default_rng(0)
    for turn in range(4):
        tables = components(frames)
        if turn:
            tables = {name: [rows[i] for i in rng.permutation(len(rows))] for name, rows in tables.items()}
        found = list(read_component_segment(write(tmp_path / str(turn), tables)))
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)


def test_rows_in_the_order_of_time_are_not_hoarded(make_frame: MakeFrame, tmp_path: Path) -> None:
    """The first frame comes before the last range images have been read: they may be damaged then."""
    tables = components(messages(make_frame, 5))
    tables["lidar"][-1]["[LiDARComponent].range_image_return1.shape"] = [1, 2, 4]
    frames = read_component_segment(write(tmp_path, tables))
    assert [next(frames).timestamp_micros % 10**7 // 10**5 for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"record 14: FRONT return 1: .* says its shape is"):
        next(frames)


def test_poses_of_frames_that_are_not_wanted_are_not_hoarded(
    make_frame: MakeFrame, tmp_path: Path, monkeypatch
) -> None:
    tables = components(messages(make_frame, 9))
    first = tables["lidar"][0]["key.frame_timestamp_micros"]
    for row in tables["lidar"]:
        if row["key.laser_name"] == Lidar.TOP:
            row[f"{IMAGE}.values"] = row[f"{IMAGE[:-1]}2.values"] = None
    kept: list[int] = []
    take = component_frames._PixelPoses.take

    def watch(self: component_frames._PixelPoses, timestamp: int) -> object:
        found = take(self, timestamp)
        kept.append(len(self._passed))
        return found

    monkeypatch.setattr(component_frames._PixelPoses, "take", watch)
    frames = list(read_component_segment(write(tmp_path, tables), every=2))
    assert [frame.timestamp_micros - first for frame in frames] == [0, 200_000, 400_000, 600_000, 800_000]
    assert kept == [0] * 5


def test_other_types_and_absent_optional_columns(make_frame: MakeFrame, tmp_path: Path) -> None:
    frames = messages(make_frame)
    tables = components(frames)
    for component in ("lidar", "lidar_pose", "lidar_calibration"):
        for row in tables[component]:
            row["key.laser_name"] = Lidar(row["key.laser_name"]).name
    optional = ("speed", "acceleration", "difficulty")
    tables["lidar_box"] = [
        {name: value for name, value in row.items() if not any(word in name for word in optional)}
        for row in tables["lidar_box"]
    ]

    def schema(component: str) -> pa.Schema | None:
        inferred = pa.Table.from_pylist(tables[component]).schema
        fields = []
        for field in inferred:
            kind = field.type
            if field.name.endswith(".shape"):
                kind = pa.list_(pa.int64())
            elif pa.types.is_list(kind):
                kind = pa.large_list(pa.float32()) if "values" in field.name else pa.list_(pa.float64(), 16)
            fields.append(pa.field(field.name, kind))
        return pa.schema(fields)

    for found, frame in zip(read_component_segment(write(tmp_path, tables, schema)), frames, strict=True):
        wanted = decode_frame(frame.SerializeToString())
        np.testing.assert_allclose(found.points, wanted.points, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(found.lidar, wanted.lidar)
        assert found.labels is not None
        assert wanted.labels is not None
        np.testing.assert_array_equal(found.labels.boxes, wanted.labels.boxes)
        assert not found.labels.velocity.any()
        assert not found.labels.acceleration.any()
        assert found.labels.difficulty.tolist() == [0, 0]


def test_one_return_and_an_absent_one(make_frame: MakeFrame, tmp_path: Path) -> None:
    tables = components(messages(make_frame))
    for row in tables["lidar"]:
        if row["key.laser_name"] == Lidar.FRONT:
            row["[LiDARComponent].range_image_return2.values"] = None
    path = write(tmp_path, tables)
    (first, *_) = read_component_segment(path, returns=(2,))
    assert set(first.return_number) == {2}
    assert set(first.lidar) == {Lidar.TOP, Lidar.SIDE_LEFT}
    with pytest.raises(ValueError, match="returns"):
        next(read_component_segment(path, returns=(3,)))


def test_a_test_split_has_no_labels_a_frame_without_objects_empty_ones(make_frame: MakeFrame, tmp_path: Path) -> None:
    tables = components(messages(make_frame, 2))
    last = tables["stats"][-1]["key.frame_timestamp_micros"]
    some = dict(tables)
    for name in ("lidar_box", "lidar_camera_synced_box"):
        some[name] = [row for row in tables[name] if row["key.frame_timestamp_micros"] != last]
    assert [len(frame.labels or ()) for frame in read_component_segment(write(tmp_path / "some", some))] == [2, 0]
    assert all(
        frame.labels is not None for frame in read_component_segment(tmp_path / "some/lidar" / f"{NAME}.parquet")
    )
    bare = {name: rows for name, rows in tables.items() if name not in ("lidar_box", "stats")}
    for frame in read_component_segment(write(tmp_path / "bare", bare)):
        assert frame.labels is None
        assert frame.weather == ""


BROKEN: dict[str, Callable[[Tables], object]] = {
    r"1 of its boxes have no label, the first is \(.*'stranger'\)": lambda tables: tables[
        "lidar_camera_synced_box"
    ].append({**tables["lidar_camera_synced_box"][0], "key.laser_object_id": "stranger"}),
    "lidar/.*, record 4: .*segments 1000_2000 and other": change("lidar", 4, "key.segment_context_name", "other"),
    "lidar/.*, record 3: .*two rows of SIDE_LEFT": lambda tables: tables["lidar"].insert(3, tables["lidar"][0]),
    "lidar/.*, record 1: key.laser_name is 9": change("lidar", 1, "key.laser_name", 9),
    "lidar/.*, record 0: SIDE_LEFT return 1: .* has shape": change("lidar", 0, f"{IMAGE}.shape", [4, 40]),
    "lidar/.*, record 0: SIDE_LEFT return 1: .* no shape": change("lidar", 0, f"{IMAGE}.shape", None),
    "lidar/.*, record 2: FRONT return 1: .*range that isn't a number": change(
        "lidar", 2, f"{IMAGE}.values", [NAN] * 160
    ),
    "lidar/.*: it lacks the columns .*return1.values": lambda tables: [
        row.pop(f"{IMAGE}.values") for row in tables["lidar"]
    ],
    "lidar/.*, record 1: TOP return 1: .*no poses": lambda tables: tables["lidar_pose"].pop(0),
    "lidar_pose/.*, record 1: .*pixel poses has shape": change("lidar_pose", 1, f"{POSE}.shape", [4, 10, 7]),
    "lidar_pose/.*the key .* more than once": lambda tables: tables["lidar_pose"].append(tables["lidar_pose"][0]),
    "lidar/.*, record 0: SIDE_LEFT return 1: .*no calibration": lambda tables: tables["lidar_calibration"].pop(0),
    "lidar_calibration/.*, record 2: FRONT: .*isn't a rotation": change(
        "lidar_calibration", 2, "[LiDARCalibrationComponent].extrinsic.transform", [NAN] * 16
    ),
    "lidar_calibration/.*the key .* more than once": change("lidar_calibration", 0, "key.laser_name", 1),
    "vehicle_pose/.*: 1 frames of lidar have no row here, the first is 1553000000100001": lambda tables: tables[
        "vehicle_pose"
    ].pop(1),
    "vehicle_pose/.*: 1 of its frames have no row in lidar, the first is 1553000000000001": lambda tables: (
        tables.update(lidar=tables["lidar"][3:])
    ),
    "vehicle_pose/.*, record 1: the vehicle's pose has 15 numbers": change(
        "vehicle_pose", 1, "[VehiclePoseComponent].world_from_vehicle.transform", [0.0] * 15
    ),
    "vehicle_pose/.*, record 0: .*segment other, lidar those of 1000_2000": change(
        "vehicle_pose", 0, "key.segment_context_name", "other"
    ),
    "lidar_box/.*: 1 of its frames have no row in lidar, the first is 5;": change(
        "lidar_box", 0, "key.frame_timestamp_micros", 5
    ),
    "lidar_box/.*the key .*object 0.* more than once": lambda tables: tables["lidar_box"].append(
        tables["lidar_box"][0]
    ),
    "lidar_box/.*: frame 1553000000100001: label 1 .*'object 1'.* isn't finite": change(
        "lidar_box", 3, "[LiDARBoxComponent].box.size.y", None
    ),
    "lidar_box/.*: frame 1553000000000001: .*'fast'": lambda tables: [
        row.__setitem__("[LiDARBoxComponent].speed.x", "fast") for row in tables["lidar_box"]
    ],
    "lidar_box/.*, record 1: the row has no key.laser_object_id": change("lidar_box", 1, "key.laser_object_id", None),
    "stats/.*: its column key.frame_timestamp_micros is of the type string": lambda tables: [
        row.__setitem__("key.frame_timestamp_micros", "1") for row in tables["stats"]
    ],
    "lidar_box/.*: it lacks the columns .*num_lidar_points_in_box": lambda tables: [
        row.pop("[LiDARBoxComponent].num_lidar_points_in_box") for row in tables["lidar_box"]
    ],
    "lidar_box/.*: frame 1553000000000001: the object object 1 has no .*type": change(
        "lidar_box", 1, "[LiDARBoxComponent].type", None
    ),
    "lidar/.*: it lacks the columns .*return2.values": lambda tables: [
        row.pop(f"{IMAGE[:-1]}2.values") for row in tables["lidar"]
    ],
    "lidar/.*, record 0: SIDE_LEFT return 1: .* of the type struct": lambda tables: [
        row.__setitem__(f"{IMAGE}.values", {"a": 1}) for row in tables["lidar"]
    ],
    "lidar_calibration/.*, record 0: .*stands where numbers should": lambda tables: [
        row.__setitem__("[LiDARCalibrationComponent].beam_inclination.values", ["a"])
        for row in tables["lidar_calibration"]
    ],
    "lidar_calibration/.*, record 0: 'low' stands where numbers should": lambda tables: [
        row.__setitem__("[LiDARCalibrationComponent].beam_inclination.min", "low")
        for row in tables["lidar_calibration"]
    ],
    "vehicle_pose/.*, record 0: .*stands where numbers should": lambda tables: [
        row.__setitem__("[VehiclePoseComponent].world_from_vehicle.transform", ["a"] * 16)
        for row in tables["vehicle_pose"]
    ],
    "stats/.*: 1 frames of lidar have no row here": lambda tables: tables["stats"].pop(0),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_does_not_join_or_fit_is_named(make_frame: MakeFrame, tmp_path: Path, message: str) -> None:
    tables = components(messages(make_frame))
    BROKEN[message](tables)
    with pytest.raises(DataError, match=message):
        list(read_component_segment(write(tmp_path, tables)))


@pytest.mark.parametrize("component", COMPONENTS)
def test_files_that_are_missing_cut_or_foreign(make_frame: MakeFrame, tmp_path: Path, component: str) -> None:
    path = write(tmp_path, components(messages(make_frame)))
    file = tmp_path / component / path.name
    whole = file.read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2], b"<html></html>" * 20):
        file.write_bytes(content)
        with pytest.raises(DataError, match="isn't a whole parquet file") as caught:
            list(read_component_segment(path))
        assert caught.value.path == file
    pq.write_table(pa.table({"a": [1]}), file)
    with pytest.raises(DataError, match=r"it lacks the columns .* it has a"):
        list(read_component_segment(path))
    file.unlink()
    with pytest.raises(DataError, match="there is no such file") as caught:
        list(read_component_segment(path))
    assert caught.value.path == file


def test_damaged_bytes_give_a_data_error_or_other_numbers(make_frame: MakeFrame, tmp_path: Path) -> None:
    """No other error, whatever the bytes: preparation goes on after a DataError."""
    path = write(tmp_path, components(messages(make_frame, 1)))
    rng = np.random.default_rng(0)
    refused = 0
    for component in ("lidar", "lidar_box", "vehicle_pose"):
        file = tmp_path / component / path.name
        whole = bytearray(file.read_bytes())
        for _ in range(60):
            damaged = whole.copy()
            for place in rng.integers(4, len(whole), 3):
                damaged[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(damaged)
            try:
                list(read_component_segment(path))
            except DataError:
                refused += 1
        file.write_bytes(whole)
    assert refused > 60


def test_the_tool_prepares_a_folder_and_goes_on(make_frame: MakeFrame, tmp_path: Path, capsys) -> None:
    path = write(tmp_path / "v2", components(messages(make_frame)))
    arguments = ["--input", str(tmp_path / "v2"), "--output", str(tmp_path / "store"), "--workers", "1"]
    assert prepare_waymo.main(arguments) == 0
    store = Store.open(tmp_path / "store")
    assert len(store) == 3
    assert prepare_waymo.main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    # Another component of the segment has changed, and it is prepared again.
    stats = tmp_path / "v2" / "stats" / path.name
    pq.write_table(pq.read_table(stats), stats, compression="none")
    assert prepare_waymo.main(arguments) == 0
    assert "prepared 1 segments" in capsys.readouterr().out
    (tmp_path / "v2" / "vehicle_pose" / path.name).unlink()
    assert prepare_waymo.main(arguments) == 1
    assert "vehicle_pose" in capsys.readouterr().err


def test_the_tool_finds_one_version(make_frame: MakeFrame, tmp_path: Path) -> None:
    path = write(tmp_path / "v2", components(messages(make_frame, 1)))
    assert [source.name for source in prepare_waymo.find_sources(tmp_path)] == [f"v2/lidar/{NAME}.parquet"]
    assert [source.path for source in prepare_waymo.find_sources(path)] == [path]
    with pytest.raises(UserError, match="the file in its folder lidar"):
        prepare_waymo.find_sources(tmp_path / "v2" / "stats" / path.name)
    assert [source.name for source in prepare_waymo.find_sources(tmp_path / "v2" / "lidar")] == [
        f"lidar/{NAME}.parquet"
    ]
    (tmp_path / "a.tfrecord").touch()
    with pytest.raises(UserError, match=r"v1's a\.tfrecord and v2's v2/lidar/"):
        prepare_waymo.find_sources(tmp_path)


def test_segments_without_lidar_and_links_to_nowhere_are_told(make_frame: MakeFrame, tmp_path: Path, capfd) -> None:
    path = write(tmp_path / "v2", components(messages(make_frame, 1)))
    for component in ("lidar_box", "stats", "vehicle_pose"):
        (tmp_path / "v2" / component / "other.parquet").touch()
    assert len(prepare_waymo.find_sources(tmp_path / "v2")) == 1
    assert (
        "note: 1 segments are passed over, as they have other components, but no lidar: other" in capfd.readouterr().err
    )
    (path.parent / "gone.parquet").symlink_to(tmp_path / "nowhere")
    assert len(prepare_waymo.find_sources(tmp_path / "v2")) == 2
    arguments = ["--input", str(tmp_path / "v2"), "--output", str(tmp_path / "store"), "--workers", "1"]
    assert prepare_waymo.main(arguments) == 1
    assert "lidar/gone.parquet: " in capfd.readouterr().err
