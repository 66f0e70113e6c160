"""What a submission to Waymo's server says of itself, and which detections go into it.

Source: protos/submission.proto and metrics/tools/create_submission.cc of the Waymo Open Dataset.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from google.protobuf import text_format

from detection3d.errors import DataError, UserError
from detection3d.evaluation.inputs import refuse_not_finite
from detection3d.protos import waymo_pb2
from detection3d.types.scene import Detections, ObjectType

MAX_METHOD_NAME = 25
"""Characters of unique_method_name that the leaderboard takes."""

MIN_SCORE = 0.03
"""Waymo's own tool leaves out detections below this: they are many and hardly matter."""

_MIN_SIDE = np.float32(1e-6)  # metres; likewise
_TEXTS = ("account_name", "unique_method_name", "affiliation", "description")


@dataclass(frozen=True)
class Selection:
    """The detections that are submitted.

    Attributes:
        detections: of all frames, in the order given.
        boxes: how many there are.
        below_min_score: number of boxes left out for their score.
        beyond_max_boxes: number of boxes left out because their frame has enough better ones.
        enlarged: number of boxes with a side below 1e-6 m, which now has that.
    """

    detections: tuple[Detections, ...]
    boxes: int
    below_min_score: int
    beyond_max_boxes: int
    enlarged: int


def read_information(path: Path | str) -> waymo_pb2.Submission:
    """Read all that a submission holds besides the objects.

    Args:
        path: a text file in protobuf's text format, as Waymo's own tool takes it.

    Returns:
        The message, checked.

    Raises:
        DataError: it isn't such a file, or its content isn't what the server takes: all that is wrong is named.
    """
    path = Path(path)
    message = waymo_pb2.Submission()
    try:
        text_format.Parse(path.read_text(encoding="utf-8-sig"), message)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise DataError(path, f"not a Submission message in protobuf's text format: {error}") from error
    if problems := problems_of(message):
        raise DataError(path, f"can't be submitted as it is: {'; '.join(problems)}")
    return message


def problems_of(message: waymo_pb2.Submission) -> list[str]:
    """Return all that is wrong with a submission's fields, in words.

    Args:
        message: the submission, without objects.

    Returns:
        One line for each problem; none where it can be submitted.
    """
    kind = waymo_pb2.Submission
    problems = [f"{name} is missing" for name in _TEXTS if not getattr(message, name).strip()]
    if message.task != kind.DETECTION_3D:
        problems.append(f"task is {kind.Task.Name(message.task)}; it must be DETECTION_3D")
    if message.account_name.strip() and "@" not in message.account_name:
        problems.append(f"account_name is {message.account_name!r}; the server wants the account's e-mail address")
    if len(message.unique_method_name) > MAX_METHOD_NAME:
        problems.append(
            f"unique_method_name {message.unique_method_name!r} has {len(message.unique_method_name)} characters; the "
            f"leaderboard takes {MAX_METHOD_NAME}"
        )
    if not message.authors or not all(author.strip() for author in message.authors):
        problems.append("authors is missing or has an empty entry; give one line for each author")
    if message.method_link and not message.method_link.startswith(("http://", "https://")):
        problems.append(f"method_link is {message.method_link!r}; give a whole address, https://...")
    if message.sensor_type == kind.INVALID:
        problems.append("sensor_type is missing; LIDAR_ALL for a detector of this project")
    for name in ("number_past_frames_exclude_current", "number_future_frames_exclude_current"):
        if not message.HasField(name):
            problems.append(f"{name} is missing; 0 where the detector sees the current frame alone")
        elif getattr(message, name) < 0:
            problems.append(f"{name} is {getattr(message, name)}; it can't be negative")
    types = list(message.object_types)
    if ObjectType.UNKNOWN in types or len(set(types)) != len(types):
        names = ", ".join(ObjectType(number).name for number in types)
        problems.append(f"object_types is {names}; name each of VEHICLE, PEDESTRIAN, SIGN, CYCLIST once, or none")
    latency = message.latency_second
    if message.HasField("latency_second") and not (math.isfinite(latency) and latency > 0):
        problems.append(f"latency_second is {latency}; it must be positive, or left out")
    if message.HasField("inference_results"):
        problems.append("inference_results is there already; the tool puts the detections in")
    return problems


def select_detections(
    detections: Sequence[Detections],
    message: waymo_pb2.Submission,
    min_score: float = MIN_SCORE,
    max_boxes: int | None = None,
) -> Selection:
    """Choose what is submitted, as Waymo's own tool does.

    Args:
        detections: at most one for each frame.
        message: the submission, for its object types.
        min_score: boxes below it are left out.
        max_boxes: most boxes of a frame, those with the best scores; None for all. The server has no limit that is
            known, but its time for a submission has one.

    Returns:
        The selection.

    Raises:
        UserError: there are boxes of types that the submission doesn't name or that aren't finite, or none are left.
    """
    allowed = set(message.object_types) or set(ObjectType) - {ObjectType.UNKNOWN}
    result = []
    below = beyond = enlarged = 0
    foreign: dict[int, int] = {}
    for item in detections:
        refuse_not_finite(item)
        for number, count in zip(*np.unique(item.types, return_counts=True), strict=True):
            if int(number) not in allowed:
                foreign[int(number)] = foreign.get(int(number), 0) + int(count)
        kept = item.scores >= np.float32(min_score)
        below += int(np.count_nonzero(~kept))
        if max_boxes is not None and np.count_nonzero(kept) > max_boxes:
            ranked = np.argsort(np.where(kept, -item.scores, np.inf), kind="stable")
            beyond += int(np.count_nonzero(kept)) - max_boxes
            kept = np.zeros(len(kept), np.bool_)
            kept[ranked[:max_boxes]] = True
        boxes = item.boxes[kept]
        small = boxes[:, 3:6] < _MIN_SIDE
        enlarged += int(np.count_nonzero(small.any(axis=1)))
        boxes[:, 3:6] = np.maximum(boxes[:, 3:6], _MIN_SIDE)
        result.append(
            replace(
                item,
                boxes=boxes,
                types=item.types[kept],
                scores=item.scores[kept],
                overlaps_no_label_zone=item.overlaps_no_label_zone[kept],
            )
        )
    if foreign:
        found = ", ".join(f"{count:,} of type {ObjectType(number).name}" for number, count in foreign.items())
        raise UserError(
            f"the detections have {found}, which the submission doesn't name; correct its object_types, or leave the "
            "boxes out"
        )
    total = sum(len(item.boxes) for item in result)
    if not total:
        raise UserError(f"no box is left to submit: {below:,} have a score below {min_score}")
    return Selection(tuple(result), total, below, beyond, enlarged)


def check_coverage(
    detections: Sequence[Detections], frames: Collection[tuple[str, int]], allow_missing: bool = False
) -> int:
    """Compare the frames with those that the server expects.

    Args:
        detections: at most one for each frame, empty or not.
        frames: `(context_name, timestamp_micros)` of what is expected.
        allow_missing: whether frames may be missing, as in a file that can't hold frames without boxes.

    Returns:
        Number of missing frames.

    Raises:
        UserError: frames are missing, or there are others than expected.
    """
    expected = set(frames)
    given = {item.key for item in detections}
    if surplus := given - expected:
        known = f" (one of those is {_frame(min(expected))})" if expected else ""
        raise UserError(
            f"{len(surplus):,} of {len(given):,} frames aren't among the {len(expected):,} expected ones{known}, such "
            f"as {_frame(min(surplus))}; are they of the same split?"
        )
    missing = expected - given
    if missing and not allow_missing:
        raise UserError(
            f"{len(missing):,} of {len(expected):,} expected frames have no detections, such as "
            f"{_frame(min(missing))}; run the detector on them. A parquet file tells a frame without boxes from one "
            "that is missing, a .bin can't: where that is the reason, allow missing frames"
        )
    return len(missing)


def _frame(key: tuple[str, int]) -> str:
    return f"{key[0]} at {key[1]}"
