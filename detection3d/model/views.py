"""Test-time augmentation: detect in mirrored scenes too, mirror what is found back, and average the maps.

A detector that has seen mirrored scenes in training should say the same of a scene and of its mirror image; where it
does not, the mean is nearer to the truth than either (as the double flip of CenterPoint, Yin et al., CVPR 2021).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Protocol

import torch
from torch import Tensor

from detection3d.config import Config
from detection3d.config.decode import View
from detection3d.model.layout import HeadLayout, head_layout
from detection3d.types.tensors import HeadOutputs, Points

MIRRORED: Mapping[View, tuple[bool, bool]] = {
    "identity": (False, False),
    "flip_x": (False, True),
    "flip_y": (True, False),
    "flip_both": (True, True),
}
"""Which of x and y change their sign; a flip is named after the axis that stays, as in augmentation."""


class DetectsPoints(Protocol):
    """What `Detector.detect` does."""

    def detect(self, points: Points, batch_size: int) -> HeadOutputs:
        """Points of B samples to the heads' maps."""
        ...


def detect_in_views(detector: DetectsPoints, points: Points, batch_size: int, config: Config) -> HeadOutputs:
    """Detect in all of the config's views of a batch.

    Args:
        detector: in evaluation mode.
        points: of B samples.
        batch_size: samples, B.
        config: its `decode.views`; a single identity costs nothing and changes no bit.

    Returns:
        The mean of the maps, each as it would lie in the scene itself: logits of classes, logarithms of sizes and sines
        and cosines of headings are averaged as they are.
    """
    views = config.decode.views
    if views == ("identity",):
        return detector.detect(points, batch_size)
    layout = head_layout(config)
    found = [mirror_maps(detector.detect(mirror_points(points, view), batch_size), view, layout) for view in views]
    return HeadOutputs({task: _mean([outputs.maps[task] for outputs in found]) for task in layout.outputs})


def mirror_points(points: Points, view: View) -> Points:
    """Return the points of the mirrored scene."""
    signs = torch.ones(points.values.shape[1])
    signs[:2] = _signs(view)
    return replace(points, values=points.values * signs.to(points.values.device))


def mirror_maps(outputs: HeadOutputs, view: View, layout: HeadLayout) -> HeadOutputs:
    """Return the maps of the mirrored scene, float32; done twice, nothing has changed. The range must be symmetric."""
    x, y = MIRRORED[view]
    dims = [dim for dim, mirrored in ((3, x), (2, y)) if mirrored]
    return HeadOutputs(
        {
            task: outputs.maps[task].float().flip(dims) * _channel_signs(task, view, layout, outputs)
            for task in layout.outputs
        }
    )


def _channel_signs(task: str, view: View, layout: HeadLayout, outputs: HeadOutputs) -> Tensor:
    along = _signs(view)
    signs = torch.ones(layout.width(task))
    for name in layout.outputs[task]:
        match name:
            case "offset" | "velocity":
                signs[layout.channels[name]] = along
            case "heading":  # sine and cosine are the y and x of its direction
                signs[layout.channels[name]] = along.flip(0)
    return signs.to(outputs.maps[task].device).view(1, -1, 1, 1)


def _signs(view: View) -> Tensor:
    return torch.tensor([-1.0 if mirrored else 1.0 for mirrored in MIRRORED[view]])


def _mean(values: Sequence[Tensor]) -> Tensor:
    return reduce(add, values) / len(values)
