"""Fixed-point suppression against the plain greedy loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detection3d.geometry.device import nms
from detection3d.geometry.device.nms import rotated_nms
from tests.oracles import polygon_iou


def greedy(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, groups: torch.Tensor) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i].item(), i)):
        rivals = (j for j in kept if groups[j] == groups[i])
        if all(polygon_iou.bev_iou(boxes[j].tolist(), boxes[i].tolist()) <= threshold for j in rivals):
            kept.append(i)
    return kept


def crowd(count: int, seed: int, spread: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(seed)
    boxes = np.concatenate(
        (
            generator.uniform(-spread, spread, (count, 3)),
            generator.uniform(1.0, 5.0, (count, 3)),
            generator.uniform(-4, 4, (count, 1)),
        ),
        axis=1,
    )
    scores = generator.integers(0, 12, count) / 12  # few values, so that many scores are equal
    groups = generator.integers(0, 3, count) * 5
    return torch.from_numpy(boxes).float(), torch.from_numpy(scores).float(), torch.from_numpy(groups)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 50),
    seed=st.integers(0, 2**20),
    spread=st.sampled_from([0.5, 3.0, 20.0]),
    threshold=st.sampled_from([0.01, 0.2, 0.7]),
)
def test_equals_greedy_loop(count: int, seed: int, spread: float, threshold: float) -> None:
    boxes, scores, groups = crowd(count, seed, spread)
    kept = rotated_nms(boxes, scores, threshold, groups)
    assert kept.dtype == torch.int64
    assert kept.tolist() == greedy(boxes, scores, threshold, groups)
    assert rotated_nms(boxes, scores, threshold).tolist() == greedy(boxes, scores, threshold, torch.zeros(count))


def test_chain_of_overlaps_settles() -> None:
    # Each box overlaps the next one only: every second one stays, however long the chain of consequences is.
    count = 41
    boxes = torch.zeros(count, 7)
    boxes[:, 0] = torch.arange(count) * 1.2
    boxes[:, 3:6] = 2.0
    scores = torch.linspace(1, 0, count)
    assert rotated_nms(boxes, scores, 0.1).tolist() == list(range(0, count, 2))


def test_equal_scores_keep_the_lower_index() -> None:
    boxes = torch.tensor([[0.0, 0, 0, 4, 2, 2, 0.5]] * 5)
    assert rotated_nms(boxes, torch.ones(5), 0.5).tolist() == [0]
    assert rotated_nms(boxes, torch.ones(5), 0.5, torch.tensor([1, 0, 1, 0, 2])).tolist() == [0, 1, 4]


def test_pairs_in_small_portions_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, scores, groups = crowd(120, 7, 4.0)
    whole = rotated_nms(boxes, scores, 0.2, groups)
    monkeypatch.setattr(nms, "_PAIRS_AT_ONCE", 17)
    assert torch.equal(rotated_nms(boxes, scores, 0.2, groups), whole)


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="2 boxes, 3 scores"):
        rotated_nms(torch.ones(2, 7), torch.ones(3), 0.5)
    with pytest.raises(ValueError, match=r"iou_threshold is 1\.5"):
        rotated_nms(torch.ones(2, 7), torch.ones(2), 1.5)
