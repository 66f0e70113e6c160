"""Whole training steps on two ranks against the same steps on one, in float64, in which nothing hides in rounding."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import pytest
import torch
from torch import distributed as dist

from detection3d.config import Config
from detection3d.config.multitask import MethodConfig
from detection3d.data.collate import collate
from detection3d.data.store import Store
from detection3d.model.losses import compute_losses
from detection3d.multitask import Ranks
from detection3d.multitask.ranks import current_ranks
from detection3d.training import step
from detection3d.training.distributed import count_objects, distribute
from detection3d.training.state import TrainState, build_state
from detection3d.training.step import train_step
from detection3d.types.tensors import HeadOutputs, Targets, TaskLosses
from tests.data.made_frames import write_store
from tests.rank_group import RankGroup
from tests.small_run import near_frame, small_config
from tests.training.steps import CPU, differences, flat

# The frames of each rank in each step. 0 to 3 are full, 4 is empty, 5 has no objects, 6 no points.
STEPS = (
    ((0, 1), (2, 3)),
    ((0, 1, 2), (4,)),  # unequal shares, a rank without voxels and objects
    ((1, 5), (6, 2)),
    ((5,), (4, 4)),  # no object anywhere
    ((6, 4), (3, 0, 1)),
)
KINDS = [get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(MethodConfig)]
METHODS = [
    *KINDS,
    "{kind: graddrop, marginalize: batch+space, preserve_norm: false, leak: {box: 0.2}}",
    "{kind: graddrop, marginalize: none}",
    "{kind: gradnorm, then: graddrop}",
]
FAST = ("graddrop", "gradient_penalty", "{kind: gradnorm, then: graddrop}")
EXACT = {"rtol": 1e-9, "atol": 1e-11}  # float64 through some twenty layers and Adam's division


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "store"
    changes = [{}, {}, {}, {}, {"points": 0, "boxes": 0}, {"boxes": 0}, {"points": 0}]
    frames = [near_frame("segment", 1000 + number, **change) for number, change in enumerate(changes)]
    write_store(root, {"segment": frames})
    return root


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[RankGroup]:
    with RankGroup(2) as group:
        yield group


def train_steps(rank: int | None, store: Path, overrides: tuple[str, ...], bucket_mb: float = 1e-3) -> dict[str, Any]:
    """Train on a rank's share of the frames, or in one process (None) on all of them."""
    config = small_config(*overrides, data=store)
    state = build_state(config, CPU)
    state.model.double()
    if state.average is not None:
        state.average.double()
    state.model.voxelizer.register_forward_hook(lambda *call: call[-1].with_features(call[-1].features.double()))
    if rank is not None:
        distribute(state, bucket_mb)
    data = Store.open(store)
    norms, losses, telemetry = [], [], []
    for number, shares in enumerate(STEPS):
        alone = rank is None or dist.get_world_size() == 1
        frames = [frame for share in shares for frame in share] if alone else shares[rank]
        first = 10 * number + (len(shares[0]) if rank == 1 else 0)
        batch = collate(data, frames, range(first, first + len(frames)))
        with mock.patch.object(step, "compute_losses", losses_in_double):
            result = train_step(state, batch, config)
        norms.append(result.gradient_norm)
        losses.append(torch.stack(list(result.losses.as_dict().values())).detach())
        seen = state.fork.read_telemetry()
        assert seen is not None
        telemetry.append(torch.tensor(list(seen.scalars().values()), dtype=torch.float64))
    return {
        "state": _numbers(state),
        "norms": torch.stack(norms),
        "losses": torch.stack(losses),
        "telemetry": torch.stack(telemetry),
    }


def losses_in_double(outputs: HeadOutputs, targets: Targets, config: Config) -> TaskLosses:
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):  # their own type is float32
        return compute_losses(outputs, targets, config)


def _numbers(state: TrainState) -> dict[str, torch.Tensor]:
    """Weights, statistics, their averages and the optimiser's."""
    captured = state.capture()
    leaves = flat({name: captured[name] for name in ("model", "average", "optimizer")})
    return {name: leaf for name, leaf in leaves.items() if isinstance(leaf, torch.Tensor)}


@pytest.mark.parametrize(
    "method", [pytest.param(method, marks=() if method in FAST else pytest.mark.slow) for method in METHODS]
)
def test_two_ranks_train_as_one(two_ranks: RankGroup, store: Path, method: str) -> None:
    overrides = (f"multitask.method={method}", "training.clip_norm=1")
    alone = train_steps(None, store, overrides)
    first, second = two_ranks.run(train_steps, store, overrides)
    assert differences(first["state"], second["state"]) == []
    for name in ("norms", "telemetry"):
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], alone[name], **EXACT)
    torch.testing.assert_close((first["losses"] + second["losses"]) / 2, alone["losses"], **EXACT)
    torch.testing.assert_close(first["state"], alone["state"], **EXACT)


@pytest.mark.parametrize("pillars", [False, True])
def test_two_ranks_train_other_models_as_one(two_ranks: RankGroup, store: Path, pillars: bool) -> None:
    """Quality and IoU losses, whose numbers are of a rank's own objects; and norms over the points of pillars."""
    heads = "model.heads={classification: [heatmap, quality], box: [offset, height, size], orientation: [heading]}"
    overrides = (heads, "loss.iou_weight=1", "training.clip_norm=1")
    if pillars:
        overrides += ("model.backbone={kind: pillar, channels: [8, 8]}", "model.voxel_size=[1,1,6]")
    alone = train_steps(None, store, overrides)
    first, second = two_ranks.run(train_steps, store, overrides)
    assert differences(first["state"], second["state"]) == []
    torch.testing.assert_close((first["losses"] + second["losses"]) / 2, alone["losses"], **EXACT)
    torch.testing.assert_close(first["state"], alone["state"], **EXACT)


@pytest.mark.parametrize("frozen", ["[backbone, neck]", "[shared_norm, heads.box]"])
def test_two_ranks_with_frozen_parts_train_as_one(two_ranks: RankGroup, store: Path, frozen: str) -> None:
    overrides = ("multitask.method=graddrop", f"training.freeze={frozen}")
    alone = train_steps(None, store, overrides)
    first, second = two_ranks.run(train_steps, store, overrides)
    assert differences(first["state"], second["state"]) == []
    torch.testing.assert_close(first["state"], alone["state"], **EXACT)


def test_one_rank_keeps_its_bits(store: Path) -> None:
    alone = train_steps(None, store, ())
    with RankGroup(1) as group:
        (found,) = group.run(train_steps, store, ())
    assert differences(found, alone) == []
    assert differences(train_steps(None, store, ("seed=1",)), alone) != []


def test_objects_are_counted_over_ranks(two_ranks: RankGroup) -> None:
    # Of 6 and 0 objects, of 1 and 2, of none at all.
    for counts, wanted in (((6, 0), 3.0), ((1, 2), 1.5), ((0, 0), 0.5)):
        for found in two_ranks.run(count_on_rank, counts):
            assert found.dtype == torch.float32
            assert found.item() == wanted


def count_on_rank(rank: int, counts: tuple[int, int]) -> torch.Tensor:
    targets = some_targets(counts[rank])
    assert count_objects(targets, Ranks()) is targets
    return count_objects(targets, current_ranks()).global_count


def some_targets(objects: int) -> Targets:
    valid = torch.arange(8).reshape(2, 4) < objects
    nothing = torch.zeros(())
    described = dict.fromkeys(("offset", "height", "size", "heading", "velocity"), nothing)
    return Targets(nothing, nothing, valid, **described, global_count=torch.tensor(float(max(objects, 1))))
