"""Frames made for tests of the store, and a reader of a file that says which to make."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from detection3d.data.preparation import Source
from detection3d.data.store import SegmentWriter, StoreSettings, write_manifest
from detection3d.errors import DataError
from detection3d.types.scene import Boxes, Frame


def make_boxes(count: int, seed: int = 0) -> Boxes:
    generator = np.random.default_rng(seed)
    boxes = np.column_stack(
        [generator.uniform(-60, 60, (count, 3)), generator.uniform(0.5, 5, (count, 3)), generator.uniform(-3, 3, count)]
    )
    return Boxes(
        boxes=boxes.astype(np.float32),
        types=generator.choice([1, 2, 4], count).astype(np.uint8),
        ids=tuple(f"objet-é{seed}-{number}" for number in range(count)),
        difficulty=generator.integers(0, 3, count).astype(np.uint8),
        num_points=generator.integers(0, 1000, count).astype(np.int32),
        velocity=generator.normal(0, 8, (count, 3)).astype(np.float32),
        acceleration=generator.normal(0, 1, (count, 3)).astype(np.float32),
    )


def make_frame(context_name: str, timestamp: int, points: int = 200, boxes: int | None = 3) -> Frame:
    """A frame whose values depend on its arguments alone; `boxes=None` leaves it without labels."""
    generator = np.random.default_rng([len(context_name), timestamp])
    values = np.column_stack(
        [generator.uniform(-80, 80, (points, 3)), generator.exponential(2, points), generator.uniform(0, 1.5, points)]
    )
    pose = np.eye(4)
    pose[:3, 3] = generator.normal(0, 1e4, 3)
    return Frame(
        context_name=context_name,
        timestamp_micros=timestamp,
        pose=pose,
        points=values.astype(np.float32),
        lidar=generator.integers(1, 6, points).astype(np.uint8),
        return_number=generator.integers(1, 3, points).astype(np.uint8),
        in_no_label_zone=generator.random(points) < 0.1,
        labels=None if boxes is None else make_boxes(boxes, seed=timestamp),
        no_label_zones=tuple(generator.normal(0, 1e4, (corners, 2)) for corners in (4, 5)),
        time_of_day="Day",
        location="location_sf",
        weather="sunny",
    )


def write_store(root: Path, segments: dict[str, list[Frame]]) -> None:
    for name, frames in segments.items():
        with SegmentWriter(root, name) as writer:
            for frame in frames:
                writer.add(frame)
    write_manifest(root, StoreSettings())


def write_recipe(path: Path, **recipe: object) -> Source:
    """Write a file for `read_recipe`: frames, points, context_name, fail_at, pause (seconds a frame)."""
    path.write_text(json.dumps({"frames": 3, "points": 200, "context_name": path.stem, **recipe}))
    return Source(path.name, path, read_recipe)


def read_recipe(path: Path, settings: StoreSettings) -> Iterator[Frame]:
    recipe = json.loads(path.read_text())
    for number in range(0, recipe["frames"], settings.every):
        if number == recipe.get("fail_at"):
            raise DataError(path, "the record's checksum is wrong", number)
        if number == recipe.get("crash_at"):
            raise KeyError("range image")
        time.sleep(recipe.get("pause", 0))
        yield make_frame(recipe["context_name"], 1000 + number, recipe["points"])
