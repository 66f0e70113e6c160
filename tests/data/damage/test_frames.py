"""Damaged frames of Waymo v1 in records whose checksums are right: each is named with file, record and reason."""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detection3d.data.waymo import RecordWriter, read_segment
from detection3d.errors import DataError
from detection3d.protos import waymo_pb2
from tests.data.damage.segments import Prepared, prepare, segment
from tests.data.waymo.conftest import HEIGHT, WIDTH, compress

DAMAGED = 1
"""The record that is damaged."""

SIDE_LEFT, TOP, FRONT = 0, 1, 2
"""Places of the lidars in the made frames, which stand in no order, as in Waymo's own files."""

NAN, INFINITE = float("nan"), float("inf")
Change = Callable[[waymo_pb2.Frame], object]


def first(lidar: int) -> Callable[[waymo_pb2.Frame], waymo_pb2.RangeImage]:
    return lambda frame: frame.lasers[lidar].ri_return1


def second(lidar: int) -> Callable[[waymo_pb2.Frame], waymo_pb2.RangeImage]:
    return lambda frame: frame.lasers[lidar].ri_return2


IMAGE, POSE = "range_image_compressed", "range_image_pose_compressed"
MATRICES = {
    "TOP return 1: the range image": (first(TOP), IMAGE),
    "TOP: the pixel poses": (first(TOP), POSE),
    "FRONT return 2: the range image": (second(FRONT), IMAGE),
}


def stream(change: Callable[[bytes], bytes]) -> Callable[[str], Change]:
    """Damage the compressed bytes of a matrix."""

    def of(matrix: str) -> Change:
        find, field = MATRICES[matrix]
        return lambda frame: setattr(find(frame), field, change(getattr(find(frame), field)))

    return of


def values(change: Callable[[waymo_pb2.MatrixFloat], object]) -> Callable[[str], Change]:
    """Damage a matrix and compress it again."""

    def inside(compressed: bytes) -> bytes:
        matrix = waymo_pb2.MatrixFloat.FromString(zlib.decompress(compressed))
        change(matrix)
        return zlib.compress(matrix.SerializeToString())

    return stream(inside)


def dims(*shape: int) -> Callable[[str], Change]:
    def change(matrix: waymo_pb2.MatrixFloat) -> None:
        matrix.shape.dims[:] = shape

    return values(change)


# What may happen to a matrix, and the reason. Each happens to each of the three.
STREAMS: dict[str, tuple[Callable[[str], Change], str]] = {
    "no zlib": (stream(lambda data: b"rubbish" + data), "doesn't inflate: .*incorrect header"),
    "cut in the middle": (stream(lambda data: data[: len(data) // 2]), "doesn't inflate: the stream ends early"),
    "cut by a byte": (stream(lambda data: data[:-1]), "doesn't inflate: the stream ends early"),
    "wrong checksum": (stream(lambda data: data[:-1] + bytes([data[-1] ^ 1])), "doesn't inflate: .*data check"),
    "rubbish behind": (stream(lambda data: data + b"rubbish"), "goes on after its zlib stream, by 7 bytes"),
    "two streams": (stream(lambda data: data + data), "goes on after its zlib stream"),
    "expands to gigabytes": (stream(lambda _: zlib.compress(bytes(1 << 26), 1)), "goes on beyond"),
    "empty inside": (stream(lambda _: zlib.compress(b"")), r"has shape \[\]"),
    "other message": (stream(lambda _: zlib.compress(b"\xff" * 30)), "isn't a matrix"),
    "three channels": (dims(HEIGHT, WIDTH, 3), "has shape .*, expected"),
    "flat": (dims(HEIGHT, WIDTH * 4), "has shape .*, expected"),
    "negative shape": (values(lambda m: m.shape.dims.__setitem__(0, -HEIGHT)), "has shape .*, expected"),
    "no rows": (values(lambda m: m.shape.dims.__setitem__(0, 0)), "has shape .*, expected"),
    "a column too many": (values(lambda m: m.shape.dims.__setitem__(1, WIDTH + 1)), "says its shape is"),
    "a value too few": (values(lambda m: m.data.pop()), "says its shape is"),
    "no values": (values(lambda m: m.ClearField("data")), "says its shape is"),
}


def label(number: int, **numbers: float) -> Change:
    def change(frame: waymo_pb2.Frame) -> None:
        for name, value in numbers.items():
            setattr(frame.laser_labels[number].box, name, value)

    return change


def pixel(field: str, channel: int, value: float) -> Change:
    """Write a value into the channel of a pixel of TOP's first return that has a range."""

    def change(frame: waymo_pb2.Frame) -> None:
        image = waymo_pb2.MatrixFloat.FromString(zlib.decompress(first(TOP)(frame).range_image_compressed))
        hit = int(np.flatnonzero(np.array(image.data).reshape(-1, 4)[:, 0] > 0)[0])
        matrix = waymo_pb2.MatrixFloat.FromString(zlib.decompress(getattr(first(TOP)(frame), field)))
        matrix.data[hit * (4 if field == IMAGE else 6) + channel] = value
        setattr(first(TOP)(frame), field, zlib.compress(matrix.SerializeToString()))

    return change


def calibration(lidar: int) -> Callable[[waymo_pb2.Frame], waymo_pb2.LaserCalibration]:
    return lambda frame: frame.context.laser_calibrations[lidar]


def no_lidars(frame: waymo_pb2.Frame) -> None:
    del frame.lasers[:]


def wrong_pose(*numbers: float) -> Change:
    def change(frame: waymo_pb2.Frame) -> None:
        frame.pose.transform[: len(numbers)] = numbers

    return change


def appended(content: bytes) -> Change:
    """Bytes behind those of a message: its later fields, in protobuf's format."""
    return lambda frame: frame.MergeFromString(content)


# What else may happen to a frame, and the reason.
MESSAGES: dict[str, tuple[Change, str]] = {
    # Missing parts.
    "no TOP": (lambda frame: frame.lasers.pop(TOP), "a calibration of TOP, but no range image"),
    "no FRONT": (lambda frame: frame.lasers.pop(FRONT), "a calibration of FRONT, but no range image"),
    "no lidar at all": (no_lidars, "no range image of TOP return 1, the frames before have one"),
    "no second return of FRONT": (lambda frame: second(FRONT)(frame).Clear(), "no range image of FRONT return 2"),
    "no first return of SIDE_LEFT": (
        lambda frame: first(SIDE_LEFT)(frame).Clear(),
        "no range image of SIDE_LEFT return",
    ),
    "no pixel poses": (lambda frame: first(TOP)(frame).ClearField(POSE), "no range_image_pose_compressed"),
    "no pose": (lambda frame: frame.ClearField("pose"), "the frame's pose has 0 numbers"),
    "no calibration of TOP": (
        lambda frame: frame.context.laser_calibrations.pop(TOP),
        "TOP return 1: .*no calibration",
    ),
    "no extrinsic": (lambda frame: calibration(FRONT)(frame).ClearField("extrinsic"), "extrinsic has 0 numbers"),
    "no inclinations": (
        lambda frame: calibration(SIDE_LEFT)(frame).ClearField("beam_inclination_min"),
        "no beam inclinations, and its range is nan to 0.5",
    ),
    "no timestamp": (lambda frame: frame.ClearField("timestamp_micros"), "aren't a Waymo perception frame"),
    "no context": (lambda frame: frame.ClearField("context"), "aren't a Waymo perception frame"),
    "no box": (lambda frame: frame.laser_labels[1].ClearField("box"), "label 1 .* has no box"),
    "no type": (lambda frame: frame.laser_labels[0].ClearField("type"), "label 0 .* has no type"),
    "no name of a lidar": (lambda frame: frame.lasers[TOP].ClearField("name"), "a lidar without a name"),
    # Twice.
    "a lidar twice": (lambda frame: frame.lasers.add().CopyFrom(frame.lasers[TOP]), "a lidar occurs twice"),
    "a calibration twice": (
        lambda frame: frame.context.laser_calibrations.add().CopyFrom(calibration(FRONT)(frame)),
        "a lidar has two calibrations",
    ),
    "an object twice": (lambda frame: frame.laser_labels.add().CopyFrom(frame.laser_labels[0]), "has 2 boxes in one"),
    "a timestamp twice": (lambda frame: setattr(frame, "timestamp_micros", 1553000000000001), "occurs twice"),
    # Of other data.
    "another segment's": (lambda frame: setattr(frame.context, "name", "other"), "belongs to segment 'other'"),
    "other image's rows": (
        lambda frame: setattr(first(TOP)(frame), IMAGE, compress(np.ones((HEIGHT + 1, WIDTH, 4), np.float32))),
        "4 beam inclinations, the range image 5 rows",
    ),
    "other image's columns": (
        lambda frame: setattr(first(TOP)(frame), IMAGE, compress(np.ones((HEIGHT, WIDTH - 1, 4), np.float32))),
        r"the pixel poses have shape \[4, 10, 6\], the range image \[4, 9, 4\]",
    ),
    "uncompressed": (
        lambda frame: first(FRONT)(frame).range_image.data.append(1.0) or first(FRONT)(frame).ClearField(IMAGE),
        "FRONT has an uncompressed range image",
    ),
    # Numbers.
    "pose with NaN": (wrong_pose(NAN), "the frame's pose isn't a rotation"),
    "pose at infinity": (wrong_pose(*(1.0, 0.0, 0.0, INFINITE)), "the frame's pose isn't a rotation"),
    "pose that scales": (wrong_pose(2.0), "the frame's pose isn't a rotation"),
    "pose of 15 numbers": (lambda frame: frame.pose.transform.pop(), "the frame's pose has 15 numbers"),
    "pose of zeros": (wrong_pose(*[0.0] * 16), "the frame's pose isn't a rotation"),
    "extrinsic with NaN": (
        lambda frame: calibration(TOP)(frame).extrinsic.transform.__setitem__(5, NAN),
        "TOP: the calibration's extrinsic isn't a rotation",
    ),
    "extrinsic at infinity": (
        lambda frame: calibration(FRONT)(frame).extrinsic.transform.__setitem__(3, INFINITE),
        "FRONT: the calibration's extrinsic isn't a rotation",
    ),
    "inclination NaN": (
        lambda frame: calibration(TOP)(frame).beam_inclinations.__setitem__(0, NAN),
        "inclination that isn't finite",
    ),
    "inclination infinite": (
        lambda frame: calibration(TOP)(frame).beam_inclinations.__setitem__(3, INFINITE),
        "inclination that isn't finite",
    ),
    "inclination too many": (
        lambda frame: calibration(TOP)(frame).beam_inclinations.append(0.1),
        "5 beam inclinations, the range image 4 rows",
    ),
    "inclinations' limit NaN": (
        lambda frame: setattr(calibration(FRONT)(frame), "beam_inclination_max", NAN),
        "its range is -1.5 to nan",
    ),
    "inclinations' limit infinite": (
        lambda frame: setattr(calibration(FRONT)(frame), "beam_inclination_max", INFINITE),
        "its range is -1.5 to inf",
    ),
    "range NaN": (pixel(IMAGE, 0, NAN), "1 pixels have a range that isn't a number"),
    "range infinite": (pixel(IMAGE, 0, INFINITE), "1 of .* points have a coordinate, .* isn't finite"),
    "intensity NaN": (pixel(IMAGE, 1, NAN), "1 of .* points have a coordinate, intensity .* isn't finite"),
    "elongation infinite": (pixel(IMAGE, 2, INFINITE), "1 of .* points have a coordinate, .* elongation .* isn't"),
    "pixel's roll NaN": (pixel(POSE, 0, NAN), "1 of .* points have a coordinate"),
    "pixel's position NaN": (pixel(POSE, 4, NAN), "1 of .* points have a coordinate"),
    "zone with NaN": (lambda frame: frame.no_label_zones[0].x.__setitem__(0, NAN), "no-label zone 0 has a corner"),
    "zone with an x too many": (lambda frame: frame.no_label_zones[0].x.append(1), "zone 0 has 4 x and 3 y"),
    **{f"box's {name} NaN": (label(1, **{name: NAN}), "label 1 .* isn't finite") for name in ("center_x", "heading")},
    **{f"box's {name} NaN": (label(0, **{name: NAN}), "label 0 .* isn't finite") for name in ("length", "height")},
    **{
        f"box's {name} {value:g}": (label(1, **{name: value}), "box 1 .* sizes positive")
        for name in ("length", "width", "height")
        for value in (-1.5, 0.0)
    },
    "box's size too small for float32": (label(0, width=1e-60), "box 0 .* sizes positive"),
    "box at infinity": (label(0, center_z=-INFINITE), "label 0 .* isn't finite"),
    "box absurdly far": (label(0, center_y=1e30), "label 0 .* absurdly large"),
    "speed NaN": (lambda frame: setattr(frame.laser_labels[0].metadata, "speed_y", NAN), "label 0 .* isn't finite"),
    "negative number of points": (
        lambda frame: setattr(frame.laser_labels[1], "num_lidar_points_in_box", -1),
        "box 1 .* says that -1 points are in it",
    ),
    # What protobuf sets aside without a word.
    "lidars of the wire type of a number": (appended(b"\x28\x07"), "field lasers holds something of another type"),
    "labels of the wire type of a number": (appended(b"\x30\x07"), "field laser_labels holds something of another"),
    "pose of the wire type of a double": (appended(b"\x19" + bytes(8)), "field pose holds something of another type"),
    "timestamp of the wire type of a text": (appended(b"\x12\x01a"), "field timestamp_micros holds something"),
    "zones of the wire type of a float": (appended(b"\x3d" + bytes(4)), "field no_label_zones holds something"),
    "label of an undeclared type": (
        appended(b"\x32\x04\x18\x09\x0a\x00"),
        "field laser_labels.type holds something of another type, or an unknown number",
    ),
    "lidar of an undeclared number": (
        appended(b"\x2a\x02\x08\x09"),
        "field lasers.name holds something of another type, or an unknown number",
    ),
    "id that is no text": (appended(b"\x32\x04\x22\x02\xff\xfe"), "field laser_labels.id is no UTF-8 text"),
    "weather that is no text": (appended(b"\x0a\x05\x22\x03\x22\x01\xff"), "field context.stats.weather is no UTF-8"),
}

# Another payload instead of the frame, and the reason.
PAYLOADS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda _: b"", "its 0 bytes aren't a Waymo perception frame"),
    "a frame cut in the middle": (lambda payload: payload[: len(payload) // 2], "aren't a Waymo perception frame"),
    "a frame cut by a byte": (lambda payload: payload[:-1], "aren't a Waymo perception frame"),
    "a tf.Example": (
        lambda _: bytes.fromhex("0a120a100a046e616d6512080a060a04ff00fe01"),
        "aren't a Waymo perception frame",
    ),
    "a scenario of the motion data set": (
        lambda _: b"\x2a\x08abcdef01" + b"\x09" + bytes(8),
        "aren't a Waymo perception frame",
    ),
    "zeros": (lambda payload: bytes(len(payload)), "aren't a Waymo perception frame"),
}


def serialised(change: Change) -> Callable[[bytes], bytes]:
    def damage(payload: bytes) -> bytes:
        frame = waymo_pb2.Frame.FromString(payload)
        change(frame)
        return frame.SerializeToString()

    return damage


CASES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    **{
        f"{matrix}: {name}": (serialised(make(matrix)), f"{matrix} .*{reason}")
        for matrix in MATRICES
        for name, (make, reason) in STREAMS.items()
    },
    **{name: (serialised(change), reason) for name, (change, reason) in MESSAGES.items()},
    **PAYLOADS,
}
NAMES = {case: f"{number:03d}.tfrecord" for number, case in enumerate(CASES)}
ONLY_WHEN_PREPARED = "another segment's"
"""Frames of several segments may be read from one file, but make no segment of a store."""


def write(path: Path, case: str | None, name: str) -> Path:
    with RecordWriter(path) as writer:
        for record, frame in enumerate(segment(name)):
            payload = frame.SerializeToString()
            writer.write(CASES[case][0](payload) if case is not None and record == DAMAGED else payload)
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """All damaged files and two sound ones, prepared in one run."""
    folder = tmp_path_factory.mktemp("frames")
    (folder / "in").mkdir()
    for case, name in NAMES.items():
        write(folder / "in" / name, case, name)
    for name in ("a sound one", "z sound one"):
        write(folder / "in" / f"{name}.tfrecord", None, name)
    return prepare(folder / "in", folder / "out")


@pytest.mark.parametrize("case", [case for case in CASES if case != ONLY_WHEN_PREPARED])
def test_reading_names_file_record_and_reason(tmp_path: Path, case: str) -> None:
    frames = read_segment(write(tmp_path / "a.tfrecord", case, "a"))
    assert next(frames).context_name == "a"
    with pytest.raises(DataError, match=rf"a\.tfrecord, record {DAMAGED}: .*{CASES[case][1]}") as caught:
        next(frames)
    assert caught.value.record == DAMAGED


@pytest.mark.parametrize("case", CASES)
def test_preparing_leaves_it_out_and_says_why(prepared: Prepared, case: str) -> None:
    found = prepared.reason(NAMES[case])
    assert found.startswith(f", record {DAMAGED}: ")
    assert "unexpected" not in found
    with pytest.raises(DataError, match=CASES[case][1]):
        raise DataError(NAMES[case], found)


def test_the_sound_ones_are_prepared_and_the_status_says_that_others_are_not(prepared: Prepared) -> None:
    prepared.assert_only_sound_ones_are_there(len(CASES))
