"""Small drives with objects of every heading, made without ray casting, for tests of what a data set says of itself."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detection3d.data.preparation import Source
from detection3d.data.recording import make_frame
from detection3d.geometry.host.poses import invert_pose, pose_from_angles, transform_points
from detection3d.types.scene import Frame

INTERVAL = 0.1
SIZES = {"VEHICLE": (4.6, 1.9, 1.6), "PEDESTRIAN": (0.9, 0.8, 1.75), "CYCLIST": (1.8, 0.7, 1.7)}
SPEEDS = {"VEHICLE": 10.0, "PEDESTRIAN": 1.4, "CYCLIST": 5.0}


@dataclass(frozen=True)
class Thing:
    kind: str
    place: np.ndarray  # x, y in the global frame at the start
    heading: float  # in the global frame
    speed: float

    def box(self, time: float) -> np.ndarray:
        x, y = self.place + self.speed * time * np.array([np.cos(self.heading), np.sin(self.heading)])
        length, width, height = SIZES[self.kind]
        return np.array([x, y, 30.0 + height / 2, length, width, height, self.heading])


def make_drive(name: str, frames: int = 6, seed: int = 0, interval: float = INTERVAL) -> list[Frame]:
    """The vehicle drives straight at 9 m/s, 30 m above the global zero; a third of the things move."""
    generator = np.random.default_rng(seed)
    yaw, start = generator.uniform(0.4, 1.2), np.array([3000.0, -2000.0, 30.0])
    things = []
    spots = generator.permutation([(x, y) for x in range(-32, 48, 8) for y in (-24, -16, -8, 8, 16, 24)])
    for number, spot in enumerate(spots[:36]):
        kind = ("VEHICLE", "VEHICLE", "PEDESTRIAN", "CYCLIST")[number % 4]
        turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
        speed = SPEEDS[kind] if number % 3 == 0 else 0.0
        things.append(Thing(kind, start[:2] + turn @ spot, generator.uniform(-np.pi, np.pi), speed))
    made = []
    for number in range(frames):
        time = number * interval
        forward = 9.0 * time * np.array([np.cos(yaw), np.sin(yaw), 0.0])
        pose = pose_from_angles([0.0, 0.0, yaw], start + forward)
        made.append(_look(things, time, pose, generator))
    return [_named(frame, name) for frame in made]


def as_source(name: str, frames: list[Frame]) -> Source:
    return Source(name, Path(name), lambda path, settings: iter(frames[:: settings.every]))


def _look(things: list[Thing], time: float, pose: np.ndarray, generator: np.random.Generator) -> Frame:
    boxes = np.array([thing.box(time) for thing in things])
    velocity = np.array([[np.cos(t.heading) * t.speed, np.sin(t.heading) * t.speed, 0.0] for t in things])
    boxes[:, :3] = transform_points(invert_pose(pose), boxes[:, :3])
    boxes[:, 6] -= np.arctan2(pose[1, 0], pose[0, 0])
    ground = np.column_stack([generator.uniform(-60, 60, (3000, 2)), generator.normal(0, 0.02, 3000)])
    walls = np.column_stack(
        [generator.uniform(-60, 60, 1500), generator.choice([-35.0, 37.0], 1500), generator.uniform(0, 9, 1500)]
    )
    cloud = np.concatenate([ground, walls, *(_surface(box, generator) for box in boxes)])
    points = np.column_stack([cloud, generator.uniform(0.02, 0.8, len(cloud))])
    ids = [f"thing {number}" for number in range(len(things))]
    stamp = 1_700_000_000_000_000 + round(time * 1e6)
    kinds = [thing.kind for thing in things]
    return make_frame(stamp, points, boxes, kinds, ids, pose=pose, velocity=velocity @ pose[:3, :3])


def _surface(box: np.ndarray, generator: np.random.Generator, count: int = 60) -> np.ndarray:
    unit = generator.uniform(-0.48, 0.48, (count, 3))
    side = generator.integers(0, 2, count)
    unit[np.arange(count), side] = generator.choice([-0.48, 0.48], count)
    local = unit * box[3:6]
    cosine, sine = np.cos(box[6]), np.sin(box[6])
    turned = np.column_stack([cosine * local[:, 0] - sine * local[:, 1], sine * local[:, 0] + cosine * local[:, 1]])
    return np.column_stack([turned, local[:, 2]]) + box[:3]


def _named(frame: Frame, name: str) -> Frame:
    return Frame(**{**vars(frame), "context_name": name})
