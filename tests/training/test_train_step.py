"""One step against the same step written in plain torch, and what ends a run."""

import pickle
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from detection3d.config import Config
from detection3d.data.augment import augment
from detection3d.data.store import Store, StoreSettings, write_manifest
from detection3d.data.unpack import unpack
from detection3d.errors import DataError, UserError
from detection3d.model.detector import Detector
from detection3d.model.targets import build_targets
from detection3d.training import loop
from detection3d.training.checkpoint import last_checkpoint
from detection3d.training.loop import train
from detection3d.training.recorder import read_metrics
from detection3d.training.step import train_step
from detection3d.training.step_input import network_input
from detection3d.types.tensors import Batch
from tests.small_run import small_config, write_small_store
from tests.training.steps import CPU, batches, differences, fresh_state

EPSILON, DECAY, LATE = 1e-8, 0.01, 0.95  # AdamW's; the momentum before the peak


def plain_losses(model: Detector, batch: Batch, config: Config) -> list[torch.Tensor]:
    """The three losses, object by object, with the fork taken out of the network."""
    points = unpack(batch.points, returns=config.data.returns, drop_no_label_zone=False)
    points, labels = augment(
        points, batch.labels, config=config.augmentation, seed=config.seed, sample_index=batch.sample_index
    )
    targets = build_targets(labels, config)
    bev = model.neck(model.backbone(model.voxelizer(points, batch.size)))
    shared = model.shared_norm(model.shared(bev))
    heatmap, box, orientation = (model.heads[task](shared) for task in ("classification", "box", "orientation"))

    probability = torch.sigmoid(heatmap)
    peaks = targets.heatmap == 1
    found = ((1 - probability[peaks]) ** 2 * torch.log(probability[peaks])).sum()
    calm, goal = probability[~peaks], targets.heatmap[~peaks]
    quiet = ((1 - goal) ** 4 * calm**2 * torch.log1p(-calm)).sum()
    objects = [(b, m) for b, m in targets.valid.nonzero().tolist()]
    assert len(objects) > 2
    width = box.shape[-1]
    wanted = torch.cat([targets.offset, targets.height, targets.size], dim=-1)
    size_error, heading_error = box.new_zeros(()), box.new_zeros(())
    for b, m in objects:
        y, x = divmod(int(targets.cell[b, m]), width)
        size_error = size_error + F.l1_loss(box[b, :, y, x], wanted[b, m], reduction="sum")
        heading_error = heading_error + F.l1_loss(orientation[b, :, y, x], targets.heading[b, m], reduction="sum")
    weights = config.loss
    return [
        weights.classification_weight * -(found + quiet) / len(objects),
        weights.box_weight * size_error / len(objects),
        weights.orientation_weight * heading_error / len(objects),
    ]


def test_a_step_with_the_plain_sum_is_plain_torch(store):
    config = small_config("multitask.method=sum", "training.clip_norm=3", f"training.weight_decay={DECAY}")
    (batch,) = batches(config, store, 1)
    state, twin = fresh_state(config), fresh_state(config).model
    result = train_step(state, batch, config)

    losses = plain_losses(twin.train(), batch, config)
    for loss, own in zip(losses, result.losses.as_dict().values(), strict=True):
        torch.testing.assert_close(own.detach(), loss.detach(), rtol=1e-5, atol=1e-6)
    weights = list(twin.parameters())
    gradients = torch.autograd.grad(sum(losses), weights)
    norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))
    assert norm > 3, "the step must show the clipping"
    torch.testing.assert_close(result.gradient_norm, norm, rtol=1e-5, atol=0)
    rate = 0.002 / 10
    assert result.learning_rate == pytest.approx(rate)
    for weight, gradient, own in zip(weights, gradients, state.model.parameters(), strict=True):
        clipped = gradient * (3 / norm)
        # the first step of Adam: both averages are the gradient itself after the correction of their bias
        expected = weight * (1 - rate * (DECAY if weight.ndim > 1 else 0.0))
        expected = expected - rate * clipped / (clipped.abs() + EPSILON)
        moved = clipped.abs() > 1e-5 * clipped.abs().max()  # elsewhere the sign itself is rounding
        torch.testing.assert_close(own.detach()[moved], expected.detach()[moved], rtol=1e-6, atol=1e-7)
    assert state.step == 1
    assert all(weight.grad is None for weight in state.model.parameters())


def test_a_leak_of_one_is_the_plain_sum_to_the_bit(store):
    captured = []
    for method in ("sum", "{kind: graddrop, leak: 1.0, preserve_norm: true}"):
        config = small_config(f"multitask.method={method}")
        state = fresh_state(config)
        for batch in batches(config, store, 3):
            train_step(state, batch, config)
        captured.append(state.capture())
    assert differences(*captured) == []


def test_graddrop_changes_the_way_to_the_backbone_and_leaves_the_heads(store):
    gradients = {}
    for method in ("sum", "graddrop"):
        config = small_config(f"multitask.method={method}", "training.clip_norm=1e9")
        state = fresh_state(config)
        (batch,) = batches(config, store, 1)
        train_step(state, batch, config)
        momentum = state.optimization.optimizer.state
        gradients[method] = {name: momentum[weight]["exp_avg"] for name, weight in state.model.named_parameters()}
    changed = set(differences(gradients["sum"], gradients["graddrop"]))
    heads = {f"/{name}" for name in gradients["sum"] if name.startswith("heads.")}
    assert not changed & heads
    assert {name for name in changed if name.startswith("/backbone.")}
    assert "/shared.weight" in changed


def test_the_log_measures_the_steps_that_it_names(tmp_path, store):
    config = small_config("training.log_every=3", "training.checkpoint_every=4", "training.steps=7", data=store)
    train(config, tmp_path / "run", CPU)
    rows = {row["step"]: row for row in read_metrics(tmp_path / "run" / "metrics.jsonl")}
    assert list(rows) == [3, 6, 7]
    every = small_config("training.log_every=1", "training.steps=7", data=store)
    train(every, tmp_path / "every", CPU)
    for row in read_metrics(tmp_path / "every" / "metrics.jsonl"):
        names = {name for name in row if not name.startswith(("time/", "memory/"))}
        if row["step"] in (3, 6):
            assert {name: rows[row["step"]][name] for name in names} == {name: row[name] for name in names}
    assert not any(name.startswith("fork/") for name in rows[7])


def test_statistics_that_are_not_finite_are_never_saved(tmp_path, store, monkeypatch):
    """Whatever made them so."""
    config = small_config("training.checkpoint_every=2", data=store)
    real = loop.train_step

    def spoiled(state, *arguments):
        result = real(state, *arguments)
        if state.step == 3:
            state.model.shared_norm.running_var[0] = float("nan")
        return result

    monkeypatch.setattr(loop, "train_step", spoiled)
    with pytest.raises(
        UserError, match=r"step 4: not finite: shared_norm\.running_var\. The last checkpoint is intact"
    ):
        train(config, tmp_path / "run", CPU)
    path = last_checkpoint(tmp_path / "run" / "checkpoints")
    assert path is not None
    assert path.name == "step_00000002.pt"


@pytest.mark.parametrize(
    ("setting", "reason"),
    [("model.head_channels=4", "size mismatch for heads"), ("multitask.method=uncertainty", "fork.state.log_variance")],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, store, setting, reason):
    config = small_config("training.steps=1", data=store)
    train(config, tmp_path / "run", CPU)
    other = small_config("training.steps=1", setting, data=store)
    train(other, tmp_path / "other", CPU)
    name = Path("checkpoints") / "step_00000001.pt"
    (tmp_path / "run" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(DataError, match="is not of this run's network and settings") as caught:
        train(config, tmp_path / "run", CPU)
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).endswith("delete it to use the one before")


def test_no_data_is_told_before_a_folder_is_made(tmp_path):
    with pytest.raises(UserError, match=r"data\.train is not set"):
        train(small_config(), tmp_path / "run", CPU)
    with pytest.raises(UserError, match="there is no such folder"):
        train(small_config(data=tmp_path / "nowhere"), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_a_return_that_the_store_does_not_hold_is_told_before_training(tmp_path):
    store = write_small_store(tmp_path / "store", frames=2)
    write_manifest(store, StoreSettings(returns=(1,)))
    message = r"data\.returns asks for return 2, but .*store was prepared with return 1 only; set data\.returns=\[1\]"
    with pytest.raises(UserError, match=message):
        train(small_config(data=store), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()
    assert pickle.loads(pickle.dumps(Store.open(store))).settings.returns == (1,)


def test_a_store_with_less_range_than_the_model_is_told_before_training(tmp_path):
    store = write_small_store(tmp_path / "store", frames=2)
    write_manifest(store, StoreSettings(reach=15.5))
    message = r"model\.point_range goes out to 16 m, but .*store was prepared with points out to 15\.5 m"
    with pytest.raises(UserError, match=message):
        train(small_config(data=store), tmp_path / "run", CPU)
    write_manifest(store, StoreSettings(reach=16.0))
    train(small_config("training.steps=1", data=store), tmp_path / "run", CPU)


@pytest.mark.parametrize("changes", [{"points": 0}, {"boxes": 0}, {"points": 0, "boxes": 0}])
def test_batches_without_points_or_objects_are_steps_too(tmp_path: Path, changes):
    config = small_config("training.steps=2")
    store = write_small_store(tmp_path / "store", frames=2, **changes)
    state = fresh_state(config)
    for batch in batches(config, store, 2):
        result = train_step(state, batch, config)
        assert all(torch.isfinite(loss) for loss in result.losses.as_dict().values())
        assert torch.isfinite(result.gradient_norm)
    assert all(weight.isfinite().all() for weight in state.model.parameters())


def test_the_last_steps_are_without_augmentation(store):
    config = small_config("training.steps=10", "augmentation.off_for_last_steps=3")
    (batch,) = batches(config, store, 1)
    plain = unpack(batch.points, returns=config.data.returns, drop_no_label_zone=False)
    same = [torch.equal(network_input(batch, config, step)[0].values, plain.values) for step in range(10)]
    assert same == 7 * [False] + 3 * [True]
