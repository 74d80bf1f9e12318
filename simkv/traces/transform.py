"""Transformations of a trace: pure functions from Trace to Trace that record themselves in its meta.

What it is: rate, time window, sampling of whole families, jitter, context window, coarser units,
tasks.  What it is not: a reader, or a place where anything is repaired silently.  Dropping requests
numbers the remaining blocks anew, so block ids are comparable within one trace only.  A step with
its neutral argument (rate 1, share 1, jitter 0, groups of 1) returns the trace itself, unrecorded.
"""

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simkv.errors import ConfigError, TraceError, unknown_name
from simkv.traces.arrivals import number, whole
from simkv.traces.trace import Trace, build_trace

__all__ = [
    "assign_tasks",
    "block_contexts",
    "families",
    "group_blocks",
    "jitter",
    "limit_window",
    "sample_families",
    "scale_rate",
    "time_window",
    "to_segments",
]

_NS_MAX = 2**63 - 1
_WINDOW_RULES = {"reject", "clip", "filter"}


def scale_rate(trace: Trace, factor: float) -> Trace:
    """Arrivals divided by ``factor``: 2 doubles the request rate.

    Exact in integers: the factor is taken as the decimal it prints as (0.1 is 1/10), and half a nanosecond
    rounds up.  Raises ConfigError unless 1e-9 <= factor <= 1e9, TraceError when a time passes 2^63 - 1 ns.
    """
    exact = Fraction(Decimal(repr(number("rate factor", factor, 1e-9, 1e9))))
    up, down = exact.denominator, exact.numerator
    if up == down:
        return trace
    scaled = [(2 * arrival * up + down) // (2 * down) for arrival in trace.arrival_ns.tolist()]
    if scaled and scaled[-1] > _NS_MAX:
        raise TraceError(f"{_name(trace)}: rate factor {factor} moves the last arrival beyond 2^63 - 1 ns")
    return trace.transformed(f"scale_rate(factor={factor})", arrival_ns=np.array(scaled, dtype=np.int64))


def time_window(trace: Trace, start_ns: int = 0, stop_ns: int | None = None) -> Trace:
    """Requests that arrive in [start_ns, stop_ns), with ``start_ns`` as the new time 0; None is to the end.

    Raises ConfigError for an empty interval, TraceError when no request lies in it.
    """
    start_ns = whole("start_ns", start_ns, 0, _NS_MAX)
    stop = whole("stop_ns", _NS_MAX if stop_ns is None else stop_ns, start_ns + 1, _NS_MAX)
    inside = (trace.arrival_ns >= start_ns) & ((trace.arrival_ns < stop) | (stop_ns is None))
    arrival = trace.arrival_ns - start_ns
    return _kept(trace, inside, f"time_window(start_ns={start_ns}, stop_ns={stop_ns})", arrival_ns=arrival)


def sample_families(trace: Trace, share: float, seed: int) -> Trace:
    """Keep whole prefix families, about ``share`` of them, chosen by a seeded hash of the family.

    The family of a request is its session if it has one, else the second block of its chain (the first may be
    a system prompt common to all), else its only block, else the request itself.  A smaller share with the same
    seed keeps a subset.  Raises ConfigError unless 0 < share <= 1, TraceError when nothing is left.
    """
    share = number("sample share", share, 1e-9, 1)
    if share == 1:
        return trace
    chosen = _uniform(_families(trace), seed, "sample") < share
    return _kept(trace, chosen, f"sample_families(share={share:g}, seed={seed})")


def jitter(trace: Trace, width_ns: int, seed: int) -> Trace:
    """Add to every arrival a uniform whole number of ns in [0, width_ns) and sort again (stable).

    For traces whose timestamps lie on a coarse grid.  Raises ConfigError when the width is out of range,
    TraceError when a time passes 2^63 - 1 ns.
    """
    width_ns = whole("jitter width_ns", width_ns, 0, 2**62)
    if width_ns == 0:
        return trace
    shift = np.random.default_rng(whole("seed", seed, 0, _NS_MAX)).integers(0, width_ns, len(trace))
    if len(trace) and int(trace.arrival_ns[-1]) > _NS_MAX - width_ns:
        raise TraceError(f"{_name(trace)}: jitter of {width_ns} ns moves the last arrival beyond 2^63 - 1 ns")
    return _rebuilt(trace, f"jitter(width_ns={width_ns}, seed={seed})", arrival_ns=trace.arrival_ns + shift)


def limit_window(trace: Trace, tokens: int, rule: str) -> Trace:
    """Prompts longer than ``tokens`` are an error ("reject"), shortened ("clip") or left out ("filter").

    What was clipped or left out is counted in ``meta["notes"]``.  A block that straddles the limit becomes a
    block of its own, of the tokens before it.

    Raises:
        ConfigError: for an unknown rule or a window below 1 token.
        TraceError: naming the first request that is too long ("reject"), or when none is left ("filter").
    """
    tokens = whole("window_tokens", tokens, 1, 2**31 - 1)
    if rule not in _WINDOW_RULES:
        raise ConfigError(unknown_name("window rule", str(rule), _WINDOW_RULES))
    over = trace.input_tokens > tokens
    step = f"limit_window(tokens={tokens}, rule={rule})"
    if not over.any():
        return trace.transformed(step)
    if rule == "filter":
        return _kept(trace, ~over, step, note=f"{over.sum()} requests of more than {tokens} tokens left out")
    if rule == "clip":
        return _clipped(trace, tokens, over, step)
    first = int(np.flatnonzero(over)[0])
    raise TraceError(
        f"{_name(trace)}: request {first} has {trace.input_tokens[first]} input tokens, more than the window of "
        f"{tokens} ({over.sum()} requests do); use rule clip or filter, or a larger window"
    )


def group_blocks(trace: Trace, n: int) -> Trace:
    """Merge every ``n`` consecutive blocks of a request into one; what is left at the end is a smaller block.

    A group is identified by its last block and its length, which is exact where ids are prefix hashes (a block
    implies all before it).  Raises ConfigError unless 1 <= n <= 2^20, TraceError unless the unit is "block".
    """
    n = whole("group_blocks", n, 1, 1 << 20)
    if n == 1:
        return trace
    if trace.meta.get("unit", "block") != "block":
        raise TraceError(f"{_name(trace)}: only blocks can be grouped, not units of {trace.meta['unit']!r}")
    within = np.arange(len(trace.block_ids)) - np.repeat(trace.block_offsets[:-1], np.diff(trace.block_offsets))
    facts = {"unit": f"group:{n}", "block_size": n * int(trace.meta.get("block_size", 0))}
    return _merged(trace, within % n == 0, f"group_blocks(n={n})", facts)


def to_segments(trace: Trace) -> Trace:
    """Merge maximal runs of blocks that occur only together into one block each.

    Needs the whole trace, so a policy on segments sees the future: for bounds and statistics.  Raises TraceError
    when the trace is in segments already.
    """
    if trace.meta.get("unit") == "segment":
        raise TraceError(f"{_name(trace)}: the trace is in segments already")
    ids = trace.block_ids
    begins = np.zeros(len(ids) + 1, dtype=bool)  # does a request begin at this position, or the trace end
    begins[trace.block_offsets] = True
    after = np.where(begins[1:], -1, np.append(ids[1:], -1))
    before = np.where(begins[:-1], -1, np.append(-1, ids[:-1]))
    only_after = _only_neighbour(ids, after, trace.n_blocks)
    only_before = _only_neighbour(ids, before, trace.n_blocks)
    joined = (before >= 0) & (only_before[ids] == before) & (only_after[before] == ids)
    return _merged(trace, ~joined, "to_segments()", {"unit": "segment", "block_size": 0})


def assign_tasks(trace: Trace, tasks: str | Mapping[str, float], seed: int) -> Trace:
    """Give every request the task of its family: one name, or a seeded mixture {name: weight}.

    Replaces tasks that the trace had.  Families are those of sample_families.  Raises ConfigError for an empty
    name or mixture, or a weight that is not positive.
    """
    weights = {tasks: 1.0} if isinstance(tasks, str) else dict(tasks)
    if not 1 <= len(weights) < 2**15 or not all(isinstance(name, str) and name for name in weights):
        raise ConfigError(f"tasks = {tasks!r} must be a task name or a mixture {{name: weight}}")
    shares = np.cumsum([number(f"weight of task {name}", weight, 1e-9, 1e9) for name, weight in weights.items()])
    drawn = _uniform(_families(trace), seed, "tasks") * shares[-1]
    task = np.minimum(np.searchsorted(shares, drawn, side="right"), len(weights) - 1)
    mixture = ", ".join(f"{name}: {weight:g}" for name, weight in weights.items())
    described = trace.transformed(f"assign_tasks({mixture}; seed={seed})", task=task.astype(np.int16))
    return described.with_meta(task_names=list(weights))


def block_contexts(trace: Trace) -> NDArray[np.int32]:
    """int32[B]: context of each distinct block, that is the family of the request where it first occurs.

    Contexts are numbered as by ``families``.  -1 for a block that no
    request asks for.
    """
    contexts = families(trace)
    of_block = np.full(trace.n_blocks, -1, dtype=np.int32)
    blocks, first = np.unique(trace.block_ids, return_index=True)
    request = np.searchsorted(trace.block_offsets, first, side="right") - 1
    of_block[blocks] = contexts[request]
    return of_block


def families(trace: Trace) -> NDArray[np.int32]:
    """int32[R]: the family of each request, as in sample_families, numbered by first appearance."""
    return np.asarray(pd.factorize(_families(trace))[0], dtype=np.int32)


def _name(trace: Trace) -> str:
    return str(trace.meta.get("name", "trace"))


def _rebuilt(
    trace: Trace, step: str, *, note: str = "", facts: Mapping[str, Any] | None = None, **columns: Any
) -> Trace:
    """The trace built anew (sorted, blocks dense) with some raw columns replaced and the step recorded."""
    now: dict[str, Any] = {
        "arrival_ns": trace.arrival_ns,
        "input_tokens": trace.input_tokens,
        "output_tokens": trace.output_tokens,
        "block_counts": np.diff(trace.block_offsets),
        "block_keys": trace.block_ids,
        "occurrence_tokens": trace.block_tokens[trace.block_ids],
        "session": trace.session,
        "task": trace.task,
    }
    transforms = [*trace.meta.get("transforms", []), step]
    notes = [*trace.meta.get("notes", []), *([f"{step}: {note}"] if note else [])]
    return build_trace(
        **{**now, **columns}, meta={**trace.meta, **(facts or {}), "transforms": transforms, "notes": notes}
    )


def _kept(trace: Trace, keep: NDArray[np.bool_], step: str, *, note: str = "", arrival_ns: Any = None) -> Trace:
    """Only the requests of the mask ``keep``."""
    if not keep.any():
        raise TraceError(f"{_name(trace)}: {step} leaves none of {len(trace)} requests")
    counts = np.diff(trace.block_offsets)
    ids = trace.block_ids[np.repeat(keep, counts)]
    return _rebuilt(
        trace,
        step,
        note=note,
        arrival_ns=(trace.arrival_ns if arrival_ns is None else arrival_ns)[keep],
        input_tokens=trace.input_tokens[keep],
        output_tokens=trace.output_tokens[keep],
        block_counts=counts[keep],
        block_keys=ids,
        occurrence_tokens=trace.block_tokens[ids],
        session=trace.session[keep],
        task=trace.task[keep],
    )


def _clipped(trace: Trace, tokens: int, over: NDArray[np.bool_], step: str) -> Trace:
    ids, counts = trace.block_ids.astype(np.int64), np.diff(trace.block_offsets)
    sizes = trace.block_tokens[ids].astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    starts = ends[:-1] - np.repeat(ends[trace.block_offsets[:-1]], counts)  # [N], within the request
    left = np.where(np.repeat(over, counts), np.clip(tokens - starts, 0, sizes), sizes)
    keep, cut = left > 0, (left > 0) & (left < sizes)
    keys = np.where(cut, trace.n_blocks + ids * tokens + left, ids)
    lost = int((trace.input_tokens[over].astype(np.int64) - tokens).sum())
    return _rebuilt(
        trace,
        step,
        note=f"{over.sum()} requests lost {lost} tokens, {(~keep).sum()} blocks dropped and {cut.sum()} cut",
        input_tokens=np.minimum(trace.input_tokens, tokens),
        block_counts=_count(keep, trace.block_offsets),
        block_keys=keys[keep],
        occurrence_tokens=left[keep],
    )


def _merged(trace: Trace, starts: NDArray[np.bool_], step: str, facts: Mapping[str, Any]) -> Trace:
    """Runs of blocks merged; ``starts`` [N] marks where a run begins (at least at every request's first block)."""
    bounds = np.append(np.flatnonzero(starts), len(starts))
    lengths = np.diff(bounds)
    last = trace.block_ids[bounds[1:] - 1].astype(np.int64)
    sums = np.concatenate([[0], np.cumsum(trace.block_tokens[trace.block_ids].astype(np.int64))])
    return _rebuilt(
        trace,
        step,
        facts=facts,
        block_counts=_count(starts, trace.block_offsets),
        block_keys=last * (int(lengths.max(initial=0)) + 1) + lengths,
        occurrence_tokens=np.diff(sums[bounds]),
    )


def _count(mask: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many positions of ``mask`` are set in each request."""
    return np.diff(np.concatenate([[0], np.cumsum(mask)])[offsets])


def _only_neighbour(ids: NDArray[Any], neighbours: NDArray[Any], blocks: int) -> NDArray[np.int64]:
    """[B]: the one neighbour that a block has wherever it occurs, or -1."""
    low, high = np.full(blocks, _NS_MAX), np.full(blocks, -1)
    np.minimum.at(low, ids, neighbours)
    np.maximum.at(high, ids, neighbours)
    return np.where(low == high, high, -1)


def _families(trace: Trace) -> NDArray[np.int64]:
    """int64[R]: a key per request, equal for requests of one family; see sample_families."""
    kind = np.int64(1) << 40  # sessions, blocks and lone requests must not meet
    counts = np.diff(trace.block_offsets)
    keys = 2 * kind + np.arange(len(trace), dtype=np.int64)
    some = counts > 0
    pick = trace.block_offsets[:-1] + (counts > 1)
    keys[some] = kind + trace.block_ids[pick[some]]
    return np.where(trace.session >= 0, trace.session, keys)


def _uniform(keys: NDArray[np.int64], seed: int, purpose: str) -> NDArray[np.float64]:
    """A number in [0, 1) per key: splitmix64, salted by seed and purpose so that two uses are independent."""
    entropy = [whole("seed", seed, 0, _NS_MAX), *purpose.encode()]
    salt = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + salt
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53
