"""Labelled objects cut out of a store's frames, memory-mapped, to be put into other frames in training.

    <root>/points.bin      the objects' points, packed as in a store, one object after the other
           objects.arrow   Arrow IPC, a row for each object, by type: box, points, where it comes from
           database.json   the `DatabaseRecord`; the folder appears by one rename when all is on the disk

Sampling from such a database follows SECOND (Yan et al., Sensors 2018). No torch here.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from detection3d.data import store_manifest as layout
from detection3d.data.packing import BYTES_PER_POINT, PackedArrays, unpack_arrays
from detection3d.data.preparation_pool import run_tasks
from detection3d.data.store import Store
from detection3d.data.store_files import column_values, map_file, point_blocks, read_table, view_points, write_table
from detection3d.errors import DataError, UserError
from detection3d.files import flush_folder
from detection3d.geometry.host.boxes import points_in_boxes
from detection3d.types.scene import Float32Array, ObjectType

OBJECTS = "objects.arrow"
RECORD = "database.json"
_WAY_OUT = "delete the folder and make it again with tools/make_object_database.py"

SCHEMA = pa.schema(
    [
        ("type", pa.uint8()),
        ("box", pa.list_(pa.float32(), 7)),  # vehicle frame of its own frame
        ("velocity", pa.list_(pa.float32(), 3)),
        ("points_offset", pa.int64()),  # bytes, in points.bin
        ("points_count", pa.int32()),
        ("frame", pa.int64()),  # number in the store
    ]
)


class DatabaseRecord(layout.Record):
    """What a database says of itself.

    Attributes:
        schema_version: version of the layout.
        store: the folder of the store that the objects were cut from.
        every: every so many frames of each segment were looked at.
        min_points: objects with fewer points were left out.
        objects: number of objects by type's name.
        files: size and checksum of the two files.
    """

    schema_version: Literal[1] = 1
    store: str
    every: int
    min_points: int
    objects: dict[str, int]
    files: dict[str, layout.FileRecord]


class ObjectDatabase:
    """Objects by number, those of a type in one range; make one with `ObjectDatabase.open`.

    A pickled database holds its folder's name alone, and maps the files anew where it is unpickled.

    Args:
        root: the database's folder.

    Raises:
        DataError: it isn't there, or is damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            self.record = layout.read_record(root / RECORD, DatabaseRecord, _WAY_OUT)
        except OSError as error:
            raise DataError(
                root, f"no {RECORD} in it, so it is no object database; make one with tools/make_object_database.py"
            ) from error
        for name, expected in self.record.files.items():
            size = (root / name).stat().st_size if (root / name).is_file() else None
            if size != expected.size:
                found = "it is missing" if size is None else f"{size} bytes, {RECORD} says {expected.size}"
                raise DataError(root / name, f"{found}; {_WAY_OUT}")
        table = read_table(root / OBJECTS, SCHEMA, self.record.files.get(OBJECTS), _WAY_OUT)
        self._points = map_file(root / layout.POINTS, _WAY_OUT)
        self._types = column_values(table, "type")
        self._boxes = column_values(table, "box").reshape(-1, 7)
        self._velocity = column_values(table, "velocity").reshape(-1, 3)
        self._offsets = column_values(table, "points_offset")
        self._counts = column_values(table, "points_count")
        ends = self._offsets + self._counts.astype(np.int64) * BYTES_PER_POINT
        if len(ends) and (self._offsets.min() < 0 or ends.max() > self._points.size):
            raise DataError(root / OBJECTS, f"it points outside {layout.POINTS}; {_WAY_OUT}")

    @classmethod
    def open(cls, root: Path | str) -> "ObjectDatabase":
        """Open the database in a folder."""
        return cls(Path(root))

    def __reduce__(self) -> tuple:
        return ObjectDatabase, (self.root,)

    def __len__(self) -> int:
        """Number of objects."""
        return len(self._types)

    def ranges(self, types: Collection[int]) -> list[range]:
        """Return the numbers of the objects of some types."""
        bounds = [np.searchsorted(self._types, (kind, kind + 1)) for kind in sorted(types)]
        return [range(int(start), int(end)) for start, end in bounds]

    def object_type(self, number: int) -> int:
        """Return an object's `ObjectType`."""
        return int(self._types[number])

    def box(self, number: int) -> Float32Array:
        """Return an object's box, float32 [7], vehicle frame of the frame that it was cut from."""
        return self._boxes[number]

    def velocity(self, number: int) -> Float32Array:
        """Return an object's velocity, float32 [3], m/s, axes of that frame."""
        return self._velocity[number]

    def packed(self, number: int) -> PackedArrays:
        """Return an object's points in that frame, as stored: read-only views of the memory map."""
        return view_points(self._points, int(self._offsets[number]), int(self._counts[number]))


def build_database(
    store: Store,
    root: Path,
    *,
    every: int = 1,
    min_points: int = 5,
    workers: int = 1,
    report: Callable[[int, int], None] = lambda frames, objects: None,
) -> DatabaseRecord:
    """Cut the labelled objects out of a store's frames.

    Args:
        store: the prepared store; frames without labels give none.
        root: the database's folder, which must not exist yet.
        every: look at every so many frames of each segment.
        min_points: leave out objects with fewer points in the store.
        workers: processes.
        report: called with the frames and objects done so far.

    Returns:
        The record as written; the same files come of any number of workers.

    Raises:
        UserError: the folder exists, or no object has enough points.
    """
    if root.exists():
        raise UserError(f"{root}: exists already; remove it, or choose another --output")
    root.parent.mkdir(parents=True, exist_ok=True)
    for left in root.parent.glob(f".{root.name}.[0-9]*"):  # by a process that was killed
        if not Path(f"/proc/{left.suffix[1:]}").exists():
            shutil.rmtree(left, ignore_errors=True)
    temporary = root.with_name(f".{root.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        record = _write(store, temporary, every, min_points, workers, report)
        temporary.rename(root)
        flush_folder(root.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
        raise
    return record


@dataclass(frozen=True)
class _Task:
    number: int
    store: Store
    frames: npt.NDArray[np.int64]
    min_points: int


@dataclass(frozen=True)
class _Cut:
    """The objects of one task's frames: the columns of `SCHEMA`, offsets counted from the first's, and the points."""

    task: int
    frames: int
    columns: dict[str, npt.NDArray]
    points: bytes


def _write(
    store: Store, folder: Path, every: int, min_points: int, workers: int, report: Callable[[int, int], None]
) -> DatabaseRecord:
    cuts, size, checksum, objects, frames = [], 0, 0, 0, 0
    with (folder / layout.POINTS).open("wb") as file:
        for cut in _cuts(store, store.every(every), min_points, workers):
            cut.columns["points_offset"] += size
            file.write(cut.points)
            size += len(cut.points)
            checksum = google_crc32c.extend(checksum, cut.points)
            cuts.append(cut.columns)
            objects, frames = objects + len(cut.columns["type"]), frames + cut.frames
            report(frames, objects)
        file.flush()
        os.fsync(file.fileno())
    if all(store.labels(frame) is None for frame in store.every(every).tolist()):
        raise UserError(f"{store.root}: no frame has labels, so there are no objects to cut out")
    if not objects:
        raise UserError(f"{store.root}: no labelled object has {min_points} points or more, so there is none to sample")
    columns = {name: np.concatenate([columns[name] for columns in cuts]) for name in SCHEMA.names}
    by_type = np.argsort(columns["type"], kind="stable")
    table = pa.Table.from_arrays([_column(columns[field.name][by_type], field) for field in SCHEMA], schema=SCHEMA)
    record = DatabaseRecord(
        store=str(store.root),
        every=every,
        min_points=min_points,
        objects={kind.name: int((columns["type"] == kind).sum()) for kind in ObjectType if kind in columns["type"]},
        files={
            layout.POINTS: layout.FileRecord(size=size, crc32c=checksum),
            OBJECTS: write_table(folder / OBJECTS, table),
        },
    )
    layout.write_record(folder / RECORD, record)
    return record


def _column(values: npt.NDArray, field: pa.Field) -> pa.Array:
    if pa.types.is_fixed_size_list(field.type):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), field.type.list_size)
    return pa.array(values, field.type)


def _cuts(store: Store, frames: npt.NDArray[np.int64], min_points: int, workers: int) -> Iterator[_Cut]:
    """Yield what the frames hold, in their order, however the processes finish."""
    chunks = np.array_split(frames, max(1, len(frames) // 50))
    waiting: dict[int, _Cut] = {}
    following = 0
    for done in run_tasks(_cut, [_Task(n, store, chunk, min_points) for n, chunk in enumerate(chunks)], workers):
        waiting[done.task] = done
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _cut(task: _Task) -> _Cut:
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    blocks: list[bytes] = []
    size = 0
    for frame in task.frames.tolist():
        labels = task.store.labels(frame)
        if labels is None or len(labels) == 0:
            continue
        packed = task.store.packed(frame)
        inside = points_in_boxes(unpack_arrays(packed)[0], labels.boxes)
        for number in np.flatnonzero((inside.sum(0) >= task.min_points) & (labels.types != ObjectType.UNKNOWN)):
            rows = np.flatnonzero(inside[:, number])
            blocks.append(point_blocks(PackedArrays(packed.xyz[rows], packed.features[rows], packed.flags[rows])))
            values = labels.types[number], labels.boxes[number], labels.velocity[number], size, len(rows), frame
            for name, value in zip(SCHEMA.names, values, strict=True):
                columns[name].append(value)
            size += len(blocks[-1])
    shapes = {"box": (-1, 7), "velocity": (-1, 3)}
    arrays = {
        name: np.array(values, np.float32 if name in shapes else np.int64).reshape(shapes.get(name, (-1,)))
        for name, values in columns.items()
    }
    return _Cut(task.number, len(task.frames), arrays, b"".join(blocks))
