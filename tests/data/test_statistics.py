"""Statistics of small made frames against loops over their points and boxes."""

import math
from dataclasses import replace
from statistics import median

import numpy as np
import pytest

from detection3d.config import ModelConfig
from detection3d.config_file import load_config
from detection3d.data.frame_summary import DISTANCES, MOVING, SAMPLED_POINTS, distance_band, summarise_frame
from detection3d.data.statistics import HEADING_SECTORS, PERCENTS, collect_statistics
from detection3d.types.scene import Frame, Lidar, ObjectType, empty_boxes
from tests.data.made_frames import make_frame

MODEL = load_config("waymo_voxel").model


def wide_frame(timestamp: int, points: int = 900, boxes: int | None = 12) -> Frame:
    """A made frame with boxes so large that points lie in them, and points near the ground."""
    frame = make_frame("segment", timestamp, points, boxes)
    labels = frame.labels
    if labels is not None:
        labels = replace(labels, boxes=labels.boxes * np.float32([0.9, 0.9, 0.05, 9, 7, 1, 1]))
    return replace(frame, points=frame.points * np.float32([1, 1, 0.06, 1, 1]), labels=labels)


FRAMES = [wide_frame(1), wide_frame(2, points=700, boxes=5), wide_frame(3, boxes=0), wide_frame(4, boxes=None)]


def slow_points_inside(points: np.ndarray, box: np.ndarray) -> int:
    x, y, z, length, width, height, heading = map(float, box)
    count = 0
    for px, py, pz in points[:, :3].tolist():
        along = (px - x) * math.cos(heading) + (py - y) * math.sin(heading)
        across = -(px - x) * math.sin(heading) + (py - y) * math.cos(heading)
        count += abs(along) <= length / 2 and abs(across) <= width / 2 and abs(pz - z) <= height / 2
    return count


def slow_voxels(frame: Frame, model: ModelConfig) -> tuple[int, set[tuple[int, ...]]]:
    inside, voxels = 0, set()
    for point in frame.points:
        cell = []
        for axis in range(3):
            low, size = np.float32(model.point_range[axis]), np.float32(model.voxel_size[axis])
            cell.append(math.floor((point[axis] - low) / size))
        if all(0 <= index < limit for index, limit in zip(cell, model.grid_size[::-1], strict=True)):
            inside += 1
            voxels.add(tuple(cell))
    return inside, voxels


def test_points_of_a_frame_are_counted() -> None:
    for frame in FRAMES:
        summary = summarise_frame(frame, MODEL)
        inside, voxels = slow_voxels(frame, MODEL)
        assert 0 < inside < len(frame.points)
        assert (summary.points, summary.in_range, summary.voxels) == (len(frame.points), inside, len(voxels))
        assert summary.pillars == len({cell[:2] for cell in voxels})
        assert summary.cells == len({(cell[0] // 8, cell[1] // 8) for cell in voxels}) < summary.pillars
        distances = [math.hypot(x, y) for x, y in frame.points[:, :2].tolist()]
        assert summary.by_distance == (
            sum(distance < 30 for distance in distances),
            sum(30 <= distance < 50 for distance in distances),
            sum(distance >= 50 for distance in distances),
        )
        assert summary.in_zone == sum(frame.in_no_label_zone.tolist())
        pairs = list(zip(frame.lidar.tolist(), frame.return_number.tolist(), strict=True))
        assert dict(summary.scans) == {pair: pairs.count(pair) for pair in pairs}


def test_boxes_are_counted_where_they_are() -> None:
    frame = FRAMES[0]
    objects = summarise_frame(frame, MODEL).objects
    assert objects is not None
    assert frame.labels is not None
    boxes = frame.labels.boxes
    assert objects.points.tolist() == [slow_points_inside(frame.points, box) for box in boxes]
    assert objects.points.max() > 3
    for row, box in enumerate(boxes.tolist()):
        vx, vy, _ = frame.labels.velocity[row].tolist()
        assert objects.distance[row] == pytest.approx(math.sqrt(sum(value**2 for value in box[:3])))
        assert objects.speed[row] == pytest.approx(math.hypot(vx, vy))


def test_statistics_of_several_frames() -> None:
    statistics = collect_statistics([summarise_frame(frame, MODEL) for frame in FRAMES])
    total = sum(len(frame.points) for frame in FRAMES)
    assert (statistics.frames, statistics.labelled_frames, statistics.segments) == (4, 3, 1)
    points = statistics.points
    assert points.per_frame.mean == total / 4
    assert points.per_frame.median == 900
    assert points.per_frame.low == pytest.approx(700 + 0.15 * 200)  # 0.05 of the way from the first to the fourth
    assert points.no_label_zone_share == sum(int(frame.in_no_label_zone.sum()) for frame in FRAMES) / total
    joined = np.concatenate([frame.points for frame in FRAMES]).astype(np.float64)
    columns = {"distance": np.hypot(joined[:, 0], joined[:, 1]), "z": joined[:, 2]}
    columns |= {"intensity": joined[:, 3], "elongation": joined[:, 4]}
    for name, values in columns.items():
        ordered = np.sort(values)
        for percent, found in zip(PERCENTS, points.quantiles[name], strict=True):
            place = percent / 100 * (total - 1)
            below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
            assert found == pytest.approx(below + (place % 1) * (above - below), rel=1e-5, abs=1e-6)
    for scan in points.scans:
        mine = sum(
            int(((frame.lidar == Lidar[scan.lidar]) & (frame.return_number == scan.return_number)).sum())
            for frame in FRAMES
        )
        assert (scan.points_per_frame, scan.share) == (mine / 4, mine / total)
    voxels = [len(slow_voxels(frame, MODEL)[1]) for frame in FRAMES]
    assert statistics.voxels.voxels.mean == np.mean(voxels)
    assert statistics.voxels.points_per_voxel == sum(slow_voxels(f, MODEL)[0] for f in FRAMES) / sum(voxels)


def test_statistics_of_the_objects() -> None:
    statistics = collect_statistics([summarise_frame(frame, MODEL) for frame in FRAMES])
    rows = []
    for frame in FRAMES[:3]:
        assert frame.labels is not None
        for box, kind, velocity in zip(
            frame.labels.boxes, frame.labels.types.tolist(), frame.labels.velocity, strict=True
        ):
            rows.append((kind, box.astype(float), slow_points_inside(frame.points, box), math.hypot(*velocity[:2])))
    assert statistics.objects_per_frame is not None
    assert statistics.objects_per_frame.mean == len(rows) / 3
    assert statistics.empty_share == sum(row[2] == 0 for row in rows) / len(rows)
    assert [item.name for item in statistics.types] == ["VEHICLE", "PEDESTRIAN", "CYCLIST"]
    for item in statistics.types:
        mine = [row for row in rows if row[0] == ObjectType[item.name]]
        assert item.per_frame.mean == pytest.approx(len(mine) / 3)
        assert item.length.median == pytest.approx(np.median([row[1][3] for row in mine]))
        assert item.width.mean == pytest.approx(np.mean([row[1][4] for row in mine]))
        assert item.height.high == pytest.approx(np.quantile([row[1][5] for row in mine], 0.95))
        assert item.speed.median == pytest.approx(np.median([row[3] for row in mine]))
        assert item.moving_share == pytest.approx(np.mean([row[3] >= MOVING for row in mine]))
        for band, (near, far) in zip(item.bands, ((0, 30), (30, 50), (50, math.inf)), strict=True):
            counts = [row[2] for row in mine if near <= math.dist((0, 0, 0), row[1][:3]) < far]
            assert band.objects_per_frame == len(counts) / 3
            assert band.points is None if not counts else band.points.median == np.median(counts)
            assert band.empty_share == (sum(count == 0 for count in counts) / len(counts) if counts else None)
        carried = [row[2] * sum(row[1][:3] ** 2) / 100 for row in mine if row[2]]
        assert item.points_at_10_m is not None
        assert (item.points_at_10_m.count, item.points_at_10_m.median) == (len(carried), pytest.approx(median(carried)))
        sectors = [0] * HEADING_SECTORS
        for row in mine:
            sectors[round(math.degrees(row[1][6]) / 30) % HEADING_SECTORS] += 1
        assert item.headings == pytest.approx([count / len(mine) for count in sectors])


def test_frames_without_points_or_labels_go_through() -> None:
    empty = replace(make_frame("segment", 1, points=0), labels=empty_boxes())
    statistics = collect_statistics([summarise_frame(empty, MODEL), summarise_frame(wide_frame(2, boxes=None), MODEL)])
    assert (statistics.labelled_frames, statistics.types, statistics.empty_share) == (1, (), None)
    assert statistics.points.per_frame.low == pytest.approx(45)
    nothing = collect_statistics([summarise_frame(empty, MODEL)])
    assert (nothing.points.ground, nothing.voxels.points_per_voxel, nothing.points.quantiles) == (None, 0, {})


def test_labelled_counts_stand_in_where_the_lidar_is_missing() -> None:
    frame = make_frame("segment", 1, points=0, boxes=6)
    assert frame.labels is not None
    objects = summarise_frame(frame, MODEL).objects
    assert objects is not None
    assert objects.points.tolist() == frame.labels.num_points.tolist()


def test_large_frames_are_sampled_evenly() -> None:
    frame = make_frame("segment", 1, points=3 * SAMPLED_POINTS - 1, boxes=None)
    sample = summarise_frame(frame, MODEL).sample
    assert len(sample) == SAMPLED_POINTS
    np.testing.assert_array_equal(sample[:, 1:], frame.points[::3, 2:5])


def test_bands_are_those_of_the_metrics() -> None:
    assert DISTANCES == (30, 50)
    assert distance_band(np.array([0, 29.999, 30, 49.999, 50, 1e4])).tolist() == [0, 0, 1, 1, 2, 2]
