"""Config files as a user writes them: what is read, what is refused, and in which words."""

import pytest
import yaml

from detection3d.config import Config, GradDropConfig, SumConfig
from detection3d.config_file import dump_config, find_config, load_config
from detection3d.errors import UserError
from detection3d.types.scene import ObjectType
from tests.conftest import ROOT
from tests.small_run import small_config, small_settings

SHIPPED = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config("tiny", small_settings(*overrides))
    return str(caught.value)


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_dumped_reads_back_equal(name, tmp_path):
    config = load_config(name)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("method", ["sum", "{kind: graddrop, leak: {box: 0.25}}"])
def test_a_dump_is_complete_and_in_words(method, tmp_path):
    config = small_config(f"multitask.method={method}", "data.train=some/folder", "training.learning_rate=1e-5")
    text = dump_config(config)
    assert yaml.safe_load(text)["classes"][0]["types"] == ["VEHICLE"]
    assert set(yaml.safe_load(text)["training"]) == set(type(config.training).model_fields)
    (tmp_path / "config.yaml").write_text(text)
    assert load_config(tmp_path / "config.yaml") == config


def test_a_shipped_config_is_found_by_name_and_a_file_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("tiny").name == "tiny.yaml"
    (tmp_path / "mine.yaml").write_text(dump_config(small_config("seed=7")))
    assert load_config("mine.yaml").seed == 7


def test_a_missing_file_lists_the_shipped_configs():
    with pytest.raises(UserError) as caught:
        load_config("tyni")
    assert str(caught.value) == f"tyni: no such config file; shipped configs: {', '.join(SHIPPED)}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"training: {steps: 3", "not a YAML file"),
        (b"\xff\xfe\x00\x01", "not a YAML file"),
        (b"\x00\x01\x02", "not a YAML file"),
        (b"", "holds sections such as 'model:' and 'training:'; found None"),
        (b"just words", "found 'just words'"),
        (b"[1, 2]", "found [1, 2]"),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_its_name(tmp_path, content, message):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_key_that_occurs_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    text = dump_config(small_config())
    path.write_text(f"{text}training:\n  steps: 7\n")  # without a check, the last of them would win unseen
    line = len(text.splitlines()) + 1
    with pytest.raises(UserError, match=rf"twice\.yaml: .*the key 'training' occurs twice(?s:.*)line {line}"):
        load_config(path)
    assert "the key 'steps' occurs twice" in refusal("training={steps: 3, steps: 4}")
    merged = small_settings("decode={<<: {score_threshold: 0.5, max_peaks: 9}, max_peaks: 7}")
    decode = load_config("tiny", merged).decode
    assert (decode.score_threshold, decode.max_peaks) == (0.5, 7)


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text("classes: []\ntraining: {steps: 3}\n")
    with pytest.raises(UserError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: 4 settings can't be used:"
    assert "  model: missing; it has no default" in lines
    assert "  training.batch_size: missing; it has no default" in lines
    assert "  training.learning_rate: missing; it has no default" in lines


def test_what_an_override_gave_is_not_looked_for_in_the_file(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(dump_config(small_config()).replace("ema_decay: 0.9", "ema_decay: 9"))
    with pytest.raises(UserError) as caught:
        load_config(path, ["training.log_every=0", "model.neck={layers: 3}"])
    told = {line.split(":")[0].strip(): line for line in str(caught.value).splitlines()}
    for name in ("training.log_every", "model.neck.layers", "model.neck.strides"):
        assert told[name].endswith("; given by an override, not in the file")
    assert told["training.ema_decay"].endswith("(found 9)")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("training.setps=3", "training.setps: unknown key; did you mean 'training.steps'?"),
        ("model.backbone.chanels=3", "model.backbone.chanels: unknown key; did you mean 'model.backbone.channels'?"),
        ("classes.1.nmsiou=0.1", "classes.1.nmsiou: unknown key; did you mean 'classes.1.nms_iou'?"),
        ("multitask.method.leek=0.1", "multitask.method.leek: unknown key; did you mean 'multitask.method.leak'?"),
        ("decode.zzz=1", "decode.zzz: unknown key; known: local_maxima, max_detections, max_peaks, score_threshold, "),
        ("training..steps=1", "training.: unknown key"),
    ],
)
def test_an_unknown_key_names_the_nearest(override, line):
    assert f"  {line}" in refusal(override)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("training.steps=many", "training.steps: Input should be a valid integer (found 'many')"),
        ("training.steps=true", "training.steps: Input should be a valid integer (found True)"),
        ("training.steps=1.5", "training.steps: Input should be a valid integer (found 1.5)"),
        ("training.steps=0", "training: give either steps or epochs above 0; found 0 and 0"),
        ("training.steps=", "training.steps: Input should be a valid integer (found None)"),
        ("training.learning_rate=.nan", "training.learning_rate: Input should be a finite number (found nan)"),
        ("training.clip_norm=.inf", "training.clip_norm: Input should be a finite number (found inf)"),
        ("training=3", "training: a section with keys accumulation, batch_size, "),
        ("seed=-1", "seed: Input should be greater than or equal to 0 (found -1)"),
        ("data.returns=[1,3]", "data.returns.1: Input should be 1 or 2 (found 3)"),
        ("data.returns=[]", "data.returns: "),
        ("classes=[]", "classes: "),
        ("decode.views=[]", "decode.views: Tuple should have at least 1 item"),
        ("decode.views=[flip_z]", "decode.views.0: Input should be 'identity', 'flip_x', 'flip_y' or 'flip_both'"),
        ("decode.views=[flip_x, flip_x]", "decode: views: flip_x, flip_x names one twice; give each once"),
        ("model.heads.box=[]", "model.heads.box: Tuple should have at least 1 item"),
        ("model.heads.box=[heigt]", "model.heads.box.0: Input should be 'heatmap', 'quality', 'offset', 'height', "),
        ("model.heads.box=[offset, size]", "model.heads: no head predicts height; add it to one"),
        ("model.heads.orientation=[heading, size]", "model.heads: size is predicted twice; give each output to"),
        ("model.heads.boxes=[size]", "model.heads.boxes: unknown key; did you mean 'model.heads.box'?"),
        ("classes.0.types.0=CAR", "classes.0.types.0: not an object type; types are UNKNOWN, VEHICLE, PEDESTRIAN, "),
        ("classes.1.types.0=VEHICLE", "classes: an object type belongs to one class only"),
        ("classes.1.types.0=UNKNOWN", "classes: UNKNOWN marks padding and can't be a class"),
        ("model.point_range=[-16,-16,-2,16,16]", "model.point_range.5: missing; the list is too short"),
        ("model.point_range.0.x=1", "model.point_range.0: Input should be a valid number"),
        ("training.sync_batch_norm=some", "training.sync_batch_norm: Input should be True, False or 'auto'"),
        ("training.accumulation=1000", "training: accumulation is 1000, more than the "),
        ("multitask.method=gradrop", "multitask.method: unknown kind 'gradrop'; known: 'sum', 'clipping', 'mgda'"),
        ("multitask.method={leak: 0.1}", "multitask.method.kind: missing; it has no default"),
        ("multitask.method.leak=2", "multitask.method.leak: Input should be less than or equal to 1 (found 2)"),
        ("multitask.method.leak.box=3", "multitask.method.leak.box: Input should be less than or equal to 1 (found 3)"),
        ("multitask.method.leak.bax=0", "multitask.method.leak.bax: Input should be 'classification', 'box' or "),
    ],
)
def test_a_wrong_value_is_told_with_the_path_that_the_user_wrote(override, line):
    message = refusal(override)
    assert message.splitlines()[0].endswith("1 setting can't be used:")
    assert message.splitlines()[1].startswith(f"  {line}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.voxel_size=[0.25,0.5,0.25]", "voxel_size is 0.25 m along x and 0.5 m along y; cells are square"),
        ("model.voxel_size=[0.3,0.3,0.25]", "point_range holds 106.667 voxels along x; it must be a multiple of 8"),
        ("model.point_range=[-16,-15,-2,16,16,4]", "point_range holds 124 voxels along y; it must be a multiple of 8"),
        ("model.voxel_size=[0.25,0.25,0.1875]", "point_range holds 32 voxels along z; it must be 24, 40, 56"),
        ("model.voxel_size=[0.25,0.25,0.75]", "point_range holds 8 voxels along z; it must be 24"),
        ("model.point_range=[16,-16,-2,-16,16,4]", "point_range is empty along x: 16.0 to -16.0 m"),
        ("model.point_range=[-.inf,-16,-2,16,16,4]", "model.point_range.0: Input should be a finite number"),
        ("model.neck={layers: [1], strides: [2], channels: [4], upsampled_channels: [4]}", "strides[0] must be 1"),
        (
            "model.neck={layers: [1], strides: [1, 2], channels: [4], upsampled_channels: [4]}",
            "one entry for each stage",
        ),
        ("model.neck={layers: [], strides: [], channels: [], upsampled_channels: []}", "model.neck.layers: "),
        (
            "model.neck={layers: [1, 1], strides: [1, 3], channels: [4, 4], upsampled_channels: [4, 4]}",
            "the backbone leaves 16 x 16 cells, which the neck's strides can't divide by 3",
        ),
        (
            "model.backbone={kind: pillar, channels: [4]}",
            "holds 24 voxels along z; a pillar is as high as the range, so",
        ),
        ("model.backbone={kind: voxels}", "model.backbone: unknown kind 'voxels'; known: 'voxel', 'pillar'"),
        (
            "model.backbone={kind: pillar, channels: [4], blocks: [1]}",
            "model.backbone.blocks: unknown key; known: chan",
        ),
    ],
)
def test_the_grid_must_come_out_even(override, message):
    assert message in refusal(override)


@pytest.mark.parametrize(
    ("view", "axis"), [("flip_x", None), ("flip_y", "flip_y mirrors x"), ("flip_both", "flip_both mirrors x")]
)
def test_a_mirrored_view_needs_a_range_that_is_its_own_mirror_image(view, axis):
    overrides = ("model.point_range=[-16,-16,-2,0,16,4]", f"decode.views=[identity, {view}]")
    if axis is None:
        assert small_config(*overrides).decode.views == ("identity", "flip_x")
    else:
        assert f"decode.views: {axis}, but model.point_range goes from -16 to 0 m there; make it" in refusal(*overrides)


@pytest.mark.parametrize(
    ("low", "message"),
    [("-15.9", "holds 127.6 voxels along x; it must be a whole number"), ("-15.75", "leaves 128 x 127 cells, which")],
)
def test_pillars_come_out_even_with_the_neck(low, message):
    pillars = ("model.backbone={kind: pillar, channels: [4]}", "model.voxel_size=[0.25,0.25,6]")
    neck = "model.neck={layers: [1, 1], strides: [1, 2], channels: [4, 4], upsampled_channels: [4, 4]}"
    assert message in refusal(*pillars, neck, f"model.point_range=[{low},-16,-2,16,16,4]")
    config = small_config(*pillars, neck, "model.point_range=[-15.5,-16,-2,16,16,4]")  # no multiple of 8
    assert (config.model.stride, config.model.bev_size) == (1, (128, 126))


def test_a_backbone_without_a_kind_is_of_voxels():
    assert small_config().model.backbone.kind == "voxel"
    assert small_config("model.backbone.kind=voxel") == small_config()
    assert small_config().model.stride == 8


def test_the_grid_size_is_z_y_x():
    config = small_config("model.point_range=[-16,-8,-2,16,8,4]")
    assert config.model.grid_size == (24, 64, 128)


@pytest.mark.parametrize("override", ["seed", "=3", "a b", ""])
def test_an_override_is_key_and_value(override):
    assert refusal(override) == f"override {override!r}: write key=value, such as training.steps=100"


def test_an_override_with_a_value_that_is_not_yaml():
    assert refusal("training={a").startswith("override 'training={a': the value is not YAML: ")


@pytest.mark.parametrize("key", ["classes.3.name", "classes.x.name", "classes.-1.name"])
def test_an_override_of_a_list_needs_an_index_in_it(key):
    assert f"override {key!r}: {key.split('.')[1]!r} is not an index of a list of 3" in refusal(f"{key}=a")


def test_overrides_apply_in_order_and_to_their_setting_alone():
    before = load_config("tiny")
    config = load_config(
        "tiny", ["seed=1", "seed=2", "classes.1.nms_iou=0.5", "data.returns=[2]", "training.learning_rate=1e-4"]
    )
    assert config.seed == 2
    assert config.classes[1].nms_iou == 0.5
    assert config.data.returns == (2,)
    assert config.training.learning_rate == 1e-4
    changed = config.model_copy(
        update={"seed": before.seed, "classes": before.classes, "data": before.data, "training": before.training}
    )
    assert changed == before


@pytest.mark.parametrize(
    ("overrides", "method"),
    [
        (["multitask.method=sum"], SumConfig()),
        (["multitask.method=graddrop"], GradDropConfig()),
        (["multitask.method=sum", "multitask.method=graddrop", "multitask.method.leak=0.1"], GradDropConfig(leak=0.1)),
        (["multitask.method=graddrop", "multitask.method.leak.box=0.5"], GradDropConfig(leak={"box": 0.5})),
        (["multitask.method={kind: graddrop, preserve_norm: false}"], GradDropConfig(preserve_norm=False)),
    ],
)
def test_the_method_is_chosen_by_its_kind(overrides, method):
    assert load_config("tiny", overrides).multitask.method == method


def test_a_method_knows_its_own_settings_alone():
    assert "multitask.method.leak: unknown key; known: kind" in refusal(
        "multitask.method=sum", "multitask.method.leak=0.1"
    )
    # The keys of the kind before stay where the kind alone is changed.
    advice = "it is of another kind; to change the kind replace the whole: 'model.backbone={kind: pillar, ...}'"
    assert advice in refusal("model.backbone.kind=pillar")
    assert "replace the whole" not in refusal("model.backbone.chanels=[1]")


def test_micro_batches_and_what_would_count_for_each_of_them():
    both = ("training.batch_size=4", "training.accumulation=2")
    assert "can't be used with multitask.method uncertainty" in refusal(*both, "multitask.method=uncertainty")
    uneven = ("training.batch_size=5", "training.accumulation=2")
    assert "accumulation 2 shares 5 samples out unequally" in refusal(*uneven, "training.cuda_graphs=true")
    assert small_config(*both, "training.cuda_graphs=true").training.accumulation == 2
    assert small_config(*uneven, "training.cuda_graphs=false").training.accumulation == 2


@pytest.mark.parametrize(
    ("word", "accumulation", "ranks", "over_ranks"),
    [
        ("true", 1, 2, True),
        ("false", 1, 16, False),
        ("auto", 1, 4, False),  # four samples each
        ("auto", 1, 5, True),  # one has three
        ("auto", 2, 2, False),
        ("auto", 3, 2, True),
    ],
)
def test_whose_samples_batch_normalisation_knows(word, accumulation, ranks, over_ranks):
    settings = ("training.batch_size=16", f"training.accumulation={accumulation}", f"training.sync_batch_norm={word}")
    assert small_config(*settings).training.synchronizes_norms(ranks) == over_ranks


def test_types_by_name_and_by_number():
    config = small_config("classes=[{name: all, types: [VEHICLE, 4], nms_iou: 0.5}]")
    assert config.classes[0].types == (ObjectType.VEHICLE, ObjectType.CYCLIST)


def test_the_tree_is_frozen():
    config: Config = small_config()
    with pytest.raises(ValueError, match="frozen"):
        config.training.steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_epochs_become_steps_once_the_frames_are_known():
    config = load_config(
        "tiny", ["training.epochs=2.5", "training.batch_size=4", "augmentation.off_for_last_share=0.2"]
    )
    assert (config.training.steps, config.training.epochs) == (0, 2.5)
    resolved = config.in_steps(101)
    assert (resolved.training.steps, resolved.training.epochs) == (64, 0)
    assert resolved.augmentation.steps_without(resolved.training.steps) == 13
    assert resolved.in_steps(7) == resolved
    tenths = load_config("tiny", ["training.epochs=1.1", "training.batch_size=10"])
    assert [tenths.in_steps(frames).training.steps for frames in (10, 100, 101)] == [2, 11, 12]
    for order in (["training.epochs=0", "training.steps=10"], ["training.steps=10", "training.epochs=0"]):
        assert load_config("waymo_voxel", order).training.steps == 10
    assert load_config("waymo_voxel", ["training.steps=10"]).training.epochs == 0  # the later word counts
    with pytest.raises(UserError, match=r"augmentation.off_for_last_steps: training is stated in epochs"):
        load_config("waymo_voxel", ["augmentation.off_for_last_steps=5"])
