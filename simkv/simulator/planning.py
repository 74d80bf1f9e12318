"""How much of a stored prefix to load and how much to recompute, when reuse is "when_faster".

Candidates are the ends of runs of equal placement (within a run every further block costs the same), nothing at
all, and the whole prefix.  The estimate of a cut is load + prefill of the rest: per tier the present backlog and
all transfers in a row, tiers beside each other (or one by one, if the GPU carries the bytes), then the host link, then
decompression.  Ties load more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simkv.simulator.entries import Entry

if TYPE_CHECKING:
    from simkv.simulator.engine import Engine

__all__ = ["plan_reuse"]


def plan_reuse(engine: Engine, now: int, found: list[Entry], input_tokens: int) -> list[Entry]:
    """The leading entries of ``found`` that are worth loading (all integers, ns)."""
    costs = engine.costs
    best, best_cut = costs.prefill_ns(0, input_tokens), 0
    per_tier: dict[int, int] = {}
    seen = set()
    link = decode = tokens = waiting = 0
    for index, entry in enumerate(found):
        placement = entry.placement
        assert placement is not None
        tier, variant = placement
        service = costs.read[tier][variant][entry.size_class]
        link += costs.link[variant][entry.size_class]
        decode += costs.decode[tier][variant][entry.size_class]
        if placement not in seen:
            seen.add(placement)
            service += costs.read_fixed[tier][variant]
            link += costs.link_fixed
            decode += costs.decode_fixed[tier][variant]
        per_tier[tier] = per_tier.get(tier, 0) + service
        tokens = min(input_tokens, tokens + entry.tokens)
        if entry.transfer is not None:
            waiting = max(waiting, entry.transfer.ready_ns - now)
        if index + 1 < len(found) and found[index + 1].placement == placement:
            continue
        load = _load_ns(engine, now, per_tier)
        if engine.link is not None:
            load += engine.link.estimate(now, link)
        total = waiting + load + max(0, decode) + costs.prefill_ns(tokens, input_tokens)
        if total <= best:
            best, best_cut = total, index + 1
    return found[:best_cut]


def _load_ns(engine: Engine, now: int, per_tier: dict[int, int]) -> int:
    """Tiers beside each other, each behind its backlog; or, where the GPU itself carries the bytes, one by one."""
    if engine.settings.loading == "gpu":
        return sum(max(0, ns) for ns in per_tier.values())
    return max(engine.readers[tier].estimate(now, max(0, ns)) for tier, ns in per_tier.items())
