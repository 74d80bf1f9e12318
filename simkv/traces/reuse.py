"""Reuse in a trace at the level of blocks: order of touches, LRU stack distances, miss-ratio curve.

What it is: exact one-pass measures of a block reference string, compiled.  What it is not: a cache
(``simkv.simulator.hits`` replays one and shares the order of touches) or a summary (``stats.py``).

A block's LRU stack distance is the size of all distinct blocks touched since its own last touch, itself included:
the smallest LRU cache in which it is a hit (Mattson), so one pass gives the hits of every capacity.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from simkv.errors import ConfigError, TraceError, unknown_name
from simkv.traces.trace import Trace

__all__ = [
    "MissRatioCurve",
    "distinct_per_window",
    "has_reuse",
    "miss_ratio_curve",
    "require_reuse",
    "reuse_gaps_ns",
    "stack_distances",
    "touch_schedule",
]

_TOUCHES = ("forward", "reverse")
_MOST = 2**61  # bytes; sums of two such numbers stay within int64


@dataclass(frozen=True)
class MissRatioCurve:
    """LRU hits at every capacity, a step function with K steps.

    Attributes:
        unit: of ``capacities``: "blocks" or "bytes".
        touch: order within a request, as in ``stack_distances``.
        capacities: int64[K], ascending: where hits are gained.
        hits: int64[K], hit blocks at that capacity and up to the next.
        requested_blocks: the denominator.
    """

    unit: str
    touch: str
    capacities: NDArray[np.int64]
    hits: NDArray[np.int64]
    requested_blocks: int

    @property
    def miss_ratio(self) -> NDArray[np.float64]:
        """float64[K], missed blocks / requested blocks."""
        return (self.requested_blocks - self.hits) / self.requested_blocks

    def hits_at(self, capacity: int) -> int:
        """Hit blocks of an LRU cache of that capacity."""
        step = int(np.searchsorted(self.capacities, capacity, side="right"))
        return int(self.hits[step - 1]) if step else 0


def miss_ratio_curve(trace: Trace, *, touch: str = "forward", kv_bytes_per_token: int | None = None) -> MissRatioCurve:
    """LRU hits at every capacity in blocks or, with ``kv_bytes_per_token``, in bytes.

    Exact for capacities that hold the largest block; below that, blocks that a real cache could not admit
    still push others down the stack here.

    Raises:
        TraceError: no reuse information, or more than 2^61 bytes.
        ConfigError: unknown touch order.
    """
    sizes = None
    if kv_bytes_per_token is not None:
        _require_fit(trace, int(trace.block_tokens.sum(dtype=np.int64)) * kv_bytes_per_token)
        sizes = trace.block_tokens.astype(np.int64) * kv_bytes_per_token
    distances = stack_distances(trace, touch=touch, sizes=sizes)
    capacities, gained = np.unique(distances[distances >= 0], return_counts=True)
    unit = "blocks" if sizes is None else "bytes"
    return MissRatioCurve(unit, touch, capacities, np.cumsum(gained), len(distances))


def stack_distances(
    trace: Trace, *, touch: str = "forward", sizes: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """int64[N], the LRU stack distance of every requested block in prefix order; -1 at its first touch.

    Args:
        trace: N requested, B distinct blocks.
        touch: "forward" looks each block up and touches it before the next; "reverse" looks up all blocks of a
            request, then touches them back to front.
        sizes: int64[B], unit of the distances; None counts blocks.

    Raises:
        TraceError: no reuse information, or sizes that add up to more than 2^61.
        ConfigError: unknown touch order.
    """
    require_reuse(trace)
    weights = np.ones(trace.n_blocks, dtype=np.int64) if sizes is None else np.array(sizes, dtype=np.int64)
    _require_fit(trace, float(weights.sum(dtype=np.float64)))
    order, due = touch_schedule(trace, touch)
    distances = np.empty(len(order), dtype=np.int64)
    distances[order] = _distances(np.array(trace.block_ids[order], dtype=np.int32), due, weights)
    return distances


def touch_schedule(trace: Trace, touch: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which block is touched at each of N steps, and how far blocks are looked up before that step.

    Returns:
        order: int64[N], position in ``trace.block_ids`` of the block touched at each step.
        due: int64[N], never decreasing: before step i, the blocks of steps below ``due[i]`` are looked up.

    Raises:
        ConfigError: ``touch`` is neither "forward" nor "reverse".
    """
    steps = np.arange(len(trace.block_ids), dtype=np.int64)
    if touch == "forward":
        return steps, steps + 1
    if touch != "reverse":
        raise ConfigError(unknown_name("touch order", touch, _TOUCHES))
    offsets = np.asarray(trace.block_offsets)
    ends = np.repeat(offsets[1:], np.diff(offsets))
    return np.repeat(offsets[:-1], np.diff(offsets)) + ends - 1 - steps, ends


def has_reuse(trace: Trace) -> bool:
    """Whether the trace has blocks whose repetition means reuse."""
    return bool(trace.meta.get("reuse", True)) and len(trace.block_ids) > 0


def require_reuse(trace: Trace) -> None:
    """Raise TraceError for a trace without reuse information, which must not produce hit ratios."""
    if not has_reuse(trace):
        raise TraceError(
            f"{trace.meta.get('name', 'trace')}: the trace has no reuse information (no block hashes), so it has no "
            "hit ratio; use a trace with block hashes, or give it blocks with a reuse model first"
        )


def _require_fit(trace: Trace, total: float) -> None:
    if total > _MOST:
        raise TraceError(f"{trace.meta.get('name', 'trace')}: the distinct blocks add up to more than 2^61 bytes")


def reuse_gaps_ns(trace: Trace) -> NDArray[np.int64]:
    """int64[N], time since the previous request of the same block; -1 for its first."""
    arrivals = np.repeat(trace.arrival_ns, np.diff(trace.block_offsets))
    gaps: NDArray[np.int64] = _reuse_gaps(np.array(trace.block_ids), arrivals, trace.n_blocks)
    return gaps


def distinct_per_window(
    trace: Trace, window_of_request: NDArray[np.int64], windows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct blocks in each of W windows of requests, and their tokens: int64[W] each.

    Args:
        trace: R requests.
        window_of_request: int64[R] in 0..W-1, never decreasing.
        windows: W.
    """
    window_of_block = np.repeat(window_of_request, np.diff(trace.block_offsets))
    tokens = trace.block_tokens.astype(np.int64)
    blocks, distinct_tokens = _distinct_per_window(np.array(trace.block_ids), window_of_block, tokens, windows)
    return blocks, distinct_tokens


@njit(cache=True)
def _reuse_gaps(blocks: Any, arrivals: Any, n: int) -> Any:
    """int64[N], ns since the previous request of the same block, -1 for its first."""
    last = np.full(n, -1, np.int64)
    gaps = np.full(len(blocks), -1, np.int64)
    for i in range(len(blocks)):
        if last[blocks[i]] >= 0:
            gaps[i] = arrivals[i] - last[blocks[i]]
        last[blocks[i]] = arrivals[i]
    return gaps


@njit(cache=True)
def _distinct_per_window(blocks: Any, windows: Any, tokens: Any, n: int) -> Any:
    distinct, distinct_tokens = np.zeros(n, np.int64), np.zeros(n, np.int64)
    seen_in = np.full(len(tokens), -1, np.int64)
    for i in range(len(blocks)):
        if seen_in[blocks[i]] != windows[i]:
            seen_in[blocks[i]] = windows[i]
            distinct[windows[i]] += 1
            distinct_tokens[windows[i]] += tokens[blocks[i]]
    return distinct, distinct_tokens


@njit(cache=True)
def _distances(blocks: Any, due: Any, sizes: Any) -> Any:
    """Stack distances by a Fenwick tree over steps that holds each block's size at its last touch."""
    steps = len(blocks)
    tree = np.zeros(steps + 1, np.int64)
    last = np.full(len(sizes), -1, np.int64)
    distances = np.full(steps, -1, np.int64)
    looked = total = 0
    for i in range(steps):
        for j in range(looked, due[i]):
            if last[blocks[j]] >= 0:
                distances[j] = total - _sum_through(tree, last[blocks[j]]) + sizes[blocks[j]]
        looked = due[i]
        block, size = blocks[i], sizes[blocks[i]]
        if last[block] >= 0:
            _add(tree, last[block], -size)
        else:
            total += size
        _add(tree, i, size)
        last[block] = i
    return distances


@njit(cache=True)
def _add(tree: Any, step: int, amount: int) -> None:
    node = step + 1
    while node < len(tree):
        tree[node] += amount
        node += node & -node


@njit(cache=True)
def _sum_through(tree: Any, step: int) -> int:
    node, total = step + 1, 0
    while node > 0:
        total += tree[node]
        node -= node & -node
    return total
