"""The trace-stats figure: lengths, arrivals, LRU miss ratio and working sets of a trace.

What it is: four panels from the ``TraceStats`` of ``simkv.traces.stats``; two for a trace without reuse.
What it is not: a simulation; the miss ratio is that of an ideal LRU cache of raw blocks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from simkv.errors import SimkvError
from simkv.figures.runs import thinned, time_unit
from simkv.figures.style import FAINT, PAGE_IN, PAIR, log_x_axis, new_figure, styled

if TYPE_CHECKING:
    from simkv.traces.stats import ReuseStats, Spread, TraceStats

__all__ = ["trace_stats"]

_GIB = 2**30
_SPREAD_SHARES = np.array([0.0, 0.5, 0.9, 0.99, 1.0])


@styled
def trace_stats(
    stats: TraceStats, *, input_tokens: ArrayLike | None = None, output_tokens: ArrayLike | None = None
) -> Figure:
    """What a trace is like: length distributions, arrivals per second, LRU miss ratio, working sets over time.

    Args:
        stats: of ``simkv.traces.stats.trace_stats``; sizes are in GiB if it knows the KV bytes per token, else in
            blocks and tokens.
        input_tokens, output_tokens: [R] lengths for exact distributions; without them the quantiles that ``stats``
            holds are joined by lines.

    Raises:
        SimkvError: not a TraceStats, or a trace without requests.
    """
    if not hasattr(stats, "arrival_counts"):
        raise SimkvError(f"trace-stats: expected the statistics of a trace, found {type(stats).__name__}")
    if not stats.requests:
        raise SimkvError(f"{stats.name}: no requests to draw")
    rows = 2 if stats.reuse else 1
    figure = new_figure(PAGE_IN, 0.1 + 1.95 * rows)
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    _draw_lengths(
        panels[0], {"input": (stats.input_tokens, input_tokens), "output": (stats.output_tokens, output_tokens)}
    )
    _draw_arrivals(panels[1], stats)
    if stats.reuse:
        _draw_miss_ratio(panels[2], stats.reuse)
        _draw_working_sets(panels[3], stats.reuse, stats.duration_s)
    return figure


def _draw_lengths(axes: Axes, lengths: dict[str, tuple[Spread, ArrayLike | None]]) -> None:
    longest = 2.0
    for (name, (spread, values)), style in zip(lengths.items(), PAIR, strict=True):
        if values is None:
            known = np.array([spread.minimum, spread.p50, spread.p90, spread.p99, spread.maximum])
            shares, look = _SPREAD_SHARES, style.line()
        else:
            known = np.sort(np.asarray(values, dtype=float))
            picks = thinned(len(known))
            known, shares = known[picks], (picks + 1) / len(known)
            look = {"color": style.color, "linestyle": style.linestyle, "drawstyle": "steps-post"}
        axes.plot(np.maximum(known, 1), shares, label=name, **look)
        longest = max(longest, float(known[-1]))
    log_x_axis(axes, 1.0, longest)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("Length (tokens)")
    axes.set_ylabel("Share of requests")
    axes.legend(loc="best")


def _draw_arrivals(axes: Axes, stats: TraceStats) -> None:
    unit, seconds = time_unit(stats.duration_s)
    rate = stats.arrival_counts / stats.arrival_bin_s
    edges = np.arange(len(rate) + 1) * stats.arrival_bin_s / seconds
    axes.stairs(rate, edges, color=PAIR[0].color, fill=True, alpha=0.3)
    axes.stairs(rate, edges, color=PAIR[0].color)
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, float(rate.max()) * 1.08 or 1.0)
    axes.set_xlabel(f"Time ({unit})")
    axes.set_ylabel("Requests per second")


def _draw_miss_ratio(axes: Axes, reuse: ReuseStats) -> None:
    curve = reuse.curves[-1]
    scale, unit = (_GIB, "GiB") if curve.unit == "bytes" else (1, curve.unit)
    picks = thinned(len(curve.capacities)) if len(curve.capacities) else np.zeros(0, dtype=np.int64)
    sizes = curve.capacities[picks] / scale
    floor = 1.0 - reuse.block_hit_ratio
    start = float(sizes[0]) / 2 if len(sizes) else 0.5
    end = float(sizes[-1]) * 2 if len(sizes) else 2.0
    axes.plot(
        np.concatenate([[start], sizes, [end]]),
        np.concatenate([[1.0], curve.miss_ratio[picks], [floor]]),
        drawstyle="steps-post",
        color=PAIR[0].color,
    )
    axes.axhline(floor, color=FAINT, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1.5)
    axes.annotate(
        f"first requests: {floor:.0%}",
        (0, floor),
        (3, -3),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="top",
        fontsize=6.5,
        color=FAINT,
    )
    log_x_axis(axes, start, end)
    axes.set_xlim(start, end)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel(f"LRU capacity ({unit})")
    axes.set_ylabel("Miss ratio by block")


def _draw_working_sets(axes: Axes, reuse: ReuseStats, duration_s: float) -> None:
    unit, seconds = time_unit(duration_s)
    windows = [found for found in reversed(reuse.working_sets) if math.isfinite(found.window_s)]
    most = max((int(found.tokens.max()) for found in windows), default=0)
    scale, what = (1e6, "M tokens") if most >= 1e6 else (1.0, "tokens")
    if reuse.kv_bytes_per_token:
        scale, what = _GIB / reuse.kv_bytes_per_token, "GiB"
    for found, style in zip(windows, PAIR, strict=False):
        sizes = _every_window(np.round(found.start_s / found.window_s).astype(np.int64), found.tokens / scale)
        picks = thinned(len(sizes))
        axes.stairs(
            sizes[picks],
            np.append(picks, len(sizes)) * found.window_s / seconds,
            color=style.color,
            label=f"{found.window_s:g} s windows",
            baseline=None,
        )
    axes.set_xlim(0, duration_s / seconds or 1.0)
    axes.set_ylim(0, most / scale * 1.08 or 1.0)
    axes.set_xlabel(f"Time ({unit})")
    axes.set_ylabel(f"Working set ({what})")
    axes.legend(loc="best")


def _every_window(index: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of all windows up to the last, zero in those without requests."""
    full = np.zeros(int(index.max()) + 1)
    full[index] = values
    return full
