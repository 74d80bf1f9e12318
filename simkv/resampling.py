"""Runs resampled: what their means and percentiles would have been with other contexts in the trace.

What it is: the one bootstrap behind every interval of a run, of settings averaged over seeds, or of a comparison of
runs.  What it is not: a comparison (``comparison.py``) or the intervals of a profile, which are over measured contexts
(``profile_curves.py``).  Flow: ``requests`` frames -> here -> ``comparison.py``, the figures and tables of a sweep
(``figures/tables.py``) and, for a single run, ``simulator/summary.py``.

**The unit is the family**, not the request: the requests of one session, or without sessions those of one context
(``traces.transform.families``).  They share a length, a task and a place in the tiers, so resampling them one by one
would count the same fact many times and give intervals that are too narrow.  A family is drawn with all its requests.

**Draws are common.**  A family is drawn equally often for every policy, setting and seed of a resample, so that what
policies have in common cancels in their ratio.  Families are matched between seeds by their number of requests and
prompt tokens: a seed leaves those as they are in a recorded trace, whose seeds are then one sample of contexts seen
several times and not several samples; families of generated traces differ from seed to seed and are drawn apart.

What families cannot show is what all requests of a run share (a burst, a queue that never empties).  Seeds show that,
so with several seeds ``interval`` is the hull of two intervals: families resampled, and seeds resampled.  Two or three
seeds can only say how far apart they are; on synthetic studies whose seeds differ widely the interval held the truth in
77, 85 and 94 % of cases with three, five and eight seeds.

Intervals are 95 % percentile-bootstrap intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993), with
the percentiles moved outward for few units as a t interval is wider than a normal one (Hesterberg, What Teachers Should
Know About the Bootstrap, The American Statistician 69, 2015: "expanded percentile"); families are drawn whole as by
Field and Welsh (Bootstrapping clustered data, JRSS B 69, 2007).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from simkv.errors import SimkvError

__all__ = [
    "RESAMPLES",
    "Resampled",
    "averaged",
    "interval",
    "mean_intervals",
    "resample_results",
    "resample_runs",
    "resampled_seeds",
]

RESAMPLES = 1000
_TAIL = 0.025
_ENTROPY = 0xB007
_SEED = 1
_CELLS = 1 << 24
_MOST_UNITS = 2000
_NEEDED = ["ttft_s", "quality", "measured", "family", "input_tokens"]
_MEANS = ("ttft_mean_s", "quality_mean")
_PERCENTILE = re.compile(r"ttft_p(\d{1,2})_s")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Resampled:
    """Metrics of runs: float64[1 + resamples, runs] by name of the metric; row 0 is as measured.

    ``families`` is how many were drawn from, over all runs.
    """

    runs: tuple[str, ...]
    values: dict[str, Floats]
    families: int

    def rows(self, table: pd.DataFrame, metric: str) -> Floats | None:
        """The metric [1 + resamples, rows] of a table's rows (column run), as measured where a run is not known.

        None where the metric was not resampled, or no row's run was.
        """
        at = {run: place for place, run in enumerate(self.runs)}
        known = [(row, at[run]) for row, run in enumerate(table["run"]) if run in at] if "run" in table else []
        if metric not in self.values or not known:
            return None
        found = np.repeat(table[metric].to_numpy(dtype=np.float64)[None, :], len(self.values[metric]), axis=0)
        for row, place in known:
            found[1:, row] = self.values[metric][1:, place]
        return found


def averaged(values: Floats, which: Sequence[NDArray[np.int64]], seeds: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Settings averaged over their seeds: with families resampled, as ``values`` are, and with seeds resampled instead.

    Args:
        values: float64[1 + n, rows], as measured and with families resampled; n may be 0.
        which: the rows of each setting.
        seeds: int64[rows], number of the seed, from 0.

    Returns:
        float64[1 + n, settings] and float64[1 + RESAMPLES, settings]; row 0 is as measured.  All settings meet the
        same draws of seeds; one that lacks all the seeds drawn has NaN.
    """
    families = np.stack([values[:, rows].mean(axis=1) for rows in which], axis=1)
    count = int(seeds.max()) + 1
    rng = np.random.default_rng(_SEED)
    drawn = np.concatenate([np.ones((1, count)), rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)])
    with np.errstate(invalid="ignore"):
        means = [(drawn[:, seeds[rows]] @ values[0, rows]) / drawn[:, seeds[rows]].sum(axis=1) for rows in which]
    return families, np.stack(means, axis=1)


def interval(resampled: Sequence[tuple[Floats, int]]) -> tuple[float, float]:
    """The hull of the 95 % intervals of figures [1 + n], each with the number of its units; row 0 is left out.

    NaN when there is none, a resample is NaN, or units are fewer than two, which show no spread.  Ends are values of
    the sample, which may be infinite.
    """
    drawn = [(values[1:], units) for values, units in resampled if len(values) > 1]
    if not drawn or any(units < 2 or np.isnan(part).any() for part, units in drawn):
        return float("nan"), float("nan")
    parts = [(part, _tail(units)) for part, units in drawn]
    low = min(float(np.quantile(part, tail, method="lower")) for part, tail in parts)
    return low, max(float(np.quantile(part, 1 - tail, method="higher")) for part, tail in parts)


def _tail(units: int) -> float:
    """Share of resamples beyond either end: 2.5 % for many units, less for few (at least two)."""
    return float(ndtr(np.sqrt(units / (units - 1)) * stdtrit(units - 1, _TAIL)))


def mean_intervals(values: Floats, family: NDArray[np.integer], seed: int) -> list[tuple[float, float]]:
    """95 % interval of each column's mean over requests, families resampled; NaN with fewer than two families.

    Args:
        values: float64[R, figures].
        family: int[R], equal for requests of one family.
        seed: of the draws.
    """
    unit = _merged(np.asarray(pd.factorize(family)[0], dtype=np.int64))
    families = int(unit.max(initial=-1)) + 1
    if families < 2:
        return [(float("nan"), float("nan"))] * values.shape[1]
    drawn = _draws(families, RESAMPLES, seed)
    counts = _totals(drawn, np.bincount(unit, minlength=families))
    means = [_totals(drawn, np.bincount(unit, column, families)) / counts for column in values.T]
    return [interval([(np.append(0.0, column), families)]) for column in means]


def resample_results(results: str | Path, runs: Sequence[str], metrics: Sequence[str]) -> Resampled:
    """``resample_runs`` of the runs in a sweep's folder, by their names in its table.  Raises SimkvError."""
    frames = {}
    for run in dict.fromkeys(runs):
        path = Path(results) / "runs" / run / "requests.parquet"
        try:
            frames[run] = pd.read_parquet(path, columns=_NEEDED)
        except (OSError, ValueError) as error:
            raise SimkvError(f"{path}: cannot read the requests of a run: {error}") from error
    return resample_runs(frames, metrics)


def resampled_seeds(table: pd.DataFrame, results: str | Path, metrics: Sequence[str]) -> Resampled | None:
    """``resample_results`` of a sweep's table, for those metrics that can be; None where it has one seed only.

    Raises SimkvError.
    """
    runs = table[table["policy"] != "bound"]
    able = [metric for metric in dict.fromkeys(metrics) if _can(metric)]
    if runs["seed"].nunique() < 2 or not able:
        return None
    return resample_results(results, runs["run"].tolist(), able)


def _can(metric: str) -> bool:
    return metric in _MEANS or _PERCENTILE.fullmatch(metric) is not None


def resample_runs(
    frames: Mapping[str, pd.DataFrame], metrics: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Resampled:
    """Metrics of runs under common draws of families.

    Args:
        frames: the requests frame of each run by its name: ttft_s, quality, measured, family, input_tokens.
        metrics: "ttft_mean_s", "quality_mean" or a percentile such as "ttft_p90_s", over measured requests.
        resamples: how many.
        seed: of the draws.

    Raises:
        SimkvError: an unknown metric, a missing column, or a run that measured nothing.
    """
    for metric in metrics:
        if not _can(metric):
            raise SimkvError(f"metric {metric!r} cannot be resampled; allowed: ttft_mean_s, ttft_pNN_s, quality_mean")
    for name, frame in frames.items():
        if missing := [column for column in _NEEDED if column not in frame]:
            raise SimkvError(f"run {name}: its requests have no column {', '.join(missing)}; compute it again")
        if not frame["measured"].any():
            raise SimkvError(f"run {name}: measured no request")
    units, families = _matched(list(frames.values()))
    found = {metric: np.empty((1 + resamples, len(frames))) for metric in metrics}
    measured = []
    for frame, unit in zip(frames.values(), units, strict=True):
        rows = frame["measured"].to_numpy(dtype=bool)
        measured.append(_Measured(frame.loc[rows, "ttft_s"], frame.loc[rows, "quality"], unit[rows], families))
    drawn = np.concatenate([np.ones((1, families)), _draws(families, resamples, seed)])
    for run, values in enumerate(measured):
        for metric in metrics:
            found[metric][:, run] = values.metric(metric, drawn)
    return Resampled(tuple(frames), found, families)


class _Measured:
    """Measured requests of one run, summed by family."""

    def __init__(self, ttft_s: pd.Series, quality: pd.Series, unit: NDArray[np.int64], families: int) -> None:
        ttft = ttft_s.to_numpy(dtype=np.float64)
        order = np.argsort(ttft, kind="stable")
        self._ttft, self._unit = ttft[order], unit[order]
        self._counts = np.bincount(unit, minlength=families).astype(np.float64)
        self._sums = {
            "ttft_mean_s": np.bincount(unit, ttft, families),
            "quality_mean": np.bincount(unit, quality.to_numpy(dtype=np.float64), families),
        }

    def metric(self, metric: str, drawn: Floats) -> Floats:
        """The metric [n] when families are drawn so often [n, families]; NaN where none of this run is drawn."""
        if metric not in self._sums:
            return self._percentile(int(metric[len("ttft_p") : -len("_s")]) / 100, drawn)
        with np.errstate(invalid="ignore"):
            return _totals(drawn, self._sums[metric]) / _totals(drawn, self._counts)

    def _percentile(self, share: float, drawn: Floats) -> Floats:
        """As ``numpy.quantile`` of the requests, each as often as its family is drawn."""
        rows = max(1, _CELLS // max(1, len(self._ttft)))
        return np.concatenate([self._few(share, drawn[at : at + rows]) for at in range(0, len(drawn), rows)])

    def _few(self, share: float, drawn: Floats) -> Floats:
        upto = np.cumsum(drawn[:, self._unit], axis=1)
        place = np.maximum(upto[:, -1] - 1, 0) * share
        low = np.floor(place)
        ends = []
        for index in (low, np.minimum(low + 1, upto[:, -1] - 1)):
            at = np.minimum((upto <= index[:, None]).sum(axis=1), len(self._ttft) - 1)
            ends.append(self._ttft[at])
        value = ends[0] + (place - low) * (ends[1] - ends[0])
        return np.where(upto[:, -1] > 0, value, np.nan)


def _draws(families: int, resamples: int, seed: int) -> Floats:
    """How often each family is drawn: float64[resamples, families], each row sums to ``families``."""
    if not families:
        return np.empty((resamples, 0))
    picks = np.random.default_rng([seed, _ENTROPY]).integers(0, families, (resamples, families))
    picks += np.arange(resamples)[:, None] * families
    return np.bincount(picks.ravel(), minlength=picks.size).reshape(picks.shape).astype(np.float64)


def _totals(drawn: Floats, sums: NDArray[Any]) -> Floats:
    """Totals [n] of families' sums; not by BLAS, whose last bits depend on the machine and its threads."""
    return np.asarray(np.einsum("ij,j->i", drawn, sums.astype(np.float64)))


def _merged(unit: NDArray[np.int64]) -> NDArray[np.int64]:
    """Units 0 .. n - 1, neighbours merged where there are more than 2,000: as good, at a cost that does not grow."""
    count = int(unit.max(initial=-1)) + 1
    return unit if count <= _MOST_UNITS else unit * _MOST_UNITS // count


def _matched(frames: Sequence[pd.DataFrame]) -> tuple[list[NDArray[np.int64]], int]:
    """The unit of every request of every run, and how many there are; equal families of two runs are one unit."""
    seen: dict[bytes, int] = {}
    which: list[int] = []
    dense: list[NDArray[np.int64]] = []
    keys: list[pd.DataFrame] = []
    for frame in frames:
        family = frame["family"].to_numpy(dtype=np.int64)
        tokens = frame["input_tokens"].to_numpy(dtype=np.int64)
        name = family.tobytes() + tokens.tobytes()
        if name not in seen:
            seen[name] = len(dense)
            unit = np.asarray(pd.factorize(family)[0], dtype=np.int64)
            families = int(unit.max(initial=-1)) + 1
            key = pd.DataFrame({"requests": np.bincount(unit, minlength=families)})
            key["tokens"] = np.bincount(unit, tokens, families).astype(np.int64)
            key["again"] = key.groupby(["requests", "tokens"]).cumcount()
            dense.append(unit)
            keys.append(key)
        which.append(seen[name])
    joined = pd.concat(keys, ignore_index=True) if keys else pd.DataFrame(columns=["requests", "tokens", "again"])
    number = _merged(joined.groupby(["requests", "tokens", "again"], sort=False).ngroup().to_numpy(dtype=np.int64))
    starts = np.cumsum([0, *map(len, keys)])
    units = [number[starts[index] : starts[index + 1]][unit] for index, unit in enumerate(dense)]
    return [units[index] for index in which], int(number.max(initial=-1)) + 1
