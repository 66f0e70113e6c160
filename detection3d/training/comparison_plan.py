"""Which runs a comparison of methods needs, and each one's config: the same but for method, learning rate and seed."""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from detection3d.config import Config
from detection3d.config_file import parse_config
from detection3d.data.store import Store
from detection3d.errors import UserError

BASELINE = "sum"
GRID_SEED = 1000
"""First seed of the learning rates' choice, counted from the config's seed; final runs are counted from it itself."""

EARLY = 0.75
"""Share of the schedule at which final runs are evaluated too."""

_NAME = re.compile(r"[A-Za-z0-9_+-]+")
# Settings that change no result.
_UNSEEN = (
    "workers",
    "checkpoint_every",
    "keep_checkpoints",
    "max_skipped_in_a_row",
    "evaluate_every",
    "evaluate_frames",
    "best_metric",
)
# Settings that came later, each with the value that stands for what was before: results from then stay valid.
_LATER: dict[str, Any] = {
    "augmentation.objects": None,
    "augmentation.off_for_last_share": 0.0,
    "augmentation.off_for_last_steps": 0,
    "classes.*.quality_exponent": 0.0,
    "data.every": 1,
    "data.sampling": "uniform",
    "data.sweeps": 1,
    "decode.local_maxima": False,
    "decode.views": ["identity"],
    "loss.iou_weight": 0.0,
    "loss.quality_weight": 1.0,
    "loss.velocity_weight": 0.2,
    "model.backbone.kind": "voxel",
    "model.heads": {
        "classification": ["heatmap"],
        "box": ["offset", "height", "size"],
        "orientation": ["heading"],
    },
    "training.accumulation": 1,
    "training.cuda_graphs": False,
    "training.ema_warmup": False,
    "training.epochs": 0.0,
    "training.freeze": [],
    "training.sync_batch_norm": True,
}


@dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
        phase: "grid" for the choice of the learning rate, "final" for the comparison.
        method: its name.
        learning_rate: the schedule's peak.
        seed: of weights, batches, augmentation and draw.
        config: complete.
        early: the step before the last at which to evaluate too; None for the last alone.
        folder: holds the run's folder, its log and its result.
    """

    phase: Literal["grid", "final"]
    method: str
    learning_rate: float
    seed: int
    config: Config
    early: int | None
    folder: Path

    @property
    def fingerprint(self) -> str:
        """Digest of all settings that the result depends on."""
        tree = self.config.model_dump(mode="json", exclude={"logging"})
        for section in ("data", "training"):
            tree[section] = {name: value for name, value in tree[section].items() if name not in _UNSEEN}
        for path, before in _LATER.items():
            _forget(tree, path.split("."), before)
        return hashlib.sha256(json.dumps([tree, self.early], sort_keys=True).encode()).hexdigest()

    @property
    def title(self) -> str:
        """What to call it in a log."""
        return f"{self.phase} {self.method}, learning rate {self.learning_rate:g}, seed {self.seed}"


@dataclass(frozen=True)
class ComparisonPlan:
    """What is to be compared.

    Attributes:
        config: what all runs share.
        methods: the config's method section by name, as plain values; the baseline is one of them.
        rates: learning rates to choose from, ascending.
        seeds: number of final runs of each method.
        grid_seeds: number of runs for each method and learning rate in the choice.
        output: the comparison's folder.
    """

    config: Config
    methods: dict[str, dict[str, Any]]
    rates: tuple[float, ...]
    seeds: int
    grid_seeds: int
    output: Path

    @property
    def final_seeds(self) -> tuple[int, ...]:
        """Seeds of the comparison."""
        return tuple(self.config.seed + number for number in range(self.seeds))

    @property
    def choice_seeds(self) -> tuple[int, ...]:
        """Seeds of the learning rates' choice, none of them a final one; none where there is nothing to choose."""
        count = self.grid_seeds if len(self.rates) > 1 else 0
        return tuple(self.config.seed + GRID_SEED + number for number in range(count))

    def grid(self) -> list[Trial]:
        """Return the runs that the learning rates are chosen by, seed by seed, so that a stop leaves whole rounds."""
        return [
            self._trial("grid", method, rate, seed)
            for seed in self.choice_seeds
            for rate in self.rates
            for method in self.methods
        ]

    def final(self, chosen: dict[str, float]) -> list[Trial]:
        """Return the runs that are compared.

        Args:
            chosen: learning rate by method; one that is missing gets no runs.
        """
        return [
            self._trial("final", method, chosen[method], seed)
            for seed in self.final_seeds
            for method in self.methods
            if method in chosen
        ]

    def method_config(self, method: str, rate: float, seed: int) -> Config:
        """Return the config with a method, a learning rate and a seed in place."""
        tree = self.config.model_dump(mode="json", exclude={"logging"})
        tree["seed"] = seed
        tree["multitask"]["method"] = self.methods[method]
        tree["training"]["learning_rate"] = rate
        return parse_config(tree, f"method {method}")

    def _trial(self, phase: Literal["grid", "final"], method: str, rate: float, seed: int) -> Trial:
        config, early = self.method_config(method, rate, seed), None
        if phase == "final":
            config, early = _stop_early_too(config)
        folder = self.output / "runs" / phase / method / f"rate_{rate!r}" / f"seed_{seed}"
        return Trial(phase, method, rate, seed, config, early, folder)


def make_plan(
    config: Config, methods: Sequence[str], rates: Sequence[float], seeds: int, grid_seeds: int, output: Path
) -> ComparisonPlan:
    """Check what the user asked for and return the plan.

    Args:
        config: what all runs share.
        methods: as `parse_method` reads them.
        rates: learning rates; none takes half, once and twice the config's.
        seeds: number of final runs of each method.
        grid_seeds: number of runs for each method and learning rate.
        output: the comparison's folder.

    Raises:
        UserError: a method is unknown or given twice, the baseline is missing, or a number is out of its range.
    """
    rates = rates or [factor * config.training.learning_rate for factor in (0.5, 1.0, 2.0)]
    parsed = [parse_method(word, config) for word in methods]
    names = [name for name, _ in parsed]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"--methods: {', '.join(repeated)} given twice; give each a name of its own: NAME={{kind: ...}}"
        )
    if BASELINE not in names:
        raise UserError(f"--methods: {', '.join(names)}; the baseline, {BASELINE}, must be among them")
    if wrong := [rate for rate in rates if not (rate > 0 and math.isfinite(rate))]:
        raise UserError(f"--learning-rates: {', '.join(map(str, wrong))} can't be used; give positive numbers")
    if not 1 <= seeds <= GRID_SEED:
        raise UserError(f"--seeds {seeds}: give 1 to {GRID_SEED}")
    if len(set(rates)) > 1 and not 1 <= grid_seeds <= GRID_SEED:
        raise UserError(f"--grid-seeds {grid_seeds}: give 1 to {GRID_SEED}, or a single one of --learning-rates")
    for section in ("train", "validation"):
        if getattr(config.data, section) is None:
            raise UserError(f"data.{section} is not set: give the folder of a prepared store (data.{section}=FOLDER)")
    if config.training.epochs:
        assert config.data.train is not None
        config = config.in_steps(len(Store.open(config.data.train).every(config.data.every)))
    if config.training.steps < 4:
        raise UserError(
            f"training.steps is {config.training.steps}; runs are evaluated at 3/4 of it, so give at least 4"
        )
    plan = ComparisonPlan(config, dict(parsed), tuple(sorted(set(rates))), seeds, grid_seeds, output)
    for name in plan.methods:
        plan.method_config(name, plan.rates[0], config.seed)  # a wrong setting is told before anything is trained
    return plan


def parse_method(word: str, config: Config) -> tuple[str, dict[str, Any]]:
    """Return a method's name and its section of the config, not yet checked.

    Args:
        word: a kind such as "graddrop"; "gradnorm+graddrop" for the first followed by the second; or
            "NAME={kind: graddrop, leak: 0.2}" for settings of its own. A kind that the config itself uses comes with
            the config's settings.
        config: what all runs share.

    Raises:
        UserError: none of the three.
    """
    name, separator, text = word.partition("=")
    if not _NAME.fullmatch(name):
        setting = "; settings such as training.steps=100 stand before --methods" if separator else ""
        raise UserError(
            f"--methods: {word!r} is no method: its name may hold letters, digits, '_', '-' and '+'{setting}"
        )
    if separator:
        try:
            tree = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--methods: {word!r}: the settings are not YAML: {error}") from error
        if not isinstance(tree, dict):
            raise UserError(f"--methods: {word!r}: write NAME={{kind: graddrop, leak: 0.2}}, with quotes around it")
        return name, tree
    kind, plus, then = name.partition("+")
    tree = _own(kind, config)
    return name, {**tree, "then": _own(then, config)} if plus else tree


def _own(kind: str, config: Config) -> dict[str, Any]:
    method = config.multitask.method
    return method.model_dump(mode="json") if method.kind == kind else {"kind": kind}


def _stop_early_too(config: Config) -> tuple[Config, int]:
    """Space the checkpoints so that one falls on three quarters of the schedule and is kept; return its step, too."""
    training = config.training
    target = EARLY * training.steps
    parts = math.ceil(target / training.checkpoint_every)
    every = max(1, round(target / parts))
    early = parts * every
    keep = (training.steps - early) // every + 2
    changed = training.model_copy(update={"checkpoint_every": every, "keep_checkpoints": keep})
    return config.model_copy(update={"training": changed}), early


def _forget(node: Any, path: Sequence[str], value: Any) -> None:
    """Take the entry at `path` out where it has the value; `*` stands for every entry of a list."""
    name, *rest = path
    if name == "*":
        for item in node:
            _forget(item, rest, value)
    elif rest:
        _forget(node[name], rest, value)
    elif name in node and node[name] == value:
        del node[name]
