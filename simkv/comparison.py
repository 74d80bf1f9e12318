"""Operating curves compared: how much faster at equal quality, how much better at equal delay, how sure that is.

What it is: interpolation along the Pareto front of one policy's sweep, against the settings or the fronts of others,
with intervals from ``resampling.py`` when the runs' requests are at hand.  What it is not: extrapolation; where a
curve does not reach, the answer is NaN, and a comparison that the operating points hardly support is flagged.
Flow: a sweep's summary table -> here -> a table or a figure.

Every resample draws families of requests (and, apart from that, seeds) for all policies alike, makes each operating
point anew, and both curves, their fronts and the interpolation anew from those; so what policies have in common
cancels, and the choice of points on a front is part of the uncertainty.  A bound has no requests and stays as it is.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simkv.errors import SimkvError
from simkv.resampling import Resampled, averaged, interval, resample_results

__all__ = [
    "COMPARED_DELAYS",
    "LONGEST_DELAY_CHORD",
    "LONGEST_QUALITY_CHORD",
    "OTHERS",
    "compare_curves",
    "compared_results",
    "delay_at_quality",
    "quality_at_delay",
]

_LOG = logging.getLogger(__name__)

COMPARED_DELAYS = ("ttft_mean_s", "ttft_p90_s")
"""Delays that ``compared_results`` compares."""

LONGEST_DELAY_CHORD = 0.25
"""Share by which the delays of two neighbouring operating points may differ before a ratio between them is flagged."""

LONGEST_QUALITY_CHORD = 0.05
"""The same for their qualities, and for a gain in quality between them."""

OTHERS = "(others)"
"""Stands for the joint front of all other labels but those that nobody can attain."""

_QUALITY = "quality_mean"
_BOUND = "bound"
_UNATTAINABLE = (_BOUND, "clairvoyant")
_OUTSIDE, _CHORD = "outside", "long chord"
_FEW = 5

Floats = NDArray[np.float64]


def _front(points: Floats) -> Floats:
    """Pareto front of (delay, quality) points, sorted by delay, equal points once."""
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) < 2:
        return points
    points = points[np.lexsort((-points[:, 1], points[:, 0]))]
    best = np.maximum.accumulate(points[:, 1])
    return points[points[:, 1] > np.concatenate([[-np.inf], best[:-1]])]


def _delays_at(front: Floats, qualities: Floats) -> Floats:
    """Delay at each quality; infinite above the front, its fastest point's below it, NaN without points."""
    if not len(front):
        return np.full(len(qualities), np.nan)
    found = np.interp(qualities, front[:, 1], front[:, 0])
    return np.where(qualities > front[-1, 1], np.inf, found)


def _qualities_at(front: Floats, delays_s: Floats) -> Floats:
    """Quality within each delay; minus infinity below the front's fastest point, its best beyond it, NaN without."""
    if not len(front):
        return np.full(len(delays_s), np.nan)
    found = np.interp(delays_s, front[:, 0], front[:, 1])
    return np.where(delays_s < front[0, 0], -np.inf, found)


def delay_at_quality(points: Floats, quality: float) -> float:
    """Delay (s) at which a policy reaches a quality, between its operating points.

    Args:
        points: float[n, 2] of (delay_s, quality), the policy's sweep.
        quality: to be reached.

    Returns:
        Seconds, linear between neighbouring points of the Pareto front; the fastest point's delay for a quality
        below the front, NaN above it.
    """
    found = float(_delays_at(_front(points), np.array([quality]))[0])
    return found if np.isfinite(found) else float("nan")


def quality_at_delay(points: Floats, delay_s: float) -> float:
    """Quality that a policy reaches within a delay (s); NaN when it is never that fast.  See ``delay_at_quality``."""
    found = float(_qualities_at(_front(points), np.array([delay_s]))[0])
    return found if np.isfinite(found) else float("nan")


@dataclass(frozen=True)
class _Points:
    """Settings as measured and resampled: float64[1 + n, settings] for families, and for seeds where there are any."""

    delay: tuple[Floats, ...]
    quality: tuple[Floats, ...]
    units: tuple[int, ...]

    def only(self, columns: Any) -> "_Points":
        delay, quality = (tuple(part[:, columns] for part in parts) for parts in (self.delay, self.quality))
        return _Points(delay, quality, self.units)

    def fronts(self) -> list[list[Floats]]:
        """The front of every row."""
        pairs = [np.stack(part, axis=2) for part in zip(self.delay, self.quality, strict=True)]
        return [[_front(row) for row in pair] for pair in pairs]


def compare_curves(
    table: pd.DataFrame,
    label: str,
    *,
    by: Iterable[str] = (),
    at: Sequence[float] = (),
    delay: str = "ttft_mean_s",
    resampled: Resampled | None = None,
) -> pd.DataFrame:
    """One policy's operating curve against every setting of the other labels, or against their curves.

    Args:
        table: a sweep's summary (columns label, params, ``delay``, quality_mean).  Rows that share label, params and
            ``by`` are seeds of one setting and are averaged.
        label: the policy whose settings make the curve.
        by: columns that separate the comparisons (e.g. "trace.generate", "profile.sizes").
        at: qualities.  Given, there is a row per quality and other label, whose own front is interpolated too, and one
            for "(others)", the joint front of all of them but bounds and clairvoyant policies; params is then "".
        delay: column of the delay: "ttft_mean_s" or "ttft_p90_s".
        resampled: ``delay`` and quality_mean of all runs of the table (column run) but bounds, for intervals.

    Returns:
        One row per comparison: the ``by`` columns, baseline, params, the baseline's ``delay`` and quality_mean,
        delay_ratio (that delay / the curve's at that quality), quality_gain ((the curve's quality at that delay -
        that quality) / that quality), the ends of their 95 % intervals (delay_ratio_low ...; NaN without
        ``resampled``; 0 and minus infinity where the curve does not reach in so many resamples), and what they rest
        on: delay_ratio_flag and quality_gain_flag are "", "long chord" (the neighbouring operating points are
        further apart than LONGEST_DELAY_CHORD or LONGEST_QUALITY_CHORD) or "outside" (the curve's last point serves,
        so that the figure is a lower limit, or NaN where it does not reach).

    Raises:
        SimkvError: when a column is missing, no row has the label, or rows differ in more than is named.
    """
    by = list(by)
    missing = [column for column in ("label", "params", delay, _QUALITY, *by) if column not in table.columns]
    if missing:
        raise SimkvError(f"comparison: the table has no column {', '.join(missing)}")
    if label not in set(table["label"]):
        raise SimkvError(
            f"comparison: no run has the label {label!r}; labels: {', '.join(sorted(set(table['label'])))}"
        )
    groups = table.groupby(by, sort=False, dropna=False) if by else [((), table)]
    frames = []
    for key, group in groups:
        if label not in set(group["label"]):
            continue
        settings, points = _settings(group, delay, resampled)
        ours = (settings["label"] == label).to_numpy()
        curve = points.only(ours)
        heads, others = _at_qualities(settings, points, ours, at) if at else _each(settings, points, ~ours)
        straight = bool((settings.loc[ours, "policy"] == _BOUND).all())
        compared = _compared(curve, others, heads.pop("flag").tolist(), delay, straight)
        for place, (column, value) in enumerate(zip(by, key, strict=True)):
            heads.insert(place, column, value)
        frames.append(pd.concat([heads.reset_index(drop=True), compared], axis=1))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def compared_results(
    table: pd.DataFrame, label: str, results: str | Path, *, by: Iterable[str] = (), at: Sequence[float] = ()
) -> pd.DataFrame:
    """``compare_curves`` of a sweep in a folder, with intervals, for the mean TTFT and for its 90th percentile.

    Args:
        table: the sweep's summary, or some of its rows.
        label, by, at: as for ``compare_curves``.
        results: the sweep's folder.

    Returns:
        ``compare_curves`` of each of COMPARED_DELAYS, one below the other, told apart by the column ``delay``; the
        baseline's delay is ``delay_s``.  A bound has no percentiles.  Raises SimkvError.
    """
    by = list(by)
    runs = table.loc[table["policy"] != _BOUND, "run"].tolist()
    resampled = resample_results(results, runs, [*COMPARED_DELAYS, _QUALITY])
    if resampled.families < 2:
        _LOG.warning("comparison: no intervals, since all requests are of one family of contexts")
    elif resampled.families < _FEW:
        _LOG.warning("comparison: intervals rest on %d families of contexts only", resampled.families)
    frames = []
    for delay in COMPARED_DELAYS:
        kept = table[table[delay].notna()]
        if label in set(table["label"]) - set(kept["label"]):
            continue  # a bound has no percentiles
        compared = compare_curves(kept, label, by=by, at=at, delay=delay, resampled=resampled)
        compared.insert(len(by), "delay", delay)
        frames.append(compared.rename(columns={delay: "delay_s"}))
    return pd.concat(frames, ignore_index=True)


def _settings(group: pd.DataFrame, delay: str, resampled: Resampled | None) -> tuple[pd.DataFrame, _Points]:
    """One row (label, policy, params) per setting, and its operating points."""
    params = group["params"].map(lambda value: value if isinstance(value, str) else json.dumps(value, sort_keys=True))
    rows = group.assign(_params=params).reset_index(drop=True)
    columns = {metric: _columns(rows, metric, resampled) for metric in (delay, _QUALITY)}
    heads, which = [], []
    for (name, _), setting in rows.groupby(["label", "_params"], sort=False):
        if "seed" in setting and setting["seed"].duplicated().any():
            raise SimkvError(f"comparison: rows of {name!r} differ in more than their seed; name it in by")
        policy = str(setting["policy"].iloc[0]) if "policy" in setting else str(name)
        heads.append({"label": name, "policy": policy, "params": setting["params"].iloc[0]})
        which.append(setting.index.to_numpy())
    seeds = pd.factorize(rows["seed"] if "seed" in rows else np.zeros(len(rows)))[0]
    delays, qualities = (_averages(which, seeds, column) for column in columns.values())
    families = 0 if resampled is None else resampled.families
    return pd.DataFrame(heads), _Points(delays, qualities, (families, int(seeds.max()) + 1)[: len(delays)])


def _columns(rows: pd.DataFrame, metric: str, resampled: Resampled | None) -> Floats:
    """The metric [1 + resamples, rows] of every row; a row without a run in ``resampled`` keeps its value."""
    known = rows[metric].to_numpy(dtype=np.float64)[None, :]
    if resampled is None:
        return known
    if metric not in resampled.values or "run" not in rows:
        raise SimkvError(f"comparison: {metric} was not resampled, or the table has no column run")
    found = resampled.rows(rows, metric)
    return np.repeat(known, len(resampled.values[metric]), axis=0) if found is None else found


def _averages(which: Sequence[NDArray[np.int64]], seeds: NDArray[np.int64], values: Floats) -> tuple[Floats, ...]:
    """Settings averaged over their seeds, with families resampled; with seeds resampled too where there are several."""
    both = averaged(values, which, seeds)
    return both[:1] if len(values) == 1 or not seeds.any() else both


def _each(settings: pd.DataFrame, points: _Points, others: NDArray[np.bool_]) -> tuple[pd.DataFrame, _Points]:
    """Every setting of the others."""
    heads = settings.loc[others, ["label", "params"]].rename(columns={"label": "baseline"})
    return heads.assign(flag=""), points.only(others)


def _at_qualities(
    settings: pd.DataFrame, points: _Points, ours: NDArray[np.bool_], at: Sequence[float]
) -> tuple[pd.DataFrame, _Points]:
    """The others' fronts at given qualities, label by label, then their joint front."""
    wanted = np.asarray(at, dtype=np.float64)
    named = settings["label"].to_numpy()
    groups = {str(name): named == name for name in settings.loc[~ours, "label"].drop_duplicates()}
    groups[OTHERS] = ~ours & ~settings["policy"].isin(_UNATTAINABLE).to_numpy()
    heads, parts = [], []
    for name, columns in groups.items():
        if not columns.any():
            continue
        fronts = points.only(columns).fronts()
        straight = (settings.loc[columns, "policy"] == _BOUND).all()  # a bound is exact between its corners
        for quality in wanted:
            flag = _flag(fronts[0][0][:, ::-1], quality, np.inf if straight else LONGEST_DELAY_CHORD)
            heads.append({"baseline": name, "params": "", "flag": flag})
        parts.append([np.stack([_delays_at(front, wanted) for front in rows]) for rows in fronts])
    delays = tuple(np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    qualities = tuple(np.tile(wanted, (len(part), len(parts))) for part in delays)
    return pd.DataFrame(heads), _Points(delays, qualities, points.units)


def _compared(curve: _Points, others: _Points, flags: Sequence[str], delay: str, straight: bool) -> pd.DataFrame:
    """Both figures of every other point with their intervals and flags.

    ``flags`` are those of the other points; ``straight`` is for a bound, whose chords are exact.
    """
    ratios, gains = [], []
    fronts = curve.fronts()
    for rows, delays, qualities in zip(fronts, others.delay, others.quality, strict=True):
        reached = np.stack([_delays_at(front, at) for front, at in zip(rows, qualities, strict=True)])
        within = np.stack([_qualities_at(front, at) for front, at in zip(rows, delays, strict=True)])
        with np.errstate(invalid="ignore"):
            ratios.append(delays / reached)
            gains.append(within / qualities - 1.0)
    base_delay, base_quality = others.delay[0][0], others.quality[0][0]
    front = fronts[0][0]
    reached = np.isfinite(base_delay)
    found = pd.DataFrame({delay: np.where(reached, base_delay, np.nan), _QUALITY: base_quality})
    for name, figures, least, read, places, longest in (
        ("delay_ratio", ratios, 0.0, front[:, ::-1], base_quality, LONGEST_DELAY_CHORD),
        ("quality_gain", gains, -np.inf, front, base_delay, LONGEST_QUALITY_CHORD),
    ):
        known = reached & np.isfinite(figures[0][0]) & (figures[0][0] > least)
        columns = [[part[:, column] for part in figures] for column in range(len(found))]
        ends = [interval(list(zip(parts, curve.units, strict=True))) for parts in columns]
        found[name] = np.where(known, figures[0][0], np.nan)
        found[f"{name}_low"] = np.where(known, [low for low, _ in ends], np.nan)
        found[f"{name}_high"] = np.where(known, [high for _, high in ends], np.nan)
        longest = np.inf if straight else longest
        found[f"{name}_flag"] = [_flag(read, at, longest) or flag for at, flag in zip(places, flags, strict=True)]
    return found


def _flag(front: Floats, at: float, longest: float) -> str:
    """What reading the second column of a front at a place ``at`` in its first rests on."""
    if not len(front) or not front[0, 0] <= at <= front[-1, 0]:
        return _OUTSIDE
    right = int(np.searchsorted(front[:, 0], at))
    if front[right, 0] == at:
        return ""
    return _CHORD if front[right, 1] > front[right - 1, 1] * (1 + longest) else ""
