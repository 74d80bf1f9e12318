"""Puts small text into a panel where nothing else is: knob values beside points, the "better" arrow in a free corner.

What it is: a greedy search over a few positions in pixels, after the panel's limits are final.
What it is not: a layout optimiser; a text that fits nowhere is left out.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from simkv.figures.style import FAINT

__all__ = ["add_better_arrow", "annotate_points", "ends_first", "ink_of"]

_STEP_PX = 2.0
_GAP_PT = 3.2
_ARROW_PT = 15.0
_CORNERS = ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1.0, 1.0))
_SIDES = ((-1, 1), (1, -1), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1))


def ink_of(axes: Axes) -> NDArray[np.float64]:
    """Pixel positions [n, 2], two pixels apart, along all lines and error bars of a panel."""
    inside = axes.get_window_extent()
    curves = [line.get_path().vertices for line in axes.lines]
    curves += [path.vertices for bars in axes.collections for path in bars.get_paths()]
    pieces = [np.empty((0, 2))]
    for curve in curves:
        corners = axes.transData.transform(np.asarray(curve, dtype=float))
        corners = np.clip(corners[np.isfinite(corners).all(axis=1)], inside.min, inside.max)
        pieces.append(corners)
        for start, end in itertools.pairwise(corners):
            steps = max(2, int(np.hypot(*(end - start)) / _STEP_PX))
            pieces.append(start + (end - start) * np.linspace(0, 1, steps)[:, None])
    return np.concatenate(pieces)


def ends_first(count: int) -> list[int]:
    """0 .. count - 1 in the order in which to label points of a curve: both ends, then ever finer between them."""
    order = [0, count - 1] if count > 1 else list(range(count))
    while len(order) < count:
        gaps = itertools.pairwise(sorted(order))
        order.append(max((right - left, (left + right) // 2) for left, right in gaps)[1])
    return order


def annotate_points(
    axes: Axes, texts: Sequence[tuple[float, float, str, Any]], ink: NDArray[np.float64], boxes: list[Bbox]
) -> int:
    """Write each (x, y, text, colour) beside its point where it covers neither ``ink`` nor ``boxes`` (pixels).

    Earlier texts have first choice; placed ones are appended to ``boxes``.  Returns how many were placed.
    """
    pixels_per_point = axes.figure.dpi / 72
    inside = axes.get_window_extent()
    placed = 0
    for x, y, text, colour in texts:
        note = axes.annotate(
            text, (x, y), (0, 0), textcoords="offset points", ha="center", va="center", fontsize=6, color=colour
        )
        note.set_in_layout(False)
        size = note.get_window_extent()
        reach = np.array([size.width, size.height]) / 2 + np.array([1.0, 0.4]) * _GAP_PT * pixels_per_point
        at = axes.transData.transform((x, y))
        for side in _SIDES:
            offset = reach * side if 0 in side else reach * side - np.array(side) * (1.0, -0.6) * pixels_per_point
            centre = at + offset
            box = Bbox.from_bounds(centre[0] - size.width / 2, centre[1] - size.height / 2, size.width, size.height)
            if _free(box, inside, ink, boxes):
                note.set_position(tuple(offset / pixels_per_point))
                boxes.append(box)
                placed += 1
                break
        else:
            note.remove()
    return placed


def add_better_arrow(axes: Axes, ink: NDArray[np.float64]) -> Bbox:
    """Draw an arrow to the upper left, marked "better", in the emptiest corner; returns its box (pixels)."""
    pixels_per_point = axes.figure.dpi / 72
    inside = axes.get_window_extent()
    width, height = 3.0 * _ARROW_PT * pixels_per_point, 1.5 * _ARROW_PT * pixels_per_point

    def corner_box(corner: tuple[float, float]) -> Bbox:
        left = inside.x0 + corner[0] * (inside.width - width)
        bottom = inside.y0 + corner[1] * (inside.height - height)
        return Bbox.from_bounds(left, bottom, width, height)

    box = min((corner_box(corner) for corner in _CORNERS), key=lambda candidate: _covered(candidate, ink))
    head = axes.transAxes.inverted().transform((box.x0 + 3 * pixels_per_point, box.y1 - 3 * pixels_per_point))
    arrow = axes.annotate(
        "better",
        xy=tuple(head),
        xycoords="axes fraction",
        xytext=(_ARROW_PT, -_ARROW_PT),
        textcoords="offset points",
        ha="left",
        va="center",
        fontsize=7,
        color=FAINT,
        arrowprops={"arrowstyle": "-|>", "color": FAINT, "lw": 1.0, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)},
    )
    arrow.set_in_layout(False)
    return box


def _covered(box: Bbox, ink: NDArray[np.float64]) -> int:
    x, y = ink[:, 0], ink[:, 1]
    return int(((x > box.x0) & (x < box.x1) & (y > box.y0) & (y < box.y1)).sum())


def _free(box: Bbox, inside: Bbox, ink: NDArray[np.float64], boxes: Sequence[Bbox]) -> bool:
    within = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
    return within and not _covered(box, ink) and not any(box.overlaps(other) for other in boxes)
