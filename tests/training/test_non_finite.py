"""A step that is not finite is counted and changes nothing else, is told with its frames, and may end a run."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import distributed as dist

from detection3d.config import Config
from detection3d.config.multitask import MethodConfig
from detection3d.data.store import Store
from detection3d.errors import DataError, UserError
from detection3d.training import loop, loss_pass
from detection3d.training.batches import training_batches
from detection3d.training.checkpoint import load_checkpoint
from detection3d.training.distributed import distribute
from detection3d.training.leaving_out import count_skipped, step_optimizer
from detection3d.training.loop import train
from detection3d.training.recorder import read_metrics
from detection3d.training.state import TrainState
from detection3d.training.step import train_step
from detection3d.training.team import Team
from detection3d.types.tensors import Batch
from tests.rank_group import RankGroup
from tests.small_run import small_config
from tests.training import spoiling
from tests.training.steps import CPU, batches, differences, fresh_state

KINDS = [get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(MethodConfig)]


def pass_over(state: TrainState) -> None:
    """Count a step, and do no other thing."""
    state.fork.set_step(state.step + 1)
    state.optimization.optimizer.zero_grad(set_to_none=True)
    state.optimization.optimizer.step()
    state.optimization.schedule.step()
    state.step += 1


def everything(state: TrainState) -> dict[str, Any]:
    captured = {**state.capture(), "step": state.step}
    del captured["skipped"]
    return captured


@pytest.mark.parametrize("bad", [0, 2])
@pytest.mark.parametrize("where", ["points", "labels", "loss_alone", "gradient_alone"])
def test_it_changes_nothing(store, monkeypatch, where, bad):
    spoil_next = spoiling.SpoilNext(loss_pass.compute_losses, getattr(spoiling, where))
    config = small_config("multitask.method={kind: gradnorm, then: graddrop}")
    state, other = fresh_state(config), fresh_state(config)
    for number, batch in enumerate(batches(config, store, 4)):
        if number != bad:
            assert not train_step(state, batch, config).left_out
            train_step(other, batch, config)
            continue
        pass_over(other)
        if where in ("points", "labels"):
            result = train_step(state, getattr(spoiling, where)(batch), config)
        else:
            with monkeypatch.context() as patch:
                patch.setattr(loss_pass, "compute_losses", spoil_next)
                spoil_next.ready = True
                result = train_step(state, batch, config)
        assert result.left_out
        assert spoiling.is_finite(result.losses) == (where == "gradient_alone")
        assert differences(everything(state), everything(other)) == []
    assert differences(everything(state), everything(other)) == []
    assert state.skipped.tolist() == [1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_bears_it(store, kind):
    config = small_config(f"multitask.method={kind}")
    state, other = fresh_state(config), fresh_state(config)
    first, second, third = batches(config, store, 3)
    for either, middle in ((state, spoiling.points(second)), (other, None)):
        train_step(either, first, config)
        pass_over(either) if middle is None else train_step(either, middle, config)
        train_step(either, third, config)
    assert state.skipped.tolist() == [1, 0]
    assert differences(everything(state), everything(other)) == []


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[RankGroup]:
    with RankGroup(2) as group:
        yield group


def steps_on_rank(rank: int, store: Path, where: str, bad_rank: int) -> dict[str, Any]:
    """Three steps of which the second is spoilt on one rank, or passed over by both where that is -1."""
    config = small_config("multitask.method={kind: gradnorm, then: graddrop}")
    state = fresh_state(config)
    distribute(state)
    share = training_batches(Store.open(store), config, total_steps=3, team=Team(rank, 2))
    spoil_next = spoiling.SpoilNext(loss_pass.compute_losses, getattr(spoiling, where))
    for number, batch in enumerate(share):
        if number == 1 and bad_rank < 0:
            pass_over(state)
        elif number == 1 and bad_rank == rank and where == "points":
            assert train_step(state, spoiling.points(batch), config).left_out
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loss_pass, "compute_losses", spoil_next)
                spoil_next.ready = number == 1 and bad_rank == rank
                assert bool(train_step(state, batch, config).left_out) == (number == 1)
    return {**everything(state), "skipped": state.skipped.tolist()}


@pytest.mark.parametrize("where", ["points", "loss_alone", "gradient_alone"])
@pytest.mark.parametrize("bad_rank", [0, 1])
def test_a_bad_step_of_one_rank_is_left_out_on_all(two_ranks: RankGroup, store: Path, where: str, bad_rank: int):
    first, second = two_ranks.run(steps_on_rank, store, where, bad_rank)
    assert differences(first, second) == []
    assert first["skipped"] == [1, 0]
    reference, _ = two_ranks.run(steps_on_rank, store, where, -1)
    assert differences({**first, "skipped": 0}, {**reference, "skipped": 0}) == []


def spoiled_at(*steps: int) -> Callable[..., Iterator[Batch]]:
    """`training_batches` with bad points in some steps, counted from 1."""

    def spoiled(store: Store, config: Config, *, start_step: int, team: Team) -> Iterator[Batch]:
        plain = training_batches(store, config, start_step=start_step, team=team)
        for number, batch in enumerate(plain, start_step + 1):
            yield spoiling.points(batch) if number in steps else batch

    return spoiled


def test_a_run_goes_on_and_says_so(tmp_path, store, monkeypatch, capsys):
    config = small_config(data=store)
    monkeypatch.setattr(loop, "training_batches", spoiled_at(2, 5))
    train(config, tmp_path / "run", CPU)
    said = capsys.readouterr().out
    assert f"trained 6 steps, 2 steps of them left out as not finite; the run is in {tmp_path / 'run'}" in said
    second, fifth = (batches(config, store, 6)[number].keys for number in (1, 4))
    frames = ", ".join(f"{name} at {timestamp}" for name, timestamp in second)
    wrong = "loss of classification, box, orientation not finite"
    cause = "points or labels not finite: {} at {}".format(*second[0])
    assert f"step 2, rank 0: {wrong}; frames: {frames}; {cause}; the step is left out" in said
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["steps/skipped"] for row in rows] == [0, 1, 1, 1, 2, 2]
    assert [row["loss/box"] is None for row in rows] == [False, True, False, False, True, False]
    entries = json.loads((tmp_path / "run" / "non_finite.json").read_text())
    assert [(entry["step"], entry["rank"], entry["losses"]["box"]) for entry in entries] == [(2, 0, None), (5, 0, None)]
    assert [tuple(map(tuple, entry["frames"])) for entry in entries] == [second, fifth]


def test_it_resumes_with_the_same_bits_counts_and_list(tmp_path, store, monkeypatch):
    config = small_config(data=store)
    monkeypatch.setattr(loop, "training_batches", spoiled_at(2, 5))
    train(config, tmp_path, CPU)
    straight, listed = tmp_path / "checkpoints" / "step_00000006.pt", (tmp_path / "non_finite.json").read_text()
    expected = load_checkpoint(straight)
    assert expected["skipped"].tolist() == [2, 0]
    straight.unlink()
    train(config, tmp_path, CPU)
    assert differences(load_checkpoint(straight), expected) == []
    assert (tmp_path / "non_finite.json").read_text() == listed


@pytest.mark.parametrize("most", [0, 2])
def test_too_many_in_a_row_end_the_run_before_they_touch_it(tmp_path, store, monkeypatch, most):
    config = small_config(f"training.max_skipped_in_a_row={most}", "training.checkpoint_every=1", data=store)
    monkeypatch.setattr(loop, "training_batches", spoiled_at(*range(4 - most, 7)))
    with pytest.raises(UserError) as caught:
        train(config, tmp_path, CPU)
    lines = str(caught.value).splitlines()
    row = "1 step" if most == 0 else "3 steps"
    assert lines[0].startswith(
        f"step 4: not finite, as {row} in a row were, and training.max_skipped_in_a_row is {most}."
    )
    assert [line.split(",")[0].strip() for line in lines[1:-1]] == [f"step {number}" for number in range(4 - most, 5)]
    frames = [f"{name} at {timestamp}" for name, timestamp in batches(config, store, 4)[3].keys]
    assert all(frame in lines[-2] for frame in frames)
    assert str(tmp_path / "non_finite.json") in lines[-1]
    assert [entry["step"] for entry in json.loads((tmp_path / "non_finite.json").read_text())] == [*range(4 - most, 5)]
    saved = load_checkpoint(tmp_path / "checkpoints" / "step_00000003.pt")
    assert all(value.isfinite().all() for value in saved["model"].values())
    assert not (tmp_path / "checkpoints" / "step_00000004.pt").exists()
    monkeypatch.setattr(loop, "training_batches", training_batches)  # the frames are put right
    train(config, tmp_path, CPU)
    last = load_checkpoint(tmp_path / "checkpoints" / "step_00000006.pt")
    assert last["skipped"].tolist() == [most, 0]


def train_on_rank(rank: int, store: Path, run: Path, steps: tuple[int, ...]) -> str:
    """Train with bad points on rank 1 in some steps; return the error."""
    team = Team(rank, 2, dist.new_group(backend="gloo"))
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(loop, "training_batches", spoiled_at(*steps))
        try:
            train(small_config(data=store), run, CPU, team)
        except UserError as error:
            return str(error)
    return ""


def test_the_frames_of_the_bad_rank_are_named(two_ranks: RankGroup, store: Path, tmp_path: Path):
    first, second = two_ranks.run(train_on_rank, store, tmp_path, (2, 3, 4, 5))
    assert second.startswith("rank 1 ends with rank 0: step 5: not finite, as 4 steps in a row were")
    lines = first.splitlines()
    assert [line.split(":")[0] for line in lines[1:-1]] == [
        f"  step {number}, rank {rank}" for number in (2, 3, 4, 5) for rank in (0, 1)
    ]
    assert ["points or labels not finite" in line for line in lines[1:-1]] == [False, True] * 4
    entries = json.loads((tmp_path / "non_finite.json").read_text())
    assert [(entry["step"], entry["rank"]) for entry in entries] == [
        (step, rank) for step in (2, 3, 4, 5) for rank in (0, 1)
    ]
    expected = list(training_batches(Store.open(store), small_config(), total_steps=2, team=Team(1, 2)))[1].keys
    assert tuple(map(tuple, entries[1]["frames"])) == expected


def test_a_list_that_is_damaged_is_named(tmp_path, store):
    config = small_config("training.steps=1", data=store)
    train(config, tmp_path, CPU)
    (tmp_path / "non_finite.json").write_text('[{"step": 1}]')
    with pytest.raises(DataError, match=r"non_finite\.json: not a list of steps .*; delete it to go on without it"):
        train(config, tmp_path, CPU)


def test_a_scaler_that_can_still_go_down_repeats_nothing():
    skipped, bad, good = torch.zeros(2, dtype=torch.int64), torch.tensor(True), torch.tensor(False)
    for left_out, scale, expected in (
        (bad, 4.0, [1, 0]),
        (bad, 2.0, [2, 0]),
        (bad, 1.0, [3, 1]),
        (bad, 0.5, [4, 2]),
        (good, 0.5, [4, 0]),
        (bad, 1.0, [5, 1]),
    ):
        skipped = count_skipped(skipped, left_out, torch.tensor(scale))
        assert skipped.tolist() == expected


def test_the_scale_goes_down_in_steps_that_are_left_out(store):
    config = small_config()
    state = fresh_state(config)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    first, second = batches(config, store, 2)
    for batch in (first, spoiling.points(second), spoiling.points(second), spoiling.points(second), second):
        train_step(state, batch, config)
    assert state.skipped.tolist() == [3, 0]
    assert state.scaler.get_scale() == 0.5


def test_a_fused_optimizer_decides_on_the_device():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for left_out, gradient in ((False, 1.0), (True, math.nan), (False, 1.0)):
        weight.grad = torch.full((3,), gradient)
        step_optimizer(optimizer, torch.tensor(left_out))
    plain = torch.nn.Parameter(torch.ones(3))
    other = torch.optim.AdamW([plain], lr=0.1, fused=True)
    for _ in range(2):
        plain.grad = torch.ones(3)
        other.step()
    assert torch.equal(weight, plain)
    assert differences(optimizer.state_dict()["state"], other.state_dict()["state"]) == []


def test_the_average_moves_on_the_device_as_torch_moves_it(store):
    config = small_config("training.ema_decay=0.75")
    state = fresh_state(config)
    assert state.average is not None
    for batch in batches(config, store, 2):
        train_step(state, batch, config)
    state.average.update_parameters(state.model)
    other = fresh_state(config)
    assert other.average is not None
    for batch in batches(config, store, 2):
        train_step(other, batch, config)
    before = {name: value.clone() for name, value in other.average.state_dict().items()}
    other.average.move(other.model, torch.tensor(0.0))
    floats = [name for name, value in before.items() if value.is_floating_point()]
    now = other.average.state_dict()
    assert differences({name: now[name] for name in floats}, {name: before[name] for name in floats}) == []
    other.average.move(other.model, torch.tensor(0.25))
    expected = state.average.state_dict()
    for name in floats:
        torch.testing.assert_close(other.average.state_dict()[name], expected[name], rtol=1e-6, atol=1e-8)
    count = int(other.average.n_averaged)
    other.average.update(other.model, torch.tensor(True))
    assert other.average.n_averaged == count
