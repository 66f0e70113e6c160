import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detection3d.config import AugmentationConfig
from detection3d.data.augment import augment, draw_similarity
from detection3d.types.tensors import BoxLabels, Points

STRONG = AugmentationConfig(flip_x=0.5, flip_y=0.5, rotation=math.pi, scale=0.2, translation=3.0)


def sample_with_points_in_boxes(generator: np.random.Generator, boxes: int, padding: int, each: int = 4):
    """One sample: boxes, points at known places in them (shares of the size along the box's axes), and padding."""
    rows = np.zeros((boxes + padding, 7))
    rows[:boxes, :3] = generator.uniform(-70, 70, (boxes, 3))
    rows[:boxes, 3:6] = generator.uniform(0.3, 10, (boxes, 3))
    rows[:boxes, 6] = generator.uniform(-math.pi, math.pi, boxes)
    types = np.where(np.arange(boxes + padding) < boxes, 1, 0)
    shares = generator.uniform(-0.5, 0.5, (boxes, each, 3))
    offset = shares * rows[:boxes, None, 3:6]
    cosine, sine = np.cos(rows[:boxes, None, 6]), np.sin(rows[:boxes, None, 6])
    points = np.stack(
        [
            cosine * offset[..., 0] - sine * offset[..., 1],
            sine * offset[..., 0] + cosine * offset[..., 1],
            offset[..., 2],
        ],
        axis=-1,
    )
    points += rows[:boxes, None, :3]
    features = generator.uniform(0, 5, (boxes * each, 3))
    return rows, types, shares, np.column_stack([points.reshape(-1, 3), features])


def make_batch(seed: int, sizes: list[tuple[int, int]]):
    """Samples with (boxes, padding) each; all rows of a batch are equally many."""
    generator = np.random.default_rng(seed)
    samples = [sample_with_points_in_boxes(generator, *size) for size in sizes]
    batch_index = np.repeat(np.arange(len(samples)), [len(sample[3]) for sample in samples])
    points = Points(
        torch.tensor(np.concatenate([sample[3] for sample in samples]), dtype=torch.float32), torch.tensor(batch_index)
    )
    types = torch.tensor(np.stack([sample[1] for sample in samples]))
    velocity = torch.tensor(generator.normal(0, 10, (*types.shape, 2)), dtype=torch.float32)
    labels = BoxLabels(
        boxes=torch.tensor(np.stack([sample[0] for sample in samples]), dtype=torch.float32),
        types=types,
        num_points=torch.arange(types.numel()).reshape(types.shape),
        velocity=torch.where((types == 0)[..., None], 0.0, velocity),
    )
    return points, labels, [sample[2] for sample in samples]


def shares_in_boxes(points: torch.Tensor, boxes: torch.Tensor, each: int = 4) -> np.ndarray:
    """Where each point lies in its box, in shares of the size: [boxes, each, 3]."""
    xyz = points[:, :3].double().numpy().reshape(-1, each, 3)
    boxes = boxes.double().numpy()
    offset = xyz - boxes[:, None, :3]
    cosine, sine = np.cos(boxes[:, None, 6]), np.sin(boxes[:, None, 6])
    along = cosine * offset[..., 0] + sine * offset[..., 1]
    across = -sine * offset[..., 0] + cosine * offset[..., 1]
    return np.stack([along, across, offset[..., 2]], axis=-1) / boxes[:, None, 3:6]


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 2**40))
def test_points_stay_at_their_place_in_their_box(seed, index):
    points, labels, shares = make_batch(seed, [(5, 1), (0, 6), (6, 0)])
    sample_index = torch.arange(index, index + 3)
    handedness = draw_similarity(STRONG, seed, sample_index).handedness
    moved, moved_labels = augment(points, labels, config=STRONG, seed=seed, sample_index=sample_index)
    torch.testing.assert_close(moved.values[:, 3:], points.values[:, 3:], rtol=0, atol=0)
    assert (moved_labels.boxes[..., 6] >= -math.pi).all()
    assert (moved_labels.boxes[..., 6] < math.pi).all()
    for sample, count in enumerate((5, 0, 6)):
        values = moved.values[moved.batch_index == sample]
        found = shares_in_boxes(values, moved_labels.boxes[sample, :count])
        # Along the box nothing changes, so its front stays its front; a mirrored box is mirrored across.
        expected = shares[sample] * [1, float(handedness[sample]), 1]
        # 1e-4 of a box of 0.3 m: float32 rounds coordinates of 100 m by 1e-5 m.
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)


def test_velocity_is_the_motion_of_the_moved_points():
    _, labels, _ = make_batch(3, [(6, 0)] * 20)
    sample_index = torch.arange(20)
    later = labels.boxes.clone()
    later[..., :2] += labels.velocity * 0.5
    still = Points(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    _, now = augment(still, labels, config=STRONG, seed=0, sample_index=sample_index)
    moved_later = BoxLabels(later, labels.types, labels.num_points, labels.velocity)
    _, then = augment(still, moved_later, config=STRONG, seed=0, sample_index=sample_index)
    torch.testing.assert_close((then.boxes - now.boxes)[..., :2], 0.5 * now.velocity, rtol=1e-4, atol=1e-4)
    assert torch.equal(now.num_points, labels.num_points)


@pytest.mark.parametrize(
    ("config", "point", "heading"),
    [
        (AugmentationConfig(flip_x=1), (2.0, -3.0, 1.0), -0.5),
        (AugmentationConfig(flip_y=1), (-2.0, 3.0, 1.0), math.pi - 0.5),
        (AugmentationConfig(flip_x=1, flip_y=1), (-2.0, -3.0, 1.0), 0.5 - math.pi),
    ],
)
def test_flips_by_hand(config, point, heading):
    points = Points(torch.tensor([[2.0, 3, 1, 7, 8]]), torch.zeros(1, dtype=torch.int64))
    box = torch.tensor([[[2.0, 3, 1, 4, 2, 1.5, 0.5]]])
    labels = BoxLabels(
        box, torch.ones(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.int64), torch.ones(1, 1, 2)
    )
    moved, moved_labels = augment(points, labels, config=config, seed=0, sample_index=torch.tensor([3]))
    assert moved.values.tolist() == [[*point, 7.0, 8.0]]
    torch.testing.assert_close(moved_labels.boxes[0, 0], torch.tensor([*point, 4.0, 2.0, 1.5, heading]))


def test_all_zero_changes_no_bit():
    points, labels, _ = make_batch(1, [(5, 1), (6, 0)])
    moved, moved_labels = augment(
        points, labels, config=AugmentationConfig(), seed=0, sample_index=torch.tensor([4, 9])
    )
    assert torch.equal(moved.values, points.values)
    assert torch.equal(moved_labels.boxes, labels.boxes)
    assert torch.equal(moved_labels.velocity, labels.velocity)


def test_padding_stays_padding():
    points, labels, _ = make_batch(1, [(2, 4), (0, 6)])
    _, moved = augment(points, labels, config=STRONG, seed=0, sample_index=torch.tensor([4, 9]))
    padding = labels.types == 0
    assert torch.equal(moved.types, labels.types)
    assert (moved.boxes[padding] == 0).all()
    assert (moved.velocity[padding] == 0).all()
    assert not torch.equal(moved.boxes[~padding], labels.boxes[~padding])


def test_a_sample_fares_the_same_in_any_batch():
    config = STRONG.model_copy(update={"point_dropout": 0.5})
    points, labels, _ = make_batch(1, [(6, 0), (6, 0), (6, 0)])
    together, labels_together = augment(points, labels, config=config, seed=8, sample_index=torch.tensor([11, 5, 70]))
    mine = points.batch_index == 1
    alone = Points(points.values[mine], torch.zeros(int(mine.sum()), dtype=torch.int64))
    labels_alone = BoxLabels(
        *(tensor[1:2] for tensor in (labels.boxes, labels.types, labels.num_points, labels.velocity))
    )
    single, labels_single = augment(alone, labels_alone, config=config, seed=8, sample_index=torch.tensor([5]))
    assert torch.equal(single.values, together.values[together.batch_index == 1])
    assert torch.equal(labels_single.boxes, labels_together.boxes[1:2])
    other, _ = augment(alone, labels_alone, config=config, seed=9, sample_index=torch.tensor([5]))
    assert other.values.shape != single.values.shape or not torch.equal(other.values, single.values)


def test_the_draws_have_the_configured_distributions():
    count = 20_000
    config = AugmentationConfig(flip_x=0.25, flip_y=0.5, rotation=0.7, scale=0.1, translation=0.3)
    similarity = draw_similarity(config, 0, torch.arange(count))
    scale = similarity.scale.double()
    assert scale.min() >= 0.9 - 1e-6
    assert scale.max() <= 1.1 + 1e-6
    assert abs(float(scale.mean()) - 1) < 5 * 0.2 / math.sqrt(12 * count)
    assert abs(float(scale.std()) - 0.2 / math.sqrt(12)) < 0.001
    # A matrix of scale, angle and signs: x axis -> x_sign (cos, sin), y axis -> y_sign (-sin, cos).
    linear = similarity.linear.double() / scale[:, None, None]
    x_sign = torch.sign(linear[:, 0, 0])  # the cosine of at most 0.7 is positive
    y_sign = torch.sign(linear[:, 1, 1])
    assert abs(float((x_sign < 0).double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(count)
    assert abs(float((y_sign < 0).double().mean()) - 0.25) < 5 * 0.44 / math.sqrt(count)
    angle = torch.asin(linear[:, 1, 0] * x_sign)
    assert angle.abs().max() <= 0.7 + 1e-6
    assert abs(float(angle.mean())) < 5 * 1.4 / math.sqrt(12 * count)
    assert abs(float(angle.std()) - 1.4 / math.sqrt(12)) < 0.01
    translation = similarity.translation.double()
    assert (translation.mean(0).abs() < 5 * 0.3 / math.sqrt(count)).all()
    assert ((translation.std(0) - 0.3).abs() < 0.01).all()
    correlation = torch.corrcoef(torch.column_stack([translation, angle, scale, x_sign, y_sign]).T)
    assert (correlation - torch.eye(7)).abs().max() < 5 / math.sqrt(count)


def test_dropout_leaves_out_up_to_the_largest_share():
    samples, each = 200, 500
    values = torch.arange(samples * each * 5, dtype=torch.float32).reshape(-1, 5)
    points = Points(values, torch.arange(samples).repeat_interleave(each))
    labels = BoxLabels(
        torch.zeros(samples, 1, 7),
        torch.zeros(samples, 1, dtype=torch.int64),
        torch.zeros(samples, 1, dtype=torch.int64),
        torch.zeros(samples, 1, 2),
    )
    config = AugmentationConfig(point_dropout=0.4)
    kept, _ = augment(points, labels, config=config, seed=0, sample_index=torch.arange(samples))
    assert (kept.values[1:, 0] > kept.values[:-1, 0]).all()
    assert torch.equal(kept.batch_index, (kept.values[:, 0] / (5 * each)).long())
    shares = 1 - torch.bincount(kept.batch_index, minlength=samples).double() / each
    assert shares.max() < 0.4 + 5 * math.sqrt(0.4 * 0.6 / each)
    assert abs(float(shares.mean()) - 0.2) < 5 * 0.4 / math.sqrt(12 * samples)
    assert shares.std() > 0.09  # uniform up to 0.4 has 0.115


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_changes_nothing_but_the_last_bits():
    config = STRONG.model_copy(update={"point_dropout": 0.5})
    points, labels, _ = make_batch(1, [(6, 0), (2, 4)])
    sample_index = torch.tensor([3, 2**35])
    cpu, cpu_labels = augment(points, labels, config=config, seed=1, sample_index=sample_index)
    cuda, cuda_labels = augment(
        Points(points.values.cuda(), points.batch_index.cuda()),
        BoxLabels(labels.boxes.cuda(), labels.types.cuda(), labels.num_points.cuda(), labels.velocity.cuda()),
        config=config,
        seed=1,
        sample_index=sample_index.cuda(),
    )
    torch.testing.assert_close(cuda.values.cpu(), cpu.values, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(cuda_labels.boxes.cpu(), cpu_labels.boxes, rtol=1e-5, atol=1e-4)
