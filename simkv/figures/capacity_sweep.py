"""The capacity-sweep figure: one metric against one grid factor, such as the DRAM capacity.

What it is: a line per policy setting with its interval as a band, from a sweep's summary table.
What it is not: tied to capacities; any factor whose values are sizes, bandwidths, durations or numbers will do.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator

from simkv.errors import ConfigError, SimkvError, unknown_name
from simkv.figures.style import (
    COLUMN_IN,
    FAINT,
    PAGE_IN,
    SeriesStyle,
    legend_above,
    new_figure,
    panel_axes,
    panel_grid,
    series_styles,
    styled,
    tier_title,
)
from simkv.figures.tables import (
    average_seeds,
    interval_columns,
    interval_note,
    knob_texts,
    metric_label,
    need_columns,
    panel_groups,
)
from simkv.resampling import Resampled
from simkv.units import NS_PER_S, parse_bytes, parse_duration_ns, parse_rate

__all__ = ["capacity_sweep"]

_MOST_PANELS = 12
_LOG_FROM = 8.0
_LOG_Y_FROM = 30.0
_AXES: tuple[tuple[str, Callable[[str], float]], ...] = (
    ("", float),
    ("GiB", lambda text: parse_bytes(text) / 2**30),
    ("GB/s", lambda text: parse_rate(text) / 1e9),
    ("s", lambda text: parse_duration_ns(text) / NS_PER_S),
)


def _policies(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs: a bound has many operating points, none of which is a setting."""
    return table[table["policy"] != "bound"] if "policy" in table else table


@styled
def capacity_sweep(
    table: pd.DataFrame,
    *,
    factor: str = "tiers.dram.capacity",
    metric: str = "ttft_mean_s",
    resampled: Resampled | None = None,
) -> Figure:
    """A metric against a grid factor, one line per label and parameter setting, with 95 % bands.

    Args:
        table: summary rows with label, ``factor`` and ``metric``; rows that differ only in the seed are averaged.
        factor: dotted key of the sweep's grid; sizes are drawn in GiB, bandwidths in GB/s, durations in s.
            "unlimited" is put at the right end.
        metric: a name of ``tables.METRICS``; its axis is logarithmic where it differs by a factor of 30 or more.
        resampled: the metric of the runs with several seeds, for their bands.

    Raises:
        SimkvError: missing columns, fewer than two values of the factor, values that are no quantity.
    """
    name, scale = metric_label(metric)
    need_columns(table, ["label"], "summary table")
    if factor not in table:
        factors = [column for column in table.columns if "." in str(column)]
        raise SimkvError(unknown_name("grid factor", factor, factors))
    if factor.startswith("policy."):
        raise SimkvError(f"{factor}: a parameter of a policy is no grid factor; delay-quality shows it along the curve")
    points = average_seeds(_policies(table), [metric], resampled)
    if factor not in points:
        raise SimkvError(f"{factor}: only one value, {table[factor].iloc[0]}; a sweep needs two or more")
    points[[metric, *interval_columns(metric)]] /= scale
    points["series"] = _series_names(points)
    panels = panel_groups(points, _MOST_PANELS, apart_from=[factor])
    rows, columns = panel_grid(len(panels))
    wide = columns > 1 or points["series"].nunique() > 12
    figure = new_figure(PAGE_IN if wide else COLUMN_IN, 0.3 + 2.1 * rows)
    unit, places = _places(factor, points[factor])
    grid = panel_axes(figure, [title for title, _ in panels], _factor_label(factor, unit), name)
    styles = series_styles(dict.fromkeys(points["series"]))
    handles: dict[str, object] = {}
    for axes, (_, group) in zip(grid, panels, strict=True):
        _draw_panel(axes, group.assign(x=group[factor].map(places)), metric, styles, handles)
    _set_x(grid[0], places)
    _set_y(grid[0], float(points[metric].min()), float(points[metric].max()))
    text = interval_note(points) if any(axes.collections for axes in grid) else ""
    note = (Patch(facecolor=FAINT, alpha=0.3, linewidth=0), text) if text else None
    legend_above(figure, [handles[series] for series in styles], list(styles), note)
    return figure


def _set_y(axes: Axes, low: float, high: float) -> None:
    """Logarithmic, with plain numbers, where lines would lie on the axis otherwise; from 0 where that is no waste."""
    if low > 0 and high / low >= _LOG_Y_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif 0 <= low < 0.5 * high:
        axes.set_ylim(bottom=0)


def _series_names(points: pd.DataFrame) -> list[str]:
    knobs = zip(points["label"], knob_texts(points), strict=True)
    return [f"{label} ({knob})" if knob else label for label, knob in knobs]


def _places(factor: str, values: pd.Series) -> tuple[str, dict[str, float]]:
    """Unit of the axis and the position of every value; "unlimited" comes one step after the largest."""
    texts = list(dict.fromkeys(values))
    finite = [text for text in texts if text != "unlimited"]
    for unit, parse in _AXES:
        try:
            places = {text: parse(text) for text in finite}
        except (ConfigError, ValueError):
            continue
        ordered = sorted(places.values())
        if "unlimited" in texts and ordered:
            ratio = len(ordered) > 1 and _is_log(places)
            step = ordered[-1] * (ordered[-1] / ordered[-2] - 1) if ratio else ordered[-1] - ordered[0] or ordered[-1]
            places["unlimited"] = ordered[-1] + step
        return unit, places
    raise SimkvError(
        f"{factor}: {', '.join(map(repr, finite[:3]))} are not all sizes, bandwidths, durations or numbers"
    )


def _is_log(places: dict[str, float]) -> bool:
    low, high = min(places.values()), max(places.values())
    return low > 0 and high / low >= _LOG_FROM


def _set_x(axes: Axes, places: dict[str, float]) -> None:
    finite = {text: place for text, place in places.items() if text != "unlimited"}
    if _is_log(finite):
        axes.set_xscale("log", base=2)
    names = {place: f"{place:.4g}" for place in sorted(finite.values())}
    names |= {place: "no limit" for text, place in places.items() if text == "unlimited"}
    axes.set_xticks(list(names), list(names.values()))
    axes.xaxis.set_minor_locator(NullLocator())


def _factor_label(factor: str, unit: str) -> str:
    parts = factor.split(".")
    name = f"{tier_title(parts[1])} {parts[2]}" if parts[0] == "tiers" and len(parts) == 3 else factor.replace("_", " ")
    return f"{name} ({unit})" if unit else name


def _draw_panel(
    axes: Axes, group: pd.DataFrame, metric: str, styles: dict[str, SeriesStyle], handles: dict[str, object]
) -> None:
    low, high = interval_columns(metric)
    for series, points in group.groupby("series", sort=False):
        points = points.sort_values("x")
        style = styles[str(series)]
        if np.isfinite(points[[low, high]].to_numpy(dtype=float)).all(axis=1).sum() > 1:
            axes.fill_between(points["x"], points[low], points[high], color=style.color, alpha=0.15, linewidth=0)
        (line,) = axes.plot(
            points["x"],
            points[metric],
            **style.line(),
            label=str(series),
            clip_on=False,
        )
        handles.setdefault(str(series), line)
