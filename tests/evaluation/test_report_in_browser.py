"""The reports as people see them: in Chromium, on a desk and on a phone."""

from pathlib import Path

import numpy as np
import pytest

from detection3d.cli.report import main as compare
from detection3d.evaluation import evaluate, prepare_ground_truth
from detection3d.evaluation.analysis import analyse
from detection3d.evaluation.reporting.conflict_figures import PurityHistory
from detection3d.evaluation.reporting.report import Curve, write_report
from detection3d.evaluation.reporting.scenes import scene_of_frame, scenes_of_files
from detection3d.types.segment_names import synthetic_name
from tests.browser import NAMES, find_chromium, open_browser
from tests.evaluation.builders import box, found, frame, labels, truth
from tests.evaluation.test_bootstrap import random_segments
from tests.evaluation.test_conflict_figures import one_cell, view
from tests.evaluation.test_side_by_side import data, evaluated, losing

WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_chromium()
    if program is None:
        pytest.skip(f"no Chromium on PATH ({', '.join(NAMES)}); on Debian and Ubuntu: apt install chromium")
    with open_browser(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def check(browser, page: Path, images: int):
    """Open a page in both windows and return its text."""
    text = ""
    for width in WIDTHS:
        seen = browser.view(page, width)
        assert seen.complaints == []
        assert seen.requests == [], "nothing leaves the page"
        assert seen.width <= seen.window == width, "nothing sticks out to the side"
        assert (seen.images, seen.broken) == (images, 0)
        text = seen.text
    return text


def full_report(path: Path) -> Path:
    """Every section that there is, and names as long as they come."""
    predictions, truths = random_segments(np.random.default_rng(5), segments=6)
    own_labels = labels([box(10), box(20), box(30)], num_points=[50, 3, 0])
    mine = frame(own_labels, key=(synthetic_name(2**64 - 1), 1_550_000_000_000_000))
    predictions.append(found([box(10), box(40)], key=mine.key))
    truths.append(prepare_ground_truth(own_labels, *mine.key))
    metrics = evaluate(predictions, truths)
    analysis = analyse(predictions, truths, metrics)
    charts = [
        Curve("Loss", "step", "loss", {"total": ([0, 1, 2], [3.0, float("nan"), 1.0])}),
        PurityHistory([1, 2], np.full((2, 10), 0.1)),
    ]
    scenes = [scene_of_frame(mine, predictions[-1]), *scenes_of_files(analysis.shown[:3], predictions, truths)]
    provenance = {"command": "python tools/evaluate.py " + "x" * 400, "commit": "abc"}
    return write_report(
        path,
        metrics,
        scenes,
        "A title that is long enough " * 4 + "y" * 200,
        provenance,
        charts,
        view(one_cell(3, 4), 0.25),
        analysis=analysis,
        facts={"Data": "/a/very/long/path" * 20},
    )


def test_the_full_report(browser, tmp_path):
    text = check(browser, full_report(tmp_path / "report.html"), images=3 + 3 + 2 + 4 + 2 + 2)
    for words in (
        "Mean APH, level 2",
        "By distance",
        "Errors of the heads",
        "What the scores mean",
        "worst of their segments",
        "Drawn at random",
        "Where the tasks conflict",
        "What was evaluated",
        "Synthetic data.",
        "1 of 7 segments were generated",
        "Where this comes from",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("predictions", "truths", "images", "words"),
    [
        ([], [], 0, "There is neither an object nor a detection"),
        ([found([])], [truth([])], 1, "there are no scores"),
        ([], [truth([box(10)])], 2, "No detection found an object"),
        ([found([box(10)])], [], 2, "no ground truth of vehicles, pedestrians or cyclists"),
        ([found([box(10)])], [truth([box(10)])], 6, "no ground truth of pedestrian and cyclist"),
    ],
    ids=["nothing", "one empty frame", "no detection", "no ground truth", "one class"],
)
def test_reports_of_little(browser, tmp_path, predictions, truths, images, words):
    metrics = evaluate(predictions, truths)
    analysis = analyse(predictions, truths, metrics)
    scenes = scenes_of_files(analysis.shown, predictions, truths)
    page = write_report(tmp_path / "report.html", metrics, scenes, "Little", {}, analysis=analysis)
    assert words in check(browser, page, images)


def test_a_comparison(browser, tmp_path):
    truths, perfect = data()
    folders = [
        evaluated(tmp_path / f"{name * 60}/evaluation", losing(perfect, share), truths, commit="c" * 40, seed=name)
        for name, share in (("a", 0.1), ("b", 0.15), ("c", 0.6))
    ]
    assert compare([*map(str, folders), "--output", str(tmp_path / "out")]) == 0
    text = check(browser, tmp_path / "out" / "report.html", images=1 + 2)
    assert f"{'c' * 60} is lower than {'a' * 60}" in text


def test_what_is_checked_can_fail(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><title>Bad</title><img src='https://example.org/a.png'><img src='data:image/svg+xml,<svg'>"
        "<div style='width: 1500px'>wide</div><script>console.error('loud'); missing()</script>"
    )
    seen = browser.view(page, 1280)
    assert "https://example.org/a.png" in seen.requests
    assert any("loud" in text for text in seen.complaints)
    assert any("missing is not defined" in text for text in seen.complaints)
    assert seen.width > seen.window
    assert (seen.images, seen.broken) == (2, 2)
