"""Batches and states for tests of single steps."""

from pathlib import Path

import torch

from detection3d.config import Config
from detection3d.data.loader import build_loader
from detection3d.data.store import Store
from detection3d.training.state import TrainState, build_state
from detection3d.types.tensors import Batch

CPU = torch.device("cpu")


def batches(config: Config, store: Path, count: int) -> list[Batch]:
    size = config.training.batch_size
    return list(build_loader(Store.open(store), global_batch_size=size, seed=config.seed, total_steps=count))


def fresh_state(config: Config) -> TrainState:
    return build_state(config, CPU)


def flat(tree: object, prefix: str = "") -> dict[str, object]:
    """Leaves of nested dicts and lists by their path, to compare states leaf by leaf."""
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {path: leaf for key, value in items for path, leaf in flat(value, f"{prefix}/{key}").items()}
    return {prefix: tree}


def differences(first: object, second: object) -> list[str]:
    """Paths of the leaves whose bits differ."""
    left, right = flat(first), flat(second)
    shared = left.keys() & right.keys()
    return sorted((left.keys() ^ right.keys()) | {path for path in shared if not _same(left[path], right[path])})


def _same(left: object, right: object) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
    return type(left) is type(right) and left == right
