"""Two methods over two seeds, as a user compares them: from the grid to the report, stopped, extended and failing."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from detection3d.training.comparison_plan import make_plan
from tests.small_run import environment, small_config, small_settings, tool

pytestmark = pytest.mark.slow

RATES = ("0.002", "0.004")
STEPS = "training.steps=8"


def arguments(store: Path, output: Path, *options: str, methods: tuple[str, ...] = ("sum", "graddrop")) -> list[str]:
    command = ["tiny", *small_settings(STEPS, data=store), "--methods", *methods, "--learning-rates", *RATES]
    common = ("--seeds", "2", "--grid-seeds", "1", "--speed-pairs", "0", "--processes", "1", "--device", "cpu")
    return tool("compare_methods", *command, "--output", output, *common, *options)


def start(command: list[str], cwd: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=environment(), stdout=pipe, stderr=pipe, text=True)


def compare(command: list[str], cwd: Path, status: int = 0) -> str:
    process = start(command, cwd)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == status, (output, errors)
    assert "Traceback" not in output + errors
    return output


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "comparison.json").read_text())


def findings(folder: Path) -> dict[str, Any]:
    """The comparison without what depends on the machine's mood."""
    found = content(folder)
    del found["provenance"]
    for method in found["methods"]:
        for run in method["runs"]:
            del run["seconds"]
    return found


@pytest.fixture(scope="module")
def straight(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison that was never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    output = compare(arguments(store, folder / "out", "--speed-pairs", "20"), folder)
    assert output.count("mean AP") >= 8
    assert "[8/8] final graddrop" in output
    return folder / "out"


def test_what_a_comparison_leaves(straight, store):
    found = content(straight)
    assert (found["schema_version"], found["complete"], found["baseline"]) == (1, True, "sum")
    assert (found["seeds"], found["grid_seeds"]) == ([0, 1], [1000])
    assert [method["name"] for method in found["methods"]] == ["sum", "graddrop"]
    for method in found["methods"]:
        assert method["choice"]["rates"] == [0.002, 0.004]
        assert method["choice"]["chosen"] in (0.002, 0.004)
        assert [run["seed"] for run in method["runs"]] == [0, 1]
        assert all((run["final"]["step"], run["early"]["step"]) == (8, 6) for run in method["runs"])
        assert 0.2 < method["speed"]["relative"] < 5
        assert "Positions in conflict" in method["telemetry"]
    first, second = found["methods"]
    for ours, theirs in zip(first["runs"], second["runs"], strict=True):
        assert ours["weights"] == theirs["weights"]
    assert first["runs"][0]["weights"] != first["runs"][1]["weights"]
    assert "<html" in (straight / "report.html").read_text()
    assert not list(straight.rglob("*.pt")), "no checkpoints of finished runs"
    config = small_config(STEPS, data=store)
    plan = make_plan(config, ["sum", "graddrop"], [0.002, 0.004], 2, 1, straight)
    assert all((trial.folder / "result.json").is_file() for trial in plan.grid())


def test_the_methods_train_on_the_same_batches(straight):
    losses = {}
    for method in content(straight)["methods"]:
        rate = method["choice"]["chosen"]
        log = straight / f"runs/final/{method['name']}/rate_{rate}/seed_0/run/metrics.jsonl"
        losses[method["name"]] = {
            name: value for name, value in json.loads(log.read_text().splitlines()[0]).items() if name[:5] == "loss/"
        }
    assert losses["sum"] == losses["graddrop"], "the first step's losses depend on weights and batch alone"


def test_a_finished_comparison_is_not_done_again(straight, store, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    output = compare(arguments(store, folder, "--speed-pairs", "20"), tmp_path)
    assert output.count("4 of 4 runs are finished already") == 2
    assert "pairs of steps" not in output, "speeds are on record"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")} == before
    assert findings(folder) == findings(straight)


def test_a_third_seed_adds_to_it(straight, store, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    output = compare([*arguments(store, folder), "--seeds", "3"], tmp_path)
    assert output.count("mean AP ") >= 2
    assert "4 of 6 runs are finished already" in output
    found = content(folder)
    assert [len(method["runs"]) for method in found["methods"]] == [3, 3]
    assert [method["runs"][:2] for method in found["methods"]] == [
        method["runs"] for method in content(straight)["methods"]
    ]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_stopped_in_the_middle_it_ends_alike(straight, store, tmp_path, number, status):
    folder = tmp_path / "out"
    process = start(arguments(store, folder), tmp_path)
    deadline = time.monotonic() + 300
    while len(list(folder.rglob("result.json"))) < 3 or len(list(folder.rglob("metrics.jsonl"))) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status
    if number == signal.SIGINT:
        assert "runs done; run the same command to go on" in errors
    assert "finished already" in compare(arguments(store, folder, "--speed-pairs", "20"), tmp_path)
    ours, theirs = findings(folder), findings(straight)
    for method in (*ours["methods"], *theirs["methods"]):
        del method["speed"]
    assert ours == theirs


def test_a_failing_method_stops_no_other(store, tmp_path):
    folder = tmp_path / "out"
    methods = ("sum", "graddrop", "wild={kind: gradient_penalty, weight: 1.0e+38}")
    output = compare(arguments(store, folder, methods=methods), tmp_path, status=1)
    assert "grid wild, learning rate 0.002, seed 1000: FAILED: step" in output
    assert "note: wild: no learning rate could be chosen, since each had a failed run" in output
    found = content(folder)
    assert not found["complete"]
    wild = found["methods"][2]
    assert (len(wild["runs"]), wild["missing"], wild["choice"]["chosen"]) == (0, [0, 1], None)
    assert [len(method["runs"]) for method in found["methods"][:2]] == [2, 2]
    assert "not finite" in wild["failed"][0]["reason"]
    assert "error: step" in (folder / wild["failed"][0]["log"]).read_text()
    assert found["differences"]["ap"]["wild"]["verdict"] == "no difference shown"


def test_other_settings_are_refused(straight, store, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    process = start([*arguments(store, folder), "--grid-seeds", "1", "training.batch_size=1"], tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the result of a run with other settings; compare into another folder (--output), or delete it" in errors


def test_runs_of_other_initial_weights_are_no_pairs(straight, store, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    path = next(folder.glob("runs/final/graddrop/*/seed_1/result.json"))
    result = json.loads(path.read_text())
    result["scores"]["weights"] = "0" * 64
    path.write_text(json.dumps(result))
    process = start(arguments(store, folder), tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: seed 1: the methods start from different weights" in errors
