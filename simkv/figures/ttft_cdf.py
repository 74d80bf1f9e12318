"""The ttft-cdf figure: the distribution of time to first token of several runs.

What it is: one empirical distribution function per run with its 50th, 90th and 99th percentile marked.
What it is not: a summary; means and intervals are in ``delay_quality.py``.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simkv.errors import SimkvError
from simkv.figures.runs import check_runs, thinned
from simkv.figures.style import (
    COLUMN_IN,
    FAINT,
    PAGE_IN,
    SeriesStyle,
    legend_above,
    log_x_axis,
    new_figure,
    series_styles,
    styled,
)

__all__ = ["ttft_cdf"]

_PERCENTILES = (50, 90, 99)


@styled
def ttft_cdf(requests: Mapping[str, pd.DataFrame], *, log_x: bool = True) -> Figure:
    """Share of the measured requests with at most a given TTFT (s), one curve per run.

    Args:
        requests: {label: requests frame} with ttft_s and measured; rows that are not measured are left out.
        log_x: logarithmic axis; delays of zero are then drawn at the smallest positive one.

    Raises:
        SimkvError: no runs, missing columns, a run without measured requests, or only zero delays on a log axis.
    """
    check_runs(requests, ["ttft_s", "measured"], "requests")
    delays = {label: _measured(label, frame) for label, frame in requests.items()}
    if log_x:
        everything = np.concatenate(list(delays.values()))
        if everything.max() <= 0:
            raise SimkvError("ttft_s: a logarithmic axis needs positive values, all are zero")
        least = everything[everything > 0].min()
        delays = {label: np.maximum(values, least) for label, values in delays.items()}
    many = len(delays) > 12
    figure = new_figure(PAGE_IN if many else COLUMN_IN, 2.8 if many else 2.3)
    axes = figure.subplots()
    styles = series_styles(delays)
    handles = [_draw_curve(axes, values, styles[label]) for label, values in delays.items()]
    low, high = min(values[0] for values in delays.values()), max(values[-1] for values in delays.values())
    if log_x:
        log_x_axis(axes, low / 1.1, high * 1.1)
        axes.set_xlim(low / 1.1, high * 1.1)
    else:
        axes.set_xlim(0, high * 1.03 or 1.0)
    for percentile in _PERCENTILES:
        axes.axhline(percentile / 100, color=FAINT, linewidth=0.5, linestyle=(0, (1, 2)), zorder=1)
        axes.text(
            1.01,
            percentile / 100,
            f"p{percentile}",
            transform=axes.get_yaxis_transform(),
            fontsize=6.5,
            color=FAINT,
            va="center",
        )
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("TTFT (s)")
    axes.set_ylabel("Share of requests")
    legend_above(figure, handles, list(delays))
    return figure


def _measured(label: str, frame: pd.DataFrame) -> np.ndarray:
    values = np.sort(frame.loc[frame["measured"].astype(bool), "ttft_s"].to_numpy(dtype=float))
    if not len(values):
        raise SimkvError(f"requests of {label!r}: no measured request")
    if not np.isfinite(values).all():
        raise SimkvError(f"requests of {label!r}: ttft_s is not finite everywhere")
    return values


def _draw_curve(axes: Axes, values: np.ndarray, style: SeriesStyle) -> object:
    picks = thinned(len(values))
    share = (picks + 1) / len(values)
    (line,) = axes.plot(
        np.concatenate([values[:1], values[picks]]),
        np.concatenate([[0.0], share]),
        drawstyle="steps-post",
        color=style.color,
        linestyle=style.linestyle,
    )
    marks = np.array(_PERCENTILES) / 100
    at = np.quantile(values, marks, method="inverted_cdf")
    (dots,) = axes.plot(at, marks, **style.line() | {"linestyle": "none"})
    return (line, dots)
