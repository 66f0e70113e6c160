"""Object sampling: the database, what is drawn from it, and how it gets into a sample."""

import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detection3d.cli.make_object_database import main
from detection3d.config_file import load_config
from detection3d.data.augment import augment
from detection3d.data.collate import collate
from detection3d.data.loader import build_loader
from detection3d.data.object_candidates import ObjectSampler
from detection3d.data.object_database import ObjectDatabase, build_database
from detection3d.data.object_paste import _inside_any, find_room, paste_objects
from detection3d.data.packing import BYTES_PER_POINT, STEP
from detection3d.data.store import Store
from detection3d.data.unpack import unpack
from detection3d.errors import DataError, UserError
from detection3d.geometry.device.boxes import points_in_boxes
from detection3d.geometry.host.boxes import count_points_in_boxes
from detection3d.geometry.host.iou import bev_iou_matrix
from detection3d.training.step_input import network_input
from detection3d.types.scene import Boxes, Frame
from detection3d.types.tensors import Batch, BoxLabels, Points, to_device
from tests.data.made_frames import make_boxes, make_frame, write_store

CLASSES = ((1,), (2,), (4,))


def _frame(name: str, number: int) -> Frame:
    """A frame whose boxes hold from 0 points up, one more in each."""
    labels = replace(make_boxes(8, seed=number), types=np.array([0, 3, 3, 4, 1, 2, 1, 2], np.uint8))
    generator = np.random.default_rng(number)
    inside = [
        box[:3] + generator.uniform(-0.2, 0.2, (count, 3)) * box[3:6].min()
        for count, box in enumerate(labels.boxes.astype(np.float64))
    ]
    frame = make_frame(name, number, points=sum(map(len, inside)) + 50)
    points = frame.points.copy()
    points[:-50, :3] = np.concatenate(inside)
    return replace(frame, points=points, labels=labels)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    root = tmp_path_factory.mktemp("store")
    segments = {name: [_frame(name, 10 * place + n) for n in range(4)] for place, name in enumerate(("a", "b"))}
    segments["b"][2] = replace(segments["b"][2], labels=None)
    write_store(root, segments)
    return Store.open(root)


@pytest.fixture(scope="module")
def database(store, tmp_path_factory) -> ObjectDatabase:
    root = tmp_path_factory.mktemp("objects") / "objects"
    build_database(store, root, min_points=3)
    return ObjectDatabase.open(root)


def test_the_database_holds_each_object_with_its_points(store, database):
    expected = set()
    for index in range(len(store)):
        frame = store.frame(index)
        if frame.labels is None:
            continue
        counts = count_points_in_boxes(frame.points, frame.labels.boxes)
        for box, kind, count in zip(frame.labels.boxes, frame.labels.types, counts, strict=True):
            if count >= 3 and kind:
                expected.add((int(kind), box.tobytes(), int(count)))
    found = set()
    for number in range(len(database)):
        packed, box = database.packed(number), database.box(number)
        assert points_in_boxes(
            torch.from_numpy(packed.xyz * np.float32(STEP)), torch.from_numpy(box[None].copy())
        ).all()
        found.add((database.object_type(number), box.tobytes(), len(packed)))
    assert found == expected
    assert len(database) == len(expected) > 20
    assert database.record.objects["VEHICLE"] == sum(kind == 1 for kind, _, _ in expected)


def test_points_keep_their_intensity_and_flags(store, database):
    number = next(n for n in range(len(database)) if len(database.packed(n)) >= 5)
    packed = database.packed(number)
    rows = {
        row.tobytes()
        for index in range(len(store))
        for row in np.column_stack([*store.packed(index).xyz.T, *store.packed(index).features.T.astype(np.float64)])
    }
    assert all(row.tobytes() in rows for row in np.column_stack([*packed.xyz.T, *packed.features.T.astype(np.float64)]))


def test_ranges_are_by_type(database):
    for kinds in ((1,), (2,), (1, 4), (3,)):
        numbers = [number for numbers in database.ranges(kinds) for number in numbers]
        assert numbers == [n for kind in kinds for n in range(len(database)) if database.object_type(n) == kind]


def test_every_and_processes(store, tmp_path):
    one = build_database(store, tmp_path / "one", min_points=1)
    assert build_database(store, tmp_path / "two", min_points=1, workers=2) == one
    some = build_database(store, tmp_path / "some", min_points=1, every=2)
    assert some.objects["VEHICLE"] < one.objects["VEHICLE"]


def test_a_database_that_is_not_there_or_damaged(store, tmp_path):
    root = tmp_path / "objects"
    with pytest.raises(DataError, match=r"no database\.json in it"):
        ObjectDatabase.open(root)
    build_database(store, root)
    with pytest.raises(UserError, match="exists already; remove it"):
        build_database(store, root)
    for name in ("points.bin", "objects.arrow"):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[:-BYTES_PER_POINT])
        with pytest.raises(
            DataError, match=rf"{name}: \d+ bytes, database.json says {len(content)}; delete the folder"
        ):
            ObjectDatabase.open(root)
        (root / name).unlink()
        with pytest.raises(DataError, match=rf"{name}: it is missing"):
            ObjectDatabase.open(root)
        (root / name).write_bytes(content)
    content = bytearray((root / "objects.arrow").read_bytes())
    content[-40] ^= 1
    (root / "objects.arrow").write_bytes(content)
    with pytest.raises(DataError, match=r"its checksum disagrees; delete the folder and make it again with tools/make"):
        ObjectDatabase.open(root)
    (root / "database.json").write_text("{")
    with pytest.raises(DataError, match=r"the file is damaged, delete the folder and make it again with tools/make"):
        ObjectDatabase.open(root)
    shutil.rmtree(root)
    write_store(tmp_path / "bare", {"c": [make_frame("c", 1, boxes=None)]})
    with pytest.raises(UserError, match="no frame has labels"):
        build_database(Store.open(tmp_path / "bare"), root)
    shutil.rmtree(tmp_path / "bare")
    (tmp_path / ".objects.999999999").mkdir()  # of a process that was killed
    build_database(store, root)
    with pytest.raises(UserError, match="no labelled object has 1000 points"):
        build_database(store, tmp_path / "none", min_points=1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["objects"]


def test_the_tool_says_what_it_made(store, tmp_path, capsys):
    assert (
        main(["--data", str(store.root), "--output", str(tmp_path / "o"), "--min-points", "3", "--workers", "1"]) == 0
    )
    assert "VEHICLE" in (out := capsys.readouterr().out)
    assert "from 8 frames" in out


def _sampler(database: ObjectDatabase, totals: tuple[int, ...] = (6, 4, 3), seed: int = 3) -> ObjectSampler:
    return ObjectSampler(database, CLASSES, totals, seed, first_sample_without=1000)


def test_samples_are_filled_up_to_their_totals(store, database):
    labels = [store.labels(0), None, replace(make_boxes(20), types=np.full(20, 2, np.uint8))]
    drawn = _sampler(database).candidates(labels, range(3))
    assert drawn is not None
    counts = [[int((row == kind).sum()) for kind in (1, 2, 4)] for row in drawn.labels.types]
    assert counts == [[4, 2, 2], [6, 4, 3], [6, 0, 3]]
    ends = drawn.points.counts.cumsum(0).reshape(drawn.labels.types.shape)
    for sample, candidate in np.ndindex(*ends.shape):
        count = int(drawn.points.counts.reshape(ends.shape)[sample, candidate])
        box = drawn.labels.boxes[sample, candidate]
        assert count == drawn.labels.num_points[sample, candidate]
        rows = drawn.points.xyz[ends[sample, candidate] - count : ends[sample, candidate]] * STEP
        assert points_in_boxes(rows, box[None]).all()
        assert (count > 0) == (drawn.labels.types[sample, candidate] > 0)


def test_a_draw_depends_on_seed_and_sample_alone_and_reaches_every_object(store, database):
    labels, sampler = store.labels(0), _sampler(database)
    many = sampler.candidates([labels] * 300, range(300))
    one = sampler.candidates([labels], [217])
    assert many is not None
    assert one is not None
    columns = one.labels.types.shape[1]
    assert torch.equal(many.labels.boxes[217, :columns], one.labels.boxes[0])
    other = _sampler(database, seed=4).candidates([labels], [217])
    assert other is not None
    assert not torch.equal(other.labels.boxes, one.labels.boxes)
    drawn = {box.numpy().tobytes() for box in many.labels.boxes.reshape(-1, 7)[many.labels.types.flatten() > 0]}
    assert len(drawn) == sum(len(numbers) for kinds in CLASSES for numbers in database.ranges(kinds))


def test_the_loader_hands_objects_over_until_they_are_switched_off(store, database):
    sampler = replace(_sampler(database), first_sample_without=6)
    options = {"global_batch_size": 2, "seed": 1, "total_steps": 4, "objects": pickle.loads(pickle.dumps(sampler))}
    labelled = Store.open(store.root)
    # frame 6 has no labels, on which training refuses to train
    labelled._frames, labelled._ends, labelled._names = labelled._frames[:1], labelled._ends[:1], labelled._names[:1]
    whole = list(build_loader(labelled, **options))
    assert [batch.objects is not None for batch in whole] == [True, True, True, False]
    for batch, other in zip(whole, build_loader(labelled, workers=1, **options), strict=True):
        assert (batch.objects is None) == (other.objects is None)
        if batch.objects is not None:
            assert torch.equal(batch.objects.points.xyz, other.objects.points.xyz)
            assert torch.equal(batch.objects.labels.boxes, other.objects.labels.boxes)


def _labels(boxes: Boxes) -> BoxLabels:
    return BoxLabels(
        torch.from_numpy(boxes.boxes)[None],
        torch.from_numpy(boxes.types.astype(np.int64))[None],
        torch.from_numpy(boxes.num_points.astype(np.int64))[None],
        torch.from_numpy(boxes.velocity[:, :2].copy())[None],
    )


@settings(max_examples=60, deadline=None)
@given(there=st.integers(0, 8), candidates=st.integers(1, 12), reach=st.floats(3, 40), seed=st.integers(0, 10**6))
def test_no_object_overlaps_another_and_the_first_of_two_stays(there, candidates, reach, seed):
    scale = np.array([reach / 60] * 2 + [1.0] * 5, np.float32)
    boxes, others = make_boxes(there, seed), make_boxes(candidates, seed + 1)
    boxes, others = replace(boxes, boxes=boxes.boxes * scale), replace(others, boxes=others.boxes * scale)
    if candidates > 3:
        others.types[3] = 0  # padding
    found = find_room(_labels(boxes), _labels(others))[0].tolist()
    standing = list(boxes.boxes)
    for box, kind, stays in zip(others.boxes, others.types, found, strict=True):
        free = kind > 0 and not any(bev_iou_matrix(box[None], other[None])[0, 0] > 0 for other in standing)
        assert stays == free
        if free:
            standing.append(box)


def _pasted(store: Store, database: ObjectDatabase) -> tuple[Points, BoxLabels, Batch]:
    batch = collate(store, [0, 1, 5], [7, 8, 9], objects=_sampler(database, totals=(30, 20, 10)))
    assert batch.objects is not None
    points = unpack(batch.points)
    return *paste_objects(points, batch.labels, unpack(batch.objects.points), batch.objects.labels), batch


def test_pasted_samples_hold_scene_and_objects_and_nothing_else(store, database):
    points, labels, batch = _pasted(store, database)
    assert batch.objects is not None
    scene, objects = unpack(batch.points), unpack(batch.objects.points)
    before, candidates = batch.labels.types.shape[1], batch.objects.labels.types.shape[1]
    assert torch.equal(labels.boxes[:, :before], batch.labels.boxes)
    assert torch.equal(labels.boxes[:, before:], batch.objects.labels.boxes)
    kept = labels.types[:, before:] > 0
    assert kept.any(1).all()
    assert not kept[batch.objects.labels.types > 0].all()
    assert points.batch_index.tolist() == sorted(points.batch_index.tolist())
    for sample in range(3):
        boxes = labels.boxes[sample, before:][kept[sample]]
        ours = scene.values[scene.batch_index == sample]
        expected = [row for row in ours.tolist() if not points_in_boxes(torch.tensor([row]), boxes).any()]
        for candidate in range(candidates):
            if kept[sample, candidate]:
                expected += objects.values[objects.batch_index == sample * candidates + candidate].tolist()
        assert points.values[points.batch_index == sample].tolist() == expected


def test_objects_that_lose_points_count_anew_or_go(store, database):
    """Of an object's points only those of the wanted returns are there, and they alone make it a target."""
    batch = collate(store, [0, 1, 5], [7, 8, 9], objects=_sampler(database, totals=(30, 20, 10)))
    assert batch.objects is not None
    counts = set()
    for returns, min_points in (([1], 1), ([2], 3), ([1, 2], 6)):
        points, objects = (unpack(part, returns=returns) for part in (batch.points, batch.objects.points))
        pasted, labels = paste_objects(points, batch.labels, objects, batch.objects.labels, min_points)
        before = batch.labels.types.shape[1]
        for sample, candidate in (labels.types[:, before:] > 0).nonzero().tolist():
            inside = points_in_boxes(
                pasted.values[pasted.batch_index == sample], labels.boxes[sample, before:][[candidate]]
            )
            assert int(inside.sum()) == int(labels.num_points[sample, before + candidate]) >= min_points
            counts.add(int(inside.sum()))
    assert len(counts) > 3
    _, none = paste_objects(points, batch.labels, objects, batch.objects.labels, 1000)
    assert (none.types[:, before:] == 0).all()


def test_candidates_carry_their_velocity_and_classes_draw_apart(store, database):
    known = {database.box(n).tobytes(): database.velocity(n)[:2] for n in range(len(database))}
    twins = replace(_sampler(database), classes=((1, 2), (1, 2)), totals=(40, 40))
    drawn = twins.candidates([None], [5])
    assert drawn is not None
    for box, velocity in zip(drawn.labels.boxes[0].numpy(), drawn.labels.velocity[0].numpy(), strict=True):
        np.testing.assert_array_equal(velocity, known[box.tobytes()])
    assert not torch.equal(drawn.labels.boxes[0, :40], drawn.labels.boxes[0, 40:])


def test_points_of_pasted_objects_stay_inside_when_the_sample_is_moved(store, database):
    points, labels, batch = _pasted(store, database)
    config = load_config(
        "tiny",
        [f"augmentation.{name}={value}" for name, value in {"flip_x": 0.5, "rotation": 3, "scale": 0.1}.items()],
    ).augmentation
    moved, turned = augment(points, labels, config=config, seed=1, sample_index=batch.sample_index)
    slightly_larger = turned.boxes + torch.tensor([0, 0, 0, 1e-4, 1e-4, 1e-4, 0])  # rounding at 80 m
    for sample in range(3):
        rows = points.batch_index == sample
        inside = points_in_boxes(points.values[rows], labels.boxes[sample]) & (labels.types[sample] > 0)
        after = points_in_boxes(moved.values[rows], slightly_larger[sample])
        assert after[inside].all()
        assert inside.any(0).sum() > 8


def test_a_config_asks_for_objects(store, database):
    totals = "totals: {vehicle: 9, cyclist: 2}"
    options = [f"augmentation.objects={{database: {database.root}, {totals}, off_for_last_steps: 10}}"]
    config = load_config("tiny", ["training.steps=100", "training.batch_size=4", *options])
    sampler = ObjectSampler.of(config)
    assert sampler is not None
    assert (sampler.classes, sampler.totals, sampler.first_sample_without) == (CLASSES, (9, 0, 2), 360)
    held = database.record.objects
    assert sampler.describe() == f"up to 9 VEHICLE of {held['VEHICLE']}, up to 2 CYCLIST of {held['CYCLIST']}"
    assert ObjectSampler.of(load_config("tiny", [])) is None
    with pytest.raises(UserError, match="its objects were cut from the validation data"):
        ObjectSampler.of(load_config("tiny", [*options, f"data.validation={store.root}"]))
    for setting in ("augmentation.objects={database: x, totals: {}}", "augmentation.off_for_last_steps=1401"):
        with pytest.raises(UserError, match=r"totals|more than the 1400 training\.steps"):
            load_config("tiny", [setting])
    with pytest.raises(UserError, match="no class bus; classes are vehicle, pedestrian, cyclist"):
        load_config("tiny", ["augmentation.objects={database: x, totals: {bus: 1}}"])
    with pytest.raises(UserError, match=r"can't be used with data.sweeps 2"):
        load_config("tiny", ["data.sweeps=2", *options])


def test_a_class_that_the_database_lacks(store, tmp_path):
    build_database(store, tmp_path / "o", min_points=7)
    options = f"augmentation.objects={{database: {tmp_path / 'o'}, totals: {{cyclist: 2}}}}"
    with pytest.raises(UserError, match=r"holds no object of class cyclist.*it holds \{'PEDESTRIAN': \d+\}"):
        ObjectSampler.of(load_config("tiny", [options]))


def test_augmentation_is_off_for_the_last_steps(store, database):
    config = load_config("tiny", ["training.steps=100", "augmentation.rotation=1", "augmentation.off_for_last_steps=5"])
    batch = collate(store, [0, 1], [0, 1])
    plain = unpack(batch.points).values
    assert not torch.equal(network_input(batch, config, 94)[0].values, plain)
    assert torch.equal(network_input(batch, config, 95)[0].values, plain)
    with_objects = collate(store, [0, 1], [0, 1], objects=_sampler(database))
    points, labels = network_input(with_objects, config, 95)
    assert len(points.values) != len(plain)
    assert labels.types.shape[1] > batch.labels.types.shape[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same(store, database):
    batch = collate(store, [0, 1, 5], [7, 8, 9], objects=_sampler(database, totals=(30, 20, 10)))
    config = load_config("tiny", [])
    points, labels = network_input(batch, config, 0)
    on_gpu, labels_on_gpu = network_input(to_device(batch, torch.device("cuda")), config, 0)
    assert torch.equal(on_gpu.values.cpu(), points.values)
    assert torch.equal(on_gpu.batch_index.cpu(), points.batch_index)
    assert torch.equal(labels_on_gpu.types.cpu(), labels.types)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 9), reach=st.sampled_from([5.0, 80.0, 250.0, 600.0]), seed=st.integers(0, 10**6))
def test_points_inside_any_box_of_their_sample(count, reach, seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand((3, count, 7), generator=generator) * 2 - 1
    boxes = boxes * torch.tensor([reach, reach, 2, 9, 3, 3, 3]) + torch.tensor([0, 0, 0, 9.5, 3.5, 3.5, 0])
    boxes[1] *= torch.tensor([1, 1, 1, 0, 0, 0, 1.0])  # padding
    sample = torch.sort(torch.randint(0, 3, (600,), generator=generator)).values
    values = (torch.rand((600, 5), generator=generator) * 2 - 1) * torch.tensor([reach, reach, 3, 1, 1])
    if count:  # half of them around some box
        chosen = boxes[sample[:300], torch.randint(0, count, (300,), generator=generator)]
        values[:300, :3] = chosen[:, :3] + (values[:300, :3] / reach) * chosen[:, 3:6].abs().clamp(min=1)
    expected = [bool(points_in_boxes(v[None], boxes[s]).any()) for v, s in zip(values, sample.tolist(), strict=True)]
    assert _inside_any(Points(values, sample), boxes).tolist() == expected
