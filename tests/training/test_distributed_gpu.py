"""On two GPUs: ranks train as one, with CUDA graphs as without, and so where each normalises by itself."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from detection3d.data.store import Store
from detection3d.training import distributed
from detection3d.training.batches import training_batches
from detection3d.training.distributed import distribute
from detection3d.training.state import build_state
from detection3d.training.step import train_step
from detection3d.training.step_input import step_inputs
from detection3d.training.team import Team
from tests.rank_group import RankGroup
from tests.small_run import small_config, write_small_store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
SETTINGS = ("training.batch_size=4", "training.steps=8", "model.backbone.backend=torch", "training.clip_norm=1")
CLOSE = {"rtol": 2e-3, "atol": 2e-4}  # float32 in other orders, eight steps of Adam, which divides by small numbers


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_store(tmp_path_factory.mktemp("data") / "store", frames=8)


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[RankGroup]:
    with RankGroup(2, "nccl") as group:
        yield group


def trained_over_nccl(rank: int, store: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Train without the GPUs' shared memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "open_exchange", lambda *_: None)
        return trained(rank, store, overrides)


def trained(rank: int | None, store: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Train on a rank's GPU, or alone (None); return what came of it, and how many of the three passes have graphs."""
    warnings.simplefilter("error")  # such as that nothing can be recorded
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    team = Team() if rank is None else Team(rank, dist.get_world_size())
    device = torch.device("cuda", rank or 0)
    config = small_config(*SETTINGS, *overrides, data=store)
    state = build_state(config, device)
    if rank is not None:
        distribute(state, sync_norms=config.training.synchronizes_norms(team.size))
    batches = training_batches(Store.open(store), config, team=team)
    losses, norms = [], []
    for given in step_inputs(batches, state.model, config, device, 0):
        result = train_step(state, given, config)
        losses.append(torch.stack([loss.detach().clone() for loss in result.losses.as_dict().values()]))
        norms.append(result.gradient_norm)
    weights = {name: value.cpu() for name, value in state.model.state_dict().items()}
    passes = (state.model._passes.trunk, state.model._passes.heads, state.losses._graphed)
    graphs = sum(len(getattr(one, "_recorded", ())) > 0 for one in passes)
    return {
        "losses": torch.stack(losses).cpu(),
        "norms": torch.stack(norms).cpu(),
        "weights": weights,
        "graphs": graphs,
    }


@pytest.mark.parametrize("train", [trained, trained_over_nccl])
@pytest.mark.parametrize(("graphs", "accumulation"), [(False, 1), (True, 1), (False, 2), (True, 2)])
def test_two_ranks_train_as_one(
    two_ranks: RankGroup, store: Path, graphs: bool, accumulation: int, train: Callable[..., dict[str, Any]]
) -> None:
    parts = f"training.accumulation={accumulation}"
    alone = trained(None, store, (parts, "training.cuda_graphs=false"))
    first, second = two_ranks.run(train, store, (parts, f"training.cuda_graphs={graphs}"))
    assert (first["graphs"], second["graphs"], alone["graphs"]) == (3 * graphs, 3 * graphs, 0)
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    torch.testing.assert_close((first["losses"] + second["losses"]) / 2, alone["losses"], **CLOSE)
    torch.testing.assert_close(first["norms"], alone["norms"], **CLOSE)
    torch.testing.assert_close(first["weights"], alone["weights"], **CLOSE)


def test_graphs_change_nothing_where_norms_are_each_rank_s_own(two_ranks: RankGroup, store: Path) -> None:
    own = ("training.sync_batch_norm=false",)
    plain = two_ranks.run(trained, store, (*own, "training.cuda_graphs=false"))
    replayed = two_ranks.run(trained, store, (*own, "training.cuda_graphs=true"))
    for before, after in zip(plain, replayed, strict=True):
        assert (before["graphs"], after["graphs"]) == (0, 3)
        torch.testing.assert_close(after["losses"], before["losses"], **CLOSE)
        torch.testing.assert_close(after["weights"], before["weights"], **CLOSE)
