"""The goodput figure: what a service-level objective leaves of the requests as more of them are sent.

What it is: the share of requests within the objective, and how many of those there are per second, against the request
rate; a line per policy setting, from the summary table of a sweep over rates.  What it is not: a computation of either.
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from simkv.errors import SimkvError
from simkv.figures.style import FAINT, PAGE_IN, SeriesStyle, legend_above, new_figure, series_styles, styled
from simkv.figures.tables import (
    average_seeds,
    factor_columns,
    interval_columns,
    interval_note,
    knob_texts,
    need_columns,
    panel_groups,
)

__all__ = ["RATE_FACTORS", "goodput"]

RATE_FACTORS = ("trace.rate", "trace.options.rate_per_s")
"""Keys of a grid by which the request rate is swept."""

_RATE, _SHARE, _GOODPUT = "request_rate_per_s", "slo_share", "goodput_per_s"
_MOST_PANELS = 6
_USUAL = 0.9


@styled
def goodput(table: pd.DataFrame) -> Figure:
    """Share within the objective, and goodput (requests/s), against the request rate: two panels side by side.

    The dashed line on the left is at 90 %; the dotted one on the right is where every request sent is a good one.

    Args:
        table: summary rows with label, slo_share, goodput_per_s and request_rate_per_s, over two or more rates (a
            factor of ``RATE_FACTORS``); other factors make further rows of panels.  Rows that differ only in the seed
            are averaged; bands are 95 % intervals of the share, seeds resampled where there are several.

    Raises:
        SimkvError: missing columns, a single rate, more than six rows of panels.
    """
    need_columns(table, ["label", _SHARE, _GOODPUT, _RATE], "summary table")
    runs = table[table["policy"] != "bound"] if "policy" in table else table
    rates = [factor for factor in factor_columns(runs) if factor in RATE_FACTORS]
    if not rates:
        raise SimkvError(f"goodput: one request rate only; it needs a grid over {' or '.join(RATE_FACTORS)}")
    points = average_seeds(runs, [_SHARE, _GOODPUT, _RATE])
    knobs = zip(points["label"], knob_texts(points), strict=True)
    points["series"] = [f"{label} ({knob})" if knob else label for label, knob in knobs]
    rows = panel_groups(points, _MOST_PANELS, apart_from=rates)
    figure = new_figure(PAGE_IN, 0.3 + 2.3 * len(rows))
    grid = figure.subplots(len(rows), 2, sharex=True, squeeze=False)
    styles = series_styles(dict.fromkeys(points["series"]))
    handles: dict[str, object] = {}
    for (left, right), (title, group) in zip(grid, rows, strict=True):
        _draw_share(left, group, styles, handles)
        _draw_goodput(right, group, styles)
        left.set_title(title, loc="left")
    for axes in grid[-1]:
        axes.set_xlabel("Requests sent per second")
    grid[0, 0].set_xlim(0, points[_RATE].max() * 1.03)
    text = interval_note(points)
    note = (Patch(facecolor=FAINT, alpha=0.3, linewidth=0), text) if text else None
    legend_above(figure, [handles[series] for series in styles], list(styles), note)
    return figure


def _draw_share(axes: Axes, group: pd.DataFrame, styles: dict[str, SeriesStyle], handles: dict[str, object]) -> None:
    low, high = interval_columns(_SHARE)
    axes.axhline(_USUAL, color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for series, points in group.groupby("series", sort=False):
        points, style = points.sort_values(_RATE), styles[str(series)]
        axes.fill_between(points[_RATE], points[low], points[high], color=style.color, alpha=0.15, linewidth=0)
        (handles[str(series)],) = axes.plot(points[_RATE], points[_SHARE], **style.line(), clip_on=False, zorder=3)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel("Requests within the objective")


def _draw_goodput(axes: Axes, group: pd.DataFrame, styles: dict[str, SeriesStyle]) -> None:
    for series, points in group.groupby("series", sort=False):
        points = points.sort_values(_RATE)
        axes.plot(points[_RATE], points[_GOODPUT], **styles[str(series)].line(), clip_on=False, zorder=3)
    top = max(float(group[_GOODPUT].max()) * 1.12, 1e-9)
    axes.plot([0, top], [0, top], color=FAINT, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
    axes.set_ylim(0, top)
    axes.set_ylabel("Goodput (requests per second)")
