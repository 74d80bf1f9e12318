"""The validation figures: predicted against measured time to first token, request by request and as distributions.

What it is: one panel per policy, from the requests frame of ``simkv validate``.  What it is not: the errors, which are
numbers and stand in its report.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simkv.errors import SimkvError
from simkv.figures.runs import thinned
from simkv.figures.style import (
    FAINT,
    PAGE_IN,
    PAIR,
    legend_above,
    log_x_axis,
    new_figure,
    panel_axes,
    panel_grid,
    styled,
    tier_colours,
    tier_title,
)

__all__ = ["validation_cdf", "validation_scatter"]

_COLUMNS = ("policy", "served_by", "predicted_ttft_s", "measured_ttft_s")
_SIDES = ("measured_ttft_s", "predicted_ttft_s")
_UNWAITED = "measured_unwaited_s"
_PANEL_IN = 2.2


@styled
def validation_scatter(requests: pd.DataFrame) -> Figure:
    """Measured TTFT (ms) of each request against the predicted one, coloured by where it was served from.

    Args:
        requests: policy, served_by (a tier's name or "recompute"), predicted_ttft_s, measured_ttft_s.

    Raises:
        SimkvError: missing columns, or no requests.
    """
    figure, panels, policies, low, high = _panels(requests, "Predicted TTFT (ms)", "Measured TTFT (ms)")
    sources = list(dict.fromkeys(requests["served_by"]))
    colours = tier_colours(sources) | {"recompute": FAINT}
    handles = {}
    for axes, policy in zip(panels, policies, strict=True):
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(axes.xaxis.get_major_locator())
        axes.yaxis.set_major_formatter(axes.xaxis.get_major_formatter())
        axes.yaxis.set_minor_formatter(axes.xaxis.get_minor_formatter())
        axes.plot([low, high], [low, high], color="#444444", linewidth=0.6, zorder=1)
        rows = requests[requests["policy"] == policy]
        for source in sources:
            own = rows[rows["served_by"] == source]
            (handles[source],) = axes.plot(
                1e3 * own["predicted_ttft_s"],
                1e3 * own["measured_ttft_s"],
                linestyle="none",
                marker="o",
                markersize=2.2,
                markeredgewidth=0,
                alpha=0.6,
                color=colours[source],
                rasterized=True,
            )
    titles = ["computed" if source == "recompute" else f"from {tier_title(source)}" for source in sources]
    legend_above(figure, list(handles.values()), titles)
    return figure


@styled
def validation_cdf(requests: pd.DataFrame) -> Figure:
    """Share of requests with at most a given TTFT (ms), predicted and measured.

    Args:
        requests: as in ``validation_scatter``; with measured_unwaited_s that differs, TTFT without waits for a
            processor is drawn too.

    Raises:
        SimkvError: missing columns, or no requests.
    """
    figure, panels, policies, _, _ = _panels(requests, "TTFT (ms)", "Share of requests")
    curves = [(column, style.color, style.linestyle) for column, style in zip(_SIDES, PAIR, strict=True)]
    titles = ["measured", "predicted"]
    if _UNWAITED in requests and (requests[_UNWAITED] != requests[_SIDES[0]]).any():
        curves.append((_UNWAITED, "#444444", ":"))
        titles.append("measured, without waits for a processor")
    handles: list[object] = []
    for axes, policy in zip(panels, policies, strict=True):
        rows = requests[requests["policy"] == policy]
        handles = [
            _curve(axes, 1e3 * rows[column].to_numpy(dtype=float), colour, dashes) for column, colour, dashes in curves
        ]
        axes.set_ylim(0, 1.02)
    legend_above(figure, handles, titles)
    return figure


def _panels(requests: pd.DataFrame, xlabel: str, ylabel: str) -> tuple[Figure, Sequence[Axes], list[str], float, float]:
    missing = [column for column in _COLUMNS if column not in requests]
    if missing or requests.empty:
        raise SimkvError(f"validation: {'no requests' if not missing else 'no column ' + ', '.join(missing)}")
    policies = list(dict.fromkeys(requests["policy"]))
    times = 1e3 * requests[["predicted_ttft_s", "measured_ttft_s"]].to_numpy(dtype=float)
    low, high = float(times.min()) / 1.2, float(times.max()) * 1.2
    rows, columns = panel_grid(len(policies))
    figure = new_figure(PAGE_IN * columns / 3, _PANEL_IN * rows)
    panels = panel_axes(figure, policies, xlabel, ylabel)
    for axes in panels:
        log_x_axis(axes, low, high)
        axes.set_xlim(low, high)
    return figure, panels, policies, low, high


def _curve(axes: Axes, values: np.ndarray, colour: object, dashes: object) -> object:
    ordered = np.sort(values)
    picks = thinned(len(ordered))
    (line,) = axes.plot(
        np.concatenate([ordered[:1], ordered[picks]]),
        np.concatenate([[0.0], (picks + 1) / len(ordered)]),
        drawstyle="steps-post",
        color=colour,
        linestyle=dashes,
    )
    return line
