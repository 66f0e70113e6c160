"""Waymo v2's parquet files: one for each component of a segment, read by columns, row after row.

Layout and columns follow `v2/perception/` of waymo-research/waymo-open-dataset. Types are taken as they come: files in
the wild hold float32 where the classes say float64, and names where they say numbers.

Unlike a TFRecord, a parquet file need not have checksums. Where its writer added those of the pages, they are checked;
pyarrow's default is to add none. Without them a flipped bit in a page of values that weren't compressed, or that still
decompress, gives another number, and no reader can notice. The number of rows is checked: whole frames don't get lost.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from detection3d.data.waymo.malformed import MalformedFrameError
from detection3d.data.waymo.matrices import shape_matrix
from detection3d.errors import DataError, one_line
from detection3d.types.scene import Float32Array, Float64Array, Lidar

SEGMENT = "key.segment_context_name"
TIMESTAMP = "key.frame_timestamp_micros"
LASER = "key.laser_name"
OBJECT = "key.laser_object_id"

_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)

# What pyarrow raises over damaged bytes, conversions to Python included.
_DAMAGE = (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError)

_KEY_TYPES: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    SEGMENT: ("text", lambda kind: _is_text(kind)),
    TIMESTAMP: ("whole numbers", pa.types.is_integer),
    LASER: ("whole numbers or names", lambda kind: pa.types.is_integer(kind) or _is_text(kind)),
    OBJECT: ("text", lambda kind: _is_text(kind)),
}

# A TOP range image takes 2.7 MB; whole row groups, which may hold a segment, would take 2 GB.
_ROWS_AT_A_TIME = 4


class ComponentFile:
    """A parquet file of one component and one segment.

    Args:
        path: the file.
        needed: columns that it must have.

    Raises:
        DataError: it can't be opened, isn't parquet, or lacks a column.
    """

    def __init__(self, path: Path, needed: Sequence[str]) -> None:
        self.path = path
        self.component = path.parent.name
        try:
            self._file = pq.ParquetFile(path, memory_map=True, pre_buffer=False, page_checksum_verification=True)
            schema = self._file.schema_arrow
        except FileNotFoundError:
            raise DataError(path, f"there is no such file; the segment needs its {self.component} component") from None
        except _DAMAGE as error:
            raise DataError(path, f"it isn't a whole parquet file ({one_line(error)}); get it again") from None
        self.columns: tuple[str, ...] = tuple(schema.names)
        twice = [name for name in needed if self.columns.count(name) > 1]
        if twice:
            raise DataError(path, f"it has the column {twice[0]} more than once; get it again")
        missing = [name for name in needed if name not in self.columns]
        if missing:
            raise DataError(
                path,
                f"it lacks the columns {', '.join(missing)} of Waymo v2's component {self.component}; it has "
                f"{', '.join(self.columns[:6])}{' ...' if len(self.columns) > 6 else ''}",
            )
        for name, (expected, accepts) in _KEY_TYPES.items():
            if name in self.columns and not accepts(schema.field(name).type):
                raise DataError(
                    path, f"its column {name} is of the type {schema.field(name).type}, expected {expected}"
                )

    def rows(self, columns: Sequence[str], at_a_time: int = _ROWS_AT_A_TIME) -> Iterator[dict[str, Any]]:
        """Yield the rows in the file's order, each a dictionary of pyarrow scalars; None for absent columns.

        Raises:
            DataError: the file's content is damaged.
        """
        present = [name for name in columns if name in self.columns]
        batches = self._file.iter_batches(batch_size=at_a_time, columns=present)
        count = 0
        while True:
            try:
                batch = next(batches, None)
            except _DAMAGE as error:
                raise self._damaged(error) from None
            if batch is None:
                break
            count += batch.num_rows
            arrays = {name: batch.column(name) if name in present else None for name in columns}
            for number in range(batch.num_rows):
                yield {name: None if array is None else array[number] for name, array in arrays.items()}
        if count != self._file.metadata.num_rows:
            raise DataError(
                self.path, f"it says that it has {self._file.metadata.num_rows} rows, but holds {count}; get it again"
            )

    def values(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return all rows as Python values; for components of small rows."""
        try:
            rows = [
                {name: None if value is None else value.as_py() for name, value in row.items()}
                for row in self.rows(columns, at_a_time=4096)
            ]
        except DataError:
            raise
        except _DAMAGE as error:
            raise self._damaged(error) from None
        for number, row in enumerate(rows):
            for name in _KEY_TYPES:
                if name in row and row[name] is None:
                    raise self.problem(f"the row has no {name}", number)
        return rows

    def _damaged(self, error: BaseException) -> DataError:
        return DataError(self.path, f"its content is damaged ({one_line(error)}); get it again")

    @contextmanager
    def naming(self, row: int | None = None, prefix: str = "") -> Iterator[None]:
        """Turn what is malformed within the block into this file's error about a row."""
        try:
            yield
        except MalformedFrameError as error:
            raise self.problem(f"{prefix}{error}", row) from None

    def problem(self, reason: str, row: int | None = None) -> DataError:
        """Return the error to raise about a row."""
        return DataError(self.path, f"{reason}; get the file again, or leave the segment out", row)


def as_matrix(values: Any, shape: Any, channels: int, name: str) -> Float32Array | None:
    """Turn a row's `values` and `shape` into float32 [H, W, channels]; None where there are none.

    Raises:
        MalformedFrameError: they are no numbers, or disagree.
    """
    if not _is_there(values):
        return None
    if not _is_there(shape):
        raise MalformedFrameError(f"{name} has values, but no shape")
    numbers = _flat(values, name)
    if len(numbers) == 0:
        return None
    dims = _flat(shape, name)
    if not np.issubdtype(dims.dtype, np.integer):
        raise MalformedFrameError(f"{name} has the shape {dims.tolist()}, which are no whole numbers")
    with np.errstate(over="ignore"):  # becomes infinite, which is refused where it matters
        return shape_matrix(numbers.astype(np.float32, copy=False), tuple(dims.tolist()), channels, name)


def as_lidar(value: Any) -> Lidar:
    """Turn a laser's key, a number or a name, into a lidar.

    Raises:
        MalformedFrameError: Waymo has no such lidar.
    """
    text = str(value)
    for lidar in Lidar:
        if lidar != Lidar.UNKNOWN and text in (str(int(lidar)), lidar.name):
            return lidar
    raise MalformedFrameError(f"{LASER} is {value!r}; Waymo's lidars are 1 to 5, TOP to REAR")


def as_numbers(value: Any) -> Float64Array:
    """Turn a number, a list of them, or None (no number) into float64 [N].

    Raises:
        MalformedFrameError: it is something else.
    """
    try:
        return np.atleast_1d(np.array([] if value is None else value, np.float64)).reshape(-1)
    except (ValueError, TypeError):
        raise MalformedFrameError(f"{str(value)[:60]!r} stands where numbers should") from None


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_there(value: Any) -> bool:
    return value is not None and value.is_valid


def _flat(value: Any, name: str) -> np.ndarray:
    is_list = any(check(value.type) for check in _LISTS)
    array = value.values if is_list else None
    if array is None or not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type)):
        raise MalformedFrameError(f"{name} is of the type {value.type}, expected a list of numbers")
    return array.to_numpy(zero_copy_only=False)
