"""The Trace: requests as columns, blocks as one flat array.  Everything else reads or makes this.

What it is: the in-memory form that readers produce, generators make, transformations change and the
simulator replays.  What it is not: a file format (``storage.py``) or a reader (``formats.py``).
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simkv.errors import TraceError

__all__ = ["Trace", "build_trace"]

_COLUMNS = {
    "arrival_ns": np.int64,
    "input_tokens": np.int32,
    "output_tokens": np.int32,
    "block_offsets": np.int64,
    "block_ids": np.int32,
    "block_tokens": np.int32,
    "session": np.int32,
    "task": np.int16,
}


@dataclass(frozen=True)
class Trace:
    """A request trace in columns; R requests, N requested blocks, B distinct blocks.

    Attributes:
        arrival_ns: int64[R], from the trace's start (the first is usually 0), never decreasing.
        input_tokens: int32[R], length of the prompt, at least 0.
        output_tokens: int32[R], tokens generated; 0 is legal.
        block_offsets: int64[R + 1]; request r asks for ``block_ids[block_offsets[r]:block_offsets[r + 1]]``.
        block_ids: int32[N] in prefix order, dense: numbered 0.. by first appearance.
        block_tokens: int32[B], tokens of each distinct block (the largest if occurrences differ).
        session: int32[R], conversation of the request, -1 where there is none.
        task: int16[R], index into ``meta["task_names"]``, -1 where there is none.
        meta: JSON-able facts: ``name``, ``format``, ``source``, ``sha256``, ``block_size`` (tokens; 0 for
            blocks of varying size), ``unit`` ("block", "group:8", "segment"), ``reuse`` (False: no reuse
            information), ``clock`` ("shared", or the rule that made the arrival times, or "none"),
            ``task_names``, ``transforms`` (list of text), ``notes`` (list of text: what was counted or skipped).
    """

    arrival_ns: NDArray[np.int64]
    input_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    block_offsets: NDArray[np.int64]
    block_ids: NDArray[np.int32]
    block_tokens: NDArray[np.int32]
    session: NDArray[np.int32]
    task: NDArray[np.int16]
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check types, shapes and order.  Raises TraceError."""
        name = self.meta.get("name", "trace")
        for column, dtype in _COLUMNS.items():
            array = getattr(self, column)
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
                raise TraceError(f"{name}: column {column} must be a one-dimensional array of {np.dtype(dtype)}")
        requests = len(self.arrival_ns)
        for column in ("input_tokens", "output_tokens", "session", "task"):
            if len(getattr(self, column)) != requests:
                raise TraceError(f"{name}: column {column} has {len(getattr(self, column))} rows, not {requests}")
        self._check_blocks(name, requests)
        if requests and int(self.arrival_ns[0]) < 0:
            raise TraceError(f"{name}: the first arrival is negative")
        falls = np.flatnonzero(np.diff(self.arrival_ns) < 0)
        if len(falls):
            raise TraceError(f"{name}: request {falls[0] + 1} arrives before request {falls[0]}")
        if requests and min(int(self.input_tokens.min()), int(self.output_tokens.min())) < 0:
            raise TraceError(f"{name}: token counts must not be negative")

    def _check_blocks(self, name: str, requests: int) -> None:
        offsets = self.block_offsets
        if len(offsets) != requests + 1 or offsets[0] != 0 or int(offsets[-1]) != len(self.block_ids):
            raise TraceError(f"{name}: block offsets do not match {requests} requests and {len(self.block_ids)} blocks")
        if (np.diff(offsets) < 0).any():
            raise TraceError(f"{name}: block offsets must not decrease")
        if len(self.block_ids) and not 0 <= int(self.block_ids.min()) <= int(self.block_ids.max()) < self.n_blocks:
            raise TraceError(f"{name}: block ids must lie in 0..{self.n_blocks - 1}")
        if self.n_blocks and int(self.block_tokens.min()) <= 0:
            raise TraceError(f"{name}: every block must hold at least one token")

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.arrival_ns)

    @property
    def n_blocks(self) -> int:
        """Number of distinct blocks."""
        return len(self.block_tokens)

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks that the ``task`` column indexes."""
        return list(self.meta.get("task_names", []))

    @property
    def duration_s(self) -> float:
        """Seconds from the trace's start to the last arrival."""
        return float(self.arrival_ns[-1]) / 1e9 if len(self) else 0.0

    def blocks_of(self, request: int) -> NDArray[np.int32]:
        """Block ids of one request, in prefix order."""
        return self.block_ids[self.block_offsets[request] : self.block_offsets[request + 1]]

    def with_meta(self, **changes: Any) -> "Trace":
        """The same columns with some facts changed."""
        return replace(self, meta={**self.meta, **changes})

    def transformed(self, description: str, **columns: NDArray[Any]) -> "Trace":
        """The trace with some columns replaced and ``description`` added to ``meta["transforms"]``."""
        meta = {**self.meta, "transforms": [*self.meta.get("transforms", []), description]}
        return replace(self, **columns, meta=meta)


def build_trace(
    *,
    arrival_ns: Any,
    input_tokens: Any,
    output_tokens: Any,
    block_counts: Any,
    block_keys: Any,
    occurrence_tokens: Any,
    session: Any = None,
    task: Any = None,
    meta: dict[str, Any],
) -> Trace:
    """Make a Trace from raw columns: sort by arrival (stable), subtract nothing, densify block keys.

    Args:
        arrival_ns: [R] integers; equal times keep their order.
        input_tokens, output_tokens: [R] integers.
        block_counts: [R] blocks per request.
        block_keys: [N] any integer keys (int64), concatenated in the order given.
        occurrence_tokens: [N] tokens of each occurrence; a block keeps its largest.
        session, task: [R] or None for -1 everywhere.
        meta: see Trace; defaults are filled in for the keys that are left out.

    Raises:
        TraceError: from the checks of Trace, or when a number does not fit its column.
    """
    arrival = _fits(arrival_ns, np.int64, "arrival_ns", meta)
    counts = np.asarray(block_counts, dtype=np.int64)
    order = np.argsort(arrival, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    keys = np.asarray(block_keys, dtype=np.int64)
    tokens = _fits(occurrence_tokens, np.int32, "block tokens", meta)
    if not np.array_equal(order, np.arange(len(order))):
        picks = _gather(offsets, order)
        keys, tokens = keys[picks], tokens[picks]
        counts = counts[order]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    codes, uniques = pd.factorize(keys)
    block_tokens = np.zeros(len(uniques), dtype=np.int32)
    np.maximum.at(block_tokens, codes, tokens)
    rows = len(arrival)

    def column(values: Any, dtype: Any, name: str) -> NDArray[Any]:
        return _fits(np.full(rows, -1) if values is None else values, dtype, name, meta)[order]

    return Trace(
        arrival_ns=arrival[order],
        input_tokens=column(input_tokens, np.int32, "input_tokens"),
        output_tokens=column(output_tokens, np.int32, "output_tokens"),
        block_offsets=offsets,
        block_ids=codes.astype(np.int32),
        block_tokens=block_tokens,
        session=column(session, np.int32, "session"),
        task=column(task, np.int16, "task"),
        meta={
            **_META_DEFAULTS,
            **meta,
            "transforms": list(meta.get("transforms", [])),
            "notes": list(meta.get("notes", [])),
        },
    )


_META_DEFAULTS: dict[str, Any] = {
    "name": "trace",
    "format": "none",
    "source": "",
    "sha256": "",
    "block_size": 0,
    "unit": "block",
    "reuse": True,
    "clock": "shared",
    "task_names": [],
}


def _gather(offsets: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Flat positions of the blocks of the requests ``order``, in that order."""
    counts = np.diff(offsets)[order]
    starts = np.repeat(offsets[:-1][order], counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return starts + within


def _fits(values: Any, dtype: Any, column: str, meta: dict[str, Any]) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype == object or (array.size and array.dtype.kind not in "iu"):
        raise TraceError(f"{meta.get('name', 'trace')}: column {column} must hold whole numbers within 64 bits")
    limits = np.iinfo(dtype)
    if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
        raise TraceError(f"{meta.get('name', 'trace')}: a value of {column} does not fit {np.dtype(dtype)}")
    return array.astype(dtype)
