"""The occupancy figure: bytes in use on each tier over time, under the tier's capacity.

What it is: one panel per tier; a single run is a filled area, several runs are lines.
What it is not: an account of moves between tiers.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simkv.figures.runs import check_runs, thinned, time_unit
from simkv.figures.style import (
    COLUMN_IN,
    FAINT,
    PAGE_IN,
    SeriesStyle,
    legend_above,
    new_figure,
    series_styles,
    styled,
    tier_colours,
    tier_title,
)

__all__ = ["occupancy"]

_GIB = 2**30
_MANY = 12
_MARKERS_PER_LINE = 5


@styled
def occupancy(occupancies: Mapping[str, pd.DataFrame]) -> Figure:
    """Used GiB per tier over time, one panel per tier in the frames' order, capacities dashed.

    Args:
        occupancies: {label: occupancy frame} with time_s, tier, used_bytes, capacity_bytes (NaN = unlimited).

    Raises:
        SimkvError: no runs or missing columns.
    """
    check_runs(occupancies, ["time_s", "tier", "used_bytes", "capacity_bytes"], "occupancy")
    tiers = list(dict.fromkeys(tier for frame in occupancies.values() for tier in frame["tier"].unique()))
    longest = max(float(frame["time_s"].max()) for frame in occupancies.values())
    unit, seconds = time_unit(longest)
    width = PAGE_IN if len(occupancies) > _MANY else COLUMN_IN
    figure = new_figure(width, 0.4 + 1.15 * len(tiers))
    panels = figure.subplots(len(tiers), 1, sharex=True, squeeze=False)[:, 0]
    styles = series_styles(occupancies)
    handles: dict[str, object] = {}
    for axes, tier in zip(panels, tiers, strict=True):
        shown = {label: frame[frame["tier"] == tier] for label, frame in occupancies.items()}
        shown = {label: frame for label, frame in shown.items() if len(frame)}
        if len(occupancies) == 1:
            _draw_area(axes, next(iter(shown.values())), tier_colours(tiers)[tier], seconds)
        else:
            for index, (label, frame) in enumerate(shown.items()):
                handles[label] = _draw_line(axes, frame, styles[label], index / len(shown), seconds)
        _draw_capacity(axes, pd.concat(shown.values())["capacity_bytes"])
        axes.set_ylabel(f"{tier_title(tier)} (GiB)")
        axes.set_ylim(bottom=0)
    panels[-1].set_xlabel(f"Time ({unit})")
    panels[-1].set_xlim(0, longest / seconds or 1.0)
    figure.align_ylabels()
    legend_above(figure, list(handles.values()), list(handles))
    return figure


def _steps(frame: pd.DataFrame, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    picks = thinned(len(frame))
    times = frame["time_s"].to_numpy(dtype=float)[picks] / seconds
    return times, frame["used_bytes"].to_numpy(dtype=float)[picks] / _GIB


def _draw_area(axes: Axes, frame: pd.DataFrame, colour: str, seconds: float) -> None:
    times, used = _steps(frame, seconds)
    axes.fill_between(times, used, step="post", color=colour, alpha=0.3, linewidth=0)
    axes.plot(times, used, drawstyle="steps-post", color=colour)


def _draw_line(axes: Axes, frame: pd.DataFrame, style: SeriesStyle, start: float, seconds: float) -> object:
    """A line whose markers begin at ``start`` in [0, 1) of their distance, so that lines that coincide show theirs."""
    times, used = _steps(frame, seconds)
    step = max(1, len(times) // _MARKERS_PER_LINE)
    look = style.line() | {"linewidth": 1.0, "markevery": (int(start * step), step)}
    (line,) = axes.plot(times, used, drawstyle="steps-post", **look)
    return line


def _draw_capacity(axes: Axes, capacities: pd.Series) -> None:
    """A dashed line per distinct capacity, its value at the right edge; nothing for an unlimited tier."""
    for capacity in sorted(capacities.dropna().unique() / _GIB):
        axes.axhline(capacity, color=FAINT, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1.5)
        axes.annotate(
            f"{capacity:.4g}",
            (1.0, capacity),
            (3, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            color=FAINT,
        )
