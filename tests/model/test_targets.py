"""Targets against a slow transcription with loops, and the way back through the decoder."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detection3d.config import Config
from detection3d.config_file import load_config
from detection3d.model.decode import decode, to_detections
from detection3d.model.targets import BevGrid, build_targets, gaussian_radius
from detection3d.types.tensors import BoxLabels, HeadOutputs, Targets
from tests.model.reading import box_at


def labels_of(samples: list[list[tuple[int, list[float], int]]]) -> BoxLabels:
    """Each object is (type, box, points)."""
    width = max(1, *(len(sample) for sample in samples))
    boxes, types = torch.zeros(len(samples), width, 7), torch.zeros(len(samples), width, dtype=torch.int64)
    points = torch.zeros(len(samples), width, dtype=torch.int64)
    for row, sample in enumerate(samples):
        for column, (object_type, box, count) in enumerate(sample):
            boxes[row, column], types[row, column] = torch.tensor(box), object_type
            points[row, column] = count
    return BoxLabels(boxes, types, points, torch.zeros(len(samples), width, 2))


def random_labels(seed: int) -> BoxLabels:
    generator = np.random.default_rng(seed)
    return labels_of(
        [
            [
                (
                    int(generator.choice([1, 2, 3, 4])),
                    [*generator.uniform(-18, 18, 2), generator.uniform(-1, 2), *generator.uniform(0.4, 9, 3),
                     generator.uniform(-math.pi, math.pi)],
                    int(generator.integers(0, 4)),
                )
                for _ in range(count)
            ]
            for count in (7, 0, 12)
        ]
    )  # fmt: skip


def slow_radius(length: float, width: float, overlap: float) -> float:
    b1, c1 = length + width, length * width * (1 - overlap) / (1 + overlap)
    r1 = (b1 + math.sqrt(b1 * b1 - 4 * c1)) / 2
    b2, c2 = 2 * (length + width), (1 - overlap) * length * width
    r2 = (b2 + math.sqrt(b2 * b2 - 16 * c2)) / 2
    a3, b3, c3 = 4 * overlap, -2 * overlap * (length + width), (overlap - 1) * length * width
    return min(r1, r2, (b3 + math.sqrt(b3 * b3 - 4 * a3 * c3)) / 2)


@pytest.mark.parametrize("seed", range(4))
def test_targets_equal_loops(config: Config, seed: int) -> None:
    labels = random_labels(seed)
    targets = build_targets(labels, config)
    cell = 8 * config.model.voxel_size[0]
    height = width = round(32 / cell)
    expected = np.zeros((3, 3, height, width))
    count = 0
    for b in range(3):
        for m in range(labels.types.shape[1]):
            index = {1: 0, 2: 1, 4: 2}.get(int(labels.types[b, m]))
            x, y, z, length, wide, high, heading = (float(v) for v in labels.boxes[b, m])
            column, row = math.floor((x + 16) / cell), math.floor((y + 16) / cell)
            inside = 0 <= column < width and 0 <= row < height
            valid = index is not None and inside and int(labels.num_points[b, m]) >= 1
            assert bool(targets.valid[b, m]) == valid
            if not valid or index is None:
                continue
            count += 1
            radius = max(config.loss.min_radius, int(slow_radius(length / cell, wide / cell, 0.1)))
            sigma = (2 * radius + 1) / 6
            for v in range(max(0, row - radius), min(height, row + radius + 1)):
                for u in range(max(0, column - radius), min(width, column + radius + 1)):
                    value = math.exp(-((v - row) ** 2 + (u - column) ** 2) / (2 * sigma * sigma))
                    expected[b, index, v, u] = max(expected[b, index, v, u], value)
            assert int(targets.cell[b, m]) == row * width + column
            np.testing.assert_allclose(
                described_box(targets)[b, m].tolist(),
                [(x + 16) / cell - column - 0.5, (y + 16) / cell - row - 0.5, z,
                 math.log(length), math.log(wide), math.log(high)],
                rtol=1e-4, atol=1e-5,
            )  # fmt: skip
            np.testing.assert_allclose(
                targets.heading[b, m].tolist(), [math.sin(heading), math.cos(heading)], atol=1e-6
            )
    assert float(targets.global_count) == count
    np.testing.assert_allclose(targets.heatmap.numpy(), expected, atol=1e-6)


def test_without_objects_nothing_is_divided_by_zero(config: Config) -> None:
    targets = build_targets(labels_of([[], []]), config)
    assert float(targets.global_count) == 1
    assert not targets.heatmap.any()
    assert not targets.valid.any()


@given(st.floats(0.1, 30), st.floats(0.1, 30), st.floats(0.05, 0.9))
@settings(max_examples=50, deadline=None)
def test_radius_equals_scalars(length: float, width: float, overlap: float) -> None:
    ours = gaussian_radius(*torch.tensor([length, width], dtype=torch.float64), overlap)
    assert float(ours) == pytest.approx(slow_radius(length, width, overlap), rel=1e-9, abs=1e-9)


def described_box(targets: Targets) -> torch.Tensor:
    """What the box head says unless told otherwise, [B, M, 6]."""
    return torch.cat([targets.offset, targets.height, targets.size], dim=-1)


def perfect_outputs(labels: BoxLabels, config: Config) -> HeadOutputs:
    targets = build_targets(labels, config)
    grid = BevGrid(config)
    batch = len(labels.types)

    def paint(values: torch.Tensor) -> torch.Tensor:
        result = torch.zeros(batch, values.shape[-1], grid.height * grid.width)
        for b in range(batch):
            for m in torch.nonzero(targets.valid[b]).flatten():
                result[b, :, targets.cell[b, m]] = values[b, m]
        return result.view(batch, -1, grid.height, grid.width)

    heatmap = torch.where(targets.heatmap == 1, 5.0, -9.0)
    return HeadOutputs(
        {"classification": heatmap, "box": paint(described_box(targets)), "orientation": paint(targets.heading)}
    )


def test_decoding_perfect_maps_gives_the_boxes_back(config: Config) -> None:
    samples = [
        [(1, [x, y, 0.7, 4.4, 1.9, 1.6, a], 9) for x, y, a in ((-11, 3, 3.0), (0.2, -7.3, -3.1), (12, 12, 1))],
        [],
        [(2, [5.5, 5.5, 0.9, 0.7, 0.8, 1.7, 0.5], 3), (4, [-5.5, 2, 0.9, 1.8, 0.8, 1.7, -2.5], 3)],
    ]  # fmt: skip
    labels = labels_of(samples)
    decoded = decode(perfect_outputs(labels, config), config)
    keys = (("a", 1), ("b", 2), ("c", 3))
    found = to_detections(decoded, keys, config)
    assert [item.key for item in found] == list(keys)
    for detections, sample in zip(found, samples, strict=True):
        assert len(detections.boxes) == len(sample)
        ours = sorted(zip(detections.types.tolist(), detections.boxes.tolist(), strict=True))
        for (object_type, box), (expected_type, expected, _) in zip(ours, sorted(sample), strict=True):
            assert object_type == expected_type
            np.testing.assert_allclose(box, expected, rtol=1e-4, atol=1e-4)


def test_the_best_of_two_overlapping_boxes_stays(config: Config) -> None:
    labels = labels_of([[(1, [0.1, 0.1, 0.7, 4.4, 1.9, 1.6, 0.0], 9), (1, [2.1, 0.1, 0.7, 4.4, 1.9, 1.6, 0.0], 9)]])
    outputs = perfect_outputs(labels, config)
    outputs.maps["classification"][outputs.maps["classification"] > 0] = torch.tensor([2.0, 3.0])
    assert torch.sigmoid(torch.tensor(3.0)).item() == pytest.approx(float(decode(outputs, config).scores[0]))
    assert len(decode(outputs, config).scores) == 1


@pytest.mark.parametrize(("sine", "cosine"), [(0.0, -1.0), (-0.0, -1.0), (1e-9, -1.0)])
def test_headings_never_reach_pi(config: Config, sine: float, cosine: float) -> None:
    orientation = torch.tensor([sine, cosine]).view(1, 2, 1, 1).expand(1, 2, 16, 16)
    outputs = HeadOutputs({"box": torch.zeros(1, 6, 16, 16), "orientation": orientation})
    heading = float(box_at(outputs, torch.zeros(1, 1, dtype=torch.int64), config)[0, 0, 6])
    assert heading == pytest.approx(-math.pi)


def test_an_object_without_a_place_is_no_target(config: Config) -> None:
    labels = labels_of([[(1, [math.nan, 0.0, 0, 4, 2, 1.5, 0], 9), (1, [math.inf, 0.0, 0, 4, 2, 1.5, 0], 9)]])
    targets = build_targets(labels, config)
    assert not targets.valid.any()
    assert targets.cell.tolist() == [[0, 0]]
    assert targets.heatmap.max() == 0


def test_each_class_has_its_own_suppression_and_the_best_come_first(config: Config) -> None:
    """Two pairs that overlap by the same third: of vehicles both stay, of pedestrians one; scores go up by class."""
    pair = [[0.1, 0.1, 0.7, 4.4, 1.9, 1.6, 0.0], [2.1, 0.1, 0.7, 4.4, 1.9, 1.6, 0.0]]
    samples = [[(kind, box, 9) for kind in (1, 2) for box in pair]]
    classes = [
        item.model_copy(update={"nms_iou": limit}) for item, limit in zip(config.classes, (0.5, 0.2, 0.2), strict=True)
    ]
    apart = config.model_copy(update={"classes": tuple(classes)})
    outputs = perfect_outputs(labels_of(samples), apart)
    vehicle, pedestrian, _ = outputs.maps["classification"][0]
    vehicle[vehicle > 0] = torch.tensor([1.0, 2.0])
    pedestrian[pedestrian > 0] = torch.tensor([3.0, 4.0])
    decoded = decode(outputs, apart)
    assert decoded.classes.tolist() == [1, 0, 0]
    torch.testing.assert_close(decoded.scores, torch.sigmoid(torch.tensor([4.0, 2.0, 1.0])))
    few = apart.model_copy(update={"decode": apart.decode.model_copy(update={"max_detections": 2})})
    assert decode(outputs, few).classes.tolist() == [1, 0]


def test_limits_of_peaks_and_detections(config: Config) -> None:
    outputs = HeadOutputs(
        {
            "classification": torch.zeros(2, 3, 16, 16),
            "box": torch.full((2, 6, 16, 16), -3.0),
            "orientation": torch.ones(2, 2, 16, 16),
        }
    )
    wide = load_config("tiny", ["model.point_range=[-16,-16,-2,16,16,4]", "model.voxel_size=[0.25,0.25,0.25]",
                                "decode.max_peaks=20", "decode.max_detections=7"])  # fmt: skip
    decoded = decode(outputs, wide)
    assert decoded.samples.tolist() == [0] * 7 + [1] * 7
    assert torch.equal(box_at(outputs, torch.zeros(2, 1, dtype=torch.int64), wide).isfinite().all(), torch.tensor(True))


def test_candidates_may_be_the_local_maxima_of_their_class(config: Config) -> None:
    peaks = config.model_copy(
        update={
            "decode": config.decode.model_copy(update={"local_maxima": True, "score_threshold": 0.2}),
            "classes": tuple(item.model_copy(update={"nms_iou": 1.0}) for item in config.classes),
        }
    )
    heatmap = torch.full((1, 3, 16, 16), -9.0)
    heatmap[0, 0, 4:7, 4:7] = 1.0
    heatmap[0, 0, 5, 5] = 2.0  # surpasses its eight neighbours
    heatmap[0, 0, 5, 7] = 1.5  # two cells away, surpasses the rest
    heatmap[0, 1, 5, 6] = 0.5  # another class
    heatmap[0, 2, 0, 0:2] = 0.7  # neither surpasses the other
    heatmap[0, 2, 15, 15] = float("nan")
    outputs = HeadOutputs(
        {"classification": heatmap, "box": torch.zeros(1, 6, 16, 16), "orientation": torch.ones(1, 2, 16, 16)}
    )
    decoded = decode(outputs, peaks)
    finite = decoded.scores.isfinite()
    assert (~finite).sum() == 1, "what isn't a number is told"
    found = sorted(zip(decoded.classes[finite].tolist(), decoded.scores[finite].logit().tolist(), strict=True))
    assert [number for number, _ in found] == [0, 0, 1, 2, 2]
    assert [logit for _, logit in found] == pytest.approx([1.5, 2.0, 0.5, 0.7, 0.7], abs=1e-5)
    assert len(decode(outputs, config).scores) > 10
