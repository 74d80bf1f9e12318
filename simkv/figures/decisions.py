"""The decisions figure: where revisited contexts were served from, and in which variant, by their length.

What it is: per run a stack of shares over bins of the input length, with a strip below that shows the bands
of lengths at a finer grain.  What it is not: decisions over time (``occupancy.py``).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from simkv.errors import SimkvError
from simkv.figures.runs import check_runs
from simkv.figures.style import (
    COLUMN_IN,
    PAGE_IN,
    legend_above,
    log_x_axis,
    new_figure,
    panel_axes,
    panel_grid,
    shade,
    styled,
    tier_colours,
    tier_title,
    tint,
)

__all__ = ["decisions"]

_BINS = 24
_STRIP_CELLS = 144
_STRIP = (-0.115, -0.035)
_MOST_PER_TIER = 5
_LOG_FROM = 40.0
_HATCHES = ("", "//////", "......", "xxxxxx", "\\\\\\\\\\\\", "++++++")
_PALEST = 0.62
_RECOMPUTE = ("recompute", "none")
_Pair = tuple[str, str]


@dataclass(frozen=True)
class _Fill:
    """One (served_by, variant) of the stack and how it looks."""

    pair: _Pair
    color: Any
    hatch: str
    ink: Any

    @property
    def name(self) -> str:
        """What the legend says."""
        return "recompute" if self.pair == _RECOMPUTE else f"{tier_title(self.pair[0])} {self.pair[1]}"


@styled
def decisions(requests: Mapping[str, pd.DataFrame], *, log_x: bool | None = None) -> Figure:
    """Share of revisits per (tier, variant) or recomputed, by input length (thousand tokens), one panel per run.

    Args:
        requests: {label: requests frame} with input_tokens, served_by, variant, revisit, measured; only measured
            revisits count.  A tier with more than five variants is drawn by compressor, and past five the
            rarest as one, "other".
        log_x: logarithmic lengths; None chooses by their spread (1st to 99th percentile above a factor of 40).

    Raises:
        SimkvError: no runs, missing columns, or a run without measured revisits.
    """
    check_runs(requests, ["input_tokens", "served_by", "variant", "revisit", "measured"], "requests")
    revisits = {label: _revisits(label, frame) for label, frame in requests.items()}
    everything = pd.concat(revisits.values(), ignore_index=True)
    names = _merged_names(everything)
    fills = _fills(set(names.values()), _tier_order(requests.values()))
    lengths = everything["input_tokens"].to_numpy(dtype=float) / 1000
    if log_x is None:
        low, high = np.quantile(lengths, [0.01, 0.99])
        log_x = bool(low > 0 and high / low > _LOG_FROM)
    low, high = _range(lengths, log_x)
    rows, columns = panel_grid(len(revisits))
    row_in = 2.1 if columns == 1 else 1.7 if rows < 4 else 1.35
    figure = new_figure(COLUMN_IN if columns == 1 else PAGE_IN, 0.35 + row_in * rows)
    grid = panel_axes(figure, list(revisits), "Input length (thousand tokens)", "Share of revisits")
    for axes, frame in zip(grid, revisits.values(), strict=True):
        axes.grid(visible=False)
        x = frame["input_tokens"].to_numpy(dtype=float) / 1000
        places = {fill.pair: index for index, fill in enumerate(fills)}
        place = np.array([places[names[pair]] for pair in zip(frame["served_by"], frame["variant"], strict=True)])
        _draw_stack(axes, x, place, _edges(low, high, _BINS, log_x), fills)
        _draw_strip(axes, x, place, _edges(low, high, _STRIP_CELLS, log_x), fills)
    if log_x:
        log_x_axis(grid[0], low, high)
    grid[0].set_xlim(low, high)
    grid[0].set_ylim(_STRIP[0] - 0.03, 1.0)
    grid[0].set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "", "0.5", "", "1"])
    handles = [Patch(facecolor=fill.color, hatch=fill.hatch, edgecolor=fill.ink, linewidth=0) for fill in fills]
    legend_above(figure, handles, [fill.name for fill in fills])
    return figure


def _revisits(label: str, frame: pd.DataFrame) -> pd.DataFrame:
    chosen = frame[frame["revisit"].astype(bool) & frame["measured"].astype(bool)]
    if chosen.empty:
        raise SimkvError(f"requests of {label!r}: no measured revisit")
    return chosen[["input_tokens", "served_by", "variant"]].astype({"served_by": str, "variant": str})


def _merged_names(everything: pd.DataFrame) -> dict[_Pair, _Pair]:
    """For each (served_by, variant), the pair that it is drawn as.

    A tier with too many variants shows compressors instead of settings, and its rarest ones together as "other".
    """
    counts = everything.groupby(["served_by", "variant"]).size()
    names: dict[_Pair, _Pair] = {}
    for tier, rows in counts.groupby(level="served_by"):
        drawn = {variant: variant for variant in rows.index.get_level_values("variant")}
        if len(drawn) > _MOST_PER_TIER and len({variant.split(":")[0] for variant in drawn} - {"raw"}) > 1:
            drawn = {variant: variant.split(":")[0] for variant in drawn}
        sizes = rows.groupby([drawn[variant] for variant in rows.index.get_level_values("variant")]).sum()
        rare = set(sizes.sort_values(ascending=False, kind="stable").index[_MOST_PER_TIER - 1 :])
        for variant, name in drawn.items():
            name = "other" if name in rare and len(sizes) > _MOST_PER_TIER else name
            names[str(tier), variant] = _RECOMPUTE if tier == "recompute" else (str(tier), name)
    return names


def _tier_order(frames: Iterable[pd.DataFrame]) -> list[str]:
    """Tiers fast to slow as the frames' tokens_<tier> columns have them, then any others, recompute last."""
    tiers = {
        str(column)[len("tokens_") :]: None for frame in frames for column in frame if str(column).startswith("tokens_")
    }
    return [*tiers]


def _fills(pairs: set[_Pair], tiers: list[str]) -> list[_Fill]:
    """The stack from the bottom: fast tiers first, in each the variants from raw to harsh, recompute on top."""
    order = [*tiers, *sorted({tier for tier, _ in pairs} - set(tiers) - {"recompute"}), "recompute"]
    variants = sorted({variant for _, variant in pairs if variant != "none"}, key=_harshness)
    families = list(dict.fromkeys(variant.split(":")[0] for variant in variants if variant not in ("raw", "other")))
    colours = tier_colours(order)
    fills = []
    for tier, variant in sorted(pairs, key=lambda pair: (order.index(pair[0]), _harshness(pair[1]))):
        family = variant.split(":")[0]
        hatch = _HATCHES[families.index(family) % len(_HATCHES)] if family in families else ""
        white = _PALEST * variants.index(variant) / max(1, len(variants) - 1) if variant in variants else 0.0
        fills.append(_Fill((tier, variant), tint(colours[tier], white), hatch, shade(colours[tier])))
    return fills


def _harshness(variant: str) -> tuple[int, str, float, str]:
    """Sort key: raw, then each compressor from its largest knob (mildest) to its smallest, "other" last."""
    family, _, knob = variant.partition(":")
    try:
        milder_first = -float(knob)
    except ValueError:
        milder_first = 0.0
    return ({"raw": 0, "other": 2}.get(variant, 1), family, milder_first, variant)


def _range(lengths: np.ndarray, log_x: bool) -> tuple[float, float]:
    low, high = float(lengths.min()), float(lengths.max())
    if log_x:
        if low <= 0:
            raise SimkvError(f"input_tokens: a logarithmic axis needs positive lengths, found {low * 1000:g}")
        return low / 1.02, high * 1.02 if high > low else low * 1.5
    return 0.0, high * 1.005 or 1.0


def _edges(low: float, high: float, cells: int, log_x: bool) -> np.ndarray:
    return np.geomspace(low, high, cells + 1) if log_x else np.linspace(low, high, cells + 1)


def _counts(x: np.ndarray, place: np.ndarray, edges: np.ndarray, fills: int) -> np.ndarray:
    """Revisits [fills, cells] by place in the stack and by cell."""
    return np.array([np.histogram(x[place == index], edges)[0] for index in range(fills)])


def _draw_stack(axes: Axes, x: np.ndarray, place: np.ndarray, edges: np.ndarray, fills: list[_Fill]) -> None:
    counts = _counts(x, place, edges, len(fills))
    total = counts.sum(axis=0)
    filled = total > 0
    shares = counts[:, filled] / total[filled]
    bottom = np.zeros(int(filled.sum()))
    for fill, share in zip(fills, shares, strict=True):
        axes.bar(
            edges[:-1][filled],
            share,
            np.diff(edges)[filled],
            bottom,
            align="edge",
            color=[fill.color],
            hatch=fill.hatch,
            edgecolor=fill.ink,
            linewidth=0,
            label=fill.name,
        )
        bottom = bottom + share


def _draw_strip(axes: Axes, x: np.ndarray, place: np.ndarray, edges: np.ndarray, fills: list[_Fill]) -> None:
    """Below the stack: every fine cell of lengths in the colour of its most frequent decision, blank if empty."""
    counts = _counts(x, place, edges, len(fills))
    winner = np.where(counts.sum(axis=0) > 0, counts.argmax(axis=0), -1)
    for index, fill in enumerate(fills):
        won = winner == index
        axes.bar(
            edges[:-1][won], _STRIP[1] - _STRIP[0], np.diff(edges)[won], _STRIP[0], align="edge", color=[fill.color]
        )
