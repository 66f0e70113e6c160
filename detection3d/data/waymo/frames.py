"""Waymo v1: the frames of a segment file.

Follows dataset.proto and `utils/frame_utils.py` of waymo-research/waymo-open-dataset.

Whether a data set has labels isn't written down in v1: a frame of the test split and a frame without objects look the
same. It is decided by the segment: where no frame of the file has a label, `Frame.labels` is None in all of them;
where any has one, a frame without labels has empty boxes.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from detection3d.data.waymo.completeness import SameScans, refuse_missing_lidars
from detection3d.data.waymo.fields import refuse_unreadable_fields
from detection3d.data.waymo.labels import decode_labels
from detection3d.data.waymo.malformed import MalformedFrameError
from detection3d.data.waymo.matrices import decode_matrix
from detection3d.data.waymo.pose import rigid_pose
from detection3d.data.waymo.range_image import POSE_CHANNELS, RANGE_CHANNELS, make_calibration
from detection3d.data.waymo.records import index_records, read_record
from detection3d.data.waymo.scan import RETURNS, ScanPart, join_parts, scan_name, scan_part
from detection3d.errors import DataError
from detection3d.protos import waymo_pb2
from detection3d.types.scene import BoolArray, Float32Array, Float64Array, Frame, Lidar, LidarCalibration, UInt8Array


def read_segment(
    path: Path | str, returns: Sequence[int] = RETURNS, labelled: bool | None = None, every: int = 1
) -> Iterator[Frame]:
    """Yield the frames of a segment in the order of the file.

    Beside each frame, the segment is looked at: a timestamp occurs once, and all frames have range images of the same
    lidars and returns.

    The first frame that can't be used ends it; to go on with the others, use `index_records`, `read_record` and
    `decode_frame`.

    Args:
        path: a TFRecord file of `Frame` messages.
        returns: which of the returns 1 and 2 to read.
        labelled: whether the segment has labels; None looks into it, see above.
        every: read every so many records, from the first on.

    Raises:
        DataError: with the record and what is wrong with it.
        ValueError: a return other than 1 and 2.
    """
    numbers = _sorted_returns(returns)
    index = index_records(path)
    if labelled is None:
        labelled = segment_has_labels(path)
    timestamps: set[int] = set()
    same_scans = SameScans()
    for record in range(0, len(index), every):
        payload = read_record(index, record)
        with _named(path, record):
            message = _parse(payload)
            if message.timestamp_micros in timestamps:
                raise MalformedFrameError(f"timestamp {message.timestamp_micros} occurs twice in the file")
            timestamps.add(message.timestamp_micros)
            frame = _decode(message, numbers, labelled)
            same_scans.check(_scans(message, numbers))
        yield frame


def segment_has_labels(path: Path | str) -> bool:
    """Tell whether any frame of the file has a label. In a labelled segment the first one mostly settles it.

    Records that can't be parsed are passed over: whoever decodes them reports them.

    Raises:
        DataError: the file isn't a TFRecord, or is cut short.
    """
    index = index_records(path)
    for record in range(len(index)):
        try:
            frame = waymo_pb2.Frame.FromString(read_record(index, record, verify=False))
        except DecodeError:
            continue
        if frame.laser_labels:
            return True
    return False


def decode_frame(
    payload: bytes,
    path: Path | str = "<memory>",
    record: int | None = None,
    returns: Sequence[int] = RETURNS,
    labelled: bool = True,
) -> Frame:
    """Decode one record.

    Args:
        payload: a serialised `Frame` message.
        path: the file it comes from, for the message.
        record: its number there, likewise.
        returns: which of the returns 1 and 2 to read; the points come in ascending order whatever the order here.
        labelled: False sets `Frame.labels` to None where there are none.

    Raises:
        DataError: the record isn't a Waymo frame, or part of it can't be used.
        ValueError: a return other than 1 and 2.
    """
    numbers = _sorted_returns(returns)
    with _named(path, record):
        return _decode(_parse(payload), numbers, labelled)


@contextmanager
def _named(path: Path | str, record: int | None) -> Iterator[None]:
    try:
        yield
    except MalformedFrameError as error:
        raise DataError(path, f"{error}; get the file again, or leave the file out", record) from error


def _sorted_returns(returns: Sequence[int]) -> tuple[int, ...]:
    if not set(returns) <= set(RETURNS):
        raise ValueError(f"returns {tuple(returns)}: a lidar of Waymo's has returns 1 and 2")
    return tuple(sorted(set(returns)))


def _parse(payload: bytes) -> waymo_pb2.Frame:
    try:
        frame = waymo_pb2.Frame.FromString(payload)
        recognised = frame.context.name and frame.HasField("timestamp_micros")
    except (DecodeError, UnicodeDecodeError):
        recognised = False
        frame = waymo_pb2.Frame()
    if not recognised:
        # Other messages often parse as a Frame, but never with these two.
        raise MalformedFrameError(
            f"its {len(payload)} bytes aren't a Waymo perception frame (no context name and timestamp in them); "
            "Waymo's motion data set and other TFRecords hold different messages"
        )
    refuse_unreadable_fields(frame)
    return frame


def _decode(frame: waymo_pb2.Frame, returns: tuple[int, ...], labelled: bool) -> Frame:
    pose = rigid_pose(frame.pose.transform, "the frame's pose")
    calibrations = _calibrations(frame.context.laser_calibrations)
    points, lidar, return_number, in_zone = _decode_points(frame, pose, calibrations, returns)
    has_labels = labelled or len(frame.laser_labels) > 0
    stats = frame.context.stats
    return Frame(
        context_name=frame.context.name,
        timestamp_micros=frame.timestamp_micros,
        pose=pose,
        points=points,
        lidar=lidar,
        return_number=return_number,
        in_no_label_zone=in_zone,
        labels=decode_labels(frame.laser_labels, pose) if has_labels else None,
        no_label_zones=tuple(_decode_polygon(polygon, i) for i, polygon in enumerate(frame.no_label_zones)),
        time_of_day=stats.time_of_day,
        location=stats.location,
        weather=stats.weather,
        calibrations=calibrations,
    )


def _decode_points(
    frame: waymo_pb2.Frame,
    pose: Float64Array,
    calibrations: dict[int, LidarCalibration],
    returns: tuple[int, ...],
) -> tuple[Float32Array, UInt8Array, UInt8Array, BoolArray]:
    """Return what `join_parts` does."""
    lasers = _by_name(frame.lasers)
    refuse_missing_lidars(calibrations.keys(), lasers.keys())
    vehicle_from_global = np.asarray(np.linalg.inv(pose), np.float64)
    parts: list[ScanPart] = []
    for name, laser in lasers.items():
        pixel_pose = _pixel_pose(laser) if name == Lidar.TOP else None
        for number in returns:
            compressed = _range_images(laser)[number - 1].range_image_compressed
            if compressed:
                where = f"{scan_name(name, number)}: the range image"
                image = decode_matrix(compressed, RANGE_CHANNELS, where)
                parts.append(scan_part(name, number, image, calibrations.get(name), pixel_pose, vehicle_from_global))
    return join_parts(parts)


def _by_name(lasers: Sequence[waymo_pb2.Laser]) -> dict[int, waymo_pb2.Laser]:
    """Return the lidars that have a range image, in ascending order of their numbers; a file may hold any order."""
    with_image = [laser for laser in lasers if any(i.range_image_compressed for i in _range_images(laser))]
    by_name = {int(laser.name): laser for laser in sorted(with_image, key=lambda laser: laser.name)}
    if len(by_name) < len(with_image):
        names = [Lidar(laser.name).name for laser in with_image]
        raise MalformedFrameError(f"a lidar occurs twice: {', '.join(names)}")
    if Lidar.UNKNOWN in by_name:
        raise MalformedFrameError("there is a range image of a lidar without a name")
    return by_name


def _scans(frame: waymo_pb2.Frame, returns: tuple[int, ...]) -> frozenset[tuple[int, int]]:
    """Return the lidar and the return of each range image."""
    return frozenset(
        (int(laser.name), number)
        for laser in frame.lasers
        for number in returns
        if (laser.ri_return1, laser.ri_return2)[number - 1].range_image_compressed
    )


def _range_images(laser: waymo_pb2.Laser) -> tuple[waymo_pb2.RangeImage, waymo_pb2.RangeImage]:
    for image in (laser.ri_return1, laser.ri_return2):
        if image.HasField("range_image") and not image.range_image_compressed:
            raise MalformedFrameError(
                f"{Lidar(laser.name).name} has an uncompressed range image, which Waymo's released files don't use"
            )
    return laser.ri_return1, laser.ri_return2


def _pixel_pose(laser: waymo_pb2.Laser) -> Float32Array:
    """Return TOP's; they come with its first return, and its second has the same."""
    compressed = laser.ri_return1.range_image_pose_compressed
    if not compressed:
        raise MalformedFrameError("TOP has a range image, but no range_image_pose_compressed in its first return")
    return decode_matrix(compressed, POSE_CHANNELS, "TOP: the pixel poses")


def _calibrations(messages: Sequence[waymo_pb2.LaserCalibration]) -> dict[int, LidarCalibration]:
    calibrations = {int(message.name): _calibration(message) for message in messages}
    if len(calibrations) < len(messages):
        raise MalformedFrameError("a lidar has two calibrations")
    return calibrations


def _calibration(message: waymo_pb2.LaserCalibration) -> LidarCalibration:
    name = Lidar(message.name).name
    return make_calibration(
        rigid_pose(message.extrinsic.transform, f"{name}: the calibration's extrinsic"),
        np.array(message.beam_inclinations, np.float64),
        message.beam_inclination_min if message.HasField("beam_inclination_min") else math.nan,
        message.beam_inclination_max if message.HasField("beam_inclination_max") else math.nan,
    )


def _decode_polygon(polygon: waymo_pb2.Polygon2dProto, index: int) -> Float64Array:
    if len(polygon.x) != len(polygon.y):
        raise MalformedFrameError(f"no-label zone {index} has {len(polygon.x)} x and {len(polygon.y)} y")
    corners = np.stack([np.array(polygon.x, np.float64), np.array(polygon.y, np.float64)], axis=1)
    if not np.isfinite(corners).all():
        raise MalformedFrameError(f"no-label zone {index} has a corner that isn't finite")
    return corners
