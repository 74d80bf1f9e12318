"""Which measured quality each block has in each variant, and what a policy is allowed to see of it.

Each context (prefix family, ``traces.transform.block_contexts``) is assigned one measured sample row of
its task by a seeded hash, so that the joint spread over variants is the measured one.  Scores use that
row.  A policy sees the task's mean ("mean"), or a noisy estimate of the row ("sampled"): sd of one training
query 0.35 sqrt(4q(1-q)), 60 % of its variance common to all variants of a context, divided by sqrt(queries)
(fitted to EvicPress, arXiv 2512.14946).  A profile with measured training scores (``quality_train``) is used
instead of that noise model, whatever the number of queries.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simkv.errors import ProfileError, TraceError
from simkv.profiles import Profile
from simkv.traces.trace import Trace
from simkv.traces.transform import block_contexts

__all__ = ["QualityTables", "mix64", "quality_tables"]

_PPB = 1_000_000_000
_QUERY_SD = 0.35
_COMMON_SHARE = 0.6


@dataclass(frozen=True)
class QualityTables:
    """Quality by block, as engines score it and as policies see it.

    Attributes:
        tasks: names; ``block_task``: [b] index into them.
        score_ppb: [row][v] integers in 1e-9; ``block_row``: [b] row.
        seen: [row][v] floats shown to policies; ``seen_row``: [b] row.
        seed: of measurements during the run.
    """

    tasks: tuple[str, ...]
    block_task: list[int]
    score_ppb: list[list[int]]
    block_row: list[int]
    seen: list[list[float]]
    seen_row: list[int]
    seed: int = 0

    def measure(self, block: int, queries: int, turn: int) -> list[float]:
        """[v] a new estimate of a block's quality from so many queries; ``turn`` numbers the block's measurements."""
        true = np.array([self.score_ppb[self.block_row[block]]]) / _PPB
        return _estimates(true, queries, np.random.default_rng([self.seed, 0x5EED, block, turn]))[0].tolist()


def quality_tables(trace: Trace, profile: Profile, *, seed: int, view: str, queries: int) -> QualityTables:
    """Tables for every block of a trace.

    Raises:
        TraceError: when a request has no task.
        ProfileError: when the profile lacks a task of the trace or a variant's quality for it.
    """
    if not profile.tasks:
        raise ProfileError(
            f"profile {profile.name}: has no quality rows; compose it with one that has (profile.speeds)"
        )
    tasks = tuple(trace.task_names)
    if trace.n_blocks and (not tasks or (trace.task < 0).any()):
        raise TraceError(
            f"{trace.meta['name']}: requests have no task; set tasks in the config to one of "
            f"{', '.join(profile.tasks)}, or to a mixture such as {{ {profile.tasks[0]} = 1.0 }}"
        )
    matrices = [profile.quality_matrix(task) for task in tasks]
    contexts = block_contexts(trace)
    block_task = _first_task(trace)
    counts = np.array([len(matrix) for matrix in matrices], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    draw = mix64(contexts.astype(np.uint64), seed)
    rows = (
        offsets[block_task] + (draw % counts[block_task].astype(np.uint64)).astype(np.int64)
        if len(block_task)
        else block_task
    )
    score = np.concatenate(matrices) if matrices else np.zeros((0, len(profile.variants)))
    if view == "mean":
        seen = np.array([matrix.mean(axis=0) for matrix in matrices])
        seen_row = block_task
    else:
        seen, seen_row = _sampled(profile, score, rows, contexts, tasks, seed, queries)
    return QualityTables(
        tasks=tasks,
        block_task=block_task.tolist(),
        score_ppb=np.rint(score * _PPB).astype(np.int64).tolist(),
        block_row=rows.tolist(),
        seen=seen.tolist(),
        seen_row=seen_row.tolist(),
        seed=seed,
    )


def mix64(values: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A seeded 64-bit hash of each value (the finaliser of SplitMix64, Steele et al. 2014)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64
    x = values + np.uint64(mixed)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _first_task(trace: Trace) -> NDArray[np.int64]:
    """int64[B]: task of the request in which each block first occurs."""
    counts = np.diff(trace.block_offsets)
    per_occurrence = np.repeat(trace.task.astype(np.int64), counts)
    task = np.zeros(trace.n_blocks, dtype=np.int64)
    task[trace.block_ids[::-1]] = per_occurrence[::-1]
    return task


def _sampled(
    profile: Profile,
    score: NDArray[np.float64],
    rows: NDArray[np.int64],
    contexts: NDArray[np.int32],
    tasks: tuple[str, ...],
    seed: int,
    queries: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    if "quality_train" in profile.quality.columns:
        train = np.concatenate([profile.quality_matrix(task, train=True) for task in tasks])
        return train, rows
    labels, index = np.unique(contexts, return_inverse=True)
    row_of_context = np.zeros(len(labels), dtype=np.int64)
    row_of_context[index[::-1]] = rows[::-1]
    estimates = _estimates(score[row_of_context], queries, np.random.default_rng([seed, 0x5EED]))
    return estimates, index.astype(np.int64)


def _estimates(true: NDArray[np.float64], queries: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """float64[contexts, v]: ``true`` as so many queries per context would show it."""
    common = rng.standard_normal((len(true), 1))
    own = rng.standard_normal(true.shape)
    sd = _QUERY_SD * np.sqrt(np.clip(4 * true * (1 - true), 0, 1)) / np.sqrt(queries)
    noise = sd * (np.sqrt(_COMMON_SHARE) * common + np.sqrt(1 - _COMMON_SHARE) * own)
    return np.clip(true + noise, 0.0, 1.0)
