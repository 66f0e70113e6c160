"""Evaluations on the way: all ranks detect, the first one compares, and training goes on as if nothing had been."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn

from detection3d.config import Config
from detection3d.data.store import Store
from detection3d.errors import UserError
from detection3d.evaluation import Metrics
from detection3d.evaluation.files.metrics_json import mean_metrics
from detection3d.evaluation.files.objects import read_detections, write_detections
from detection3d.model.detector import Detector
from detection3d.model.norm import BatchNorm
from detection3d.training.best import Best, note_best
from detection3d.training.checkpoint import checkpoint_path
from detection3d.training.evaluated_data import data_hash
from detection3d.training.evaluation import EvaluatedFrames, read_store_ground_truth, write_evaluation
from detection3d.training.inference import detect_store
from detection3d.training.recorder import Recorder, Silence
from detection3d.training.run_folder import RunFolder
from detection3d.training.state import TrainState
from detection3d.training.team import Team
from detection3d.training.threads import threads_kept
from detection3d.types.scene import Detections, ObjectType


class PeriodicEvaluation:
    """Evaluates every `training.evaluate_every` steps and at the end.

    Args:
        config: the run.
        folder: of the run; the ranks exchange detections through it.
        team: the ranks, each of which must call `run` after the same steps.
        recorder: of this rank.

    Raises:
        UserError: the validation data can't be used, or have frames without labels.
    """

    def __init__(self, config: Config, folder: RunFolder, team: Team, recorder: Recorder | Silence) -> None:
        self._config, self._folder, self._team, self._recorder = config, folder, team, recorder
        self._evaluated: EvaluatedFrames | None = None
        if config.training.evaluate_every:
            assert config.data.validation is not None  # the config sees to it
            store = Store.open(config.data.validation)
            store.require(config.data.returns, config.model.point_range, config.data.sweeps)
            frames = spaced(len(store), config.training.evaluate_frames)
            truth = read_store_ground_truth(store, frames) if team.first else []
            self._evaluated = EvaluatedFrames(store, frames, truth)

    def due(self, step: int) -> bool:
        """Whether a step is followed by an evaluation."""
        training = self._config.training
        return bool(training.evaluate_every) and (step % training.evaluate_every == 0 or step == training.steps)

    def run(self, state: TrainState) -> None:
        """Evaluate the averaged weights, or those of the model where no average is kept.

        Args:
            state: after the step; nothing of it changes.

        Raises:
            UserError: a frame can't be read, or a detection is not finite.
        """
        with threads_kept():
            self._run(state)

    def _run(self, state: TrainState) -> None:
        assert self._evaluated is not None
        folder = self._folder.evaluation / f"{state.step:08d}"
        detections = self._detect(state, folder)
        if not self._team.first:
            return
        run, checkpoint = self._folder.root, checkpoint_path(self._folder.checkpoints, state.step)
        result = write_evaluation(
            run, self._config, self._evaluated, detections, folder, checkpoint.name, state.step, state.device
        )
        values = _values(result.metrics, {kind for item in self._config.classes for kind in item.types})
        self._recorder.log_evaluation(state.step, values)
        value = values.get(f"evaluation/{self._config.training.best_metric}")
        if value is not None:
            sha256 = data_hash(self._evaluated.store)
            metric, frames = self._config.training.best_metric, len(self._evaluated.frames)
            best = Best(checkpoint.name, state.step, metric, value, frames, sha256)
            if note_best(self._folder.checkpoints, best):
                self._recorder.say(f"step {state.step} is the best so far: {metric} {value:.4f}")

    def _detect(self, state: TrainState, folder: Path) -> Sequence[Detections]:
        """Return what all ranks detect on the first one, and what this rank detects on the others."""
        assert self._evaluated is not None
        store, frames, team = self._evaluated.store, self._evaluated.frames, self._team
        start, stop = (len(frames) * share // team.size for share in (team.rank, team.rank + 1))
        batch_size = max(1, self._config.training.batch_size // team.size)
        apart = team.size > 1 and not self._config.training.synchronizes_norms(team.size)
        with evaluating(state) as detector, _statistics_of_the_first(detector) if apart else nullcontext():
            own = list(
                detect_store(
                    detector, store, self._config, state.device, frames=frames[start:stop], batch_size=batch_size
                )
            )
        if team.size == 1:
            return own
        if not team.first:
            folder.mkdir(parents=True, exist_ok=True)
            write_detections(_part(folder, team.rank), own)
        team.wait()
        if not team.first:
            return own
        for rank in range(1, team.size):
            own += _read_part(_part(folder, rank))
        return own


@contextmanager
def evaluating(state: TrainState) -> Iterator[Detector]:
    """Lend the detector to be evaluated, in evaluation mode; afterwards every module has the mode that it had.

    Args:
        state: of the run.
    """
    detector = state.model if state.average is None else state.average.module
    assert isinstance(detector, Detector)
    modes: dict[nn.Module, bool] = {module: module.training for module in detector.modules()}
    try:
        yield detector.eval()
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
@torch.no_grad()
def _statistics_of_the_first(detector: Detector) -> Iterator[None]:
    """Lend every rank the running statistics of the first one, which the checkpoint holds; afterwards it has its own.

    Where batch normalisation is each rank's own, they differ, and the evaluation would be that of no detector.
    """
    norms = [module for module in detector.modules() if isinstance(module, BatchNorm)]
    statistics = [buffer for norm in norms for buffer in norm.buffers()]
    own = [buffer.clone() for buffer in statistics]
    for buffer in statistics:
        dist.broadcast(buffer, src=0)
    try:
        yield
    finally:
        for buffer, value in zip(statistics, own, strict=True):
            buffer.copy_(value)


def spaced(total: int, wanted: int) -> Sequence[int]:
    """Return the numbers of `wanted` frames out of `total`, evenly spaced; all where `wanted` is 0 or more than all."""
    if not 0 < wanted < total:
        return range(total)
    return [(2 * place + 1) * total // (2 * wanted) for place in range(wanted)]


def _part(folder: Path, rank: int) -> Path:
    return folder / f"of_rank_{rank}.parquet"


def _read_part(path: Path) -> tuple[Detections, ...]:
    if not path.is_file():
        raise UserError(f"{path}: not there, though its rank wrote it; all nodes must see the same run folder")
    found = read_detections(path)
    path.unlink()
    return found


def _values(metrics: Metrics, types: Collection[ObjectType]) -> dict[str, float]:
    """Return the numbers for the log: means by level, and AP and APH by type and level, for the detector's types."""
    values: dict[str, float] = {}
    for level, mean in mean_metrics(metrics).items():
        if mean.ap is not None and mean.aph is not None:
            values |= {f"evaluation/LEVEL_{level}/AP": mean.ap, f"evaluation/LEVEL_{level}/APH": mean.aph}
    for row in metrics.rows:
        if row.breakdown == "OBJECT_TYPE" and row.ground_truth and row.shard.object_type in types:
            name = f"evaluation/{row.shard.object_type.name}/LEVEL_{row.level}"
            values |= {f"{name}/AP": float(row.ap), f"{name}/APH": float(row.aph)}
    return values
