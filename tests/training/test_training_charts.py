"""From the lines of metrics.jsonl to the report's charts."""

import json

import pytest

from detection3d.evaluation.reporting.conflict_figures import PurityHistory
from detection3d.evaluation.reporting.figures import Curve
from detection3d.training.evaluation import training_charts

ROWS = [
    {
        "step": 10,
        "loss/box": 2.0,
        "fork/kept_mass/box": 0.75,
        "fork/kept_mass/orientation": 0.5,
        "fork/conflict_share": 0.25,
        "fork/expected_noise": 0.5,
        "fork/purity": [0.5, 0.25, 0.25],
    },
    {"step": 20, "loss/box": 1.0, "fork/expected_noise": None, "fork/purity": [None, None, None]},
    {"step": 30, "loss/box": 0.5, "fork/expected_noise": 0.75, "fork/purity": [0.0, 1.0, 0.0]},
    {"step": 31, "loss/box": 0.25},
]


@pytest.fixture
def charts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return training_charts(path)


def test_what_was_logged_has_a_chart_and_nothing_else(charts):
    curves = {chart.title: chart.series for chart in charts if isinstance(chart, Curve)}
    assert curves == {
        "Losses": {"box": ([10, 20, 30, 31], [2.0, 1.0, 0.5, 0.25])},
        "Positions in conflict": {"in conflict": ([10], [0.25])},
        "Gradient that the method lets through": {"box": ([10], [0.75]), "orientation": ([10], [0.5])},
        "Noise of GradDrop's draw": {"expected": ([10, 30], [0.5, 0.75])},
    }


def test_purity_leaves_out_steps_that_overflowed(charts):
    (history,) = (chart for chart in charts if isinstance(chart, PurityHistory))
    assert history.steps == [10, 30]
    assert history.shares.tolist() == [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]


def test_no_metrics_no_charts(tmp_path):
    assert training_charts(tmp_path / "metrics.jsonl") == []
