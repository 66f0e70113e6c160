"""Detections and ground truth on disk: `.parquet`, which is ours, and `.bin`, Waymo's `Objects` message.

A parquet file has one row for each frame and keeps frames without any box. A `.bin` file is a plain list of objects, so
it can't say that a frame is empty; the official tools read and write it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from detection3d.errors import DataError, UserError
from detection3d.evaluation import objects_bin, objects_parquet
from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.evaluation.inputs import check_detections, check_ground_truth
from detection3d.files import replace_file
from detection3d.types.scene import Detections


def write_detections(path: Path | str, detections: Sequence[Detections]) -> None:
    """Write detections; the suffix of the path decides the format.

    Args:
        path: a `.parquet` or `.bin` file. It is replaced at once, when the content is complete.
        detections: one for each frame.

    Raises:
        UserError: an unknown suffix, numbers that can't be evaluated, or nothing to write in a `.bin` file.
    """
    for item in detections:
        check_detections(item)
    encode = _choose(path, objects_parquet.encode_detections, objects_bin.encode_detections)
    replace_file(Path(path), encode(detections))


def read_detections(path: Path | str) -> tuple[Detections, ...]:
    """Read detections; boxes stay in the order of the file, which decides ties in the metrics.

    Args:
        path: a `.parquet` or `.bin` file.

    Returns:
        One for each frame, in the order of the file.

    Raises:
        DataError: the file is damaged, of another kind, or holds numbers that can't be evaluated.
    """
    decode = _choose(path, objects_parquet.decode_detections, objects_bin.decode_detections)
    return _read(Path(path), decode, check_detections)


def write_ground_truth(path: Path | str, ground_truth: Sequence[GroundTruth]) -> None:
    """Write prepared ground truth; arguments and errors as in `write_detections`."""
    for item in ground_truth:
        check_ground_truth(item)
    encode = _choose(path, objects_parquet.encode_ground_truth, objects_bin.encode_ground_truth)
    replace_file(Path(path), encode(ground_truth))


def read_ground_truth(path: Path | str) -> tuple[GroundTruth, ...]:
    """Read ground truth, prepared for the metrics: see `prepare_ground_truth`.

    Args:
        path: a `.parquet` file from `write_ground_truth`, or a `.bin` file with the labels as they are.

    Returns:
        One for each frame, in the order of the file. A frame whose objects all lack lidar points stays, empty.

    Raises:
        DataError: the file is damaged, of another kind, or holds numbers that can't be evaluated.
    """
    decode = _choose(path, objects_parquet.decode_ground_truth, objects_bin.decode_ground_truth)
    return _read(Path(path), decode, check_ground_truth)


Choice = TypeVar("Choice")
Item = TypeVar("Item", Detections, GroundTruth)


def _choose(path: Path | str, parquet: Choice, binary: Choice) -> Choice:
    match Path(path).suffix:
        case ".parquet":
            return parquet
        case ".bin":
            return binary
        case suffix:
            raise UserError(f"{path}: the suffix is {suffix!r}; use .parquet, or .bin for Waymo's Objects")


def _read(path: Path, decode: Callable[[Path], tuple[Item, ...]], check: Callable[[Item], None]) -> tuple[Item, ...]:
    items = decode(path)
    try:
        for item in items:
            check(item)
    except UserError as error:
        raise DataError(path, str(error)) from error
    return items
