"""Two operating curves compared: how much faster at equal quality, how much better at equal delay.

What it is: interpolation along the Pareto front of one policy's sweep, against each setting of the others.
What it is not: extrapolation; where the curve does not reach, the answer is NaN.  Flow: a sweep's summary
table -> here -> a table or a figure.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simkv.errors import SimkvError
from simkv.profiles import pareto_front

__all__ = ["compare_curves", "delay_at_quality", "quality_at_delay"]

_NEEDED = ("label", "params", "ttft_mean_s", "quality_mean")


def _front(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pareto front of (delay, quality) points, sorted by delay, equal points once."""
    return np.unique(points[pareto_front(points)], axis=0)


def delay_at_quality(points: NDArray[np.float64], quality: float) -> float:
    """Delay (s) at which a policy reaches a quality, between its operating points.

    Args:
        points: float[n, 2] of (delay_s, quality), the policy's sweep.
        quality: to be reached.

    Returns:
        Seconds, linear between neighbouring points of the Pareto front; the fastest point's delay for a quality
        below the front, NaN above it.
    """
    front = _front(points)
    if quality > front[-1, 1]:
        return float("nan")
    return float(np.interp(quality, front[:, 1], front[:, 0]))


def quality_at_delay(points: NDArray[np.float64], delay_s: float) -> float:
    """Quality that a policy reaches within a delay (s); NaN when it is never that fast.  See ``delay_at_quality``."""
    front = _front(points)
    if delay_s < front[0, 0]:
        return float("nan")
    return float(np.interp(delay_s, front[:, 0], front[:, 1]))


def compare_curves(table: pd.DataFrame, label: str, *, by: Iterable[str] = ()) -> pd.DataFrame:
    """One policy's operating curve against every setting of the other labels.

    Args:
        table: a sweep's summary (columns label, params, ttft_mean_s, quality_mean), seeds already averaged or one.
        label: the policy whose settings make the curve.
        by: columns that separate the comparisons (e.g. "trace.generate", "profile.sizes").

    Returns:
        One row per other setting: the ``by`` columns, baseline, params, ttft_mean_s, quality_mean, delay_ratio (the
        baseline's delay / the curve's at the baseline's quality) and quality_gain ((the curve's quality at the
        baseline's delay - the baseline's) / the baseline's).

    Raises:
        SimkvError: when a column is missing or no row has the label.
    """
    by = list(by)
    missing = [column for column in (*_NEEDED, *by) if column not in table.columns]
    if missing:
        raise SimkvError(f"comparison: the table has no column {', '.join(missing)}")
    if label not in set(table["label"]):
        raise SimkvError(
            f"comparison: no run has the label {label!r}; labels: {', '.join(sorted(set(table['label'])))}"
        )
    groups = table.groupby(by, sort=False) if by else [((), table)]
    rows = []
    for key, group in groups:
        curve = group.loc[group["label"] == label, ["ttft_mean_s", "quality_mean"]].to_numpy(dtype=float)
        if not len(curve):
            continue
        for row in group[group["label"] != label].to_dict("records"):
            delay, quality = float(row["ttft_mean_s"]), float(row["quality_mean"])
            rows.append(
                {
                    **dict(zip(by, key, strict=True)),
                    "baseline": row["label"],
                    "params": row["params"],
                    "ttft_mean_s": delay,
                    "quality_mean": quality,
                    "delay_ratio": delay / delay_at_quality(curve, quality),
                    "quality_gain": quality_at_delay(curve, delay) / quality - 1.0,
                }
            )
    return pd.DataFrame(rows)
