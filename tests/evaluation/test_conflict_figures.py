"""The pictures of the tasks' conflict: what lies where, and that odd values neither break nor colour them."""

import base64
import io
import re

import matplotlib.image
import numpy as np
import pytest

from detection3d.evaluation import evaluate
from detection3d.evaluation.reporting.conflict_figures import (
    ConflictView,
    PurityHistory,
    conflict_figure,
    conflict_image,
    mass_figure,
    purity_figure,
)
from detection3d.evaluation.reporting.report import Curve, write_report

EXTENT = (-20.0, -10.0, 20.0, 10.0)  # x and y from, x and y to


def view(mass: np.ndarray, share: float = 0.5) -> ConflictView:
    mass = mass.astype(np.float32)
    return ConflictView(1200, mass, np.float32(share) * mass, EXTENT)


def one_cell(row: int, column: int) -> np.ndarray:
    """A map of 10 rows along y and 20 columns along x, 2 m each, with gradient in one cell."""
    mass = np.zeros((10, 20))
    mass[row, column] = 3.0
    return mass


def embedded_images(svg: str) -> list[np.ndarray]:
    """The pixels in an SVG as they are seen, float [rows, columns, RGBA], in the order of the file."""
    found = re.findall(r'<image xlink:href="data:image/png;base64,([^"]+)"[^>]*transform="scale\(1 -1\)', svg)
    assert len(found) == svg.count("<image"), "all are stored upside down"
    return [matplotlib.image.imread(io.BytesIO(base64.b64decode(text)), format="png")[::-1] for text in found]


def largest(svg: str) -> np.ndarray:
    return max(embedded_images(svg), key=lambda image: image.shape[0] * image.shape[1])


def centre(visible: np.ndarray) -> tuple[float, float]:
    """Where the visible pixels lie, as parts of the picture's height and width, from its top left."""
    rows, columns = np.nonzero(visible)
    return float((rows.mean() + 0.5) / visible.shape[0]), float((columns.mean() + 0.5) / visible.shape[1])


# x = 15 m forward is 1/8 from the top; y = 7 m to the left is 0.15 from the left edge.
@pytest.mark.parametrize(("row", "column", "place"), [(8, 17, (0.125, 0.15)), (1, 0, (0.975, 0.85))])
def test_forward_is_up_and_left_is_left(row: int, column: int, place: tuple[float, float]) -> None:
    image = conflict_image(view(one_cell(row, column)))
    assert image.shape[0] == 2 * image.shape[1]
    assert min(image.shape[:2]) >= 384
    assert centre((image < 250).any(2)) == pytest.approx(place, abs=0.01)
    for draw in (conflict_figure, mass_figure):
        assert centre(largest(draw(view(one_cell(row, column))))[..., 3] > 0.5) == pytest.approx(place, abs=0.02)


def test_the_share_is_the_colour_and_the_mass_how_clear_it_is() -> None:
    mass = np.ones((10, 20))
    mass[:, 10:] = 1 / 16
    mass[0] = 0
    halves = ConflictView(1, np.float32(mass), np.float32(mass * np.linspace(0, 1, 10)[:, None]), EXTENT)
    image = conflict_image(halves)[:: 384 // 10 + 1, :: 384 // 10 + 1].astype(int)  # a pixel for each cell
    back, front = image[12, :-1], image[3, :-1]  # y from left to right, columns beyond the empty one
    assert (image[:, -1] == 255).all()  # no gradient, no colour
    assert len(np.unique(back, axis=0)) == len(back)
    np.testing.assert_allclose(255 - front, (255 - back) / 4, atol=2)  # a sixteenth of the mass, a quarter as clear
    np.testing.assert_allclose(halves.share[:, 0], [0, *np.linspace(0, 1, 10)[1:]], rtol=1e-6)
    assert halves.total_share == pytest.approx(halves.cancelled.sum() / mass.sum(), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_maps_of_nothing_and_of_overflows_are_white(value: float) -> None:
    empty = view(np.full((4, 6), value))
    assert (conflict_image(empty) == 255).all()
    for draw in (conflict_figure, mass_figure):
        assert largest(draw(empty))[..., 3].max() == 0


def test_purity_lies_on_its_own_height() -> None:
    shares = np.zeros((3, 22))
    shares[0, 0] = shares[1, 21] = 1.0  # pure -, then pure +, then a little under the middle
    shares[2, 9] = 1.0
    visible = largest(purity_figure(PurityHistory([10, 20, 30], shares)))[..., 3] > 0.5
    width = visible.shape[1]
    for step, height in enumerate((0.97, 0.03, 1 - (0.085 + 0.425) / 1.17)):
        third = visible[:, step * width // 3 + 2 : (step + 1) * width // 3 - 2]
        assert centre(third)[0] == pytest.approx(height, abs=0.02)


@pytest.mark.parametrize("shares", [np.zeros((1, 22)), np.full((2, 22), 1 / 22), np.full((2, 22), np.nan)])
def test_purity_of_one_step_of_nothing_and_of_equal_shares(shares: np.ndarray) -> None:
    assert purity_figure(PurityHistory(list(range(len(shares))), shares)).startswith("<?xml")


def test_the_report_shows_charts_and_maps(tmp_path) -> None:
    history = PurityHistory([10, 20], np.full((2, 22), 1 / 22))
    curve = Curve("Losses", "step", "loss", {"box": ([10, 20], [2.0, 1.0])})
    path = tmp_path / "report.html"
    write_report(path, evaluate([], []), [], "Title", {}, [curve, history], view(one_cell(3, 4), 0.25))
    text = path.read_text(encoding="utf-8")
    images = re.findall(r'alt="([^"]+)"', text)
    assert [image.split(":")[0].split(" of")[0] for image in images] == [
        "Losses",
        "Purity",
        "Map seen from above",
        "Map seen from above",
    ]
    assert "Conflict of the tasks from above" in text
    assert "step 1,200, over all samples and channels: 25.0 % of all gradient cancels" in text
    write_report(path, evaluate([], []), [], "Title", {}, [curve])
    assert "Conflict of the tasks" not in path.read_text(encoding="utf-8")
