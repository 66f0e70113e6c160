"""Which runs a comparison plans: all alike but for method, learning rate and seed."""

from pathlib import Path

import pytest

from detection3d.config_file import dump_config, load_config, parse_config
from detection3d.errors import UserError
from detection3d.training.comparison import time_left
from detection3d.training.comparison_plan import ComparisonPlan, make_plan, parse_method
from detection3d.training.comparison_run import read_result
from tests.small_run import small_config

DATA = Path("somewhere")
OUTPUT = Path("out")


def plan(
    *methods: str,
    rates: tuple[float, ...] = (0.001, 0.002, 0.004),
    seeds: int = 2,
    grid_seeds: int = 3,
    settings: tuple[str, ...] = (),
) -> ComparisonPlan:
    config = small_config(*settings, data=DATA)
    return make_plan(config, methods or ("sum", "graddrop"), rates, seeds, grid_seeds, OUTPUT)


def test_the_grid_is_the_same_for_every_method_on_seeds_of_its_own():
    found = plan(settings=("seed=5",))
    grid = found.grid()
    assert len(grid) == 2 * 3 * 3
    by_method = {
        name: sorted((trial.learning_rate, trial.seed) for trial in grid if trial.method == name)
        for name in found.methods
    }
    assert by_method["sum"] == by_method["graddrop"]
    assert {rate for rate, _ in by_method["sum"]} == {0.001, 0.002, 0.004}
    final = found.final({"sum": 0.002, "graddrop": 0.004})
    assert {trial.seed for trial in grid} == {1005, 1006, 1007}
    assert {trial.seed for trial in final} == {5, 6}


def test_final_runs_are_at_the_chosen_rates():
    final = plan().final({"graddrop": 0.004})
    assert [(trial.method, trial.learning_rate, trial.seed) for trial in final] == [
        ("graddrop", 0.004, 0),
        ("graddrop", 0.004, 1),
    ]


def test_a_trial_s_config_differs_in_method_rate_and_seed_alone():
    found = plan("sum", "leaky={kind: graddrop, leak: 0.25}")
    for trial in [*found.grid(), *found.final({"sum": 0.001, "leaky": 0.004})]:
        config = trial.config
        assert (config.seed, config.training.learning_rate) == (trial.seed, trial.learning_rate)
        method = config.multitask.method
        assert method.kind == {"sum": "sum", "leaky": "graddrop"}[trial.method]
        assert getattr(method, "leak", 0.25) == 0.25
        tree, base = (item.model_dump(mode="json") for item in (config, found.config))
        for item in (tree, base):
            del item["seed"], item["multitask"]["method"], item["training"]["learning_rate"]
            del item["training"]["checkpoint_every"], item["training"]["keep_checkpoints"]
        assert tree == base


def test_every_trial_has_a_folder_and_a_fingerprint_of_its_own():
    found = plan("sum", "graddrop", rates=(0.001, 0.0010000001), settings=("training.steps=8",))
    trials = [*found.grid(), *found.final({"sum": 0.001, "graddrop": 0.001})]
    assert len({trial.folder for trial in trials}) == len(trials)
    assert len({trial.fingerprint for trial in trials}) == len(trials)
    assert all(trial.folder.is_relative_to(OUTPUT) for trial in trials)


def test_the_fingerprint_holds_what_the_result_depends_on():
    def fingerprint(*settings: str) -> str:
        return plan(settings=("training.steps=40", *settings)).final({"sum": 0.001})[0].fingerprint

    base = fingerprint()
    assert fingerprint("data.workers=3") == base
    assert fingerprint("training.checkpoint_every=10", "training.keep_checkpoints=9") == base
    for setting in ("training.batch_size=3", "decode.max_detections=7", "loss.box_weight=3", "training.steps=41"):
        assert fingerprint(setting) != base
    for setting in ("data.sweeps=2", "data.sampling=class_balanced", "augmentation.off_for_last_steps=1"):
        assert fingerprint(setting) != base


COMMITTED = Path(__file__).parents[2] / "docs" / "comparison"
REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
COMPARED = (
    "sum",
    "clipping={kind: clipping, max_norm: 0.03}",
    "gradient_penalty={kind: gradient_penalty, weight: 10}",
    *("mgda", "pcgrad", "gradnorm", "random_sign", "graddrop", "gradnorm+graddrop", "cagrad", "uncertainty"),
)
VARIANTS = (
    "sum",
    "leak25={kind: graddrop, leak: 0.25}",
    "leak50={kind: graddrop, leak: 0.5}",
    "leak75={kind: graddrop, leak: 0.75}",
    "leak90={kind: graddrop, leak: 0.9}",
    "none={kind: graddrop, marginalize: none}",
    "nonorm={kind: graddrop, preserve_norm: false}",
    "space={kind: graddrop, marginalize: batch+space}",
    "none50={kind: graddrop, leak: 0.5, marginalize: none}",
)


@pytest.mark.parametrize(
    ("folder", "methods", "rates", "seeds", "count"),
    [
        (COMMITTED, COMPARED, (0.002, 0.004, 0.008), 8, 11 * (3 * 3 + 8)),
        (COMMITTED / "variants", VARIANTS, (0.004,), 4, 8 * 4),  # the sum's runs are the comparison's own
    ],
)
def test_the_committed_comparison_is_of_the_config_as_it_stands(folder, methods, rates, seeds, count):
    """A setting that came later, or another value in the file, would make its command train everything anew."""
    found = make_plan(load_config("small", []), methods, rates, seeds, 3, folder)
    trials = [*found.grid(), *(t for rate in found.rates for t in found.final(dict.fromkeys(found.methods, rate)))]
    results = sorted((folder / "runs").rglob("result.json"))
    belonging = [trial.folder / "result.json" for trial in trials if read_result(trial) is not None]
    assert sorted(belonging) == results
    assert len(results) == count


@pytest.mark.parametrize(
    ("name", "methods"), [("voxel", ("sum", "graddrop", "random_sign")), ("pillar", ("sum", "graddrop"))]
)
def test_the_committed_reference_results_are_of_the_config_as_it_stands_and_have_settled(name, methods):
    steps = 4000 * 5 // 8  # epochs are counted in frames, which are not here
    settings = [f"training.steps={steps}", "training.epochs=0"]
    found = make_plan(load_config(f"reference_{name}", settings), methods, (0.002,), 3, 0, REFERENCE / name)
    trials = found.final(dict.fromkeys(found.methods, 0.002))
    assert len(trials) == len(list((REFERENCE / name).rglob("result.json")))
    for trial in trials:
        result = read_result(trial)
        assert result is not None
        assert result[0].early is not None
        assert abs(result[0].final.mean("ap") - result[0].early.mean("ap")) < 0.005
        card = (trial.folder / "model_card.md").read_text()
        assert f"| mean LEVEL_2 | {100 * result[0].final.mean('ap'):.2f} |" in card


@pytest.mark.parametrize(
    ("steps", "checkpoint_every", "early", "every"),
    [(1400, 200, 1050, 175), (1400, 5000, 1050, 1050), (404, 2, 304, 2), (4, 1, 3, 1), (6, 3, 4, 2), (1000, 1, 750, 1)],
)
def test_a_checkpoint_of_final_runs_falls_on_three_quarters(steps, checkpoint_every, early, every):
    settings = (f"training.steps={steps}", f"training.checkpoint_every={checkpoint_every}")
    found = plan(settings=settings)
    (trial,) = [item for item in found.final({"sum": 0.001}) if item.seed == 0]
    training = trial.config.training
    assert (trial.early, training.checkpoint_every) == (early, every)
    saved = [step for step in range(1, steps + 1) if step % every == 0 or step == steps]
    assert early in saved[-training.keep_checkpoints :], "the early one is still there when the last is saved"
    assert all(item.early is None for item in found.grid())
    parse_config(trial.config.model_dump(mode="json"), "checked anew")


def test_a_single_rate_needs_no_grid():
    found = plan(rates=(0.003,), grid_seeds=0)
    assert found.grid() == []
    assert found.choice_seeds == ()


def test_rates_default_to_half_once_and_twice_the_config_s():
    assert plan(rates=()).rates == (0.001, 0.002, 0.004)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("sum", {"kind": "sum"}),
        ("gradnorm+graddrop", {"kind": "gradnorm", "then": {"kind": "graddrop", "leak": 0.5}}),
        ("own={kind: graddrop, leak: 0.25}", {"kind": "graddrop", "leak": 0.25}),
    ],
)
def test_methods_by_word(word, expected):
    name, found = parse_method(word, small_config("multitask.method={kind: graddrop, leak: 0.5}"))
    assert name == word.partition("=")[0]
    inner, wanted = found.get("then", found), expected.get("then", expected)
    assert {key: inner[key] for key in wanted} == wanted
    assert found["kind"] == expected["kind"]


def test_a_kind_that_the_config_uses_comes_with_its_settings():
    config = small_config("multitask.method={kind: graddrop, leak: 0.5, preserve_norm: false}")
    _, found = parse_method("graddrop", config)
    assert (found["leak"], found["preserve_norm"]) == (0.5, False)
    assert parse_method("random_sign", config)[1] == {"kind": "random_sign"}


@pytest.mark.parametrize(
    ("methods", "changes", "message"),
    [
        (("sum", "gradrop"), {}, "unknown kind 'gradrop'"),
        (("graddrop",), {}, "the baseline, sum, must be among them"),
        (("sum", "sum"), {}, "sum given twice"),
        (("sum", "training.steps=5"), {}, "settings such as training.steps=100 stand before --methods"),
        (("sum", "a b"), {}, "'a b' is no method"),
        (("sum", "own=graddrop"), {}, r"write NAME=\{kind: graddrop, leak: 0.2\}"),
        (("sum", "own={kind: graddrop"), {}, "the settings are not YAML"),
        (("sum", "own={kind: graddrop, leek: 0.2}"), {}, "did you mean 'multitask.method.leak'"),
        (("sum",), {"rates": (0.1, -1.0)}, "-1.0 can't be used; give positive numbers"),
        (("sum",), {"seeds": 0}, "--seeds 0: give 1 to 1000"),
        (("sum",), {"seeds": 1001}, "--seeds 1001: give 1 to 1000"),
        (("sum",), {"grid_seeds": 0}, "--grid-seeds 0: give 1 to 1000, or a single one of --learning-rates"),
        (("sum",), {"settings": ("training.steps=3",)}, "training.steps is 3; runs are evaluated at 3/4 of it"),
        (("sum",), {"settings": ("data.validation=null",)}, "data.validation is not set"),
    ],
)
def test_plans_that_cannot_be_carried_out(methods, changes, message):
    with pytest.raises(UserError, match=message):
        plan(*methods, **changes)


def test_planning_changes_nothing_of_the_config():
    config = small_config(data=DATA)
    before = dump_config(config)
    make_plan(config, ("sum", "gradnorm+graddrop"), (), 2, 1, OUTPUT).final({"sum": 0.001})
    assert dump_config(config) == before


@pytest.mark.parametrize(
    ("elapsed", "done", "left", "at_a_time", "expected"),
    [
        (600.0, 50, 50, 1, 600.0),
        (500.0, 1, 5, 6, 0.0),  # the others are about to end, too
        (500.0, 6, 6, 6, 500.0),
        (505.0, 3, 9, 6, 505.0),
        (1000.0, 7, 5, 6, 0.0),
        (500.0, 2, 4, 2, 1000.0),
    ],
)
def test_time_left_counts_what_goes_on_at_once(elapsed, done, left, at_a_time, expected):
    assert time_left(elapsed, done, left, at_a_time) == pytest.approx(expected)
