"""How far off the detector's heads are on the objects that it found: centre, size and heading.

Only matched boxes can be measured, so the overlap that a match needs bounds these errors. What is missed or invented
the metrics tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detection3d.types.scene import BoolArray, Float32Array, Float64Array, ObjectType, UInt8Array

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class MatchedBoxes:
    """Detections that found an object, T of them, over any number of frames.

    Attributes:
        detected: float32 [T, 7].
        truth: float32 [T, 7], the box that each found.
        types: uint8 [T].
        overlaps: float32 [T], 3D IoU.
    """

    detected: Float32Array
    truth: Float32Array
    types: UInt8Array
    overlaps: Float32Array

    def __len__(self) -> int:
        """Number of pairs, T."""
        return len(self.types)

    def select(self, rows: BoolArray) -> "MatchedBoxes":
        """Return some of the pairs; `rows` is bool [T]."""
        return MatchedBoxes(self.detected[rows], self.truth[rows], self.types[rows], self.overlaps[rows])


@dataclass(frozen=True)
class BoxErrors:
    """Errors of single detections, T of them; positive where the detection is larger.

    Attributes:
        centre: float64 [T], metres, distance of the centres seen from above.
        z: float64 [T], metres, signed.
        size: float64 [T, 3], metres, length, width and height, signed.
        heading: float64 [T], radians, in [0, pi].
    """

    centre: Float64Array
    z: Float64Array
    size: Float64Array
    heading: Float64Array

    @property
    def flipped(self) -> BoolArray:
        """Which headings are off by more than 90 degrees: front and back are mistaken for each other."""
        return self.heading > np.pi / 2


@dataclass(frozen=True)
class HeadErrors:
    """A summary of `BoxErrors` over the objects of one type.

    Attributes:
        count: number of detections that found an object.
        overlap: mean 3D IoU.
        centre_mean: metres, from above.
        centre_median: likewise.
        centre_p95: likewise, exceeded by one in twenty.
        z_mean: metres, mean of the absolute error.
        z_bias: metres, mean of the signed error.
        size_mean: metres, length, width and height, means of the absolute errors.
        size_bias: likewise, of the signed errors.
        heading_mean: radians, over all.
        flipped: number of headings that are off by more than 90 degrees.
        heading_mean_unflipped: radians, over the others; None where all are flipped.
    """

    count: int
    overlap: float
    centre_mean: float
    centre_median: float
    centre_p95: float
    z_mean: float
    z_bias: float
    size_mean: tuple[float, float, float]
    size_bias: tuple[float, float, float]
    heading_mean: float
    flipped: int
    heading_mean_unflipped: float | None

    @property
    def flipped_share(self) -> float:
        """Share of the flipped headings."""
        return self.flipped / self.count

    def to_json(self) -> dict[str, Any]:
        """Return plain values, angles in degrees; the names carry the units."""
        unflipped = self.heading_mean_unflipped
        return {
            "true_positives": self.count,
            "iou_mean": self.overlap,
            "centre_bev_m": {"mean": self.centre_mean, "median": self.centre_median, "p95": self.centre_p95},
            "z_m": {"mean_absolute": self.z_mean, "bias": self.z_bias},
            "size_m": {
                name: {"mean_absolute": absolute, "bias": bias}
                for name, absolute, bias in zip(
                    ("length", "width", "height"), self.size_mean, self.size_bias, strict=True
                )
            },
            "heading_deg": {
                "mean": float(np.degrees(self.heading_mean)),
                "flipped": self.flipped,
                "flipped_share": self.flipped_share,
                "mean_without_flipped": None if unflipped is None else float(np.degrees(unflipped)),
            },
        }


def box_errors(pairs: MatchedBoxes) -> BoxErrors:
    """Return the error of each pair, in float64."""
    difference = pairs.detected.astype(np.float64) - pairs.truth.astype(np.float64)
    turn = np.abs(difference[:, 6]) % (2 * np.pi)
    return BoxErrors(
        centre=np.hypot(difference[:, 0], difference[:, 1]),
        z=difference[:, 2],
        size=difference[:, 3:6],
        heading=np.minimum(turn, 2 * np.pi - turn),
    )


def head_errors(pairs: MatchedBoxes) -> HeadErrors | None:
    """Summarise pairs of one type; None where there are none."""
    if len(pairs) == 0:
        return None
    errors = box_errors(pairs)
    upright = errors.heading[~errors.flipped]
    return HeadErrors(
        count=len(pairs),
        overlap=float(pairs.overlaps.mean(dtype=np.float64)),
        centre_mean=float(errors.centre.mean()),
        centre_median=float(np.median(errors.centre)),
        centre_p95=float(np.quantile(errors.centre, 0.95)),
        z_mean=float(np.abs(errors.z).mean()),
        z_bias=float(errors.z.mean()),
        size_mean=_three(np.abs(errors.size).mean(axis=0)),
        size_bias=_three(errors.size.mean(axis=0)),
        heading_mean=float(errors.heading.mean()),
        flipped=int(errors.flipped.sum()),
        heading_mean_unflipped=float(upright.mean()) if len(upright) else None,
    )


def head_errors_by_type(pairs: MatchedBoxes, types: Sequence[ObjectType]) -> dict[ObjectType, HeadErrors]:
    """Summarise each type that was found at all."""
    summaries = {kind: head_errors(pairs.select(pairs.types == kind)) for kind in types}
    return {kind: summary for kind, summary in summaries.items() if summary is not None}


def _three(values: Float64Array) -> tuple[float, float, float]:
    length, width, height = values.tolist()
    return length, width, height
