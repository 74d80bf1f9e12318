"""What the engine reads off the whole trace before it starts: each block's parent, and when it is asked for next.

What it is: two columns computed once.  What it is not: knowledge for policies; the next use reaches only those that
declare ``needs_future``.
"""

from array import array

import numpy as np

from simkv.traces.trace import Trace

__all__ = ["next_uses", "parents"]


def parents(trace: Trace) -> np.ndarray:
    """int32[B]: block before each block where it first occurs, -1 for the first of a request."""
    before = np.empty_like(trace.block_ids)
    before[1:] = trace.block_ids[:-1]
    starts = trace.block_offsets[:-1]
    before[starts[starts < len(before)]] = -1
    parent = np.full(trace.n_blocks, -1, dtype=np.int32)
    parent[trace.block_ids[::-1]] = before[::-1]
    return parent


def next_uses(trace: Trace, never: int) -> array:
    """int64[N]: request that next asks for each occurrence's block, ``never`` if none does."""
    owner = np.repeat(np.arange(len(trace), dtype=np.int64), np.diff(trace.block_offsets))
    order = np.argsort(trace.block_ids, kind="stable")
    following = np.full(len(owner), never, dtype=np.int64)
    same = trace.block_ids[order[1:]] == trace.block_ids[order[:-1]]
    following[order[:-1][same]] = owner[order[1:][same]]
    return array("q", following.tobytes())
