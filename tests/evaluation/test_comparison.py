"""What a comparison concludes from runs, and how it says so."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from detection3d.errors import DataError
from detection3d.evaluation import evaluate
from detection3d.evaluation.comparison import FailedRun, choose_rate, score
from detection3d.evaluation.files.comparison_json import comparison_to_json, read_comparison_json, write_comparison_json
from detection3d.evaluation.files.metrics_json import mean_metrics
from detection3d.evaluation.reporting import comparison_text as text
from detection3d.evaluation.reporting.comparison_report import write_comparison_report
from detection3d.evaluation.reporting.comparison_table import print_comparison
from tests.evaluation.builders import box, found, truth
from tests.evaluation.comparisons import BASE, NOISE, comparison, method, shifted

SEEDS = (0, 1, 2, 3)
BETTER = comparison(method("sum", BASE), method("graddrop", shifted(0.02)), method("mgda", shifted(-0.05)))
NOTHING = comparison(method("sum", BASE), method("graddrop", shifted(0.0)))


def test_differences_are_paired_by_seed():
    partial = {seed: ap for seed, ap in shifted(0.02).items() if seed != 1}
    paired = comparison(method("sum", BASE), method("graddrop", partial)).paired("graddrop", "ap")
    assert paired == pytest.approx({0: 0.022, 2: 0.021, 3: 0.0205})
    # over seeds the metrics differ by 0.1, within a pair by 0.005: unpaired, nothing would be shown
    assert BETTER.differences("ap")["graddrop"].verdict == "higher"
    assert BETTER.differences("error")["graddrop"].verdict == "lower"
    assert BETTER.differences("ap")["mgda"].verdict == "lower"
    assert NOTHING.differences("ap")["graddrop"].verdict == "no difference shown"


def test_the_baseline_is_no_member_of_the_family():
    found = BETTER.differences("ap")
    assert list(found) == ["graddrop", "mgda"]
    smaller = min(found.values(), key=lambda item: item.p_value)
    assert smaller.adjusted_p == pytest.approx(2 * smaller.p_value)


@pytest.mark.parametrize(("move", "holds"), [(0.001, True), (-0.001, True), (0.006, False), (-0.006, False)])
def test_convergence_is_judged_by_the_size_of_the_move(move, holds):
    found = method("sum", BASE, early=move).convergence
    assert found is not None
    assert found.mean == pytest.approx(move)
    assert found.holds is holds
    assert found.moves == pytest.approx(dict.fromkeys(BASE, move))


def test_without_early_evaluation_nothing_is_said_of_convergence():
    runs = tuple(replace(run, early=None) for run in method("sum", BASE).runs)
    assert replace(method("sum", BASE), runs=runs).convergence is None


def test_a_method_that_never_acted_is_told_apart_from_one_without_effect():
    almost = dict(BASE) | {3: BASE[3] + 1e-6}
    found = comparison(method("sum", BASE), method("clipping", BASE), method("graddrop", almost), method("mgda", {}))
    assert found.idle == ("clipping",)
    (warning,) = [line for line in text.warnings(found) if "never" in line]
    assert warning.endswith("never acted: clipping")
    assert NOTHING.idle == ()


@pytest.mark.parametrize(
    ("scores", "chosen", "at_edge"),
    [
        ([{8: 0.1, 9: 0.3}, {8: 0.3, 9: 0.3}, {8: 0.2, 9: 0.2}], 0.2, False),
        ([{8: 0.3, 9: 0.3}, {8: 0.3, 9: 0.3}, {8: 0.2, 9: 0.2}], 0.1, True),
        ([{8: 0.0, 9: 0.0}, {8: 0.0, 9: 0.0}, {8: 0.2, 9: 0.2}], 0.4, True),
        ([{8: 0.1, 9: 0.1}, {8: 0.9}, {8: 0.2, 9: 0.0}], 0.1, True),
        ([{}, {8: 0.9}, {}], None, False),
    ],
    ids=["best mean", "the smaller of equal ones", "edge", "a rate with a failed run is out", "none is whole"],
)
def test_the_choice_of_a_learning_rate(scores, chosen, at_edge):
    found = choose_rate((0.1, 0.2, 0.4), scores, (8, 9))
    assert (found.chosen, found.at_edge) == (chosen, at_edge)


def test_a_single_learning_rate_needs_no_runs():
    found = choose_rate((0.1,), [{}], ())
    assert (found.chosen, found.at_edge) == (0.1, False)


def test_scores_are_those_of_the_metrics():
    objects = truth([box(0), box(20), box(40)], types=[1, 1, 2], levels=[1, 2, 1])
    detections = found([box(0), box(60), box(40)], types=[1, 1, 2], scores=[0.9, 0.5, 0.8])
    metrics = evaluate([detections], [objects])
    result = score(metrics, step=7)
    assert result.step == 7
    assert [item.name for item in result.classes] == ["VEHICLE", "PEDESTRIAN"], "cyclists have no ground truth"
    means = mean_metrics(metrics)[2]
    assert (result.mean("ap"), result.mean("aph")) == (means.ap, means.aph)
    # above 0.5 one of two vehicles is found and nothing else: precision 1, recall 1/2, F1 2/3
    assert result.of("VEHICLE").error == pytest.approx(1 / 3, abs=1e-6)
    assert result.of("PEDESTRIAN").error == pytest.approx(0, abs=1e-6)
    with pytest.raises(KeyError):
        result.of("CYCLIST")


def test_scores_need_ground_truth():
    with pytest.raises(ValueError, match="holds no object of any class"):
        score(evaluate([found([box()])], []), 1)


def test_the_headline_names_what_is_shown_and_nothing_more():
    assert text.headline(BETTER) == "Higher mean AP than sum: graddrop; lower mean AP than sum: mgda."
    assert text.headline(NOTHING) == "No method is shown to differ from sum in mean AP: graddrop."
    assert text.headline(comparison(method("sum", BASE))) == "There is nothing to compare sum with."


def test_a_larger_mean_alone_is_called_no_gain():
    wide = {0: 0.7, 1: 0.5, 2: 0.6, 3: 0.5}
    found = comparison(method("sum", BASE), method("graddrop", wide))
    difference = found.differences("ap")["graddrop"]
    assert difference.mean == pytest.approx(0.07)
    assert difference.corrected_interval is not None
    assert difference.corrected_interval[0] < 0
    assert "higher" not in text.headline(found).lower()


def test_warnings_tell_what_is_missing():
    failed = FailedRun(0.2, 3, "a loss is not finite", "runs/a/log.txt")
    partial = {seed: shifted(0.0)[seed] for seed in (0, 1)}
    found = comparison(
        method("sum", BASE, early=0.02),
        method("graddrop", partial, failed=(failed,), grid=(0.6, 0.5, 0.4)),
    )
    assert not found.complete
    assert text.warnings(found) == [
        "graddrop: 2 of 4 runs; missing seeds 2, 3",
        "graddrop: learning rate 0.2, seed 3 failed: a loss is not finite (see runs/a/log.txt)",
        "the best learning rate is at the edge of the grid 0.1, 0.2, 0.4, so a better one may lie outside:"
        " graddrop 0.1",
        "not converged, mean AP moved by 0.5 points or more over the last quarter of the schedule: sum +2.00",
    ]
    assert text.warnings(BETTER) == []
    assert BETTER.complete


def test_one_seed_shows_nothing():
    found = comparison(method("sum", {0: 0.1}, seeds=(0,)), method("graddrop", {0: 0.9}, seeds=(0,)), seeds=(0,))
    assert found.differences("ap")["graddrop"].verdict == "no difference shown"
    assert text.warnings(found) == ["one seed: without a second one no interval can be given, and no difference shown"]


def test_the_table_in_a_log(tmp_path):
    with (tmp_path / "log").open("w") as file:
        print_comparison(BETTER, Console(file=file))
    lines = (tmp_path / "log").read_text().splitlines()
    (line,) = (line for line in lines if line.strip().startswith("graddrop"))
    cells = re.split(r"\s{2,}", line.strip())
    difference = BETTER.differences("ap")["graddrop"]
    low, high = (100 * end for end in difference.corrected_interval or ())
    means = [52.51, 42.51, 47.49]
    spread = 100 * np.std(list(shifted(0.02).values()), ddof=1)
    metrics = [f"{mean:.2f} ± {spread:.2f}" for mean in means]
    shown = ["+2.01", f"[{low:+.2f}, {high:+.2f}]", "< 0.001", "higher", "0.97", "+0.10"]
    assert cells == ["graddrop", "4/4", "0.2", *metrics, *shown]
    assert lines[-1] == text.headline(BETTER)


def test_the_json_holds_every_run_and_difference(tmp_path):
    path = write_comparison_json(tmp_path, BETTER, {"seed": 0}, {"commit": "abc"})
    content = read_comparison_json(path)
    assert content["methods"][1]["name"] == "graddrop"
    assert [run["seed"] for run in content["methods"][1]["runs"]] == list(SEEDS)
    assert content["methods"][1]["means"]["ap"] == pytest.approx(0.525125)
    found = content["differences"]["ap"]["graddrop"]
    assert found["verdict"] == "higher"
    assert found["by_seed"] == pytest.approx({str(seed): 0.02 + noise for seed, noise in NOISE.items()})
    assert content["differences"]["aph"].keys() == {"graddrop", "mgda"}
    assert content["provenance"] == {"commit": "abc"}
    assert json.loads(comparison_to_json(comparison(method("sum", {})), {}, {}))["methods"][0]["means"]["ap"] is None


@pytest.mark.parametrize(("content", "reason"), [("{", "not JSON"), ('{"schema_version": 99}', "schema_version is 99")])
def test_json_that_cannot_be_read(tmp_path, content, reason):
    (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(DataError, match=reason):
        read_comparison_json(tmp_path / "comparison.json")


def test_the_report_stands_alone_and_says_it_all(tmp_path):
    path = write_comparison_report(tmp_path, BETTER, {"commit": "<abc>"})
    html = path.read_text()
    assert not re.search(
        r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import|<script""", html
    )
    assert text.headline(BETTER) in html
    assert "&lt;abc&gt;" in html
    assert all(limit.split(":")[0] in html for limit in text.limits(BETTER))
    alternatives = re.findall(r'<img src="data:image/svg\+xml,[^"]+" alt="([^"]+)"', html)
    assert len(alternatives) == 3 + 3 + 1 + 2
    assert any(item.startswith("AP: differences. graddrop +2.01 [") and "higher" in item for item in alternatives)
    assert "Before you trust it" not in html


def test_the_report_of_an_unfinished_comparison(tmp_path):
    empty = comparison(method("sum", {}, grid=(0.1, 0.1, 0.1)), method("graddrop", {}))
    html = write_comparison_report(tmp_path, empty, {}).read_text()
    assert "graddrop: 0 of 4 runs; missing seeds 0, 1, 2, 3" in html
    assert "no difference shown" in html
