"""Per-context quality from published means: one mean curve per task becomes many samples that vary around it.

Papers publish means over contexts, while policies that look at single contexts live off the spread.  A profile's
``[spread]`` says how far contexts of a task vary; the samples made here have the published mean.

    q_i(v) = t(v) ^ G_im,   G_im = exp(sigma (sqrt(common) z_i + sqrt(1 - common) e_im)),   z, e standard normal,

for context i, variant v of method m; t(v) is such that the samples' mean is the task's mean.  On top comes independent
noise of standard deviation noise x 4 q (1 - q).  This family was fitted to the per-context drops of EvicPress
(arXiv 2512.14946, Fig. 3).  What it is not: a measurement; measured profiles bring their own samples.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from simkv.errors import ProfileError, unknown_name
from simkv.profile_values import CheckedTable

__all__ = ["SPREAD_KEYS", "Spread", "parse_spread", "spread_quality"]

SPREAD_KEYS = ("samples", "seed", "common", "noise", "sigma")
_MOST_SAMPLES = 10_000
_MOST_ROWS = 1_000_000
_MOST_SIGMA = 3.0
_HALVINGS = 60


@dataclass(frozen=True)
class Spread:
    """How contexts of a task vary.

    Attributes:
        samples: contexts made per task.
        seed: of all draws.
        common: share of the variance of log sensitivity that all methods have in common, in [0, 1].
        noise: standard deviation of independent noise at quality 0.5.
        sigma: task -> standard deviation of log sensitivity.
    """

    samples: int
    seed: int
    common: float
    noise: float
    sigma: dict[str, float]


def parse_spread(table: CheckedTable) -> Spread:
    """The section ``[spread]`` of a profile, whose keys are SPREAD_KEYS.  Raises ProfileError."""
    given = table.get("sigma")
    sigmas = CheckedTable(f"{table.place}: sigma", given, given if isinstance(given, dict) else ())
    return Spread(
        samples=table.whole("samples", _MOST_SAMPLES),
        seed=table.whole("seed", 2**31, 1),
        common=table.number("common", lambda share: 0 <= share <= 1, "from 0 to 1"),
        noise=table.number("noise", lambda sd: 0 <= sd <= 1, "from 0 to 1"),
        sigma={
            task: sigmas.number(task, lambda sd: 0 <= sd <= _MOST_SIGMA, f"from 0 to {_MOST_SIGMA:g}")
            for task in sigmas.data
        },
    )


def spread_quality(means: pd.DataFrame, spread: Spread, where: str) -> pd.DataFrame:
    """Rows (task, sample, variant, quality) made of one mean row per task and variant.

    Args:
        means: rows (task, sample, variant, quality) with one sample per task.
        spread: how far samples vary.
        where: opens error messages.

    Raises:
        ProfileError: when a task has several samples, training scores, a mean above 1 or no sigma, or a sigma no task.
    """
    tasks = list(dict.fromkeys(means["task"]))
    if "quality_train" in means or means.duplicated(["task", "variant"]).any():
        raise ProfileError(f"{where}: a spread needs means, one sample per task and no column quality_train")
    if len(means) * spread.samples > _MOST_ROWS:
        raise ProfileError(f"{where}: {len(means)} means in {spread.samples} samples are more than {_MOST_ROWS} rows")
    for name, quality in zip(means["variant"], means["quality"], strict=True):
        if quality > 1:
            raise ProfileError(f"{where}: mean quality {quality:g} of {name}: a spread needs means of at most 1")
    for task in spread.sigma:
        if task not in tasks:
            raise ProfileError(f"{where}: sigma: {unknown_name('task', task, tasks)}")
    frames = []
    for index, task in enumerate(tasks):
        if task not in spread.sigma:
            raise ProfileError(f"{where}: sigma: task {task} is missing")
        rows = means[means["task"] == task]
        rng = np.random.default_rng([spread.seed, index])
        names = rows["variant"].to_numpy()
        quality = _samples(rows["quality"].to_numpy(np.float64), names, spread, spread.sigma[task], rng)
        samples = np.arange(spread.samples)
        columns = {"task": task, "sample": samples.repeat(len(names)), "variant": np.tile(names, spread.samples)}
        frames.append(pd.DataFrame({**columns, "quality": quality.ravel()}))
    return pd.concat(frames, ignore_index=True)


def _samples(
    mean: NDArray[np.float64], names: NDArray[np.object_], spread: Spread, sigma: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """float64[samples, variants] with the given means (before noise)."""
    methods = [str(name).partition(":")[0] for name in names]
    common = _normal(rng, spread.samples)
    own = {method: _normal(rng, spread.samples) for method in dict.fromkeys(methods)}
    log_power = [np.sqrt(spread.common) * common + np.sqrt(1 - spread.common) * own[method] for method in methods]
    power = np.exp(sigma * np.array(log_power))  # [variants, samples]
    low, high = np.zeros(len(mean)), np.ones(len(mean))
    for _ in range(_HALVINGS):
        middle = np.where(mean > 0, np.where(mean < 1, (low + high) / 2, 1.0), 0.0)
        below = (middle[:, None] ** power).mean(axis=1) < mean
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    quality = middle[:, None] ** power
    quality += spread.noise * 4 * quality * (1 - quality) * rng.standard_normal(quality.shape)
    return np.clip(quality, 0.0, 1.0).T


def _normal(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """float64[count] quantiles of the standard normal in random order: its moments without sampling error."""
    return ndtri((rng.permutation(count) + 0.5) / count)
