"""The recipes for the Waymo Open Dataset: what a variant changes, and that all of them say everything."""

from typing import Any

import pytest
import yaml

from detection3d.config import Config
from detection3d.config_file import load_config
from tests.conftest import ROOT

WAYMO = sorted(path.stem for path in (ROOT / "configs").glob("waymo_*.yaml"))
SHORTER = {"data.every", "training.epochs", "augmentation.off_for_last_share"}
VARIANTS = {"_20percent": SHORTER, "_4sweeps": {"data.sweeps", "model.heads.box"}}


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        key: leaf for name, value in tree.items() for key, leaf in leaves(value, f"{path}.{name}".strip(".")).items()
    }


def differing(left: Config, right: Config) -> set[str]:
    first, second = (leaves(config.model_dump(mode="json")) for config in (left, right))
    return {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}


@pytest.mark.parametrize("kind", ["waymo_voxel", "waymo_pillar"])
@pytest.mark.parametrize("suffix", list(VARIANTS))
def test_a_variant_differs_in_what_it_is_named_for(kind: str, suffix: str) -> None:
    assert differing(load_config(kind), load_config(kind + suffix)) == VARIANTS[suffix]


@pytest.mark.parametrize("kind", ["voxel", "pillar"])
def test_the_reference_is_the_recipe_on_other_data(kind: str) -> None:
    changed = differing(load_config(f"waymo_{kind}"), load_config(f"reference_{kind}"))
    training = {
        "epochs",
        "batch_size",
        "learning_rate",
        "final_divisor",
        "tail",
        "ema_decay",
        "sync_batch_norm",
        "map_every",
        "checkpoint_every",
    }
    allowed = {"data.train", "data.validation", "augmentation.off_for_last_share"}
    assert changed == allowed | {f"training.{name}" for name in training}


@pytest.mark.parametrize("suffix", ["", *VARIANTS])
def test_the_recipes_differ_in_the_network(suffix: str) -> None:
    changed = differing(load_config("waymo_voxel" + suffix), load_config("waymo_pillar" + suffix))
    sections = ("model.point_range", "model.voxel_size", "model.backbone.", "model.neck.", "decode.")
    assert all(key.startswith(sections) for key in changed), changed


@pytest.mark.parametrize("name", WAYMO)
def test_a_recipe_leaves_nothing_of_the_detector_to_defaults(name: str) -> None:
    config = load_config(name)
    told = leaves(yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text()))
    complete = leaves(config.model_dump(mode="json"))
    detector = {key for key in complete if key.split(".")[0] in ("classes", "model", "loss", "decode")}
    assert detector <= told.keys()


@pytest.mark.parametrize("name", WAYMO)
def test_the_recipe_is_the_published_one(name: str) -> None:
    config = load_config(name)
    assert [item.nms_iou for item in config.classes] == [0.75, 0.6, 0.55]
    assert [item.quality_exponent for item in config.classes] == [0.68, 0.71, 0.65]
    assert config.model.heads.predict("velocity") == (config.data.sweeps > 1)
    assert config.training.epochs == (30 if config.data.every > 1 else 12)
    in_steps = config.in_steps(158_081 // config.data.every)
    epoch = in_steps.training.steps / config.training.epochs
    assert epoch * config.training.batch_size == pytest.approx(158_081 / config.data.every, rel=0.001)
    assert in_steps.augmentation.steps_without(in_steps.training.steps) == pytest.approx(epoch, rel=0.01)
