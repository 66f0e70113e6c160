"""A labelled frame seen from above: points, boxes by type with their ids, and no-label zones."""

import io
import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from detection3d.evaluation.reporting.birdseye_canvas import (
    birdseye_axes,
    draw_boxes,
    draw_points,
    draw_vehicle,
    fitting_reach,
    write_beside,
)
from detection3d.evaluation.reporting.figures import INK
from detection3d.geometry.host.poses import zone_in_vehicle_frame
from detection3d.types.scene import Boxes, Frame, ObjectType

Format = Literal["png", "svg"]

TYPE_COLOURS = {
    ObjectType.UNKNOWN: "#6b7280",
    ObjectType.VEHICLE: "#1d4ed8",
    ObjectType.PEDESTRIAN: "#c2410c",
    ObjectType.SIGN: "#7e22ce",
    ObjectType.CYCLIST: "#047857",
}

_ZONE = "#a21caf"
_INCHES = 10.0
_DOTS_PER_INCH = 130
_SHORTEST_ID, _LONGEST_ID = 4, 8


def frame_picture(
    frame: Frame, *, ground: float = 0.0, reach: float | None = None, kind: Format = "png", inches: float = _INCHES
) -> bytes:
    """Draw a frame from above.

    Boxes without any labelled point are dashed. Points in no-label zones are tinted, and the zones outlined where the
    frame has their polygons.

    Args:
        frame: the frame.
        ground: metres, z of the ground, from which the points' shade counts.
        reach: half the side of the picture, metres; None: what fits.
        kind: of the file.
        inches: side of the picture, at 130 dots to the inch.

    Returns:
        The content of the file.
    """
    labels = frame.labels
    centres = np.zeros((0, 2), np.float32) if labels is None else labels.boxes[:, :2]
    reach = fitting_reach(centres, frame.points) if reach is None else reach
    with birdseye_axes(reach, inches) as (figure, axes):
        draw_points(axes, frame.points, reach, ground, frame.in_no_label_zone)
        _draw_zones(axes, frame)
        draw_vehicle(axes, reach)
        if labels is not None:
            _draw_labels(axes, labels, reach)
        _draw_legend(axes, frame)
        content = io.BytesIO()
        if kind == "png":
            FigureCanvasAgg(figure)
            figure.savefig(content, format="png", dpi=_DOTS_PER_INCH, facecolor="white", metadata={"Software": None})
        else:
            FigureCanvasSVG(figure)
            figure.savefig(content, format="svg", facecolor="white", metadata={"Date": None})
    return content.getvalue()


def short_ids(ids: Sequence[str]) -> list[str]:
    """Shorten ids to what tells them apart within a frame: their beginning, else their end, else all of it.

    A beginning that all of them share, such as the number of the frame, tells nothing and is left out before.
    """
    shared = _shared_beginning(ids) if len(ids) > 1 else 0
    ids = [name[shared if shared >= _SHORTEST_ID else 0 :] or name for name in ids]
    different = len(set(ids))
    for length in range(_SHORTEST_ID, _LONGEST_ID + 1):
        for shortened in ([name[:length] for name in ids], [name[-length:] for name in ids]):
            if len(set(shortened)) == different:
                return shortened
    return ids


def _shared_beginning(ids: Sequence[str]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*ids, strict=False)))


def _draw_labels(axes: Axes, labels: Boxes, reach: float) -> None:
    held = labels.num_points > 0
    for kind, colour in TYPE_COLOURS.items():
        mine = labels.types == kind
        draw_boxes(axes, labels.boxes[mine & held], colour, width=1.1, fill=0.12)
        draw_boxes(axes, labels.boxes[mine & ~held], colour, width=0.8, dashed=True)
    size = 6.5 if len(labels) <= 150 else 5.0
    for box, kind, name in zip(labels.boxes, labels.types, short_ids(labels.ids), strict=True):
        write_beside(axes, box, name, TYPE_COLOURS[ObjectType(kind)], reach, size)


def _draw_zones(axes: Axes, frame: Frame) -> None:
    zones = [zone_in_vehicle_frame(zone, frame.pose)[:, ::-1] for zone in frame.no_label_zones]
    axes.add_collection(
        PolyCollection(zones, facecolors=(_ZONE, 0.06), edgecolors=(_ZONE, 0.6), linewidths=1.0, hatch="//", zorder=3)
    )


def _draw_legend(axes: Axes, frame: Frame) -> None:
    handles: list[Patch | Line2D] = []
    if frame.labels is None:
        handles.append(Line2D([], [], linestyle="none", label="no labels"))
    else:
        counts = {kind: int((frame.labels.types == kind).sum()) for kind in ObjectType}
        handles += [
            Patch(facecolor=(colour, 0.12), edgecolor=colour, label=f"{counts[kind]} {kind.name.lower()}")
            for kind, colour in TYPE_COLOURS.items()
            if counts[kind]
        ]
        empty = int((frame.labels.num_points == 0).sum())
        if empty:
            handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=1, label=f"{empty} without points"))
    if frame.in_no_label_zone.any():
        share = 100 * frame.in_no_label_zone.mean()
        handles.append(
            Line2D([], [], marker="s", color="#d3a9b5", linestyle="none", label=f"no-label zone, {share:.1f} %")
        )
    title = f"{frame.context_name}\n{frame.timestamp_micros} · {len(frame.points):,} points"
    legend = axes.legend(
        handles=handles, title=title, loc="upper left", alignment="left", fontsize=9, framealpha=0.6, edgecolor="none"
    )
    legend.set_zorder(8)
    legend.get_title().set_fontsize(8)
