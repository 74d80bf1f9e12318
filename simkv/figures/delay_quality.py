"""The delay-quality figure: what time to first token each policy buys at what quality, with the Pareto front.

What it is: one line per policy label through its parameter settings, from a sweep's summary table.
What it is not: a comparison across systems; grid factors that vary become panels of their own.
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
    FAINT,
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
from simkv.figures.tables import average_seeds, interval_columns, interval_note, knob_texts, panel_groups
from simkv.profiles import pareto_front
from simkv.resampling import Resampled

__all__ = ["delay_quality"]

_DELAY, _QUALITY = "ttft_mean_s", "quality_mean"
_MOST_NOTES = 12
_BOUND = "bound"
_UNATTAINABLE = (_BOUND, "clairvoyant")
_MOST_PANELS = 12
_LIMIT: dict[str, Any] = {"linestyle": (0, (1, 1)), "linewidth": 1.6, "zorder": 2.5}
_FRONT: dict[str, Any] = {"color": "#d2d2d2", "linewidth": 2.6, "solid_capstyle": "butt", "zorder": 1.5}


@styled
def delay_quality(
    table: pd.DataFrame, *, log_x: bool = False, notes: bool = True, resampled: Resampled | None = None
) -> Figure:
    """Mean TTFT (s) against mean quality, one line with markers per label; up and left is better.

    The Pareto front is that of all points of a panel but bounds and clairvoyant policies, which nobody can attain.
    A bound (policy "bound") is a plain line through the corners of its curve; it does not widen the axes beyond the
    quality that the policies span.

    Args:
        table: summary rows; needs label, ttft_mean_s, quality_mean; uses params, seed and the interval columns.
            Rows that differ in nothing but the seed become one point with the interval of ``average_seeds``.
        log_x: logarithmic delay axis.
        notes: write the knob value beside at most twelve points per panel, where there is room.
        resampled: ttft_mean_s and quality_mean of the runs with several seeds, for their intervals.

    Raises:
        SimkvError: missing columns, no finite points, more than twelve panels.
    """
    points = average_seeds(table, [_DELAY, _QUALITY], resampled)
    points["knob"] = knob_texts(points)
    panels = panel_groups(points, _MOST_PANELS)
    rows, columns = panel_grid(len(panels))
    wide = columns > 1 or points["label"].nunique() > 12
    figure = new_figure(PAGE_IN if wide else COLUMN_IN, 0.3 + 2.2 * rows)
    styles = series_styles(dict.fromkeys(points["label"]))
    grid = panel_axes(figure, [title for title, _ in panels], "Mean TTFT (s)", "Quality")
    handles: dict[str, object] = {}
    for axes, (_, group) in zip(grid, panels, strict=True):
        _draw_panel(axes, group, styles, handles)
    _set_limits(grid[0], _seen(points), log_x)
    order = [*styles, *(name for name in handles if name not in styles)]
    cross = grid[0].errorbar([], [], xerr=[], yerr=[], fmt="none", ecolor=FAINT, elinewidth=0.7)
    text = interval_note(points)
    legend_above(figure, [handles[name] for name in order], order, (cross, text) if text else None)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, (_, group) in zip(grid, panels, strict=True):
        _add_notes(axes, group, styles, notes)
    return figure


def _seen(points: pd.DataFrame) -> pd.DataFrame:
    """The points that the axes must show: all but corners of bounds outside the policies' range of quality."""
    limits = points["policy"] == _BOUND
    if limits.all():
        return points
    spanned = points.loc[~limits, _QUALITY]
    return points[~limits | points[_QUALITY].between(spanned.min(), spanned.max())]


def _draw_panel(axes: Axes, group: pd.DataFrame, styles: dict[str, SeriesStyle], handles: dict[str, object]) -> None:
    cloud = group.loc[~group["policy"].isin(_UNATTAINABLE), [_DELAY, _QUALITY]].to_numpy(dtype=float)
    front = cloud[pareto_front(cloud)]
    if len(front) > 1:
        (handles["Pareto front"],) = axes.plot(front[:, 0], front[:, 1], drawstyle="steps-post", **_FRONT)
    for label, points in group.groupby("label", sort=False):
        points = points.sort_values([_DELAY, _QUALITY])
        style = styles[str(label)]
        if (points["policy"] == _BOUND).all():
            (line,) = axes.plot(points[_DELAY], points[_QUALITY], color=style.color, label=str(label), **_LIMIT)
            handles.setdefault(str(label), line)
            continue
        axes.errorbar(
            points[_DELAY],
            points[_QUALITY],
            xerr=_errors(points, _DELAY),
            yerr=_errors(points, _QUALITY),
            fmt="none",
            ecolor=style.color,
            elinewidth=0.7,
            alpha=0.6,
            zorder=2,
        )
        look = style.line() if len(points) > 1 else style.line() | {"linestyle": "none"}
        (line,) = axes.plot(points[_DELAY], points[_QUALITY], **look, label=str(label), zorder=3)
        handles.setdefault(str(label), line)


def _errors(points: pd.DataFrame, metric: str) -> np.ndarray:
    """Distances [2, n] from the mean to both ends of its interval; NaN draws nothing."""
    low, high = interval_columns(metric)
    return np.clip(np.array([points[metric] - points[low], points[high] - points[metric]], dtype=float), 0, None)


def _set_limits(axes: Axes, points: pd.DataFrame, log_x: bool) -> None:
    x = points[_DELAY].to_numpy(dtype=float)
    if log_x and x.min() <= 0:
        raise SimkvError(f"{_DELAY}: a logarithmic axis needs positive values, found {x.min():g}")
    low, high = _reach(points, _QUALITY)
    pad = 0.06 * (high - low) or 0.05
    axes.set_ylim(low - pad, high + pad)
    if log_x:
        log_x_axis(axes, x.min() / 1.25, x.max() * 1.25)
        axes.set_xlim(x.min() / 1.25, x.max() * 1.25)
        return
    low, high = _reach(points, _DELAY)
    pad = 0.06 * (high - low) or 0.1 * high or 0.1
    axes.set_xlim(0.0 if low < 0.4 * high else low - pad, high + pad)


def _reach(points: pd.DataFrame, metric: str) -> tuple[float, float]:
    """Range of the points and their intervals; an interval may widen the points' own range by a third at most."""
    values = points[metric].to_numpy(dtype=float)
    low_column, high_column = interval_columns(metric)
    low, high = float(values.min()), float(values.max())
    slack = (high - low) / 3 if high > low else np.inf
    return (
        max(low - slack, float(np.nanmin([low, *points[low_column]]))),
        min(high + slack, float(np.nanmax([high, *points[high_column]]))),
    )


def _add_notes(axes: Axes, group: pd.DataFrame, styles: dict[str, SeriesStyle], notes: bool) -> None:
    queues = []
    for label, points in group[group["policy"] != _BOUND].groupby("label", sort=False):
        points = points.sort_values([_DELAY, _QUALITY])
        rows = [points.iloc[index] for index in ends_first(len(points))]
        colour = shade(styles[str(label)].color, 0.2)
        queues.append([(row[_DELAY], row[_QUALITY], row["knob"], colour) for row in rows if row["knob"]])
    ink = ink_of(axes)
    boxes = [add_better_arrow(axes, ink)]
    if notes:
        turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
        annotate_points(axes, turns[:_MOST_NOTES], ink, boxes)
