import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detection3d.data.waymo import RecordWriter, decode_frame, index_records, read_record, read_segment
from detection3d.errors import DataError
from detection3d.protos import waymo_pb2
from detection3d.types.scene import Lidar

MakeFrame = Callable[..., waymo_pb2.Frame]


def write(path: Path, frames: list[waymo_pb2.Frame]) -> Path:
    with RecordWriter(path) as writer:
        for frame in frames:
            writer.write(frame.SerializeToString())
    return path


def broken(make_frame: MakeFrame, change: Callable[[waymo_pb2.Frame], object]) -> bytes:
    frame = make_frame()
    change(frame)
    return frame.SerializeToString()


def test_points_are_ordered_by_return_then_lidar(make_frame: MakeFrame) -> None:
    frame = decode_frame(make_frame(lidars=(3, 1, 2)).SerializeToString())
    order = frame.return_number.astype(int) * 10 + frame.lidar
    assert np.all(np.diff(order) >= 0)
    assert set(order.tolist()) == {11, 12, 13, 21, 22, 23}
    assert frame.points.dtype == np.float32
    assert len(frame.points) == len(frame.lidar) == len(frame.return_number) == len(frame.in_no_label_zone)
    assert 0 < frame.in_no_label_zone.sum() < len(frame.points)
    # The file's order of the lidars makes no difference.
    again = decode_frame(make_frame(lidars=(3, 1, 2)).SerializeToString(), returns=(2, 1))
    np.testing.assert_array_equal(again.points, frame.points)
    second = decode_frame(make_frame().SerializeToString(), returns=(2,))
    np.testing.assert_array_equal(second.points, frame.points[frame.return_number == 2])
    with pytest.raises(ValueError, match="returns"):
        decode_frame(make_frame().SerializeToString(), returns=(0, 1))


def test_second_return_of_top_uses_the_poses_of_the_first(make_frame: MakeFrame) -> None:
    message = make_frame(lidars=(1,))
    laser = message.lasers[0]
    laser.ri_return2.range_image_compressed = laser.ri_return1.range_image_compressed
    frame = decode_frame(message.SerializeToString())
    half = len(frame.points) // 2
    np.testing.assert_array_equal(frame.points[:half], frame.points[half:])


def test_everything_but_the_points(make_frame: MakeFrame) -> None:
    message = make_frame()
    frame = decode_frame(message.SerializeToString())
    assert frame.key == ("1000_2000", 1553000000000001)
    assert (frame.time_of_day, frame.location, frame.weather) == ("Dawn/Dusk", "location_sf", "rain")
    assert frame.pose.ravel().tolist() == list(message.pose.transform)
    assert [zone.tolist() for zone in frame.no_label_zones] == [[[0, 0], [10, 0], [10, 10]]]
    labels = frame.labels
    assert labels is not None
    # A heading just below pi rounds to a float32 above it, which must wrap.
    expected = [[10, -3, 0.8, 4.5, 2, 1.6, -np.pi], [11, -3, 0.8, 4.5, 2, 1.6, -np.pi]]
    np.testing.assert_allclose(labels.boxes, expected, rtol=1e-6)
    assert labels.types.tolist() == [1, 2]
    assert labels.ids == ("object 0", "object 1")
    assert labels.difficulty.tolist() == [0, 1]
    assert labels.num_points.tolist() == [0, 10]
    # The global speed points along the vehicle's heading: forward at 3 m/s in its own axes.
    np.testing.assert_allclose(labels.velocity, [[3, 0, 0]] * 2, atol=1e-6)
    np.testing.assert_allclose(labels.acceleration, [[0, 0, 0.25]] * 2, atol=1e-6)
    assert labels.camera_synced is not None
    assert np.isnan(labels.camera_synced[0]).all()
    np.testing.assert_array_equal(labels.camera_synced[1], labels.boxes[1] + np.float32([0.5, 0, 0, 0, 0, 0, 0]))
    assert labels.select(np.array([False, True])).camera_synced.tolist() == [labels.camera_synced[1].tolist()]
    for calibration in message.context.laser_calibrations:
        found = frame.calibrations[calibration.name]
        assert found.extrinsic.ravel().tolist() == list(calibration.extrinsic.transform)
        assert found.inclinations.tolist() == list(calibration.beam_inclinations)
        limits = [calibration.beam_inclination_min, calibration.beam_inclination_max]
        wanted = [np.nan, np.nan] if calibration.name == Lidar.TOP else limits
        np.testing.assert_array_equal([found.inclination_min, found.inclination_max], wanted)


def test_camera_synced_boxes_are_checked_and_may_be_absent(make_frame: MakeFrame) -> None:
    def without(frame: waymo_pb2.Frame) -> None:
        frame.laser_labels[1].ClearField("camera_synced_box")

    labels = decode_frame(broken(make_frame, without)).labels
    assert labels is not None
    assert labels.camera_synced is None

    def infinite(frame: waymo_pb2.Frame) -> None:
        frame.laser_labels[1].camera_synced_box.length = np.inf

    with pytest.raises(DataError, match=r"label 0 \('object 1'\) has a number that isn't finite"):
        decode_frame(broken(make_frame, infinite))


def test_frames_without_lidar_without_objects_and_with_absent_lidars(make_frame: MakeFrame, tmp_path: Path) -> None:
    empty = make_frame(lidars=(), labels=0)
    bare = make_frame(lidars=(2, 3))
    bare.lasers[1].ClearField("ri_return2")
    bare.lasers.add(name=1)  # named, but without any image
    frames = [frame for file in (empty, bare) for frame in read_segment(write(tmp_path / "a", [file]), labelled=True)]
    assert frames[0].points.shape == (0, 5)
    assert frames[0].lidar.shape == frames[0].return_number.shape == frames[0].in_no_label_zone.shape == (0,)
    assert frames[0].labels is not None
    assert len(frames[0].labels) == 0
    assert set(zip(frames[1].return_number.tolist(), frames[1].lidar.tolist(), strict=True)) == {(1, 2), (1, 3), (2, 2)}


def test_a_segment_without_any_label_is_unlabelled(make_frame: MakeFrame, tmp_path: Path) -> None:
    frames = [make_frame(labels=0), make_frame(labels=0), make_frame(labels=1)]
    for number, frame in enumerate(frames):
        frame.timestamp_micros += number
    path = write(tmp_path / "test", frames[:2])
    assert [frame.labels for frame in read_segment(path)] == [None, None]
    assert [len(frame.labels or ()) for frame in read_segment(path, labelled=True)] == [0, 0]
    assert all(frame.labels is not None for frame in read_segment(path, labelled=True))
    # Another frame of the segment has labels, so these have none because there is nothing.
    assert [len(frame.labels or ()) for frame in read_segment(write(tmp_path / "other", frames))] == [0, 0, 1]
    assert all(frame.labels is not None for frame in read_segment(tmp_path / "other"))


BROKEN: dict[str, Callable[[waymo_pb2.Frame], object]] = {
    "no context name and timestamp": lambda frame: frame.ClearField("timestamp_micros"),
    "FRONT return 1: the range image .* doesn't inflate": lambda frame: setattr(
        frame.lasers[2].ri_return1, "range_image_compressed", b"junk"
    ),
    "SIDE_LEFT return 2: .* holds 5 values": lambda frame: setattr(
        frame.lasers[0].ri_return2,
        "range_image_compressed",
        zlib.compress(
            waymo_pb2.MatrixFloat(data=[1] * 5, shape=waymo_pb2.MatrixShape(dims=[4, 10, 4])).SerializeToString()
        ),
    ),
    "TOP return 1: .*no calibration": lambda frame: frame.context.laser_calibrations.pop(1),
    "SIDE_LEFT: .*extrinsic has 0 numbers": lambda frame: frame.context.laser_calibrations[0].ClearField("extrinsic"),
    "TOP return 1: .*5 beam inclinations": lambda frame: frame.context.laser_calibrations[1].beam_inclinations.append(
        1
    ),
    "no range_image_pose_compressed": lambda frame: frame.lasers[1].ri_return1.ClearField(
        "range_image_pose_compressed"
    ),
    "the frame's pose has 0 numbers": lambda frame: frame.ClearField("pose"),
    "the frame's pose isn't a rotation": lambda frame: frame.pose.transform.__setitem__(0, 2.0),
    "a lidar occurs twice": lambda frame: frame.lasers.add().CopyFrom(frame.lasers[0]),
    "uncompressed range image": lambda frame: (
        frame.lasers[0].ri_return1.Clear(),
        frame.lasers[0].ri_return1.range_image.data.append(1),
    ),
    "label 1 .* has no box": lambda frame: frame.laser_labels[1].ClearField("box"),
    "label 0 .* isn't finite": lambda frame: setattr(frame.laser_labels[0].box, "length", float("nan")),
    "no-label zone 0 has 4 x and 3 y": lambda frame: frame.no_label_zones[0].x.append(1),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_damaged_frame_is_named_with_file_record_and_reason(make_frame: MakeFrame, message: str) -> None:
    payload = broken(make_frame, BROKEN[message])
    with pytest.raises(DataError, match=f"^segment.tfrecord, record 7: .*{message}.*leave the file out") as caught:
        decode_frame(payload, "segment.tfrecord", 7)
    assert caught.value.record == 7


def test_other_messages_are_refused() -> None:
    example = bytes.fromhex("0a120a100a046e616d6512080a060a04ff00fe01")  # a tf.Example with one bytes feature
    scenario = b"\x2a\x08abcdef01" + b"\x09" + bytes(8)  # the motion data set: id in field 5, doubles in field 1
    for payload in (b"", b"\xff\xff", example, scenario, b"<html></html>"):
        with pytest.raises(DataError, match="aren't a Waymo perception frame"):
            decode_frame(payload)


def test_reading_goes_on_after_a_damaged_record(make_frame: MakeFrame, tmp_path: Path) -> None:
    path = write(tmp_path / "a", [make_frame(), make_frame(), make_frame()])
    index = index_records(path)
    content = bytearray(path.read_bytes())
    content[int(index.offsets[1]) + 50] ^= 4
    path.write_bytes(content)
    frames = read_segment(path)
    next(frames)
    with pytest.raises(DataError, match="record 1: the checksum"):
        next(frames)
    assert decode_frame(read_record(index, 2), path, 2).context_name == "1000_2000"


def test_no_torch_and_no_tensorflow() -> None:
    code = "import sys, detection3d.data.waymo; print([m for m in ('torch', 'tensorflow') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


def test_damaged_payloads_give_a_frame_or_a_data_error(make_frame: MakeFrame) -> None:
    """No other error, whatever the bytes: preparation goes on after a DataError, and stops at anything else."""
    good = make_frame().SerializeToString()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        payload = bytearray(good)
        for position in rng.integers(0, len(payload), rng.integers(1, 4)):
            payload[position] = rng.integers(256)
        try:
            decode_frame(bytes(payload[: rng.integers(1, len(payload))] if rng.random() < 0.1 else payload))
        except DataError:
            refused += 1
    assert 100 < refused < 400
