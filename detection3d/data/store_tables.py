"""The two Arrow tables of a segment: frames and boxes."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from detection3d.types.scene import Boxes, Frame, empty_boxes

FRAME_SCHEMA = pa.schema(
    [
        ("timestamp_micros", pa.int64()),
        ("pose", pa.list_(pa.float64(), 16)),  # row-major, vehicle to global
        ("points_offset", pa.int64()),  # bytes, in points.bin
        ("points_count", pa.int64()),
        ("points_crc32c", pa.uint32()),
        ("boxes_offset", pa.int64()),  # rows, in boxes.arrow
        ("boxes_count", pa.int64()),
        ("has_labels", pa.uint8()),  # a byte and not Arrow's bit, so that it can be viewed in place
        ("no_label_zones", pa.list_(pa.list_(pa.float64()))),  # x, y, x, y ... global frame
        ("time_of_day", pa.string()),
        ("location", pa.string()),
        ("weather", pa.string()),
    ]
)

BOX_SCHEMA = pa.schema(
    [
        ("box", pa.list_(pa.float32(), 7)),
        ("type", pa.uint8()),
        ("id", pa.string()),
        ("difficulty", pa.uint8()),
        ("num_points", pa.int32()),
        ("velocity", pa.list_(pa.float32(), 3)),
        ("acceleration", pa.list_(pa.float32(), 3)),
    ]
)


def frame_table(frames: Sequence[Frame], places: Sequence[tuple[int, int]], checksums: Sequence[int]) -> pa.Table:
    """Build the table of a segment's frames.

    Args:
        frames: F frames; their points are not looked at.
        places: for each frame the offset in points.bin (bytes) and the number of points.
        checksums: CRC-32C of each frame's blocks.

    Returns:
        F rows of `FRAME_SCHEMA`.
    """
    counts = np.array([0 if frame.labels is None else len(frame.labels) for frame in frames], np.int64)
    columns = [
        pa.array([frame.timestamp_micros for frame in frames], pa.int64()),
        _fixed_lists(np.stack([frame.pose.reshape(16) for frame in frames]), np.float64),
        pa.array([offset for offset, _ in places], pa.int64()),
        pa.array([count for _, count in places], pa.int64()),
        pa.array(checksums, pa.uint32()),
        pa.array(np.cumsum(counts) - counts),
        pa.array(counts),
        pa.array([frame.labels is not None for frame in frames]).cast(pa.uint8()),
        pa.array(
            [[zone.reshape(-1).tolist() for zone in frame.no_label_zones] for frame in frames],
            pa.list_(pa.list_(pa.float64())),
        ),
        pa.array([frame.time_of_day for frame in frames], pa.string()),
        pa.array([frame.location for frame in frames], pa.string()),
        pa.array([frame.weather for frame in frames], pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=FRAME_SCHEMA)


def box_table(labels: Sequence[Boxes | None]) -> pa.Table:
    """Concatenate the labels of a segment's frames.

    Args:
        labels: the labels of each frame, None where it has none.

    Returns:
        One row of `BOX_SCHEMA` for each box.
    """
    every = [empty_boxes(), *(boxes for boxes in labels if boxes is not None)]
    columns = [
        _fixed_lists(np.concatenate([boxes.boxes for boxes in every]), np.float32),
        pa.array(np.concatenate([boxes.types for boxes in every]), pa.uint8()),
        pa.array([name for boxes in every for name in boxes.ids], pa.string()),
        pa.array(np.concatenate([boxes.difficulty for boxes in every]), pa.uint8()),
        pa.array(np.concatenate([boxes.num_points for boxes in every]), pa.int32()),
        _fixed_lists(np.concatenate([boxes.velocity for boxes in every]), np.float32),
        _fixed_lists(np.concatenate([boxes.acceleration for boxes in every]), np.float32),
    ]
    return pa.Table.from_arrays(columns, schema=BOX_SCHEMA)


def _fixed_lists(rows: npt.NDArray, dtype: type) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(rows, dtype).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
