import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from detection3d.errors import UserError
from detection3d.evaluation.metrics import evaluate
from detection3d.evaluation.official import evaluate_officially
from tests.conftest import ROOT
from tests.evaluation.builders import box, found, truth
from tests.evaluation.kept_cases import COUNT, answers_by_seed, kept_cases
from tests.evaluation.official_answers import differences, metrics_as_arrays
from tests.evaluation.random_cases import KINDS, digest, random_case

RANDOM_CASES = 260


def test_equals_the_official_answers_that_are_kept():
    kinds = set()
    for name, case, official in kept_cases():
        ours = metrics_as_arrays(evaluate(case.predictions, case.ground_truth, case.config))
        assert (name, differences(ours, official)) == (name, [])
        kinds.add(case.kind)
    assert kinds == set(KINDS)


def test_the_kept_answers_are_worth_comparing():
    answers = [official for _, _, official in kept_cases()]
    assert len(answers) == COUNT
    aps = np.concatenate([official["ap"] for official in answers])
    assert len(np.unique(aps)) > 100
    assert (np.concatenate([official["aph"] for official in answers]) != aps).sum() > 300
    assert {str(name).split("_LEVEL")[0] for official in answers for name in official["names"]} >= {
        "OBJECT_TYPE_TYPE_CYCLIST",
        "RANGE_TYPE_VEHICLE_[50, +inf)",
        "VELOCITY_TYPE_PEDESTRIAN_VERY_FAST",
        "SIZE_TYPE_SIGN_large",
        "ALL_BUT_SIGN",
        "SIGN",
        "ONE_SHARD",
    }


@pytest.mark.slow
def test_equals_the_official_op_on_random_cases(evaluation_python: Path, tmp_path: Path):
    first, path = 10_000, tmp_path / "answers.npz"
    subprocess.run(
        [evaluation_python, "-m", "tests.evaluation.official_answers", path, str(first), str(RANDOM_CASES)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=True,
        timeout=900,
    )
    answers = answers_by_seed(path)
    # On some geometry, a box within another along a side, the op ends its process.
    assert len(answers) > 0.97 * RANDOM_CASES
    wrong = {}
    for seed, official in answers.items():
        case = random_case(seed)
        assert str(official.pop("digest")) == digest(case)
        different = differences(metrics_as_arrays(evaluate(case.predictions, case.ground_truth, case.config)), official)
        if different:
            wrong[seed, case.kind] = different
    assert wrong == {}


def test_without_tensorflow_the_official_backend_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"make evaluation-env.*docker/evaluate"):
        evaluate_officially([found([box()])], [truth([box()])])
