"""Whole training steps on two ranks against the same steps on one, in float64, in which nothing hides in rounding."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
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
from detection3d.training import loss_pass, step
from detection3d.training.batches import training_batches
from detection3d.training.distributed import ObjectCount, distribute
from detection3d.training.state import TrainState, build_state
from detection3d.training.step import train_step
from detection3d.training.team import Team
from detection3d.types.tensors import Batch, HeadOutputs, Targets, TaskLosses
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
BUCKET_MB = 1e-3  # so that there are many
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64 through some twenty layers and Adam's division


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


def train_steps(rank: int | None, store: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Train on a rank's share of the frames of STEPS, or in one process (None) on all of them."""
    data = Store.open(store)
    batches = []
    for number, shares in enumerate(STEPS):
        alone = rank is None or dist.get_world_size() == 1
        frames = [frame for share in shares for frame in share] if alone else shares[rank]
        first = 10 * number + (len(shares[0]) if rank == 1 else 0)
        batches.append(collate(data, frames, range(first, first + len(frames))))
    return train_on(rank, batches, store, overrides)


def train_shares(rank: int | None, store: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Train on what the loader gives a rank, or one process (None)."""
    team = Team() if rank is None else Team(rank, dist.get_world_size())
    config = small_config(*overrides, data=store)
    return train_on(rank, training_batches(Store.open(store), config, total_steps=5, team=team), store, overrides)


def train_on(rank: int | None, batches: Iterable[Batch], store: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    config = small_config(*overrides, data=store)
    state = build_state(config, CPU)
    state.model.double()
    if state.average is not None:
        state.average.double()
    state.model.voxelizer.register_forward_hook(lambda *call: call[-1].with_features(call[-1].features.double()))
    if rank is not None:
        distribute(state, BUCKET_MB, sync_norms=config.training.synchronizes_norms(dist.get_world_size()))
    norms, losses, telemetry = [], [], []
    for batch in batches:
        in_double = mock.patch.object(loss_pass, "compute_losses", losses_in_double)
        with in_double, mock.patch.object(step, "ObjectCount", count_in_double):
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


def count_in_double(targets: Targets, ranks: Ranks) -> ObjectCount:
    """A third of a count is rounded in float32, as everything is there."""
    return ObjectCount(replace(targets, global_count=targets.global_count.double()), ranks)


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


@pytest.mark.parametrize(
    ("ranks", "batch_size"),
    [
        pytest.param(2, 5, id="5 samples on 2 ranks"),
        pytest.param(3, 5, id="5 samples on 3 ranks", marks=pytest.mark.slow),
        pytest.param(4, 4, id="4 samples on 4 ranks", marks=pytest.mark.slow),
        pytest.param(4, 7, id="7 samples on 4 ranks", marks=pytest.mark.slow),
    ],
)
def test_any_number_of_ranks_trains_as_one(ranks: int, batch_size: int, store: Path) -> None:
    overrides = (f"training.batch_size={batch_size}", "training.clip_norm=1")
    alone = train_shares(None, store, overrides)
    with RankGroup(ranks) as group:
        results = group.run(train_shares, store, overrides)
    for result in results:
        assert differences(result["state"], results[0]["state"]) == []
        for name in ("norms", "telemetry", "state"):
            torch.testing.assert_close(result[name], alone[name], **EXACT)
    torch.testing.assert_close(sum(result["losses"] for result in results) / ranks, alone["losses"], **EXACT)


def test_without_synchronised_norms_each_rank_has_statistics_of_its_own(two_ranks: RankGroup, store: Path) -> None:
    overrides = ("training.batch_size=5", "training.sync_batch_norm=false")
    alone = train_shares(None, store, overrides)["state"]
    first, second = (result["state"] for result in two_ranks.run(train_shares, store, overrides))
    parted = differences(first, second)
    assert parted
    assert all("running_" in name for name in parted), "weights and moments stay equal"
    assert any("running_" not in name for name in differences(first, alone))


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


@pytest.mark.parametrize("method", ["graddrop", "{kind: gradnorm, then: graddrop}", "gradient_penalty"])
def test_ranks_and_micro_batches_equal_one_rank_with_these(two_ranks: RankGroup, store: Path, method: str) -> None:
    """The 5 samples of a step are micro-batches of 2 and 3, so a rank has 1 and 1 or 1 and 2."""
    overrides = ("training.batch_size=5", "training.accumulation=2", f"multitask.method={method}")
    alone = train_shares(None, store, overrides)
    first, second = two_ranks.run(train_shares, store, overrides)
    assert differences(first["state"], second["state"]) == []
    for name in ("norms", "telemetry", "state"):
        torch.testing.assert_close(first[name], alone[name], **EXACT)
    torch.testing.assert_close((first["losses"] + second["losses"]) / 2, alone["losses"], **EXACT)
    at_once = train_shares(None, store, (*overrides, "training.accumulation=1"))
    assert differences(alone["state"], at_once["state"]) != [], "statistics of a micro-batch are not the batch's"


def test_micro_batches_equal_ranks_that_are_each_for_themselves(two_ranks: RankGroup, store: Path) -> None:
    """Statistics, masks and draw of a rank that shares nothing but the loss's divisor are those of a micro-batch."""
    overrides = ("training.batch_size=4", "multitask.sync=none", "training.clip_norm=1")
    micro = train_shares(None, store, (*overrides, "training.accumulation=2"))
    first, second = two_ranks.run(train_shares, store, (*overrides, "training.sync_batch_norm=false"))
    torch.testing.assert_close(first["norms"], micro["norms"], **EXACT)
    torch.testing.assert_close((first["losses"] + second["losses"]) / 2, micro["losses"], **EXACT)
    for name, value in micro["state"].items():
        if "running_" not in name and "num_batches" not in name:
            torch.testing.assert_close(first["state"][name], value, **EXACT)


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
    assert ObjectCount(targets, Ranks()).global_count is targets.global_count
    return ObjectCount(targets, current_ranks()).global_count


def some_targets(objects: int) -> Targets:
    valid = torch.arange(8).reshape(2, 4) < objects
    nothing = torch.zeros(())
    described = dict.fromkeys(("offset", "height", "size", "heading", "velocity"), nothing)
    return Targets(nothing, nothing, valid, **described, global_count=torch.tensor(float(max(objects, 1))))
