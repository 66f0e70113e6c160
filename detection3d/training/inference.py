"""A trained detector over a whole data set."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from detection3d.config import Config
from detection3d.config_file import load_config
from detection3d.data.loader import evaluation_batches
from detection3d.data.packing import unpack_arrays
from detection3d.data.store import Store
from detection3d.data.unpack import unpack
from detection3d.errors import UserError
from detection3d.evaluation import overlaps_no_label_zone
from detection3d.model.decode import decode, to_detections
from detection3d.model.detector import Detector
from detection3d.model.views import detect_in_views
from detection3d.training.checkpoint import fitting
from detection3d.training.run_folder import RunFolder
from detection3d.training.state import build_detector
from detection3d.training.step import DENSE_DTYPES
from detection3d.training.threads import threads_kept
from detection3d.training.weights import read_weights
from detection3d.types.scene import Detections
from detection3d.types.tensors import make_current, to_device


def load_run_config(run: Path, overrides: list[str]) -> Config:
    """Read a run's resolved config; overrides may change what evaluation uses, such as `data.validation`.

    Raises:
        UserError: the folder is not a run, or an override is wrong.
    """
    path = RunFolder(run).config
    if not path.is_file():
        raise UserError(f"{run}: not a run folder, since it holds no {path.name}; give what tools/train.py wrote")
    return load_config(path, overrides)


def load_detector(config: Config, checkpoint: Path, device: torch.device) -> tuple[Detector, int]:
    """Return the detector of a checkpoint or an exported model, in evaluation mode, and its step.

    The averaged weights are taken where the run keeps them. A CUDA device becomes this thread's current one.

    Raises:
        DataError: the checkpoint is damaged or belongs to another network.
    """
    weights = read_weights(checkpoint)
    make_current(device)
    detector = build_detector(config, device)
    with fitting(checkpoint, "the weights do not fit the network of this config ({reason})"):
        detector.load_state_dict(weights.tensors)
    return detector.eval(), weights.step


@torch.no_grad()
def detect_store(
    detector: Detector,
    store: Store,
    config: Config,
    device: torch.device,
    progress: Callable[[int], None] = lambda _: None,
    *,
    frames: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> Iterator[Detections]:
    """Detect in the frames of a store, in their order.

    Args:
        detector: in evaluation mode, on the device.
        store: the frames.
        config: which points to use, and how to decode.
        device: where to compute.
        progress: called with the number of frames done.
        frames: numbers of the wanted ones; None takes all.
        batch_size: samples of a batch; None takes the config's.

    Yields:
        What was found in each frame; detections that hold a point of a no-label zone are flagged.
    """
    store.require(config.data.returns, config.model.point_range, config.data.sweeps)
    done = 0
    dtype = DENSE_DTYPES[config.training.precision] if device.type == "cuda" else torch.float32
    batches = evaluation_batches(
        store,
        batch_size=batch_size or config.training.batch_size,
        workers=config.data.workers,
        sweeps=config.data.sweeps,
        frames=frames,
    )
    numbers = range(len(store)) if frames is None else frames
    for host_batch in batches:
        batch = to_device(host_batch, device)
        points = unpack(
            batch.points, returns=config.data.returns, drop_no_label_zone=config.data.drop_no_label_zone_points
        )
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            outputs = detect_in_views(detector, points, batch.size, config)
        for frame, found in enumerate(to_detections(decode(outputs, config), batch.keys, config)):
            with threads_kept():
                flagged = _flag_no_label_zone(found, store, numbers[done + frame])
            yield flagged
        done += batch.size
        progress(done)


def _flag_no_label_zone(detections: Detections, store: Store, frame: int) -> Detections:
    points, _, _, in_zone = unpack_arrays(store.packed(frame))
    if not in_zone.any():
        return detections
    return replace(detections, overlaps_no_label_zone=overlaps_no_label_zone(detections.boxes, points[in_zone, :3]))
