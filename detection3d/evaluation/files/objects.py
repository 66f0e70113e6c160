"""Detections and ground truth on disk: `.parquet`, which is ours, and Waymo's `Objects` and `Submission` messages.

A parquet file has one row for each frame and keeps frames without any box. Waymo's messages are plain lists of objects,
so they can't say that a frame is empty; the official tools read and write them. What a file is, its content says.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from detection3d.errors import DataError, UserError
from detection3d.evaluation.files import objects_bin, objects_parquet
from detection3d.evaluation.files.objects_files import is_parquet, read_messages
from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.evaluation.inputs import check_detections, check_ground_truth, refuse_not_finite
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
        refuse_not_finite(item)
    encode = _choose(path, objects_parquet.encode_detections, objects_bin.encode_objects)
    replace_file(Path(path), encode(detections))


def read_detections(path: Path | str) -> tuple[Detections, ...]:
    """Read detections; boxes stay in the order of the file, which decides ties in the metrics.

    Args:
        path: a parquet file of ours, an `Objects` message, or a `Submission` shard; also a folder or a tar archive
            (.tar, .tar.gz) of one submission's shards, or of `Objects` messages that share no frame.

    Returns:
        One for each frame, in the order of the file; shards count in the order of their names.

    Raises:
        DataError: the file is damaged, of another kind, or holds numbers that can't be evaluated.
    """
    path = Path(path)
    if _is_parquet(path):
        detections = objects_parquet.decode_detections(path)
    else:
        table = read_messages(path, objects_bin.check_detection_rows)
        detections = objects_bin.table_to_detections(table)
    return _checked(path, detections, check_detections)


def write_ground_truth(path: Path | str, ground_truth: Sequence[GroundTruth]) -> None:
    """Write prepared ground truth; arguments and errors as in `write_detections`."""
    for item in ground_truth:
        check_ground_truth(item)
        refuse_not_finite(item)
    encode = _choose(path, objects_parquet.encode_ground_truth, objects_bin.encode_objects)
    replace_file(Path(path), encode(ground_truth))


def read_ground_truth(path: Path | str) -> tuple[GroundTruth, ...]:
    """Read ground truth, prepared for the metrics: see `prepare_ground_truth`.

    Args:
        path: a parquet file from `write_ground_truth`, or messages with the labels as they are, as in
            `read_detections`.

    Returns:
        One for each frame, in the order of the file. A frame whose objects all lack lidar points stays, empty.

    Raises:
        DataError: the file is damaged, of another kind, or holds numbers that can't be evaluated.
    """
    path = Path(path)
    if _is_parquet(path):
        truth = objects_parquet.decode_ground_truth(path)
    else:
        table = read_messages(path, objects_bin.check_truth_rows)
        if not objects_bin.has_points(table):
            raise DataError(
                path,
                "no object has num_lidar_points_in_box, and objects without lidar points are deleted, so nothing would "
                "be left; write the file with the number of points in each box",
            )
        truth = objects_bin.table_to_ground_truth(table)
    return _checked(path, truth, check_ground_truth)


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


def _is_parquet(path: Path) -> bool:
    if is_parquet(path):
        return True
    if path.suffix == ".parquet":
        raise DataError(path, "not a parquet file, whatever its name says; check the path, or write it again")
    return False


def _checked(path: Path, items: tuple[Item, ...], check: Callable[[Item], None]) -> tuple[Item, ...]:
    seen: set[tuple[str, int]] = set()
    try:
        for item in items:
            check(item)
            if item.key in seen:
                raise UserError(f"frame {item.context_name} at {item.timestamp_micros} occurs twice; keep one of them")
            seen.add(item.key)
    except UserError as error:
        raise DataError(path, str(error)) from error
    return items
