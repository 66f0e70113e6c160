"""Pictures of the tasks' conflict while training: the purity over the steps, and where it lies seen from above."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from detection3d.evaluation.reporting.figures import INK, MUTED, chart_style, to_svg
from detection3d.types.scene import Float32Array, Float64Array, UInt8Array

_CONFLICT_COLOURS = "plasma"
_MASS_COLOURS = "Blues"
_SMALLEST_SHARE = 1e-5  # shares of positions below this look like none
_IMAGE_PIXELS = 384  # least side of a picture for TensorBoard


@dataclass(frozen=True)
class PurityHistory:
    """How pure the sign of the tasks' gradients was, step by step.

    Attributes:
        steps: [T], ascending.
        shares: float64 [T, bins + 2], shares of the positions with a gradient: purity 0, equal bins between, purity 1.
    """

    steps: Sequence[int]
    shares: Float64Array


@dataclass(frozen=True)
class ConflictView:
    """Where the tasks conflict, in the vehicle frame.

    Attributes:
        step: when it was measured.
        mass: float32 [H, W], sum of the tasks' absolute gradients at each cell; H along y, W along x.
        cancelled: float32 [H, W], the part of it that the plain sum of the tasks loses.
        extent: (x from, y from, x to, y to) of the map, metres.
    """

    step: int
    mass: Float32Array
    cancelled: Float32Array
    extent: tuple[float, float, float, float]

    @property
    def share(self) -> Float32Array:
        """The part of each cell's mass that cancels, [H, W] in [0, 1]; 0 where there is no mass or it overflowed."""
        share = np.zeros_like(self.mass)
        np.divide(self.cancelled, self.mass, out=share, where=np.isfinite(self.mass) & (self.mass > 0))
        return share

    @property
    def total_share(self) -> float:
        """The part of the whole mass that cancels."""
        mass = float(self.mass.sum(dtype=np.float64))
        return float(self.cancelled.sum(dtype=np.float64)) / mass if mass else 0.0


def purity_figure(history: PurityHistory) -> str:
    """Draw shares of positions by step and purity, as colours on a log scale; returns SVG.

    The pure signs stand apart, below and above the bins of what is in conflict.
    """
    shares = np.asarray(history.shares, np.float64)
    inner = shares.shape[1] - 2
    height, gap = 0.06, 0.025
    edges = np.concatenate([[-gap - height, -gap], np.linspace(0, 1, inner + 1), [1 + gap, 1 + gap + height]])
    rows = np.full((len(edges) - 1, len(shares)), np.nan)
    rows[0], rows[2:-2], rows[-1] = shares[:, 0], shares[:, 1:-1].T, shares[:, -1]
    seen = shares[shares >= _SMALLEST_SHARE]
    least, most = (float(seen.min()), float(seen.max())) if len(seen) else (_SMALLEST_SHARE, 1.0)
    with chart_style():
        figure = Figure(figsize=(4.4, 3.2), layout="constrained")
        axes = figure.add_subplot()
        mesh = axes.pcolormesh(
            _step_edges(history.steps),
            edges,
            np.where(rows >= _SMALLEST_SHARE, rows, np.nan),
            norm=LogNorm(least, max(most, 2 * least)),
            cmap="viridis",
            rasterized=True,  # a rectangle for each value would make the report ten times as large
        )
        ticks = [edges[0] + height / 2, 0.25, 0.5, 0.75, edges[-1] - height / 2]
        axes.set(xlabel="step", ylabel="purity", yticks=ticks, yticklabels=["0", "¼", "½", "¾", "1"])
        axes.grid(visible=False)
        figure.colorbar(mesh, ax=axes, label="share of the positions", pad=0.02)
        return to_svg(figure)


def conflict_figure(view: ConflictView) -> str:
    """Draw the share of gradient that cancels at each cell, paler where there is little of it; returns SVG."""
    return _map_figure(view, view.share, Normalize(0, 1), _CONFLICT_COLOURS, "part that cancels", _weight(view.mass))


def mass_figure(view: ConflictView) -> str:
    """Draw the mass of gradient at each cell on a log scale; returns SVG."""
    strong = _strong(view.mass)
    mass = np.where(np.isfinite(view.mass) & (view.mass > 0), view.mass, np.nan)
    return _map_figure(view, mass, LogNorm(strong * 1e-4, strong), _MASS_COLOURS, "sum |g|", np.ones_like(view.mass))


def conflict_image(view: ConflictView) -> UInt8Array:
    """Return the colours of `conflict_figure` on white, uint8 [rows, columns, 3]; forward is up, left is left."""
    colours = matplotlib.colormaps[_CONFLICT_COLOURS](np.nan_to_num(view.share))[..., :3]
    weight = _weight(view.mass)[..., None]
    image = np.round(255 * (weight * colours + 1 - weight)).astype(np.uint8)
    image = image.swapaxes(0, 1)[::-1, ::-1]
    times = max(1, -(-_IMAGE_PIXELS // min(image.shape[:2])))
    return np.ascontiguousarray(image.repeat(times, 0).repeat(times, 1))


def _map_figure(
    view: ConflictView, values: np.ndarray, norm: Normalize, colours: str, label: str, weight: Float32Array
) -> str:
    """Draw values [H, W] with the vehicle where it stands, x forward and up, y to the left."""
    x_from, y_from, x_to, y_to = view.extent
    with chart_style():
        figure = Figure(figsize=(6.4, 5.4), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(
            values.T,
            extent=(y_from, y_to, x_from, x_to),
            origin="lower",
            norm=norm,
            cmap=colours,
            alpha=weight.T,
            interpolation="nearest",
            aspect="equal",
        )
        axes.invert_xaxis()
        _draw_vehicle(axes)
        axes.set(xlabel="y, to the left (m)", ylabel="x, forward (m)")
        axes.grid(visible=False)
        colours_of_scale = ScalarMappable(norm, image.get_cmap())  # without the picture's transparency
        figure.colorbar(colours_of_scale, ax=axes, label=label, shrink=0.85, pad=0.02)
        return to_svg(figure)


def _draw_vehicle(axes: Axes) -> None:
    axes.plot(0, 0, marker="^", markersize=8, color=INK, markeredgecolor="white", markeredgewidth=0.9)
    axes.axhline(0, color=MUTED, linewidth=0.4, zorder=0)
    axes.axvline(0, color=MUTED, linewidth=0.4, zorder=0)


def _weight(mass: Float32Array) -> Float32Array:
    """Return how visible each cell is, from 0 to 1 with the root of its mass; 0 where it is not finite."""
    relative = np.where(np.isfinite(mass), mass, 0) / _strong(mass)
    return np.sqrt(relative.clip(0, 1)).astype(np.float32)


def _strong(mass: Float32Array) -> float:
    """Return the mass that only one cell in a hundred of those with any exceeds; 1 where no cell has any."""
    some = mass[np.isfinite(mass) & (mass > 0)]
    return float(np.quantile(some, 0.99)) if len(some) else 1.0


def _step_edges(steps: Sequence[int]) -> Float64Array:
    """Return the edges of columns around the steps, half-way between neighbours."""
    values = np.asarray(steps, np.float64)
    middle = (values[1:] + values[:-1]) / 2
    first, last = (middle[0] - values[0], values[-1] - middle[-1]) if len(middle) else (0.5, 0.5)
    return np.concatenate([[values[0] - first], middle, [values[-1] + last]])
