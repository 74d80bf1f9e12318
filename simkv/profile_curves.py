"""Quality against size, the curve of a compressor through its knobs, as measured and resampled.

What it is: the arithmetic under ``profile_statistics.py``, its only user, which re-exports what is public here.

Between two knobs a compressor's quality is taken to be linear in the size ratio, along the Pareto front of its own
variants: a knob that a smaller one beats does not count.  Nothing is extrapolated: beyond its largest quality a
compressor has no size, and below its smallest size no quality.  Size ratios are the profile's own, over all tasks.

Intervals are 95 % percentile-bootstrap intervals over contexts (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993), all variants of a context together, tasks apart.  There are none where a task has fewer than five.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simkv.errors import ProfileError, unknown_name
from simkv.profile_types import RAW, Profile, Variant

__all__ = [
    "MEAN",
    "Curves",
    "Estimate",
    "compressors",
    "estimate",
    "family_of",
    "quality_matrix",
    "resampled",
    "split_name",
    "tasks_and_mean",
]

MEAN = "(mean)"
"""Stands for the mean over all tasks wherever a task is named; no task can be called so."""

_RESAMPLES = 1000
_ENDS = (0.025, 0.975)
_SEED = 0
_FEWEST = 5
_CHAIN = "chain"
_DROPPERS = frozenset({"h2o", "keydiff", "knorm", "pyramidinfer", "pyramidkv", "snapkv", "streamingllm", "tova"})

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number and the ends of its 95 % interval, which are NaN where a task has too few contexts for one."""

    value: float
    low: float
    high: float


def split_name(variant: Variant) -> tuple[str, str]:
    """Compressor and knob to show: ("kivi", "2"), or ("chain:snapkv+kivi", "0.5+4"): chains differ by their parts."""
    name, _, knob = str(variant).rpartition(":")
    return (name, knob) if name else (knob, "")


def family_of(compressor: str) -> str:
    """What a compressor does to tokens: a "coder" keeps all, a "dropper" some, and a "chain" codes what is kept.

    Those that are not built in count as coders.
    """
    kind = compressor.partition(":")[0]
    return _CHAIN if kind == _CHAIN else "dropper" if kind in _DROPPERS else "coder"


def compressors(profile: Profile) -> dict[str, tuple[Variant, ...]]:
    """The variants of every compressor, by rising size ratio; RAW is none of them."""
    found: dict[str, list[Variant]] = {}
    for variant in profile.variants:
        if variant != RAW:
            found.setdefault(split_name(variant)[0], []).append(variant)
    return {name: tuple(sorted(group, key=profile.size_ratio.__getitem__)) for name, group in found.items()}


def tasks_and_mean(profile: Profile) -> list[str]:
    """The profile's tasks, and MEAN if there are two or more."""
    tasks = _tasks(profile)
    return [*tasks, MEAN] if len(tasks) > 1 else tasks


def _tasks(profile: Profile) -> list[str]:
    """As ``Profile.tasks``, which takes longer on many rows."""
    return [str(task) for task in profile.quality["task"].unique()]


def resampled(profile: Profile, task: str) -> Floats:
    """Mean quality float64[1 + resamples, variants] of a task or of MEAN, row 0 as measured, NaN without rows.

    Row 0 stands alone where a task has fewer than five contexts.  Raises ProfileError for an unknown task.
    """
    if task == MEAN:
        means = [resampled(profile, name) for name in _tasks(profile)]
        rows = min(map(len, means), default=0)
        if not rows:
            raise ProfileError(f"profile {profile.name}: there are no quality rows")
        return np.mean([table[:rows] for table in means], axis=0)
    matrix = quality_matrix(profile, task)
    count = len(matrix)
    mean = matrix.mean(axis=0, keepdims=True)
    if count < _FEWEST:
        return mean
    rng = np.random.default_rng([_SEED, _tasks(profile).index(task)])
    weights = rng.multinomial(count, np.full(count, 1 / count), _RESAMPLES) / count
    return np.concatenate([mean, weights @ matrix])


def quality_matrix(profile: Profile, task: str, column: str = "quality") -> Floats:
    """Values float64[contexts, variants]; for a variant that the task has no rows of NaN, for RAW 1.

    Raises ProfileError for an unknown task.
    """
    profile.samples(task)
    rows = profile.quality[profile.quality["task"] == task]
    table = rows.pivot(index="sample", columns="variant", values=column)
    table = table.reindex(columns=[str(variant) for variant in profile.variants])
    if table[str(RAW)].isna().all():
        table[str(RAW)] = 1.0
    return table.to_numpy(np.float64)


def estimate(values: Floats) -> Estimate:
    """The first of ``values`` [rows] with the interval of the others; NaN where there are none or one is NaN."""
    rest = values[1:]
    if not len(rest) or np.isnan(rest).any():
        return Estimate(float(values[0]), np.nan, np.nan)
    # Ends are values of the sample, since some may be infinite.
    low = np.quantile(rest, _ENDS[0], method="lower")
    high = np.quantile(rest, _ENDS[1], method="higher")
    return Estimate(float(values[0]), float(low), float(high))


class Curves:
    """Quality over size of some compressors on one task, row 0 as measured, the other rows resampled.

    Raises ProfileError for an unknown task or compressor.
    """

    def __init__(self, profile: Profile, task: str, names: Iterable[str]) -> None:
        known = compressors(profile)
        column = {variant: index for index, variant in enumerate(profile.variants)}
        means = resampled(profile, task)
        self.task = task
        self.names = list(names)
        self._curves = []
        for name in self.names:
            if name not in known:
                raise ProfileError(f"profile {profile.name}: {unknown_name('compressor', name[:64], known)}")
            found = means[:, [column[variant] for variant in known[name]]]
            sizes = [profile.size_ratio[variant] for variant in known[name]]
            self._curves.append((sizes, np.where(np.isnan(found), -np.inf, found)))

    def sizes(self, quality: float) -> Floats:
        """Size ratios [rows, compressors] that reach a quality, infinite where none does."""
        return np.stack([_size_at(*curve, quality) for curve in self._curves], axis=1)

    def at_edge(self, quality: float) -> tuple[str, ...]:
        """Compressors whose smallest measured knob reaches a quality."""
        smallest = [[value for value in means[0] if np.isfinite(value)][:1] for _, means in self._curves]
        return tuple(name for name, found in zip(self.names, smallest, strict=True) if found and found[0] >= quality)

    def qualities(self, size_ratio: float) -> Floats:
        """Qualities [rows, compressors] within a size ratio, minus infinity where a compressor is never so small."""
        return np.stack([_quality_at(*curve, size_ratio) for curve in self._curves], axis=1)


def _size_at(sizes: Iterable[float], quality: Floats, target: float) -> Floats:
    """Size [rows] at which each row of ``quality`` [rows, knobs by rising size] reaches a target, else infinite."""
    found = np.full(len(quality), np.inf)
    best, at = np.full(len(quality), -np.inf), np.full(len(quality), np.nan)
    for size, column in zip(sizes, quality.T, strict=True):
        reached = np.isinf(found) & (column >= target)
        between = reached & np.isfinite(best)
        found[reached] = size
        share = (target - best[between]) / (column[between] - best[between])
        found[between] = at[between] + share * (size - at[between])
        rises = column > best
        best, at = np.where(rises, column, best), np.where(rises, size, at)
    return found


def _quality_at(sizes: Iterable[float], quality: Floats, target: float) -> Floats:
    """Best quality [rows] within a size, on the line to the next better knob; minus infinity below the smallest."""
    best, at = np.full(len(quality), -np.inf), np.full(len(quality), np.nan)
    found = best.copy()
    waiting = np.ones(len(quality), dtype=bool)
    for size, column in zip(sizes, quality.T, strict=True):
        rises = column > best
        if size <= target:
            best, at = np.where(rises, column, best), np.where(rises, size, at)
            found = best.copy()
            continue
        here = waiting & rises & np.isfinite(best)
        share = (target - at[here]) / (size - at[here])
        found[here] = best[here] + share * (column[here] - best[here])
        waiting &= ~here
    return found
