"""What `inspect_data` is given: told by looking, and read a few frames at a time."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detection3d.errors import DataError, UserError
from detection3d.files import own_name, walk

if TYPE_CHECKING:
    from detection3d.data.preparation import Source
    from detection3d.data.store import Store
    from detection3d.types.scene import Frame


@dataclass(frozen=True)
class RawData:
    """Recordings in one of the formats that the preparation tools read.

    Attributes:
        kind: what it is, in words.
        sources: the segments.
    """

    kind: str
    sources: "tuple[Source, ...]"

    def frames(self, count: int, segment: str | None) -> "Iterator[Frame]":
        """Yield so many frames, spread evenly over the segments and within each.

        Raises:
            UserError: no segment has such a name.
            DataError: a frame can't be read.
        """
        sources = [source for source in self.sources if segment is None or segment in _names(source)]
        if not sources:
            names = [source.name for source in self.sources]
            raise UserError(f"no segment is called {segment}; there are {_some(names)}")
        sizes = [_count(source) for source in sources]
        for source, size, wanted in zip(sources, sizes, _shares(sizes, count), strict=True):
            yield from _some_frames(source, size, wanted)


@dataclass(frozen=True)
class PreparedData:
    """A prepared store."""

    store: "Store"
    kind: str = "prepared store"

    def numbers(self, count: int, segment: str | None) -> list[int]:
        """Return the numbers of so many frames, spread evenly.

        Raises:
            UserError: no segment has such a name.
        """
        there = list(range(len(self.store)))
        if segment is not None:
            there = self._of_segment(segment)
        return [there[place] for place in evenly(len(there), count)]

    def _of_segment(self, segment: str) -> list[int]:
        names = [self.store.key(number)[0] for number in range(len(self.store))]
        numbers = [number for number, name in enumerate(names) if name == segment]
        if not numbers:
            raise UserError(f"no segment is called {segment}; there are {_some(list(dict.fromkeys(names)))}")
        return numbers


def recognise(path: Path) -> RawData | PreparedData:
    """Tell what lies at a path by what is in it.

    Raises:
        UserError: there is nothing, or nothing that is known.
        DataError: it is a prepared store that can't be read.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder; give recordings or a prepared store")
    if path.is_file():
        return _waymo(path)
    if _is_store(path):
        from detection3d.data.store import Store

        return PreparedData(Store.open(path))
    if own_name(path) == "velodyne":
        path = path.parent
    for place in walk(path):
        if place.name == "lidar" and place.parent.name == "sensors":
            from detection3d.cli.prepare_argoverse import find_sources

            return RawData("Argoverse 2", tuple(find_sources(path)))
        if place.name == "velodyne":
            from detection3d.cli.prepare_kitti import find_sources

            return RawData("KITTI", tuple(find_sources(path)))
    return _waymo(path)


def evenly(size: int, count: int) -> list[int]:
    """Return up to `count` different numbers below `size`: the middles of equal shares."""
    count = min(count, size)
    return [(2 * place + 1) * size // (2 * count) for place in range(count)]


def _is_store(path: Path) -> bool:
    from detection3d.data.store_manifest import MANIFEST, SEGMENTS

    return (path / MANIFEST).exists() or (path / SEGMENTS).is_dir()


def _waymo(path: Path) -> RawData:
    from detection3d.cli.prepare_waymo import find_sources

    try:
        sources = find_sources(path)
    except DataError:
        raise
    except UserError as error:
        if path.is_file():
            raise
        known = "Waymo's .tfrecord files or v2 components, Argoverse 2 logs, KITTI's velodyne, or a prepared store"
        raise UserError(f"{error}. Looked for: {known}") from error
    kind = "Waymo v2" if sources[0].path.suffix == ".parquet" else "Waymo v1"
    return RawData(kind, tuple(sources))


def _names(source: "Source") -> tuple[str, ...]:
    """Return what a segment may be called: the file's path in the data, its name, or the segment's own name."""
    stem = source.path.name.split(".")[0]
    return source.name, source.path.name, stem, stem.removeprefix("segment-").removesuffix("_with_camera_labels")


def _count(source: "Source") -> int:
    assert source.count is not None, "every preparation tool's local sources can be counted"
    return source.count(source.path)


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    """Return how many of `count` frames to take of each segment."""
    ends = list(itertools.accumulate(sizes))
    places = evenly(ends[-1], count)
    return [sum(end - size <= place < end for place in places) for size, end in zip(sizes, ends, strict=True)]


def _some_frames(source: "Source", size: int, wanted: int) -> "Iterator[Frame]":
    """Yield frames of one segment, spread evenly.

    Readers skip by a fixed step without decoding, so with a step of half the distance every second frame that is read
    is the middle of a share.
    """
    from detection3d.data.store import StoreSettings

    if wanted == 0:
        return
    step = max(1, size // (2 * wanted))
    places = set(evenly(-(-size // step), wanted))
    frames = enumerate(source.frames(StoreSettings(every=step)))
    yield from (frame for place, frame in itertools.islice(frames, max(places) + 1) if place in places)


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{f' and {len(names) - 5} others' if len(names) > 5 else ''}"
