"""What a trace is like before anything is simulated: lengths, arrivals, reuse, working sets, LRU curve.

What it is: numbers of the trace alone; the block-level measures come from ``reuse.py``.
What it is not: a simulation (no time is spent, nothing is compressed) or a chart.

    trace ──► trace_stats(trace) ──► TraceStats ──► .rows(), .to_json()

Quantiles are observed values: the smallest one that at least that share of the values does not exceed.
"""

import json
import math
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simkv.errors import ConfigError
from simkv.traces.reuse import MissRatioCurve, distinct_per_window, has_reuse, miss_ratio_curve, reuse_gaps_ns
from simkv.traces.trace import Trace

__all__ = ["ReuseStats", "Spread", "TraceStats", "WorkingSet", "trace_stats"]

_WINDOWS_S = (60, 600)
_ARRIVAL_BINS = 1000  # at most; bins are a minute, or longer for traces of more than 1000 minutes
_REUSE_EDGES_S = np.array([0.0, *(m * 10.0**p for p in range(-3, 7) for m in (1, 2, 5)), math.inf])
_JSON_LENGTH = 500


@dataclass(frozen=True)
class Spread:
    """Six numbers of a distribution, in the unit of the values; all NaN if there are none."""

    minimum: float
    p50: float
    mean: float
    p90: float
    p99: float
    maximum: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> "Spread":
        """The spread of [n] numbers."""
        if not len(values):
            return cls(*[math.nan] * 6)
        low, p50, p90, p99, high = np.quantile(values, [0, 0.5, 0.9, 0.99, 1], method="inverted_cdf")
        return cls(float(low), float(p50), float(values.mean()), float(p90), float(p99), float(high))


@dataclass(frozen=True)
class WorkingSet:
    """Distinct blocks requested in consecutive windows of ``window_s`` seconds; W windows with requests.

    Attributes:
        window_s: length; infinity for the whole trace as one window.
        start_s: float64[W].
        blocks: int64[W], distinct blocks.
        tokens: int64[W], their tokens.
    """

    window_s: float
    start_s: NDArray[np.float64]
    blocks: NDArray[np.int64]
    tokens: NDArray[np.int64]


@dataclass(frozen=True)
class ReuseStats:
    """Reuse in a trace with blocks.

    Attributes:
        requested_blocks, distinct_blocks, once_blocks: all occurrences; different blocks; those requested once.
        block_hit_ratio: repeated occurrences / requested blocks (the hit ratio of an unlimited cold cache).
        token_hit_ratio: their tokens, per request at most its input, / input tokens.
        reuse_time_s: seconds since the block's previous request.
        reuse_edges_s, reuse_counts: the same as a histogram: float64[E + 1] (last one infinite), int64[E].
        working_sets: for windows of 60 s, 600 s and the whole trace.
        kv_bytes_per_token: as given; None if sizes in bytes are unknown.
        curves: LRU by blocks and, with ``kv_bytes_per_token``, by bytes.
    """

    requested_blocks: int
    distinct_blocks: int
    once_blocks: int
    block_hit_ratio: float
    token_hit_ratio: float
    reuse_time_s: Spread
    reuse_edges_s: NDArray[np.float64]
    reuse_counts: NDArray[np.int64]
    working_sets: tuple[WorkingSet, ...]
    kv_bytes_per_token: int | None
    curves: tuple[MissRatioCurve, ...]

    def rows(self) -> list[tuple[str, float, str]]:
        """(name, value, unit), as TraceStats.rows."""
        rows: list[tuple[str, float, str]] = [
            ("requested blocks", self.requested_blocks, "blocks"),
            ("distinct blocks", self.distinct_blocks, "blocks"),
            ("blocks requested once", self.once_blocks, "blocks"),
            ("hit ratio by block, unlimited cache", self.block_hit_ratio, "of requested blocks"),
            ("hit ratio by token, unlimited cache", self.token_hit_ratio, "of input tokens"),
            *_spread_rows("reuse time", self.reuse_time_s, "s"),
        ]
        for working_set in self.working_sets:
            whole = math.isinf(working_set.window_s)
            name = "working set, whole trace" if whole else f"largest working set in {working_set.window_s:g} s"
            rows.append((name, int(working_set.blocks.max()), "blocks"))
            rows.append((name, int(working_set.tokens.max()), "tokens"))
            if self.kv_bytes_per_token:
                rows.append((name, int(working_set.tokens.max()) * self.kv_bytes_per_token, "bytes"))
        return rows


@dataclass(frozen=True)
class TraceStats:
    """What ``trace_stats`` finds.

    Attributes:
        name: of the trace.
        requests, duration_s: number, and seconds from the trace's start to the last arrival.
        total_input_tokens, total_output_tokens: sums.
        input_tokens, output_tokens: per request.
        sessions: conversations; 0 if the trace has none.
        turns: requests per conversation.
        arrivals_per_s: requests / duration; NaN for a duration of 0.
        interarrival_cv: standard deviation / mean of the gaps between arrivals: 1 for a Poisson process, more
            for bursts; NaN with fewer than two requests or no time between them.
        arrival_bin_s, arrival_counts: arrivals over time: int64[bins] of ``arrival_bin_s`` seconds each.
        reuse: None for a trace without blocks.
    """

    name: str
    requests: int
    duration_s: float
    total_input_tokens: int
    total_output_tokens: int
    input_tokens: Spread
    output_tokens: Spread
    sessions: int
    turns: Spread
    arrivals_per_s: float
    interarrival_cv: float
    arrival_bin_s: float
    arrival_counts: NDArray[np.int64]
    reuse: ReuseStats | None

    def rows(self) -> list[tuple[str, float, str]]:
        """(name, value, unit) of every single number, in reading order; ratios name their denominator as unit."""
        rows: list[tuple[str, float, str]] = [
            ("requests", self.requests, ""),
            ("duration", self.duration_s, "s"),
            ("total input", self.total_input_tokens, "tokens"),
            ("total output", self.total_output_tokens, "tokens"),
            *_spread_rows("input length", self.input_tokens, "tokens"),
            *_spread_rows("output length", self.output_tokens, "tokens"),
            ("sessions", self.sessions, ""),
            *(_spread_rows("turns per session", self.turns, "requests") if self.sessions else []),
            ("mean arrival rate", self.arrivals_per_s, "requests/s"),
            (f"largest arrival rate in {self.arrival_bin_s:g} s", self._peak_rate(), "requests/s"),
            ("variation of inter-arrival times", self.interarrival_cv, "std/mean"),
        ]
        return rows + (self.reuse.rows() if self.reuse else [])

    def to_json(self) -> str:
        """Everything as JSON text; NaN and infinity become null, arrays longer than 500 are thinned evenly."""
        return json.dumps(_jsonable(self), allow_nan=False)

    def _peak_rate(self) -> float:
        return float(self.arrival_counts.max(initial=0)) / min(self.arrival_bin_s, max(self.duration_s, 1.0))


def trace_stats(trace: Trace, kv_bytes_per_token: int | None = None, *, touch: str = "forward") -> TraceStats:
    """Describe a trace; one without blocks gets lengths and arrivals only.

    Args:
        trace: any trace.
        kv_bytes_per_token: bytes of raw KV cache per token, for sizes in bytes; None leaves them out.
        touch: order within a request for the LRU curves: "forward" or "reverse", see ``reuse.stack_distances``.

    Raises:
        ConfigError: unknown touch order, or a size that is not positive.
        TraceError: the distinct blocks add up to more than 2^61 bytes.
    """
    if kv_bytes_per_token is not None and kv_bytes_per_token <= 0:
        raise ConfigError(f"kv_bytes_per_token {kv_bytes_per_token!r} must be a positive number of bytes")
    gaps = np.diff(trace.arrival_ns).astype(np.float64)
    bin_s = max(60.0, math.ceil(trace.duration_s / _ARRIVAL_BINS))
    turns = np.unique(trace.session[trace.session >= 0], return_counts=True)[1]
    return TraceStats(
        name=_name(trace),
        requests=len(trace),
        duration_s=trace.duration_s,
        total_input_tokens=int(trace.input_tokens.sum(dtype=np.int64)),
        total_output_tokens=int(trace.output_tokens.sum(dtype=np.int64)),
        input_tokens=Spread.of(trace.input_tokens),
        output_tokens=Spread.of(trace.output_tokens),
        sessions=len(turns),
        turns=Spread.of(turns),
        arrivals_per_s=len(trace) / trace.duration_s if trace.duration_s else math.nan,
        interarrival_cv=float(gaps.std() / gaps.mean()) if gaps.any() else math.nan,
        arrival_bin_s=bin_s,
        arrival_counts=np.bincount((trace.arrival_ns // round(bin_s * 1e9)).astype(np.int64)),
        reuse=_reuse_stats(trace, kv_bytes_per_token, touch) if has_reuse(trace) else None,
    )


def _reuse_stats(trace: Trace, kv_bytes_per_token: int | None, touch: str) -> ReuseStats:
    gaps_ns = reuse_gaps_ns(trace)
    repeated = gaps_ns >= 0
    gaps_s = gaps_ns[repeated] / 1e9
    reused = np.where(repeated, trace.block_tokens[trace.block_ids], 0)
    tokens = np.concatenate([[0], np.cumsum(reused, dtype=np.int64)])
    hit_tokens = np.minimum(np.diff(tokens[trace.block_offsets]), trace.input_tokens).sum()
    occurrences = np.bincount(trace.block_ids, minlength=trace.n_blocks)
    curves = [miss_ratio_curve(trace, touch=touch)]
    if kv_bytes_per_token:
        curves.append(miss_ratio_curve(trace, touch=touch, kv_bytes_per_token=kv_bytes_per_token))
    return ReuseStats(
        requested_blocks=len(trace.block_ids),
        distinct_blocks=int((occurrences > 0).sum()),
        once_blocks=int((occurrences == 1).sum()),
        block_hit_ratio=float(repeated.mean()),
        token_hit_ratio=float(hit_tokens / max(int(trace.input_tokens.sum(dtype=np.int64)), 1)),
        reuse_time_s=Spread.of(gaps_s),
        reuse_edges_s=_REUSE_EDGES_S,
        reuse_counts=np.histogram(gaps_s, _REUSE_EDGES_S)[0].astype(np.int64),
        working_sets=tuple(_working_set(trace, window_s) for window_s in (*_WINDOWS_S, math.inf)),
        kv_bytes_per_token=kv_bytes_per_token,
        curves=tuple(curves),
    )


def _name(trace: Trace) -> str:
    return str(trace.meta.get("name", "trace"))


def _working_set(trace: Trace, window_s: float) -> WorkingSet:
    window_ns = int(window_s * 1e9) if math.isfinite(window_s) else int(trace.arrival_ns[-1]) + 1
    windows, window_of_request = np.unique(trace.arrival_ns // window_ns, return_inverse=True)
    blocks, tokens = distinct_per_window(trace, window_of_request, len(windows))
    return WorkingSet(window_s, (windows * window_ns).astype(np.float64) / 1e9, blocks, tokens)


def _spread_rows(name: str, spread: Spread, unit: str) -> list[tuple[str, float, str]]:
    return [(f"{name}, {part.name}", getattr(spread, part.name), unit) for part in fields(spread)]


def _jsonable(value: Any) -> Any:
    if is_dataclass(value):
        return {part.name: _jsonable(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, tuple):
        return [_jsonable(part) for part in value]
    if isinstance(value, np.ndarray):
        picks = np.linspace(0, len(value) - 1, min(len(value), _JSON_LENGTH)).round().astype(np.int64)
        return [_jsonable(part) for part in value[picks].tolist()]
    return None if isinstance(value, float) and not math.isfinite(value) else value
