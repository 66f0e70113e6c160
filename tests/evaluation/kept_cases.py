"""Cases with the official op's answers in one file, so that they can be compared without the op.

PYTHONPATH=. python -m tests.evaluation.kept_cases ANSWERS.npz      writes official_cases.npz beside this file

ANSWERS.npz comes from `official_answers`, for the first seeds.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from google.protobuf import text_format

from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.evaluation.metric_config_text import config_of_message, message_of_config
from detection3d.protos import waymo_pb2
from detection3d.types.scene import Detections
from tests.evaluation.random_cases import Case, random_case

FILE = Path(__file__).with_name("official_cases.npz")
COUNT = 20
KEPT = ("names", "ap", "aph", "true_positives", "false_positives", "false_negatives", "heading_precision")

Answers = dict[str, np.ndarray]


def answers_by_seed(path: Path) -> dict[int, Answers]:
    """What `official_answers` wrote; cases on which the op ended its process are missing."""
    answers: dict[int, Answers] = {}
    with np.load(path) as content:
        for name in content.files:
            seed, _, field = name.partition("/")
            answers.setdefault(int(seed), {})[field] = content[name]
    return answers


def kept_cases() -> Iterator[tuple[str, Case, Answers]]:
    with np.load(FILE) as content:
        columns = {name: content[name] for name in content.files}
    for index, kind in enumerate(columns["kinds"]):
        mine = {name.partition("/")[2]: values for name, values in columns.items() if name.startswith(f"{index}/")}
        config = config_of_message(text_format.Parse(str(mine.pop("config")), waymo_pb2.Config()))
        case = Case(str(kind), _detections(mine), _ground_truth(mine), config)
        yield f"{index} {kind}", case, {name: mine[name] for name in KEPT}


def keep(answers: dict[int, Answers]) -> None:
    columns: dict[str, np.ndarray | str] = {}
    kinds: list[str] = []
    for index, seed in enumerate(sorted(answers)[:COUNT]):
        case = random_case(seed)
        kinds.append(case.kind)
        mine = {name: answers[seed][name] for name in KEPT}
        mine |= {f"d/{name}": value for name, value in _flat(case.predictions).items()}
        mine |= {f"g/{name}": value for name, value in _flat(case.ground_truth).items()}
        mine["config"] = np.array(str(message_of_config(case.config)))
        columns |= {f"{index}/{name}": values for name, values in mine.items()}
    np.savez_compressed(FILE, kinds=np.array(kinds), **columns)


def _flat(items: tuple[Detections, ...] | tuple[GroundTruth, ...]) -> Answers:
    names = ["boxes", "types"]
    names += ["scores", "overlaps_no_label_zone"] if items and isinstance(items[0], Detections) else []
    names += ["levels", "num_points", "velocity"] if items and isinstance(items[0], GroundTruth) else []
    flat = {name: np.concatenate([getattr(item, name) for item in items]) for name in names if items}
    flat["lengths"] = np.array([len(item.boxes) for item in items], np.int64)
    flat["segments"] = np.array([item.context_name for item in items], np.str_)
    flat["times"] = np.array([item.timestamp_micros for item in items], np.int64)
    return flat


def _rows(mine: Answers, side: str) -> Iterator[tuple[str, int, Answers]]:
    own = {name[2:]: values for name, values in mine.items() if name.startswith(side)}
    start = 0
    for length, segment, time in zip(own.pop("lengths"), own.pop("segments"), own.pop("times"), strict=True):
        yield str(segment), int(time), {name: values[start : start + length] for name, values in own.items()}
        start += length


def _detections(mine: Answers) -> tuple[Detections, ...]:
    return tuple(
        Detections(context_name=segment, timestamp_micros=time, **own) for segment, time, own in _rows(mine, "d/")
    )


def _ground_truth(mine: Answers) -> tuple[GroundTruth, ...]:
    return tuple(
        GroundTruth(context_name=segment, timestamp_micros=time, **own) for segment, time, own in _rows(mine, "g/")
    )


if __name__ == "__main__":
    keep(answers_by_seed(Path(sys.argv[1])))
