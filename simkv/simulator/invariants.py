"""The invariants of a run, checked after every event when ``engine.check`` is set (slow).

Numbers are those of SPECIFICATION.md section 7; a broken one is a bug of simkv or of a policy, reported as
``InvariantError`` with the time and the figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simkv.simulator.batching import BatchingServers

if TYPE_CHECKING:
    from simkv.simulator.engine import Engine

__all__ = ["InvariantError", "check_engine"]


class InvariantError(AssertionError):
    """An invariant does not hold."""


def check_engine(engine: Engine) -> None:
    """Check invariants 1, 2, 3, 5 and 8 in the present state; O(stored entries)."""
    now = engine.now_ns
    store = engine.store
    used = [0] * len(store.used)
    count = [0] * len(store.used)
    for key, entry in enumerate(store.residents):
        if entry is None:
            continue
        _require(entry.key == key and entry.placement is not None, 2, now, f"resident {key} is {entry!r}")
        assert entry.placement is not None
        tier, variant = entry.placement
        expected = engine.costs.size[variant][entry.size_class]
        _require(entry.size_bytes == expected, 2, now, f"{entry!r} occupies {entry.size_bytes}, not {expected}")
        _require(entry.pins >= 0, 2, now, f"{entry!r} has negative pins")
        used[tier] += entry.size_bytes
        count[tier] += 1
    for tier, capacity in enumerate(store.capacity):
        _require(
            used[tier] == store.used[tier], 2, now, f"tier {tier}: entries hold {used[tier]}, ledger {store.used[tier]}"
        )
        _require(
            count[tier] == store.count[tier], 2, now, f"tier {tier}: {count[tier]} entries, ledger {store.count[tier]}"
        )
        _require(store.used[tier] <= capacity, 2, now, f"tier {tier}: {store.used[tier]} of {capacity} bytes")
    _require(engine.finished == len(engine.recorder.rows), 1, now, "requests finished and recorded differ")
    if engine.recorder.rows:
        ident, arrival, load, queue, work = engine.recorder.rows[-1][:5]
        _require(min(load, queue, work) >= 0, 3, now, f"request {ident}: load {load}, queue {queue}, compute {work}")
        _require(arrival + load + queue + work <= now, 3, now, f"request {ident} finished in the future")
    _check_conservation(engine, now)
    _check_batches(engine, now)


def _check_conservation(engine: Engine, now: int) -> None:
    """Invariant 5: what came to a tier minus what left it is what is there."""
    rows = engine.mover.rows
    if rows is None:
        return
    flow = getattr(engine, "_checked_flow", None)
    if flow is None:
        flow = [0, [0] * len(engine.store.used), {}]
        engine._checked_flow = flow  # type: ignore[attr-defined]
    position, balance, sizes = flow
    while position < len(rows):
        block, kind, from_tier, to_tier, size = (
            rows[position + 2],
            rows[position + 3],
            rows[position + 4],
            rows[position + 6],
            rows[position + 9],
        )
        position += 10
        if from_tier >= 0:
            balance[from_tier] -= sizes.pop(block)
        if to_tier >= 0:
            balance[to_tier] += size
            sizes[block] = size
        _require(from_tier >= 0 or to_tier >= 0 or kind == 5, 5, now, f"block {block} moved from nowhere to nowhere")
    flow[0] = position
    _require(balance == engine.store.used, 5, now, f"moves leave {balance} bytes, ledgers say {engine.store.used}")


def _check_batches(engine: Engine, now: int) -> None:
    """Invariant 8: batches within their limit, caches that hold what was prefilled and generated."""
    servers = engine.gpus
    if not isinstance(servers, BatchingServers):
        return
    for gpu in servers.gpus:
        sequences = len(gpu.batch) + (gpu.job is not None)
        _require(sequences <= servers.decode.max_batch, 8, now, f"GPU {gpu.index}: {sequences} sequences")
        cached = sum(tokens - (last - gpu.steps) for last, _, tokens in gpu.batch)
        _require(cached == gpu.cached, 8, now, f"GPU {gpu.index}: {cached} tokens in caches, ledger {gpu.cached}")
        _require(gpu.running or (gpu.job is None and not gpu.batch), 8, now, f"GPU {gpu.index} stands still")
    able = any(g.job is None and not g.held and len(g.batch) < servers.decode.max_batch for g in servers.gpus)
    _require(not (able and servers.waiting), 8, now, "a request waits beside a GPU that could take it")


def _require(holds: bool, number: int, now: int, text: str) -> None:
    if not holds:
        raise InvariantError(f"invariant {number} at {now} ns: {text}")
