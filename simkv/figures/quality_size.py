"""The quality-size figure: what quality each compressor keeps at what size, a panel per task, with the Pareto front.

What it is: one line per compressor through its knobs, from the points of ``simkv.profile_statistics``; droppers, coders
and chains are told apart by their dashes and by what fills their markers, and a compressor keeps its colour over all
figures.  What it is not: statistics; it draws the intervals that it is given.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simkv.errors import SimkvError
from simkv.figures.placing import add_better_arrow, annotate_points, ends_first, ink_of
from simkv.figures.style import (
    COLUMN_IN,
    PAGE_IN,
    SeriesStyle,
    legend_above,
    log_x_axis,
    new_figure,
    panel_axes,
    panel_grid,
    series_styles,
    shade,
    styled,
)
from simkv.figures.tables import need_columns
from simkv.profile_statistics import MEAN, family_of
from simkv.profiles import RAW, pareto_front

__all__ = ["quality_size"]

_NEEDED = ("task", "compressor", "knob", "size_ratio", "quality", "low", "high")
_MOST_PANELS = 16
_MOST_NOTES = 10
_FRONT: dict[str, Any] = {"color": "#d2d2d2", "linewidth": 2.6, "solid_capstyle": "butt", "zorder": 1.5}
# Hues of Okabe and Ito and of Paul Tol; a hue is used once among coders and once among droppers.
_LOOKS = {
    "raw": ("#000000", "X"),
    "fp8": ("#7f7f7f", "P"),
    "int8": ("#b07c3a", "D"),
    "kivi": ("#D55E00", "o"),
    "kvcomp": ("#0072B2", "s"),
    "packkv": ("#009E73", "^"),
    "cachegen": ("#CC79A7", "v"),
    "turboquant": ("#56B4E9", "p"),
    "kvquant": ("#332288", "d"),
    "lowrank": ("#999933", "h"),
    "streamingllm": ("#7f7f7f", "v"),
    "knorm": ("#b07c3a", "d"),
    "keydiff": ("#56B4E9", "^"),
    "snapkv": ("#882255", "o"),
    "h2o": ("#D55E00", "s"),
    "pyramidinfer": ("#009E73", "D"),
    "pyramidkv": ("#0072B2", "p"),
    "tova": ("#332288", ">"),
    "chain:snapkv+kivi": ("#44AA99", "*"),
}
_FAMILIES = {"coder": "-", "dropper": (0, (3.5, 1.5)), "chain": (0, (4, 1.2, 1, 1.2))}
_MANY = 8
_CHAIN = "chain:"


@styled
def quality_size(
    points: pd.DataFrame, *, log_x: bool = False, lowest: float | None = None, notes: bool = True
) -> Figure:
    """Mean quality against size ratio, one line with markers per compressor through its knobs; up and left is better.

    Lines of compressors that keep every token are solid, of those that drop tokens dashed with hollow markers, of
    chains of both dash-dotted.  The Pareto front is that of all points of a panel, raw included.

    Args:
        points: as of ``simkv.profile_statistics.quality_points``: task, compressor, knob, size_ratio, quality, low and
            high, the ends of the interval, NaN where there is none.
        log_x: logarithmic size axis.
        lowest: quality at which the axis begins, to tell apart what is nearly as good as raw.
        notes: write compressor and knob beside at most ten points per panel, those of the front first.

    Raises:
        SimkvError: missing columns, no points or none from ``lowest`` up, more than sixteen panels.
    """
    need_columns(points, _NEEDED, "quality points")
    panels = [(task, group) for task, group in points.groupby("task", sort=False)]
    if len(panels) > _MOST_PANELS:
        raise SimkvError(f"quality points: {len(panels)} tasks, more than {_MOST_PANELS} panels; pass fewer rows")
    styles = _styles(points["compressor"])
    rows, columns = panel_grid(len(panels))
    wide = columns > 1 or len(styles) > _MANY
    figure = new_figure(PAGE_IN if wide else COLUMN_IN, 0.3 + (2.7 if len(styles) > _MANY else 2.2) * rows)
    titles = [f"mean of {len(panels) - 1} tasks" if task == MEAN else str(task) for task, _ in panels]
    grid = panel_axes(figure, titles, "Size ratio (stored / raw)", "Quality (raw = 1)")
    handles: dict[str, object] = {}
    for axes, (_, group) in zip(grid, panels, strict=True):
        _draw_panel(axes, group, styles, handles)
    _set_limits(grid[0], points, log_x, lowest)
    order = [*styles, *(name for name in handles if name not in styles)]
    legend_above(figure, [handles[name] for name in order], order)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, (_, group) in zip(grid, panels, strict=True):
        _add_notes(axes, group, styles, notes)
    return figure


def _styles(names: pd.Series) -> dict[str, SeriesStyle]:
    """Raw first, then coders, droppers and chains, each in order of appearance."""
    names = list(dict.fromkeys(names))
    order = [name for name in names if name == str(RAW)]
    order += [name for family in _FAMILIES for name in names if name != str(RAW) and family_of(name) == family]
    others = series_styles(name for name in order if name not in _LOOKS)
    styles = {}
    for name in order:
        colour, marker = _LOOKS.get(name) or (others[name].color, others[name].marker)
        styles[name] = SeriesStyle(colour, marker, _FAMILIES[family_of(name)])
    return styles


def _line(name: str, style: SeriesStyle) -> dict[str, Any]:
    """Keywords of ``Axes.plot``; markers of droppers are hollow."""
    look = style.line() | {"linewidth": 1.0, "markersize": 0.85 * style.line()["markersize"]}
    if family_of(name) == "dropper":
        look |= {"markerfacecolor": "white", "markeredgecolor": style.color, "markeredgewidth": 0.8}
    return look


def _draw_panel(axes: Axes, group: pd.DataFrame, styles: dict[str, SeriesStyle], handles: dict[str, object]) -> None:
    cloud = group[["size_ratio", "quality"]].to_numpy(dtype=float)
    front = cloud[pareto_front(cloud)]
    if len(front) > 1:
        (handles["Pareto front"],) = axes.plot(front[:, 0], front[:, 1], drawstyle="steps-post", **_FRONT)
    for name, rows in group.groupby("compressor", sort=False):
        rows = rows.sort_values(["size_ratio", "quality"])
        style = styles[str(name)]
        ends = np.array([rows["quality"] - rows["low"], rows["high"] - rows["quality"]], dtype=float)
        axes.errorbar(
            rows["size_ratio"],
            rows["quality"],
            yerr=np.clip(ends, 0, None),
            fmt="none",
            ecolor=style.color,
            elinewidth=0.7,
            alpha=0.6,
            zorder=2,
        )
        (line,) = axes.plot(rows["size_ratio"], rows["quality"], **_line(str(name), style), label=str(name), zorder=3)
        handles.setdefault(str(name), line)


def _set_limits(axes: Axes, points: pd.DataFrame, log_x: bool, lowest: float | None) -> None:
    shown = points if lowest is None else points[points["quality"] >= lowest]
    if shown.empty:
        raise SimkvError(f"quality points: none has a quality of {lowest:g} or more")
    low = float(np.nanmin(shown[["quality", "low"]].to_numpy(dtype=float))) if lowest is None else lowest
    high = float(np.nanmax(shown[["quality", "high"]].to_numpy(dtype=float)))
    pad = 0.05 * (high - low) or 0.05
    axes.set_ylim(low - (pad if lowest is None else 0.0), high + pad)
    smallest = float(shown["size_ratio"].min())
    if log_x:
        log_x_axis(axes, smallest / 1.2, 1.2)
        axes.set_xlim(smallest / 1.2, 1.2)
    else:
        axes.set_xlim(0.0, 1.04)


def _add_notes(axes: Axes, group: pd.DataFrame, styles: dict[str, SeriesStyle], notes: bool) -> None:
    ink = ink_of(axes)
    boxes = [add_better_arrow(axes, ink)]
    if not notes:
        return
    group = group[group["quality"] >= axes.get_ylim()[0]]
    left = _MOST_NOTES
    for index in _notable(group):
        row = group.loc[index]
        if left and row["knob"]:
            text = f"{row['compressor'].removeprefix(_CHAIN)} {row['knob']}"
            colour = shade(styles[row["compressor"]].color, 0.2)
            left -= annotate_points(axes, [(row["size_ratio"], row["quality"], text, colour)], ink, boxes)


def _notable(group: pd.DataFrame) -> list[int]:
    """Index labels of the points worth a note: the front's, then the ends of every compressor's line."""
    cloud = group[["size_ratio", "quality"]].to_numpy(dtype=float)
    found = [group.index[index] for index in pareto_front(cloud)]
    for _, rows in group.groupby("compressor", sort=False):
        rows = rows.sort_values(["size_ratio", "quality"])
        found += [rows.index[index] for index in ends_first(len(rows))[:2]]
    return list(dict.fromkeys(found))
