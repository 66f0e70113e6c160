"""What stays of a finished run, and that all methods start from the same weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from detection3d.errors import DataError, UserError
from detection3d.evaluation.comparison import ClassScores, RunScores, Scores
from detection3d.training.comparison_curves import POINTS, read_curves
from detection3d.training.comparison_plan import Trial, make_plan
from detection3d.training.comparison_run import RESULT, initial_weights, read_result, write_result
from tests.small_run import small_config
from tests.training.steps import CPU

METHODS = (
    "sum",
    "clipping",
    "gradient_penalty",
    "mgda",
    "pcgrad",
    "cagrad",
    "gradnorm",
    "uncertainty",
    "random_sign",
    "graddrop",
    "gradnorm+graddrop",
)
SCORES = RunScores(
    seed=0,
    learning_rate=0.001,
    final=Scores(8, (ClassScores("VEHICLE", 0.123456789012345, 0.1, 0.5),)),
    early=Scores(6, (ClassScores("VEHICLE", 0.1, 0.1, 0.6),)),
    seconds=1.5,
    weights="abc",
)


def trial(output: Path, *settings: str) -> Trial:
    config = small_config("training.steps=8", *settings, data=output / "store")
    found = make_plan(config, ["sum"], [0.001], 1, 0, output).final({"sum": 0.001})[0]
    found.folder.mkdir(parents=True, exist_ok=True)
    return found


@pytest.mark.parametrize("seed", [0, 3])
def test_every_method_starts_from_the_same_weights(tmp_path, seed):
    plan = make_plan(small_config(data=tmp_path), METHODS, [0.001], 1, 0, tmp_path)
    digests = {name: initial_weights(plan.method_config(name, 0.001, seed), CPU) for name in METHODS}
    assert len(set(digests.values())) == 1
    others = initial_weights(plan.method_config("sum", 0.001, seed + 1), CPU)
    assert others != digests["sum"]


def test_the_digest_sees_the_network_alone(tmp_path):
    base = initial_weights(small_config(), CPU)
    assert initial_weights(small_config("model.head_channels=16"), CPU) != base
    assert initial_weights(small_config("training.learning_rate=1.0", "training.steps=9"), CPU) == base


def test_a_result_is_read_as_it_was_written(tmp_path):
    one = trial(tmp_path)
    assert read_result(one) is None
    write_result(one, SCORES, {"commit": "abc"})
    assert read_result(one) == (SCORES, {"commit": "abc"})
    write_result(one, replace(SCORES, early=None), {})
    assert read_result(one) == (replace(SCORES, early=None), {})


def test_a_result_of_other_settings_is_refused(tmp_path):
    write_result(trial(tmp_path), SCORES, {})
    assert read_result(trial(tmp_path, "data.workers=1")) is not None
    with pytest.raises(UserError, match="the result of a run with other settings; compare into another folder"):
        read_result(trial(tmp_path, "training.batch_size=1"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "not the result of a run .*delete it to do the run again"),
        (lambda text: text.replace('"scores"', '"score"'), "not the result of a run"),
        (lambda text: text.replace('"seconds"', '"hours"'), "not the result of a run"),
        (lambda text: json.dumps({**json.loads(text), "schema_version": 9}), "schema_version is 9, this program reads"),
        (lambda _: "[]", "not the result of a run"),
    ],
)
def test_a_damaged_result_is_told(tmp_path, change, message):
    one = trial(tmp_path)
    write_result(one, SCORES, {})
    path = one.folder / RESULT
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message):
        read_result(one)


def test_curves_are_means_over_runs(tmp_path):
    rows = {
        "a": [{"step": 10, "loss/box": 2.0, "fork/cosine/x": 0.2, "fork/cosine/y": 0.4}, {"step": 20, "loss/box": 1.0}],
        "b": [
            {"step": 10, "loss/box": 4.0, "fork/cosine/x": 0.3, "fork/cosine/y": 0.7},
            {"step": 20, "loss/box": None},
        ],
    }
    for name, lines in rows.items():
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves = read_curves([tmp_path / "a", tmp_path / "b", tmp_path / "missing"])
    assert curves.keys() == {"Box loss", "Cosine of the tasks' gradients, mean over pairs"}
    assert curves["Box loss"] == ([10, 20], [3.0, 1.0])
    assert curves["Cosine of the tasks' gradients, mean over pairs"] == ([10], [pytest.approx(0.4)])
    assert read_curves([]) == {}


def test_long_curves_are_thinned_by_averages(tmp_path):
    lines = [{"step": step, "fork/conflict_share": step / 1000} for step in range(1, 1001)]
    (tmp_path / "a").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps, values = read_curves([tmp_path / "a"])["Positions in conflict"]
    assert len(steps) == len(values) == POINTS
    assert [1000 * value for value in values] == pytest.approx(steps)
    assert steps[0] == pytest.approx(9)  # the first 17 of 1000 in 60 parts: 1 to 17
