"""How many blocks of a trace would be hits in one cache, untimed: the quick answer before a simulation.

What it is: cold-start hit counts of six eviction policies at any capacities, one compiled pass each
(``hits_kernels.py``).  What it is not: the simulator.  Blocks arrive here the instant they are missed, there is
one tier, no variant and no time; the engine's counts differ wherever those matter.

    trace ──► count_hits(trace, "lru", [10_000, "unlimited"]) ──► HitCounts ──► .frame()

What "resident" means inside one request.
A request's blocks are always *looked up* front to back, each as late as possible but before any touch of a block
at or behind it.  They are *touched* (moved to the recent end, or admitted) in the order ``touch``:

    forward: look up block 0, touch block 0, look up block 1, ...  This is the classical reference string,
        as libCacheSim sees it.  A block admitted early in a request can push out a later block of the same request.
    reverse: look up all blocks, then touch the last, the last but one, ..., the first.
        Afterwards the first block is the most recent one, so that a chain loses its tail first.

``lookup="block"`` counts every resident block, ``lookup="prefix"`` stops at the request's first absent block.
The cache's content is the same for both: every requested block is touched.
On true prefix-hash traces LRU gives the same counts for both, under either touch order.

Against libCacheSim 0.3.5 (forward, block): LRU, FIFO and LFU agree hit for hit.  Two differ on purpose.
GDSF there admits first, so a newcomer can be its own victim; here, as published, room is made first.
S3-FIFO there fills the main queue before the first eviction; here, as published, new blocks always start in the
small queue.  On traces a few times the cache's size that matters: Mooncake conversation, 50,000 blocks,
100,994 hits as published and 82,850 the other way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simkv.errors import ConfigError, PolicyError, unknown_name
from simkv.simulator import hits_kernels
from simkv.traces.reuse import require_reuse, touch_schedule
from simkv.traces.trace import Trace

__all__ = ["HIT_POLICIES", "HitCounts", "count_hits"]

Kernel = Callable[[Any, Any, Any, int], NDArray[np.bool_]]

HIT_POLICIES: dict[str, Kernel] = {
    "lru": hits_kernels.lru,
    "fifo": hits_kernels.fifo,
    "lfu": hits_kernels.lfu,
    "clairvoyant": hits_kernels.clairvoyant,
    "s3fifo": hits_kernels.s3fifo,
    "gdsf": hits_kernels.gdsf,
}
_LOOKUPS = ("block", "prefix")
_MOST = 2**61  # bytes; leaves room to add any block without overflow


@dataclass(frozen=True)
class HitCounts:
    """Hits of one policy at C capacities, with everything their ratios are relative to.

    Attributes:
        trace: the trace's name.
        policy, touch, lookup: as given to ``count_hits``.
        block_unit: what the trace calls a block: "block", "group:8" or "segment".
        capacity_unit: "blocks" or "bytes".
        capacities: C capacities in that unit, None for unlimited.
        hits: int64[C], hit blocks.
        token_hits: int64[C], tokens of hit blocks, in each request at most its input length.
        requested_blocks: every requested block, first and partial ones included: the denominator by block.
        requested_block_tokens: their tokens, in each request at most its input length.
        input_tokens: tokens of all prompts, in blocks or not: the denominator by token.
    """

    trace: str
    policy: str
    touch: str
    lookup: str
    block_unit: str
    capacity_unit: str
    capacities: tuple[int | None, ...]
    hits: NDArray[np.int64]
    token_hits: NDArray[np.int64]
    requested_blocks: int
    requested_block_tokens: int
    input_tokens: int

    @property
    def block_hit_ratio(self) -> NDArray[np.float64]:
        """float64[C], hit blocks / requested blocks."""
        return self.hits / self.requested_blocks

    @property
    def token_hit_ratio(self) -> NDArray[np.float64]:
        """float64[C], hit tokens / input tokens; at most requested_block_tokens / input_tokens."""
        return self.token_hits / max(self.input_tokens, 1)

    def describe(self) -> str:
        """One line for captions: policy, conventions and denominators."""
        return (
            f"{self.trace}: {self.policy}, cold start, touched {self.touch}, {self.lookup} lookup; "
            f"by block of {self.requested_blocks:,} requested blocks (unit: {self.block_unit}), "
            f"by token of {self.input_tokens:,} input tokens"
        )

    def frame(self) -> pd.DataFrame:
        """One row per capacity (<NA> for unlimited), with the counts, ratios, denominators and conventions."""
        return pd.DataFrame(
            {
                "policy": self.policy,
                "capacity": pd.array(list(self.capacities), dtype="Int64"),
                "capacity_unit": self.capacity_unit,
                "hits": self.hits,
                "requested_blocks": self.requested_blocks,
                "block_hit_ratio": self.block_hit_ratio,
                "token_hits": self.token_hits,
                "requested_block_tokens": self.requested_block_tokens,
                "input_tokens": self.input_tokens,
                "token_hit_ratio": self.token_hit_ratio,
                "touch": self.touch,
                "lookup": self.lookup,
                "block_unit": self.block_unit,
            }
        )


def count_hits(
    trace: Trace,
    policy: str,
    capacities: Sequence[int | str | None],
    *,
    touch: str = "forward",
    lookup: str = "block",
    sizes: NDArray[np.int64] | None = None,
) -> HitCounts:
    """Replay a trace's blocks through one cold cache at each capacity; every requested block counts.

    All policies evict before they admit, so a newcomer is never the victim (Belady may not bypass either), and
    none admits a block larger than the capacity.  Among equals the least recently touched block goes.

    Args:
        trace: with blocks; N requested, B distinct.
        policy: "lru", "fifo", "lfu" (touches since admission), "clairvoyant" (Belady: farthest next touch; the
            optimum among policies that admit every miss, for unit sizes and forward touch, else a heuristic),
            "s3fifo" (small queue 10 %, ghosts 90 % of the capacity, two touches to be kept) or "gdsf" (cost 1).
        capacities: whole numbers of blocks, or of bytes if ``sizes`` is given; None or "unlimited".
        touch: "forward" or "reverse", the order within a request (see the module's docstring).
        lookup: "block" or "prefix".
        sizes: int64[B] positive bytes of each distinct block; None makes every block of unit size.

    Raises:
        TraceError: the trace has no reuse information.
        PolicyError: unknown policy.
        ConfigError: unknown touch or lookup, impossible capacity or sizes.
    """
    require_reuse(trace)
    if policy not in HIT_POLICIES:
        raise PolicyError(unknown_name("policy", policy, HIT_POLICIES))
    if lookup not in _LOOKUPS:
        raise ConfigError(unknown_name("lookup", lookup, _LOOKUPS))
    limits = tuple(_capacity(capacity) for capacity in capacities)
    weights = _sizes(trace, sizes)
    order, due = touch_schedule(trace, touch)
    # Copies: a memory-mapped or read-only array is another type to numba, and would be compiled for again.
    blocks = np.array(trace.block_ids[order], dtype=np.int32)
    everything = int(weights.sum())
    counts = np.zeros((2, len(limits)), dtype=np.int64)
    for column, limit in enumerate(limits):
        hit_touches = HIT_POLICIES[policy](blocks, due, weights, everything if limit is None else limit)
        hit = np.empty_like(hit_touches)
        hit[order] = hit_touches
        counts[:, column] = _count(trace, hit, lookup)
    return HitCounts(
        trace=str(trace.meta.get("name", "trace")),
        policy=policy,
        touch=touch,
        lookup=lookup,
        block_unit=str(trace.meta.get("unit", "block")),
        capacity_unit="blocks" if sizes is None else "bytes",
        capacities=limits,
        hits=counts[0],
        token_hits=counts[1],
        requested_blocks=len(blocks),
        requested_block_tokens=_count(trace, np.ones(len(blocks), dtype=np.bool_), "block")[1],
        input_tokens=int(trace.input_tokens.sum(dtype=np.int64)),
    )


def _capacity(value: Any) -> int | None:
    if value is None or value == "unlimited":
        return None
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) <= _MOST:
        raise ConfigError(f"capacity {value!r} must be a whole number from 0 to 2^61, or 'unlimited'")
    return int(value)


def _sizes(trace: Trace, sizes: NDArray[np.int64] | None) -> NDArray[np.int64]:
    if sizes is None:
        return np.ones(trace.n_blocks, dtype=np.int64)
    given = np.array(sizes)
    if given.shape != (trace.n_blocks,) or given.dtype.kind not in "iu" or int(given.min()) <= 0:
        raise ConfigError(f"sizes must be {trace.n_blocks} positive whole numbers of bytes, one per distinct block")
    if float(given.sum(dtype=np.float64)) > _MOST:
        raise ConfigError("sizes add up to more than 2^61 bytes")
    return given.astype(np.int64)


def _count(trace: Trace, hit: NDArray[np.bool_], lookup: str) -> tuple[int, int]:
    """Hit blocks and hit tokens, from a flag per requested block in prefix order."""
    offsets = trace.block_offsets
    if lookup == "prefix":
        misses = np.concatenate([[0], np.cumsum(~hit)])
        hit = misses[1:] == np.repeat(misses[offsets[:-1]], np.diff(offsets))
    tokens = np.concatenate([[0], np.cumsum(np.where(hit, trace.block_tokens[trace.block_ids], 0), dtype=np.int64)])
    per_request = np.minimum(np.diff(tokens[offsets]), trace.input_tokens)
    return int(hit.sum()), int(per_request.sum())
