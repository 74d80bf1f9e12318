"""The hit-share figure: which share of the requests (or tokens) each tier served, and which was recomputed.

What it is: one stacked horizontal bar per run of a summary table.  What it is not: a split by variant or by
context length (``decisions.py``).
"""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from simkv.errors import SimkvError, unknown_name
from simkv.figures.style import COLUMN_IN, PAGE_IN, legend_above, new_figure, styled, tier_colours, tier_title
from simkv.figures.tables import average_seeds, factor_columns, factor_title, knob_texts, need_columns

__all__ = ["hit_share"]

_PREFIXES = {"requests": "request_share_", "tokens": "token_share_"}
_SMALLEST_PRINTED = 0.07
_LONG_NAME = 18
_LONGEST_LINE = 44


@styled
def hit_share(table: pd.DataFrame, *, by: str | None = None) -> Figure:
    """Stacked bars of who served the requests: one bar per (label, parameters, factors), averaged over seeds.

    Args:
        table: summary rows with label and request_share_<tier> or token_share_<tier> columns, fastest tier first.
        by: "requests" (by the slowest tier that a request loaded from) or "tokens" (by where each token came from);
            None takes requests where each is one block (column blocks_mean, if it is there), else tokens.

    Raises:
        SimkvError: missing columns, no rows, or an unknown ``by``.
    """
    if by is None:
        by = "tokens" if "blocks_mean" in table and table["blocks_mean"].max() > 1 else "requests"
    if by not in _PREFIXES:
        raise SimkvError(unknown_name("share", by, _PREFIXES))
    prefix = _PREFIXES[by]
    need_columns(table, ["label"], "summary table")
    columns = [column for column in table.columns if str(column).startswith(prefix)]
    if not columns:
        raise SimkvError(f"summary table: missing column {prefix}<tier>")
    bars = average_seeds(table.assign(**{column: table[column].fillna(0.0) for column in columns}), columns)
    shares = bars[columns].rename(columns=lambda column: column.removeprefix(prefix))
    shares["recompute"] = shares.get("recompute", (1.0 - shares.sum(axis=1)).clip(lower=0.0))
    shares = shares[[name for name in shares if name != "recompute"] + ["recompute"]]
    names = [textwrap.fill(name, _LONGEST_LINE) for name in _bar_names(bars)]
    row_in = 0.19 if "\n" not in "".join(names) else 0.28
    wide = len(names) > 12 or max(map(len, names)) > _LONG_NAME
    figure = new_figure(PAGE_IN if wide else COLUMN_IN, 0.55 + row_in * len(names))
    axes = figure.subplots()
    handles = _draw_bars(axes, shares)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(f"Share of {by}")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    legend_above(figure, handles, [tier_title(tier) for tier in shares])
    return figure


def _bar_names(bars: pd.DataFrame) -> list[str]:
    factors = factor_columns(bars)
    names = []
    for (_, bar), knob in zip(bars.iterrows(), knob_texts(bars), strict=True):
        details = [knob, *(factor_title(factor, bar[factor]) for factor in factors)]
        details = [detail for detail in details if detail]
        names.append(f"{bar['label']} ({', '.join(details)})" if details else str(bar["label"]))
    return names


def _draw_bars(axes: Axes, shares: pd.DataFrame) -> list[object]:
    left = np.zeros(len(shares))
    rows = np.arange(len(shares))
    handles: list[object] = []
    for tier, colour in tier_colours(shares).items():
        widths = shares[tier].to_numpy(dtype=float)
        handles.append(axes.barh(rows, widths, left=left, height=0.72, color=colour, edgecolor="white", linewidth=0.6))
        dark = np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) < 0.55
        for row in rows[widths >= _SMALLEST_PRINTED]:
            axes.text(
                left[row] + widths[row] / 2,
                row,
                f"{100 * widths[row]:.0f}",
                ha="center",
                va="center_baseline",
                fontsize=6.5,
                color="white" if dark else "black",
            )
        left += widths
    return handles
