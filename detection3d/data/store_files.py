"""Files of a prepared store as memory maps, and how its tables and points are written."""

from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from detection3d.data import store_manifest as layout
from detection3d.data.packing import PackedArrays
from detection3d.errors import DataError
from detection3d.files import replace_file


def point_blocks(packed: PackedArrays) -> bytes:
    """Return points as they stand in a file: the blocks of xyz, features and flags."""
    return packed.xyz.tobytes() + packed.features.tobytes() + packed.flags.tobytes()


def view_points(points: pa.Buffer, offset: int, count: int) -> PackedArrays:
    """View `count` points of a file at `offset` bytes, read-only."""
    return PackedArrays(
        xyz=np.frombuffer(points, np.int16, 3 * count, offset).reshape(count, 3),
        features=np.frombuffer(points, np.float16, 2 * count, offset + 6 * count).reshape(count, 2),
        flags=np.frombuffer(points, np.uint8, count, offset + 10 * count),
    )


def write_table(path: Path, table: pa.Table) -> layout.FileRecord:
    """Write an Arrow IPC file of one record batch and force it to the disk."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=None)
    content = sink.getvalue().to_pybytes()
    replace_file(path, content)
    return layout.FileRecord(size=len(content), crc32c=google_crc32c.value(content))


def map_file(path: Path, advice: str | None = None) -> pa.Buffer:
    """Map a file read-only.

    Args:
        path: the file.
        advice: what to do where it can't be used; None: what helps with a segment.

    Raises:
        DataError: it can't be.
    """
    try:
        # Closing the file gives its descriptor back; the map lives as long as the buffer.
        with pa.memory_map(str(path)) as file:
            return file.read_buffer()
    except (OSError, pa.ArrowException) as error:
        raise DataError(path, f"can't be mapped ({error}); {advice or _again(path)}") from error


def read_table(
    path: Path, schema: pa.Schema, expected: layout.FileRecord | None, advice: str | None = None
) -> pa.RecordBatch:
    """Map the one record batch of an Arrow IPC file.

    Args:
        path: the file.
        schema: that it must have.
        expected: what the record beside it says of it; None where it says nothing, which is damage.
        advice: as for `map_file`.

    Raises:
        DataError: the file is damaged, or a table of another schema.
    """
    advice = advice or _again(path)
    content = map_file(path, advice)
    # Arrow believes what a file says of itself: a flipped bit in it would end the process by a signal. The points have
    # no such numbers in them, and reading them all here would cost what mapping saves.
    if expected is None or google_crc32c.value(content.to_pybytes()) != expected.crc32c:
        raise DataError(path, f"its checksum disagrees; {advice}")
    try:
        # Without threads, so that a process that forks later has none of Arrow's.
        options = pa.ipc.IpcReadOptions(use_threads=False)
        reader = pa.ipc.open_file(content, options=options)
        batch = reader.get_batch(0) if reader.num_record_batches == 1 else None
        if reader.num_record_batches == 0:  # Arrow writes no batch for a segment without any box
            batch = pa.RecordBatch.from_pylist([], schema=reader.schema)
    except (OSError, pa.ArrowException) as error:
        raise DataError(path, f"not an Arrow file ({error}); {advice}") from error
    if batch is None or batch.schema != schema:
        raise DataError(path, f"not a table of the columns that it should have; {advice}")
    return batch


def _again(path: Path) -> str:
    return f"delete {path.parent} and {layout.AGAIN}"


def column_values(table: pa.RecordBatch, column: str) -> npt.NDArray:
    """View a column in place; that of a list of fixed size comes flat."""
    array = table[column]
    if pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=True)
