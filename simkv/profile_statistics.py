"""What a profile's quality rows say about compressors: intervals, which one wins where, how contexts and tasks differ.

What it is: numbers with bootstrap intervals, from a Profile; numpy and pandas only.  What it is not: measuring, tables
of text (``cli_profile.py``) or figures (``figures/quality_size.py``).

How curves are interpolated and intervals made is said in ``profile_curves.py``.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simkv.errors import ProfileError
from simkv.profile_curves import (
    MEAN,
    Curves,
    Estimate,
    compressors,
    estimate,
    family_of,
    quality_matrix,
    resampled,
    split_name,
    tasks_and_mean,
)
from simkv.profile_types import RAW, Profile

__all__ = [
    "MEAN",
    "Estimate",
    "TaskGap",
    "Win",
    "compressors",
    "context_spread",
    "family_of",
    "quality_at_size",
    "quality_points",
    "reduction_factor",
    "size_at_quality",
    "split_name",
    "task_gap",
    "task_gaps",
    "wins_at_quality",
    "wins_at_size",
]

Floats = NDArray[np.float64]

_ROUNDING = 1e-20
_SPREAD = ["task", "variant", "compressor", "size_ratio", "contexts", "mean", "sd", "cv", "split_half", "context_sd"]
_NOTHING = Estimate(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Win:
    """The best compressor of a task at one target, and by how much.

    Attributes:
        task: its name, or MEAN.
        target: the quality to be reached, or the size ratio to be kept to.
        values: size ratio (at a quality) or quality (at a size) of every compressor that reaches the target.
        at_edge: compressors whose smallest knob is still better than the target quality: their sizes are upper
            bounds.  Empty at a size.
        winner, runner_up: None where none, or no second one, reaches the target.
        margin: at a quality the best size ratio of the others / the winner's, infinite where there is no other; at a
            size the winner's quality - the best of the others.  The interval takes the best of the others anew in
            every resample, so that it holds against all of them and not only the runner-up.
        significant: whether the whole interval is on the winner's side; None without an interval, and where the
            runner-up is at its edge, since with a smaller knob it might have won.
    """

    task: str
    target: float
    values: dict[str, float]
    at_edge: tuple[str, ...]
    winner: str | None
    runner_up: str | None
    margin: Estimate
    significant: bool | None


@dataclass(frozen=True)
class TaskGap:
    """How far tasks lie apart under one compressor at one size: the quality of every task, best - worst."""

    compressor: str
    size_ratio: float
    quality: dict[str, float]
    best: str
    worst: str
    gap: Estimate


def quality_points(profile: Profile) -> pd.DataFrame:
    """Mean quality with its interval, one row per task and variant that has rows, MEAN last if there are two tasks.

    Columns: task, compressor, knob, size_ratio, quality, low, high; the ends are NaN without an interval.
    """
    rows = []
    for task in tasks_and_mean(profile):
        means = resampled(profile, task)
        for column, variant in enumerate(profile.variants):
            found = estimate(means[:, column])
            if not np.isnan(found.value):
                rows.append(
                    (task, *split_name(variant), profile.size_ratio[variant], found.value, found.low, found.high)
                )
    return pd.DataFrame(rows, columns=["task", "compressor", "knob", "size_ratio", "quality", "low", "high"])


def size_at_quality(profile: Profile, task: str, compressor: str, quality: float) -> Estimate:
    """Smallest size ratio at which a compressor reaches a mean quality; all NaN where it does not.

    1 / size is the memory reduction.  It is the size of the smallest knob where that is better still.  The upper end is
    infinite where more than 2.5 % of the resamples do not reach it.  Raises ProfileError for an unknown task or
    compressor.
    """
    return _reached(Curves(profile, task, [compressor]).sizes(quality)[:, 0])


def quality_at_size(profile: Profile, task: str, compressor: str, size_ratio: float) -> Estimate:
    """Mean quality that a compressor reaches within a size ratio; all NaN where it is never so small.

    Raises ProfileError for an unknown task or compressor.
    """
    return _reached(Curves(profile, task, [compressor]).qualities(size_ratio)[:, 0])


def reduction_factor(profile: Profile, task: str, compressor: str, baseline: str, quality: float) -> Estimate:
    """Memory reduction (raw / stored) of a compressor over that of a baseline where both reach the same quality.

    1.5 is a reduction that is 50 % higher.  All NaN where one of them does not reach it.  Raises ProfileError for an
    unknown task or compressor.
    """
    sizes = Curves(profile, task, [compressor, baseline]).sizes(quality)
    return _margin(-sizes[:, 0], -sizes[:, 1], smaller=True) if np.isfinite(sizes[0]).all() else _NOTHING


def wins_at_quality(profile: Profile, qualities: Iterable[float]) -> list[Win]:
    """For every task, MEAN last, and every quality: which compressor reaches it with the fewest bytes."""
    targets = list(qualities)
    return [
        _win(curves, quality, curves.sizes(quality), curves.at_edge(quality), smaller=True)
        for curves in _all_curves(profile)
        for quality in targets
    ]


def wins_at_size(profile: Profile, size_ratios: Iterable[float]) -> list[Win]:
    """For every task, MEAN last, and every size ratio: which compressor keeps the most quality within it."""
    targets = list(size_ratios)
    return [
        _win(curves, size, curves.qualities(size), (), smaller=False)
        for curves in _all_curves(profile)
        for size in targets
    ]


def task_gap(profile: Profile, compressor: str, size_ratio: float = 0.5) -> TaskGap:
    """Quality of every task at one size, and the gap between the best and the worst, whose interval is of this pair.

    Raises ProfileError for an unknown compressor, or one that is so small in fewer than two tasks.
    """
    gaps = _gaps(profile, [compressor], size_ratio)
    if not gaps:
        where = f"profile {profile.name}: compressor {compressor}"
        raise ProfileError(f"{where} has a quality at a size ratio of {size_ratio:g} in fewer than two tasks")
    return gaps[0]


def task_gaps(profile: Profile, size_ratio: float = 0.5) -> list[TaskGap]:
    """The gap of every compressor that gets so small in at least two tasks."""
    names = list(compressors(profile))
    return _gaps(profile, names, size_ratio) if names else []


def _gaps(profile: Profile, names: list[str], size_ratio: float) -> list[TaskGap]:
    found = {task: Curves(profile, task, names).qualities(size_ratio) for task in profile.tasks}
    gaps = []
    for column, name in enumerate(names):
        values = {task: table[:, column] for task, table in found.items() if np.isfinite(table[0, column])}
        if len(values) < 2:
            continue
        known = {task: float(rows[0]) for task, rows in values.items()}
        best, worst = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
        rows = min(len(values[best]), len(values[worst]))
        gap = estimate(values[best][:rows] - values[worst][:rows])
        gaps.append(TaskGap(name, size_ratio, known, best, worst, gap))
    return gaps


def context_spread(profile: Profile) -> pd.DataFrame:
    """How much contexts of a task differ, one row per task and variant bar RAW.

    Columns: task, variant, compressor, size_ratio, contexts, mean, sd (over contexts, n - 1), cv (sd / mean),
    split_half and context_sd.  ``split_half`` is the correlation over contexts between the quality of the scoring
    and of the training questions, that is the share of the variance of one half that comes from the contexts and not
    from which questions were asked (as reliability is estimated in test theory: Spearman 1910, Brown 1910);
    ``context_sd`` is the root of their covariance, 0 where that is negative.  NaN where unknown.
    """
    rows = []
    for task in profile.tasks:
        scored = quality_matrix(profile, task)
        known = "quality_train" in profile.quality
        train = quality_matrix(profile, task, "quality_train") if known else np.full_like(scored, np.nan)
        for column, variant in enumerate(profile.variants):
            values = scored[:, column]
            if variant == RAW or np.isnan(values).all():
                continue
            mean = float(values.mean())
            sd = float(values.std(ddof=1)) if len(values) > 1 else np.nan
            facts = (task, str(variant), split_name(variant)[0], profile.size_ratio[variant], len(values), mean, sd)
            rows.append((*facts, sd / mean if mean else np.nan, *_halves(values, train[:, column])))
    return pd.DataFrame(rows, columns=_SPREAD)


def _halves(scored: Floats, train: Floats) -> tuple[float, float]:
    """Correlation of the two halves over contexts, and the standard deviation that they share."""
    if len(scored) < 2 or np.isnan(train).any():
        return np.nan, np.nan
    (own, shared), (_, other) = np.cov(scored, train)
    known = min(own, other) > _ROUNDING
    return float(shared / np.sqrt(own * other)) if known else np.nan, float(max(shared, 0.0) ** 0.5)


def _all_curves(profile: Profile) -> list[Curves]:
    names = compressors(profile)
    return [Curves(profile, task, names) for task in tasks_and_mean(profile)] if names else []


def _reached(values: Floats) -> Estimate:
    return estimate(values) if np.isfinite(values[0]) else _NOTHING


def _win(curves: Curves, target: float, table: Floats, edge: tuple[str, ...], *, smaller: bool) -> Win:
    """The best column of ``table`` [rows, compressors] by its first row."""
    score = -table if smaller else table
    order = [int(index) for index in np.argsort(-score[0], kind="stable") if np.isfinite(score[0, index])]
    values = {curves.names[index]: float(table[0, index]) for index in order}
    if not order:
        return Win(curves.task, target, values, edge, None, None, _NOTHING, None)
    first = order[0]
    others = np.delete(score, first, axis=1).max(axis=1, initial=-np.inf)
    margin = _margin(score[:, first], others, smaller=smaller)
    runner_up = curves.names[order[1]] if len(order) > 1 else None
    open_end = runner_up in edge or np.isnan(margin.low)
    significant = None if open_end else bool(margin.low > (1.0 if smaller else 0.0))
    return Win(curves.task, target, values, edge, curves.names[first], runner_up, margin, significant)


def _margin(own: Floats, others: Floats, *, smaller: bool) -> Estimate:
    """By how much the winner's scores [rows] beat the best of the others; where neither reaches the target, it ties."""
    neither = np.isneginf(own) & np.isneginf(others)
    own, others = np.where(neither, -1.0, own), np.where(neither, -1.0, others)
    return estimate(others / own if smaller else own - others)
