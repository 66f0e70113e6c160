"""What a data set is like: the summaries of its frames put together."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detection3d.data.frame_summary import MOVING, FrameSummary, ObjectSummary, distance_band
from detection3d.types.scene import Float64Array, Lidar, ObjectType

PERCENTS = (1, 5, 25, 50, 75, 95, 99, 100)
"""Quantiles of the points' values; the last is the largest."""

QUANTITIES = ("distance", "z", "intensity", "elongation")
"""Columns of `FrameSummary.sample`."""

DISTANCE_BANDS = ("0-30 m", "30-50 m", "50+ m")

HEADING_SECTORS = 12
"""Sectors of equal size; the first is centred on straight ahead, the next ones follow to the left."""


@dataclass(frozen=True)
class Spread:
    """How some values are spread.

    Attributes:
        count: how many there are.
        mean: of them.
        low: the 5 % quantile.
        median: likewise 50 %.
        high: likewise 95 %.
    """

    count: int
    mean: float
    low: float
    median: float
    high: float


@dataclass(frozen=True)
class ScanStatistics:
    """The points of one return of one lidar.

    Attributes:
        lidar: its name.
        return_number: 1 or 2.
        points_per_frame: mean.
        share: of all points.
    """

    lidar: str
    return_number: int
    points_per_frame: float
    share: float


@dataclass(frozen=True)
class PointStatistics:
    """The points of all frames.

    Attributes:
        per_frame: points of a frame.
        scans: by lidar and return.
        no_label_zone_share: of the points lie in no-label zones.
        in_range_share: of the points lie inside the model's range.
        distance_shares: by horizontal distance, in the order of `DISTANCE_BANDS`.
        quantiles: by name of `QUANTITIES`, the quantiles of `PERCENTS`; empty where there are no points.
        ground: the median over the frames of the commonest z around the vehicle, metres; None where no point is near.
    """

    per_frame: Spread
    scans: tuple[ScanStatistics, ...]
    no_label_zone_share: float
    in_range_share: float
    distance_shares: tuple[float, float, float]
    quantiles: dict[str, tuple[float, ...]]
    ground: float | None


@dataclass(frozen=True)
class VoxelStatistics:
    """What the points fill in the model's grid, each for a frame: voxels, columns of voxels, bird's-eye-view cells."""

    voxels: Spread
    pillars: Spread
    cells: Spread
    points_per_voxel: float


@dataclass(frozen=True)
class BandStatistics:
    """Objects of one type at some distance.

    Attributes:
        distance: of `DISTANCE_BANDS`.
        objects_per_frame: mean over the frames with labels.
        points: counted in a box; None where there are no objects.
        empty_share: of the boxes hold no point; likewise.
    """

    distance: str
    objects_per_frame: float
    points: Spread | None
    empty_share: float | None


@dataclass(frozen=True)
class TypeStatistics:
    """The objects of one type; all spreads are over boxes except the first.

    Attributes:
        name: of the `ObjectType`.
        per_frame: objects of a frame with labels.
        bands: by distance.
        length: metres.
        width: likewise.
        height: likewise.
        speed: m/s.
        moving_share: of the objects are faster than 1 m/s.
        headings: share in each of the sectors, see `HEADING_SECTORS`.
        points_at_10_m: points in a box that holds any, times the square of its distance over 10 m: what it would hold
            there. It compares sensors and sizes whatever the distances.
        empty_share: of the boxes hold no point.
    """

    name: str
    per_frame: Spread
    bands: tuple[BandStatistics, ...]
    length: Spread
    width: Spread
    height: Spread
    speed: Spread
    moving_share: float
    headings: tuple[float, ...]
    points_at_10_m: Spread | None
    empty_share: float


@dataclass(frozen=True)
class Statistics:
    """A data set, as far as its frames were looked at.

    Attributes:
        frames: looked at.
        labelled_frames: of these have labels.
        segments: that they come from.
        points: see there.
        voxels: see there.
        objects_per_frame: of all types, frames with labels; None where none has.
        empty_share: of all boxes hold no point; None where there are no boxes.
        types: those that occur, in the order of their numbers.
    """

    frames: int
    labelled_frames: int
    segments: int
    points: PointStatistics
    voxels: VoxelStatistics
    objects_per_frame: Spread | None
    empty_share: float | None
    types: tuple[TypeStatistics, ...]


def collect_statistics(summaries: Sequence[FrameSummary]) -> Statistics:
    """Put the summaries of at least one frame together.

    Quantiles of the points' values rest on `frame_summary.SAMPLED_POINTS` points of each frame, all else on all.
    """
    objects = [summary.objects for summary in summaries if summary.objects is not None]
    boxes = sum(len(item.points) for item in objects)
    found = sorted({int(number) for item in objects for number in item.labels.types})
    return Statistics(
        frames=len(summaries),
        labelled_frames=len(objects),
        segments=len({summary.key[0] for summary in summaries}),
        points=_point_statistics(summaries),
        voxels=VoxelStatistics(
            voxels=_spread([summary.voxels for summary in summaries]),
            pillars=_spread([summary.pillars for summary in summaries]),
            cells=_spread([summary.cells for summary in summaries]),
            points_per_voxel=_share(_total(s.in_range for s in summaries), _total(s.voxels for s in summaries)),
        ),
        objects_per_frame=_spread([len(item.points) for item in objects]) if objects else None,
        empty_share=sum(int((item.points == 0).sum()) for item in objects) / boxes if boxes else None,
        types=tuple(_type_statistics(ObjectType(number), objects) for number in found),
    )


def _point_statistics(summaries: Sequence[FrameSummary]) -> PointStatistics:
    total = _total(summary.points for summary in summaries)
    scans: Counter[tuple[int, int]] = Counter()
    for summary in summaries:
        scans.update(summary.scans)
    sample = np.concatenate([summary.sample for summary in summaries])
    quantiles = dict(zip(QUANTITIES, np.percentile(sample, PERCENTS, axis=0).T, strict=True)) if len(sample) else {}
    grounds = [summary.ground for summary in summaries if np.isfinite(summary.ground)]
    near, middle, far = (_share(_total(s.by_distance[band] for s in summaries), total) for band in range(3))
    return PointStatistics(
        per_frame=_spread([summary.points for summary in summaries]),
        scans=tuple(
            ScanStatistics(_lidar_name(lidar), number, count / len(summaries), _share(count, total))
            for (lidar, number), count in sorted(scans.items())
        ),
        no_label_zone_share=_share(_total(summary.in_zone for summary in summaries), total),
        in_range_share=_share(_total(summary.in_range for summary in summaries), total),
        distance_shares=(near, middle, far),
        quantiles={name: tuple(values.tolist()) for name, values in quantiles.items()},
        ground=float(np.median(grounds)) if grounds else None,
    )


def _type_statistics(kind: ObjectType, objects: Sequence[ObjectSummary]) -> TypeStatistics:
    masks = [item.labels.types == kind for item in objects]

    def gather(values: Iterable[npt.NDArray]) -> npt.NDArray:
        return np.concatenate([value[mask] for value, mask in zip(values, masks, strict=True)])

    boxes = gather(item.labels.boxes for item in objects)
    points = gather(item.points for item in objects)
    distance = gather(item.distance for item in objects)
    bands = distance_band(distance)
    carried = (points * (distance / 10) ** 2)[points > 0]
    speed = gather(item.speed for item in objects)
    moving = speed >= MOVING
    length, width, height = (_spread(boxes[:, column]) for column in (3, 4, 5))
    return TypeStatistics(
        name=kind.name,
        per_frame=_spread([int(mask.sum()) for mask in masks]),
        bands=tuple(
            _band_statistics(name, points[bands == band], len(objects)) for band, name in enumerate(DISTANCE_BANDS)
        ),
        length=length,
        width=width,
        height=height,
        speed=_spread(speed),
        moving_share=float(moving.mean()),
        headings=_heading_shares(boxes[:, 6].astype(np.float64)),
        points_at_10_m=_spread(carried) if len(carried) else None,
        empty_share=float((points == 0).mean()),
    )


def _band_statistics(name: str, points: npt.NDArray[np.int32], frames: int) -> BandStatistics:
    return BandStatistics(
        distance=name,
        objects_per_frame=len(points) / frames,
        points=_spread(points) if len(points) else None,
        empty_share=float((points == 0).mean()) if len(points) else None,
    )


def _heading_shares(headings: Float64Array) -> tuple[float, ...]:
    width = 2 * np.pi / HEADING_SECTORS
    sector = np.floor(headings / width + 0.5).astype(np.int64) % HEADING_SECTORS
    return tuple((np.bincount(sector, minlength=HEADING_SECTORS) / len(headings)).tolist())


def _spread(values: npt.ArrayLike) -> Spread:
    numbers = np.asarray(values, np.float64)
    low, median, high = np.percentile(numbers, (5, 50, 95)).tolist()
    return Spread(len(numbers), float(numbers.mean()), low, median, high)


def _total(values: Iterable[int]) -> int:
    return sum(values)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _lidar_name(number: int) -> str:
    return Lidar(number).name if number in list(Lidar) else f"lidar {number}"
