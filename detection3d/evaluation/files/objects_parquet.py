"""Detections and ground truth in parquet, one row for each frame, so that frames without boxes survive.

Columns: context_name, timestamp_micros, then one list for each quantity: center_x ... heading, type and so on. All
lists of a row have the same length. Detections have a velocity where the detector predicts one. The file's metadata say
what it holds and in which version.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from detection3d.errors import DataError
from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.types.scene import Detections, Float32Array

SCHEMA_VERSION = "1"

_BOX_COLUMNS = ("center_x", "center_y", "center_z", "length", "width", "height", "heading")
_VELOCITY_COLUMNS = ("velocity_x", "velocity_y", "velocity_z")
_OVER_GROUND: dict[str, pa.DataType] = dict.fromkeys(_VELOCITY_COLUMNS[:2], pa.float32())
_DETECTION_COLUMNS = {"type": pa.uint8(), "score": pa.float32(), "overlaps_no_label_zone": pa.bool_()}
_TRUTH_COLUMNS = {"type": pa.uint8(), "level": pa.uint8(), "num_points": pa.int32()}


def encode_detections(detections: Sequence[Detections]) -> memoryview:
    """Return the file's content."""
    velocities = [item.velocity for item in detections if item.velocity is not None]
    moving = len(velocities) == len(detections) > 0
    return _encode(
        "detections",
        detections,
        {
            **{name: [item.boxes[:, k] for item in detections] for k, name in enumerate(_BOX_COLUMNS)},
            "type": [item.types for item in detections],
            "score": [item.scores for item in detections],
            "overlaps_no_label_zone": [item.overlaps_no_label_zone for item in detections],
            **{name: [velocity[:, k] for velocity in velocities] for k, name in enumerate(_OVER_GROUND) if moving},
        },
        _detection_types() | _OVER_GROUND,
    )


def decode_detections(path: Path) -> tuple[Detections, ...]:
    """Read detections; raises DataError where the file isn't one of them."""
    keys, offsets, columns = _decode(path, "detections", _detection_types(), _OVER_GROUND)
    boxes = _stack(columns, _BOX_COLUMNS)
    velocity = _stack(columns, tuple(_OVER_GROUND)) if columns.keys() >= _OVER_GROUND.keys() else None
    return tuple(
        Detections(
            context_name=context_name,
            timestamp_micros=timestamp,
            boxes=boxes[start:end],
            types=columns["type"][start:end],
            scores=columns["score"][start:end],
            overlaps_no_label_zone=columns["overlaps_no_label_zone"][start:end],
            velocity=None if velocity is None else velocity[start:end],
        )
        for (context_name, timestamp), start, end in zip(keys, offsets[:-1], offsets[1:], strict=True)
    )


def encode_ground_truth(ground_truth: Sequence[GroundTruth]) -> memoryview:
    """Return the file's content. An unknown velocity is written as NaN."""
    velocities = [
        np.full((len(item), 3), np.nan, np.float32) if item.velocity is None else item.velocity for item in ground_truth
    ]
    return _encode(
        "ground truth",
        ground_truth,
        {
            **{name: [item.boxes[:, k] for item in ground_truth] for k, name in enumerate(_BOX_COLUMNS)},
            "type": [item.types for item in ground_truth],
            "level": [item.levels for item in ground_truth],
            "num_points": [item.num_points for item in ground_truth],
            **{name: [velocity[:, k] for velocity in velocities] for k, name in enumerate(_VELOCITY_COLUMNS)},
        },
        _truth_types(),
    )


def decode_ground_truth(path: Path) -> tuple[GroundTruth, ...]:
    """Read prepared ground truth; raises DataError where the file isn't one of it."""
    keys, offsets, columns = _decode(path, "ground truth", _truth_types())
    boxes = _stack(columns, _BOX_COLUMNS)
    velocity = _stack(columns, _VELOCITY_COLUMNS)
    return tuple(
        GroundTruth(
            context_name=context_name,
            timestamp_micros=timestamp,
            boxes=boxes[start:end],
            types=columns["type"][start:end],
            levels=columns["level"][start:end],
            num_points=columns["num_points"][start:end],
            velocity=None if end > start and np.isnan(velocity[start:end]).all() else velocity[start:end],
        )
        for (context_name, timestamp), start, end in zip(keys, offsets[:-1], offsets[1:], strict=True)
    )


def _detection_types() -> dict[str, pa.DataType]:
    return {**dict.fromkeys(_BOX_COLUMNS, pa.float32()), **_DETECTION_COLUMNS}


def _truth_types() -> dict[str, pa.DataType]:
    floats = dict.fromkeys((*_BOX_COLUMNS, *_VELOCITY_COLUMNS), pa.float32())
    return {**floats, **_TRUTH_COLUMNS}


def _encode(
    kind: str,
    frames: Sequence[Detections] | Sequence[GroundTruth],
    columns: Mapping[str, Sequence[np.ndarray]],
    types: Mapping[str, pa.DataType],
) -> memoryview:
    offsets = np.zeros(len(frames) + 1, np.int32)
    np.cumsum([len(item.boxes) for item in frames], out=offsets[1:])
    arrays: dict[str, pa.Array] = {
        "context_name": pa.array([item.context_name for item in frames], pa.string()),
        "timestamp_micros": pa.array([item.timestamp_micros for item in frames], pa.int64()),
    }
    for name, values in columns.items():
        flat = np.concatenate(values) if values else np.zeros(0)
        arrays[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, types[name]))
    table = pa.table(arrays).replace_schema_metadata({"detection3d": kind, "detection3d_version": SCHEMA_VERSION})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return memoryview(sink.getvalue())


def _decode(
    path: Path, kind: str, types: Mapping[str, pa.DataType], optional: Mapping[str, pa.DataType] | None = None
) -> tuple[list[tuple[str, int]], npt.NDArray[np.int64], dict[str, np.ndarray]]:
    """Read frame keys, [F + 1] offsets of their boxes, and the flat columns; optional ones where the file has them."""
    content = path.read_bytes()
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise DataError(path, f"not a parquet file, or damaged ({error}); write it again") from error
    metadata = table.schema.metadata or {}
    found = metadata.get(b"detection3d", b"").decode(errors="replace")
    if found != kind:
        described = f"it says {found!r}" if found else "it doesn't say what it holds"
        raise DataError(path, f"not a file of {kind}: {described}; check the path")
    version = metadata.get(b"detection3d_version", b"").decode(errors="replace")
    if version != SCHEMA_VERSION:
        raise DataError(path, f"has version {version!r} of the format, this program reads {SCHEMA_VERSION!r}")
    types = {**types, **{name: value for name, value in (optional or {}).items() if name in table.column_names}}
    expected = {"context_name": pa.string(), "timestamp_micros": pa.int64()}
    expected.update({name: pa.list_(value) for name, value in types.items()})
    offsets: npt.NDArray[np.int64] | None = None
    columns = {}
    for name, column_type in expected.items():
        if name not in table.column_names or table.column(name).type.id != column_type.id:
            raise DataError(path, f"column {name} is missing or not of type {column_type}; write the file again")
        if name in types:
            lists = table.column(name).combine_chunks()
            values = lists.flatten()
            if lists.null_count or values.null_count:
                raise DataError(path, f"column {name} holds nulls; write the file again")
            lengths = np.asarray(lists.value_lengths(), np.int64)
            its_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            if offsets is not None and not np.array_equal(offsets, its_offsets):
                raise DataError(path, f"column {name} has other lengths than the columns before it; write it again")
            offsets = its_offsets
            columns[name] = values.cast(types[name]).to_numpy(zero_copy_only=False)
    assert offsets is not None, "there is at least one list column"
    names = table.column("context_name").to_pylist()
    timestamps = table.column("timestamp_micros").to_pylist()
    if None in names or None in timestamps:
        raise DataError(path, "a row doesn't name its frame; write the file again")
    return list(zip(names, timestamps, strict=True)), offsets, columns


def _stack(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> Float32Array:
    return np.stack([columns[name] for name in names], axis=1)
