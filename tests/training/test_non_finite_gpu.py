"""On CUDA nobody waits: the step is left out on the device, and the host reads of it some steps later."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from detection3d.errors import UserError
from detection3d.training import loop
from detection3d.training.loop import train
from detection3d.training.non_finite import LAG
from detection3d.training.recorder import read_metrics
from detection3d.training.state import TrainState, build_state
from detection3d.training.step import train_step
from detection3d.types.tensors import to_device
from tests.small_run import small_config
from tests.training import spoiling
from tests.training.steps import batches, differences
from tests.training.test_non_finite import spoiled_at

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda", 0)


def copied(state: TrainState) -> dict[str, Any]:
    captured = state.capture()
    kept = {name: captured[name] for name in ("model", "average", "optimizer")}
    kept["optimizer"] = kept["optimizer"]["state"]
    kept["average"] = {name: value for name, value in kept["average"].items() if name != "n_averaged"}
    return _clone(kept)


def _clone(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _clone(value) for name, value in tree.items()}
    return tree.detach().clone() if isinstance(tree, torch.Tensor) else tree


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("where", ["points", "labels"])
def test_it_changes_nothing(store: Path, precision: str, where: str) -> None:
    method = "multitask.method={kind: gradnorm, then: graddrop}"
    config = small_config(method, f"training.precision={precision}", "model.backbone.backend=torch")
    state = build_state(config, CUDA)
    if precision == "float16":
        state.scaler = torch.amp.GradScaler("cuda", init_scale=256.0)  # so that no good step overflows
    first, second, bad, last = (to_device(batch, CUDA) for batch in batches(config, store, 4))
    for batch in (first, second):
        assert not train_step(state, batch, config).left_out
    before = copied(state)
    assert train_step(state, getattr(spoiling, where)(bad), config).left_out
    after = copied(state)
    assert [name for name in differences(before, after) if not name.endswith("fork.step")] == []
    assert state.skipped.tolist() == [1, 0 if precision == "float16" else 1]
    assert not train_step(state, last, config).left_out
    assert len(differences(after, copied(state))) > 50
    assert all(value.isfinite().all() for value in state.model.state_dict().values())


def test_repeated_it_ends_the_run_later(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the step that was one too many, whenever it was read."""
    config = small_config("training.steps=12", "training.checkpoint_every=20", "training.log_every=5", data=store)
    monkeypatch.setattr(loop, "training_batches", spoiled_at(*range(3, 13)))
    with pytest.raises(UserError, match="step 6: not finite, as 4 steps in a row were"):
        train(config, tmp_path, CUDA)
    assert [entry["step"] for entry in json.loads((tmp_path / "non_finite.json").read_text())] == [3, 4, 5, 6]
    assert LAG > 0


def test_the_parts_of_a_step_are_timed_on_the_device(tmp_path: Path, store: Path) -> None:
    train(small_config("training.log_every=3", data=store), tmp_path, CUDA)
    for row in read_metrics(tmp_path / "metrics.jsonl"):
        parts = [row["time/forward"], row["time/backward"], row["time/optimizer"]]
        assert all(part > 0 for part in parts)
        assert sum(parts) < 1.5 * row["time/step"]
        assert row["memory/GB"] > 0
