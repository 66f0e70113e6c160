"""KITTI's object detection data set: single scans, as frames.

A split is a folder such as `training`, with `velodyne/<number>.bin`, `calib/<number>.txt` and `label_2/<number>.txt`
(none in the test split). How a scan becomes a `Frame`:

- Points are those of the file, in its order, in the lidar's frame: x forward, y left, z up like ours, but with its
  origin in the lidar, 1.73 m above the ground. It is left so. The pose is the identity: the scans are no sequences.
- Reflectance, 0 to 1, is the intensity. There is no elongation; it is 0. The lidar counts as `Lidar.TOP`, return 1.
- Objects are labelled only where the left colour camera sees them. Points that it doesn't see, and points in the image
  regions called DontCare, count as lying in a no-label zone; `data.drop_no_label_zone_points` takes them away.
- Boxes are turned from the rectified camera's frame into the lidar's. Points in them are counted here. DontCare regions
  have no box. Velocities are not known: they are 0, and so are accelerations and difficulty.
- The timestamp is the scan's number, in microseconds, as the data set has none.

Source: the development kit's readme.txt of the object benchmark (https://www.cvlibs.net/datasets/kitti).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detection3d.errors import DataError
from detection3d.geometry.host.boxes import count_points_in_boxes, wrap_angle
from detection3d.types.scene import BoolArray, Boxes, Float32Array, Float64Array, Frame, Lidar, ObjectType

# Waymo's rules decide, as for Argoverse 2: vans and trucks are vehicles, a sitting person is a pedestrian. Trams, and
# what KITTI calls Misc (trailers, Segways ...), stay as UNKNOWN: neither trained on nor counted, yet not lost.
CATEGORY_TYPES: dict[str, ObjectType] = {
    "Car": ObjectType.VEHICLE,
    "Cyclist": ObjectType.CYCLIST,
    "Misc": ObjectType.UNKNOWN,
    "Pedestrian": ObjectType.PEDESTRIAN,
    "Person_sitting": ObjectType.PEDESTRIAN,
    "Tram": ObjectType.UNKNOWN,
    "Truck": ObjectType.VEHICLE,
    "Van": ObjectType.VEHICLE,
}
_REGION = "DontCare"

IMAGE_SIZE = (1242, 375)
"""Width and height of most images, pixels; the others are up to 18 narrower and 5 lower."""

_LABEL_FIELDS = 15  # a 16th, the score, stands in detections


def read_scan(root: Path | str, number: str, context_name: str) -> Frame:
    """Read one scan.

    Args:
        root: the split's folder.
        number: the files' common name, such as "000001".
        context_name: of the segment that it is to belong to.

    Raises:
        DataError: a file is missing, or something in it can't be used.
    """
    root = Path(root)
    points = _read_points(root / "velodyne" / f"{number}.bin")
    calibration = _read_calibration(root / "calib" / f"{number}.txt")
    in_zone = ~calibration.sees(points)
    labels = None
    if (root / "label_2").is_dir():
        found = _read_labels(root / "label_2" / f"{number}.txt", calibration, number)
        labels = found.count(points)
        in_zone |= calibration.in_regions(points, found.regions)
    count = len(points)
    return Frame(
        context_name=context_name,
        timestamp_micros=int(number),
        pose=np.eye(4),
        points=points,
        lidar=np.full(count, Lidar.TOP, np.uint8),
        return_number=np.ones(count, np.uint8),
        in_no_label_zone=in_zone,
        labels=labels,
    )


@dataclass(frozen=True)
class _Calibration:
    """Geometry of a scan.

    Attributes:
        camera_from_lidar: float64 [4, 4], to the rectified camera.
        projection: float64 [3, 4], P2: rectified camera to the left colour image.
    """

    camera_from_lidar: Float64Array
    projection: Float64Array

    def pixels(self, points: Float32Array) -> tuple[Float64Array, BoolArray]:
        """Return float64 [N, 2], the points' pixels, and bool [N], before the camera."""
        homogeneous = np.column_stack([points[:, :3].astype(np.float64), np.ones(len(points))])
        image = homogeneous @ (self.projection @ self.camera_from_lidar).T
        before = image[:, 2] > 0
        return image[:, :2] / np.where(before, image[:, 2], 1.0)[:, None], before

    def sees(self, points: Float32Array) -> BoolArray:
        """Tell which points, [N, 5], lie in the image; bool [N]."""
        pixels, before = self.pixels(points)
        return before & (pixels >= 0).all(axis=1) & (pixels < IMAGE_SIZE).all(axis=1)

    def in_regions(self, points: Float32Array, regions: Float64Array) -> BoolArray:
        """Tell which points lie in image regions, float64 [R, 4] (left, top, right, bottom); bool [N]."""
        pixels, before = self.pixels(points)
        inside = np.zeros(len(points), np.bool_)
        for left, top, right, bottom in regions:
            inside |= before & (pixels >= (left, top)).all(axis=1) & (pixels <= (right, bottom)).all(axis=1)
        return inside


@dataclass(frozen=True)
class _Labels:
    """A scan's boxes, whose points aren't counted yet, and the regions without labels, float64 [R, 4]."""

    boxes: Float32Array
    types: tuple[ObjectType, ...]
    ids: tuple[str, ...]
    regions: Float64Array

    def count(self, points: Float32Array) -> Boxes:
        count = len(self.boxes)
        return Boxes(
            boxes=self.boxes,
            types=np.array(self.types, np.uint8),
            ids=self.ids,
            difficulty=np.zeros(count, np.uint8),
            num_points=count_points_in_boxes(points, self.boxes),
            velocity=np.zeros((count, 3), np.float32),
            acceleration=np.zeros((count, 3), np.float32),
        )


def _read_points(path: Path) -> Float32Array:
    try:
        values = np.fromfile(path, "<f4")
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataError(path, "there is no such file; download the scans (velodyne)") from None
    if size == 0 or size % 16:
        raise DataError(path, f"its {size} bytes are no whole points of 16 bytes; download it again")
    points = np.zeros((size // 16, 5), np.float32)
    points[:, :4] = values.reshape(-1, 4)
    if not np.isfinite(points).all():
        raise DataError(path, "has points with a coordinate or reflectance that isn't finite; download it again")
    return points


def _read_calibration(path: Path) -> _Calibration:
    lines = dict(line.split(":", 1) for line in _read_lines(path, "the calibration (calib)") if ":" in line)
    rectification, lidar = np.eye(4), np.eye(4)
    rectification[:3, :3] = _matrix(path, lines, "R0_rect", (3, 3))
    lidar[:3] = _matrix(path, lines, "Tr_velo_to_cam", (3, 4))
    return _Calibration(rectification @ lidar, _matrix(path, lines, "P2", (3, 4)))


def _matrix(path: Path, lines: dict[str, str], name: str, shape: tuple[int, int]) -> Float64Array:
    try:
        matrix = np.array([float(word) for word in lines[name].split()]).reshape(shape)
    except KeyError:
        raise DataError(path, f"it has no {name}; it has {', '.join(lines) or 'nothing'}") from None
    except ValueError:
        raise DataError(path, f"its {name} isn't {shape[0]} x {shape[1]} numbers: {lines[name].strip()[:60]}") from None
    if not np.isfinite(matrix).all() or np.linalg.matrix_rank(matrix) < 3:
        raise DataError(path, f"its {name} maps nothing: {lines[name].strip()[:60]}; download it again")
    return matrix


def _read_labels(path: Path, calibration: _Calibration, number: str) -> _Labels:
    lidar_from_camera = np.asarray(np.linalg.inv(calibration.camera_from_lidar), np.float64)
    boxes: list[list[float]] = []
    types: list[ObjectType] = []
    regions: list[list[float]] = []
    for row, line in enumerate(_read_lines(path, "the labels (label_2)")):
        category, values = _parse(path, row, line)
        if category == _REGION:
            regions.append(values[3:7])
            continue
        if category not in CATEGORY_TYPES:
            known = ", ".join((*CATEGORY_TYPES, _REGION))
            raise DataError(path, f"line {row + 1} is of the category {category!r}; KITTI's are {known}")
        boxes.append(_box(values, lidar_from_camera))
        types.append(CATEGORY_TYPES[category])
    return _Labels(
        np.array(boxes, np.float32).reshape(-1, 7),
        tuple(types),
        tuple(f"{number}-{row}" for row in range(len(boxes))),
        np.array(regions, np.float64).reshape(-1, 4),
    )


def _parse(path: Path, row: int, line: str) -> tuple[str, list[float]]:
    category, *words = line.split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) < _LABEL_FIELDS - 1 or not np.isfinite(values).all():
        raise DataError(path, f"line {row + 1} isn't a category and {_LABEL_FIELDS - 1} numbers: {line[:80]}")
    return category, values


def _box(values: list[float], lidar_from_camera: Float64Array) -> list[float]:
    """Return (x, y, z, length, width, height, heading) in the lidar's frame.

    KITTI gives height, width, length, the centre of the BOTTOM in the rectified camera's frame (x right, y down, z
    forward), and the rotation about that frame's y.
    """
    height, width, length, x, y, z, rotation = values[7:14]
    centre = lidar_from_camera @ (x, y - height / 2, z, 1.0)
    forward = lidar_from_camera[:3, :3] @ (np.cos(rotation), 0.0, -np.sin(rotation))
    heading = float(wrap_angle(np.arctan2(forward[1], forward[0]).astype(np.float32)))
    return [*centre[:3].tolist(), length, width, height, heading]


def _read_lines(path: Path, what: str) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
    except FileNotFoundError:
        raise DataError(path, f"there is no such file; download {what}") from None
    except UnicodeDecodeError:
        raise DataError(path, "it isn't a text file; download it again") from None


def scan_numbers(root: Path) -> list[str]:
    """Return the common names of a split's files, ascending.

    Raises:
        DataError: a scan isn't named by a number.
    """
    paths = sorted(path for path in (root / "velodyne").glob("*.bin") if path.name[0] != ".")
    for path in paths:
        if not path.stem.isdecimal():
            raise DataError(path, "a scan's file must be named by its number, as 000001.bin")
    return [path.stem for path in paths]


def scan_files(root: Path, number: str) -> tuple[Path, ...]:
    """Return the files of a scan that exist."""
    files = (root / "velodyne" / f"{number}.bin", root / "calib" / f"{number}.txt", root / "label_2" / f"{number}.txt")
    return tuple(file for file in files if file.exists())
