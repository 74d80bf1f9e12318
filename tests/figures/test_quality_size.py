"""The quality-size figure: what is drawn is what the points say."""

# matplotlib types what artists hand back as unions of everything.
# mypy: disable-error-code="arg-type, index, misc, union-attr, attr-defined"

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from simkv.errors import SimkvError
from simkv.figures import save_figure
from simkv.figures.quality_size import quality_size
from simkv.profile_statistics import MEAN, quality_points
from simkv.profiles import load_profile


def point(task: str, compressor: str, knob: str, size: float, quality: float, **ends: float) -> dict[str, Any]:
    """One row of points with an interval of 0.02 to either side."""
    row = {"task": task, "compressor": compressor, "knob": knob, "size_ratio": size, "quality": quality}
    return {**row, "low": quality - 0.02, "high": quality + 0.02, **ends}


def two_tasks() -> pd.DataFrame:
    """Raw, a coder, a dropper and a chain on two tasks and their mean; rows are not ordered by size."""
    rows = []
    for task, less in (("qa", 0.0), ("code", 0.1), (MEAN, 0.05)):
        rows += [
            point(task, "raw", "", 1.0, 1.0),
            point(task, "kivi", "4", 0.3, 0.95 - less),
            point(task, "kivi", "2", 0.2, 0.8 - less),
            point(task, "snapkv", "0.5", 0.5, 0.7 - less),
            point(task, "snapkv", "0.25", 0.25, 0.4 - less),
            point(task, "chain:snapkv+kivi", "0.5+4", 0.1, 0.25 - less),
        ]
    return pd.DataFrame(rows)


def many(compressors: int) -> pd.DataFrame:
    """Four knobs of every compressor on three tasks, spread evenly over the plane."""
    spread = np.random.default_rng(1)
    return pd.DataFrame(
        [
            point(f"task {task}", f"method-{n}", str(knob), 0.05 + 0.9 * spread.random(), spread.random())
            for task in range(3)
            for n in range(compressors)
            for knob in range(4)
        ]
    )


def line(axes: Axes, label: str) -> Line2D:
    """The line of a compressor."""
    (found,) = [line for line in axes.lines if line.get_label() == label]
    return found


def drawn(found: Line2D) -> list[tuple[float, float]]:
    """The points of a line."""
    return [(float(x), float(y)) for x, y in zip(*found.get_data(orig=True), strict=True)]


def notes(axes: Axes) -> list[str]:
    """Texts written beside points."""
    return [text.get_text() for text in axes.texts if text.get_text() != "better"]


def test_a_panel_per_task_with_a_line_per_compressor() -> None:
    """Lines run through their knobs by size; the mean has a panel that says of how many tasks."""
    figure = quality_size(two_tasks())
    assert ["qa", "code", "mean of 2 tasks"] == [axes.get_title() for axes in figure.axes]
    assert [(0.2, 0.8), (0.3, 0.95)] == drawn(line(figure.axes[0], "kivi"))
    assert pytest.approx([0.3, 0.6]) == [y for _, y in drawn(line(figure.axes[1], "snapkv"))]
    assert [(1.0, 1.0)] == drawn(line(figure.axes[2], "raw"))


def test_legend_goes_by_family() -> None:
    """Raw, coders, droppers, chains and the front, whatever the order of the rows."""
    figure = quality_size(two_tasks().iloc[::-1])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ["raw", "kivi", "snapkv", "chain:snapkv+kivi", "Pareto front"] == labels


def test_families_are_told_apart_by_dashes_and_filling() -> None:
    """Three dash patterns; markers of droppers are hollow; a compressor's look depends on nothing but its name."""
    axes = quality_size(two_tasks()).axes[0]
    coder, dropper, chain = (line(axes, name) for name in ("kivi", "snapkv", "chain:snapkv+kivi"))
    assert 3 == len({str(found._dash_pattern) for found in (coder, dropper, chain)})
    assert to_rgb("white") == to_rgb(dropper.get_markerfacecolor())
    assert to_rgb("white") != to_rgb(coder.get_markerfacecolor())
    alone = line(quality_size(two_tasks().query("compressor == 'snapkv'")).axes[0], "snapkv")
    assert (dropper.get_color(), dropper.get_marker()) == (alone.get_color(), alone.get_marker())


def test_the_front_is_that_of_all_points_of_the_panel() -> None:
    """Steps through what nothing beats: the chain, both kivi and raw, but not snapkv."""
    axes = quality_size(two_tasks()).axes[0]
    (front,) = [found for found in axes.lines if found.get_drawstyle() == "steps-post"]
    assert [(0.1, 0.25), (0.2, 0.8), (0.3, 0.95), (1.0, 1.0)] == drawn(front)


def test_bars_are_the_intervals() -> None:
    """Each bar runs from low to high; NaN ends draw none."""
    rows = [point("qa", "kivi", "2", 0.2, 0.8, low=0.7, high=0.85), point("qa", "kivi", "4", 0.3, 0.9)]
    rows[1] |= {"low": np.nan, "high": np.nan}
    axes = quality_size(pd.DataFrame(rows)).axes[0]
    bars = [path.vertices for group in axes.collections for path in group.get_paths()]
    (bar,) = [vertices for vertices in bars if np.isfinite(vertices).all()]
    np.testing.assert_allclose([[0.2, 0.7], [0.2, 0.85]], bar)


def test_front_and_ends_are_named_beside_their_points() -> None:
    """Compressor and knob; raw has no knob and no note."""
    points = two_tasks().query("task == 'qa'")
    axes = quality_size(points).axes[0]
    assert {"snapkv+kivi 0.5+4", "kivi 2", "kivi 4", "snapkv 0.25", "snapkv 0.5"} == set(notes(axes))
    assert [] == notes(quality_size(points, notes=False).axes[0])


def test_many_compressors_stay_legible() -> None:
    """Twenty compressors: each its own look, at most ten notes per panel, none over another or outside."""
    figure = quality_size(many(20))
    lines = [line(figure.axes[0], f"method-{n}") for n in range(20)]
    looks = {(str(found.get_color()), str(found.get_marker()), str(found.get_linestyle())) for found in lines}
    assert 20 == len(looks)
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text() != "better"]
        assert len(boxes) <= 10
        assert not [1 for n, box in enumerate(boxes) for other in boxes[:n] if box.overlaps(other)]
        assert all(axes.get_window_extent().padded(1).contains(*corner) for box in boxes for corner in box.corners())


def test_axes_and_their_range() -> None:
    """Size from 0 to raw, logarithmic on request; quality from where it is asked to begin."""
    axes = quality_size(two_tasks()).axes[0]
    assert ("linear", (0.0, 1.04)) == (axes.get_xscale(), axes.get_xlim())
    axes = quality_size(two_tasks(), log_x=True, lowest=0.6).axes[0]
    assert ("log", 0.6) == (axes.get_xscale(), axes.get_ylim()[0])
    assert {"kivi 2", "kivi 4", "snapkv 0.5"} == set(notes(axes))


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (two_tasks().drop(columns="low"), {}, "missing column low"),
        (two_tasks().iloc[:0], {}, "no rows"),
        (two_tasks(), {"lowest": 1.2}, "none has a quality of 1.2 or more"),
        (pd.concat([two_tasks().assign(task=f"t{n}") for n in range(17)]), {}, "17 tasks, more than 16 panels"),
    ],
)
def test_points_that_cannot_be_drawn_are_refused(points: pd.DataFrame, options: dict[str, float], message: str) -> None:
    """The message says what is missing or too much, on one line."""
    with pytest.raises(SimkvError, match=message) as caught:
        quality_size(points, **options)
    assert "\n" not in str(caught.value)


def test_a_published_profile_can_be_drawn() -> None:
    """Points without intervals fill six tasks and their mean."""
    figure = quality_size(quality_points(load_profile("adaptcache-a100-1gbps")), notes=False)
    assert "mean of 6 tasks" == figure.axes[6].get_title()


def test_equal_points_give_equal_bytes(tmp_path: Path) -> None:
    """Drawing and saving twice gives the same file."""
    points = two_tasks().query("task == 'qa'")
    first, second = (save_figure(quality_size(points), tmp_path / f"{n}.png").read_bytes() for n in "ab")
    assert first == second
