"""A comparison of methods from the first run to the report; run again, it goes on where it stopped."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from detection3d.config import Config
from detection3d.data.store import Store
from detection3d.errors import UserError
from detection3d.evaluation.comparison import (
    Comparison,
    FailedRun,
    MethodRuns,
    RateChoice,
    RunScores,
    Speed,
    choose_rate,
)
from detection3d.evaluation.files.comparison_json import write_comparison_json
from detection3d.evaluation.reporting.comparison_report import write_comparison_report
from detection3d.files import locked
from detection3d.training.comparison_curves import read_curves
from detection3d.training.comparison_plan import BASELINE, ComparisonPlan, Trial
from detection3d.training.comparison_run import LOG, RUN, Job, do_job, initial_weights, read_result
from detection3d.training.comparison_speed import FEWEST_PAIRS, measure_speed, read_speeds, write_speeds
from detection3d.training.evaluation import read_store_ground_truth
from detection3d.training.run_folder import RunFolder, describe_environment
from detection3d.training.worker_pool import run_each

LOCK = ".lock"
SPEED = "speed.json"


@dataclass(frozen=True)
class Means:
    """What a comparison is done with; none of it changes what a run computes, but for the device's rounding.

    Attributes:
        devices: the pool's processes take them in turns.
        processes: runs at a time.
        keep_checkpoints: leave the weights of finished runs.
        speed_pairs: pairs of steps for each method's speed; 0 leaves it out.
    """

    devices: tuple[str, ...]
    processes: int
    keep_checkpoints: bool
    speed_pairs: int


def compare(plan: ComparisonPlan, means: Means, console: Console) -> Comparison:
    """Do all runs that are not done yet, and write comparison.json and report.html.

    Args:
        plan: what to compare.
        means: what with.
        console: for progress.

    Returns:
        The comparison; a method whose runs failed has fewer of them.

    Raises:
        UserError: the plan can't be carried out.
        KeyboardInterrupt: asked to stop; runs in progress have saved a checkpoint.
    """
    frames = _check(plan, means)
    plan.output.mkdir(parents=True, exist_ok=True)
    refusal = f"{plan.output}: another process is comparing in it; wait for it or choose another --output"
    with locked(plan.output / LOCK, refusal):
        runner = _Runner(plan, means, console)
        grid = runner.do(plan.grid())
        choices = {name: _choose(plan, grid, name) for name in plan.methods}
        final = runner.do(plan.final({name: item.chosen for name, item in choices.items() if item.chosen is not None}))
        _check_weights(final)
        speeds = _speeds(plan, means, console)
        comparison = Comparison(
            BASELINE,
            tuple(_method(plan, name, choices[name], runner, final, speeds.get(name)) for name in plan.methods),
            plan.final_seeds,
            plan.choice_seeds,
            frames,
        )
        provenance = runner.provenance(torch.device(means.devices[0]))
        write_comparison_json(plan.output, comparison, plan.config.model_dump(mode="json"), provenance)
        write_comparison_report(plan.output, comparison, provenance)
    return comparison


class _Runner:
    """Does lists of trials and keeps what came of them."""

    def __init__(self, plan: ComparisonPlan, means: Means, console: Console) -> None:
        self._plan, self._means, self._console = plan, means, console
        self._started = time.perf_counter()
        self._total = len(plan.grid()) + plan.seeds * len(plan.methods)
        self._done = 0
        self._done_now = 0
        self.failed: dict[str, list[FailedRun]] = {name: [] for name in plan.methods}
        self.environments: list[dict[str, Any]] = []

    def do(self, trials: Sequence[Trial]) -> dict[Trial, RunScores]:
        """Return the scores of each trial, from its result where it is finished; failed ones are left out."""
        scores: dict[Trial, RunScores] = {}
        for trial in trials:
            found = read_result(trial)
            if found is not None:
                scores[trial] = found[0]
                if not self._means.keep_checkpoints:  # a process that was killed may have left them
                    shutil.rmtree(RunFolder(trial.folder / RUN).checkpoints, ignore_errors=True)
        self._done += len(scores)
        if scores:
            self._console.print(f"{len(scores)} of {len(trials)} runs are finished already", highlight=False)
        jobs = [
            Job(trial, self._means.devices, self._means.processes, self._means.keep_checkpoints)
            for trial in trials
            if trial not in scores
        ]
        with self._progress() as progress:
            bar = progress.add_task("runs", total=self._total, completed=self._done)
            try:
                for outcome in run_each(do_job, jobs, self._means.processes):
                    self._done, self._done_now = self._done + 1, self._done_now + 1
                    self._note(outcome.task.trial, outcome.result, outcome.failure, progress.console)
                    progress.update(bar, completed=self._done)
                    if outcome.result is not None:
                        scores[outcome.task.trial] = outcome.result
            except KeyboardInterrupt as error:
                raise KeyboardInterrupt(
                    f"stopped with {self._done} of {self._total} runs done; run the same command to go on"
                ) from error
        self.environments += [found[1] for trial in scores if (found := read_result(trial)) is not None]
        return scores

    def provenance(self, device: torch.device) -> dict[str, Any]:
        """Return what the numbers come from; lists where the runs differ in it."""
        values = describe_environment(device)
        for name in ("commit", "device", "python"):
            values[f"{name}s of the runs"] = sorted({str(item.get(name)) for item in self.environments})
        return values

    def _note(self, trial: Trial, scores: RunScores | None, failure: str | None, console: Console) -> None:
        if scores is not None:
            text = f"mean AP {100 * scores.final.mean('ap'):.2f} % ({scores.seconds:.0f} s)"
        else:
            log = trial.folder / LOG
            reason = str(failure).splitlines()[0]
            failed = FailedRun(trial.learning_rate, trial.seed, reason, str(log.relative_to(self._plan.output)))
            self.failed[trial.method].append(failed)
            text = f"FAILED: {reason}; see {log}"
        elapsed, left = time.perf_counter() - self._started, self._total - self._done
        seconds = time_left(elapsed, self._done_now, left, self._means.processes)
        line = f"[{self._done}/{self._total}] {trial.title}: {text}; about {_duration(seconds)} left"
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _progress(self) -> Progress:
        columns = (TextColumn("comparing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)


def time_left(elapsed: float, done: int, left: int, at_a_time: int) -> float:
    """Estimate the seconds until all runs have ended, of which so many go on beside each other and take equally long.

    Args:
        elapsed: seconds since the start.
        done: runs that ended since then, at least 1.
        left: runs that have not.
        at_a_time: how many go on beside each other.
    """
    rounds_done, rounds = -(-done // at_a_time), -(-(done + left) // at_a_time)
    return elapsed * (rounds / rounds_done - 1)


def _check(plan: ComparisonPlan, means: Means) -> int:
    """Find out before the first run what would fail after it; return the number of validation frames."""
    if means.processes < 1:
        raise UserError(f"--processes {means.processes}: give at least 1")
    if means.speed_pairs and means.speed_pairs < FEWEST_PAIRS:
        raise UserError(f"--speed-pairs {means.speed_pairs}: give at least {FEWEST_PAIRS}, or 0 to leave it out")
    others = [] if not plan.output.is_dir() else [item.name for item in plan.output.iterdir() if item.name[0] != "."]
    if plan.output.exists() and not plan.output.is_dir():
        raise UserError(
            f"{plan.output}: a file stands where the comparison's folder should be; choose another --output"
        )
    if others and not (plan.output / "runs").is_dir():
        raise UserError(f"{plan.output}: not empty, and not a comparison; choose another folder with --output")
    assert plan.config.data.train is not None
    assert plan.config.data.validation is not None
    Store.open(plan.config.data.train)
    truth = read_store_ground_truth(Store.open(plan.config.data.validation))
    if not any(len(frame.boxes) for frame in truth):
        raise UserError(f"{plan.config.data.validation}: holds no objects, so methods can't be told apart on it")
    seed, rate = plan.config.seed, plan.rates[0]
    digests = {
        name: initial_weights(plan.method_config(name, rate, seed), torch.device("cpu")) for name in plan.methods
    }
    _refuse_other_weights(seed, digests)
    return len(truth)


def _check_weights(runs: dict[Trial, RunScores]) -> None:
    for seed in sorted({trial.seed for trial in runs}):
        _refuse_other_weights(seed, {trial.method: runs[trial].weights for trial in runs if trial.seed == seed})


def _refuse_other_weights(seed: int, digests: dict[str, str]) -> None:
    """Raise where methods would start from different weights: then their runs are no pairs."""
    if len(set(digests.values())) > 1:
        listed = ", ".join(f"{name} {digest[:12]}" for name, digest in digests.items())
        raise UserError(
            f"seed {seed}: the methods start from different weights ({listed}); if the program was changed in between,"
            " compare into a new folder (--output)"
        )


def _choose(plan: ComparisonPlan, grid: dict[Trial, RunScores], name: str) -> RateChoice:
    scores = [
        {
            trial.seed: run.final.mean("ap")
            for trial, run in grid.items()
            if trial.method == name and trial.learning_rate == rate
        }
        for rate in plan.rates
    ]
    return choose_rate(plan.rates, scores, plan.choice_seeds)


def _method(
    plan: ComparisonPlan,
    name: str,
    choice: RateChoice,
    runner: _Runner,
    final: dict[Trial, RunScores],
    speed: Speed | None,
) -> MethodRuns:
    trials = sorted((trial for trial in final if trial.method == name), key=lambda trial: trial.seed)
    done = {trial.seed for trial in trials}
    section = plan.method_config(name, plan.rates[0], plan.config.seed).multitask.method
    return MethodRuns(
        name=name,
        settings=section.model_dump(mode="json"),
        choice=choice,
        runs=tuple(final[trial] for trial in trials),
        failed=tuple(runner.failed[name]),
        missing=tuple(seed for seed in plan.final_seeds if seed not in done),
        speed=speed,
        telemetry=read_curves([RunFolder(trial.folder / RUN).metrics for trial in trials]),
    )


@dataclass(frozen=True)
class _SpeedJob:
    configs: dict[str, Config]
    device: str
    pairs: int


def _measure(job: _SpeedJob, _: int) -> dict[str, Speed]:
    return measure_speed(job.configs, torch.device(job.device), job.pairs)


def _speeds(plan: ComparisonPlan, means: Means, console: Console) -> dict[str, Speed]:
    """Return the speed of every method, measured where it is not on record for these settings.

    That is done in a process of its own, when all runs are finished, so that nothing else of ours uses the device. The
    learning rate is the config's: it changes no speed.
    """
    if not means.speed_pairs:
        return {}
    rate, seed = plan.config.training.learning_rate, plan.config.seed
    configs = {name: plan.method_config(name, rate, seed) for name in plan.methods}
    path = plan.output / SPEED
    known = read_speeds(path, configs, means.devices[0])
    missing = {name: config for name, config in configs.items() if name not in known}
    if missing:
        console.print(f"speed: {2 * means.speed_pairs} pairs of steps for each of {', '.join(missing)}")
        (outcome,) = run_each(_measure, [_SpeedJob(missing, means.devices[0], means.speed_pairs)], 1)
        if outcome.result is None:
            console.print(f"speed: FAILED: {outcome.failure}", highlight=False, markup=False)
            return known
        known |= outcome.result
        write_speeds(path, configs, means.devices[0], known)
    return known


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
