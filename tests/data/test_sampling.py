"""Which frames an epoch holds: every n-th, and balanced between classes."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from detection3d.config_file import load_config
from detection3d.data.loader import build_loader
from detection3d.data.sampling import FrameOrder, Sampling
from detection3d.data.store import Store
from detection3d.errors import UserError
from detection3d.types.scene import Boxes, Frame, empty_boxes
from tests.data.made_frames import make_boxes, make_frame, write_store

TYPES_OF_FRAMES = [(1,), (1, 2), (1,), (), (1, 1), (1,), (1, 4), (1,), (2,), (1,)]  # all with 5 points but the last
CLASSES = ((1,), (2,), (4,))


def _labels(types: tuple[int, ...], points: int) -> Boxes:
    if not types:
        return empty_boxes()
    count = len(types)
    return replace(
        make_boxes(count), types=np.array(types, np.uint8), num_points=np.full(count, points, dtype=np.int32)
    )


def _frames(name: str, rows: range) -> list[Frame]:
    frames = []
    for row in rows:
        labels = _labels(TYPES_OF_FRAMES[row], 0 if row == 9 else 5)
        frames.append(replace(make_frame(name, row, points=3), labels=labels))
    return frames


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    root = tmp_path_factory.mktemp("store")
    write_store(root, {"a": _frames("a", range(7)), "b": _frames("b", range(7, 10))})
    return Store.open(root)


def test_the_store_tells_which_frames_hold_a_type(store):
    for types in ([1], [2], [4], [2, 4], [3]):
        expected = [any(kind in types for kind in found) and row != 9 for row, found in enumerate(TYPES_OF_FRAMES)]
        assert store.holds(types, 1).tolist() == expected
    assert store.holds([1], 0)[9]
    assert not store.holds([1], 6).any()


@pytest.mark.parametrize(("every", "expected"), [(1, list(range(10))), (3, [0, 3, 6, 7]), (9, [0, 7])])
def test_every_so_many_frames_of_each_segment(store, every, expected):
    assert store.every(every).tolist() == expected
    order = FrameOrder(store, Sampling(every=every), seed=3)
    assert len(order) == len(expected)
    for epoch in range(3):
        samples = range(epoch * len(order), (epoch + 1) * len(order))
        assert sorted(order.frame(sample) for sample in samples) == expected


def test_balanced_epochs_give_each_class_an_equal_share(store):
    order = FrameOrder(store, Sampling(classes=CLASSES), seed=1)
    assert len(order) == 10
    holding = [{row for row, found in enumerate(TYPES_OF_FRAMES) if kind in found and row != 9} for (kind,) in CLASSES]
    for epoch in range(20):
        frames = Counter(order.frame(sample) for sample in range(10 * epoch, 10 * epoch + 10))
        # 4 of the first class, 3 of the others; frames 1 and 6 hold two classes
        assert frames[6] in (3, 4)  # the only one with a cyclist
        assert frames[8] + frames[1] >= 3
        assert frames[3] == frames[9] == 0
        assert sum(frames.values()) == 10
    apart = [FrameOrder(store, Sampling(classes=(kinds,)), seed=1) for kinds in CLASSES]
    for alone, rows in zip(apart, holding, strict=True):
        counts = Counter(alone.frame(sample) for sample in range(10 * len(rows)))
        assert counts == dict.fromkeys(rows, 10)


def test_a_class_s_frames_each_come_once_before_any_comes_again(tmp_path):
    kinds = [(1,)] * 4 + [(2,)] * 7
    frames = [replace(make_frame("a", n, points=3), labels=_labels(kind, 5)) for n, kind in enumerate(kinds)]
    write_store(tmp_path, {"a": frames})
    order = FrameOrder(Store.open(tmp_path), Sampling(classes=((1,), (2,))), seed=2)
    drawn = [order.frame(sample) for sample in range(40 * len(order))]
    for rows in (range(4), range(4, 11)):
        turns = [frame for frame in drawn if frame in rows]
        cycles = [tuple(turns[start : start + len(rows)]) for start in range(0, len(turns) - len(rows), len(rows))]
        assert all(set(cycle) == set(rows) for cycle in cycles)
        assert len(set(cycles)) > 5, "each cycle has an order of its own"


def test_two_classes_of_the_same_frames_draw_apart(store):
    order = FrameOrder(store, Sampling(classes=((1,), (1,))), seed=0)
    alone = FrameOrder(store, Sampling(classes=((1,),)), seed=0)
    twice, once = ([one.frame(sample) for sample in range(70)] for one in (order, alone))
    assert Counter(twice) == Counter(once) == dict.fromkeys(once[:7], 10)
    assert any(len(set(twice[start : start + 7])) < 7 for start in range(0, 70, 7))


def test_balanced_order_depends_on_seed_and_sample_alone(store):
    sampling = Sampling(classes=CLASSES)
    first = [FrameOrder(store, sampling, seed=5).frame(sample) for sample in range(40)]
    again = FrameOrder(store, sampling, seed=5)
    assert [again.frame(sample) for sample in reversed(range(40))] == first[::-1]
    assert [FrameOrder(store, sampling, seed=6).frame(sample) for sample in range(40)] != first
    assert first[:10] != first[10:20] != first[20:30]


@pytest.mark.parametrize("sampling", [Sampling(classes=CLASSES), Sampling(every=3)])
def test_ranks_workers_and_resume_get_the_same_samples(store, sampling):
    options = {"global_batch_size": 4, "seed": 2, "total_steps": 6, "sampling": sampling}
    whole = [batch.keys for batch in build_loader(store, **options)]
    assert [batch.keys for batch in build_loader(store, workers=1, start_step=2, **options)] == whole[2:]
    ranks = [[batch.keys for batch in build_loader(store, rank=rank, world_size=2, **options)] for rank in range(2)]
    assert [left + right for left, right in zip(*ranks, strict=True)] == whole


def test_a_class_without_any_object_can_not_be_balanced(store):
    with pytest.raises(UserError, match=r"no frame has an object of class 1 \(types \(3,\)\) with 1 points or more"):
        FrameOrder(store, Sampling(classes=((1,), (3,))), seed=0)


def test_a_config_says_how_to_sample():
    config = load_config("tiny", ["data.every=5", "data.sampling=class_balanced", "loss.min_points=3"])
    assert Sampling.of(config) == Sampling(every=5, classes=CLASSES, min_points=3)
    assert Sampling.of(load_config("tiny", [])) == Sampling()
