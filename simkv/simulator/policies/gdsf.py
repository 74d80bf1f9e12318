"""GreedyDual-Size-Frequency (Cherkasova 1998): priority = clock + uses x cost / size, clock = priority last evicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from simkv.errors import PolicyError
from simkv.simulator.entries import Entry
from simkv.simulator.policies.heap import HeapOrder
from simkv.simulator.policies.ordered import EvictionOrder, OrderedPolicy

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["Gdsf"]


@dataclass
class Gdsf(OrderedPolicy):
    """Evict the smallest priority.

    Args:
        cost: "unit" (a hit is a hit), or "recompute" (a hit is worth the prefill it saves).
    """

    cost: str = "unit"
    name: ClassVar[str] = "gdsf"

    def __post_init__(self) -> None:
        if self.cost not in ("unit", "recompute"):
            raise PolicyError(f"policy gdsf: cost is {self.cost!r}; allowed: unit, recompute")

    def new_order(self, capacity_bytes: int | None, view: StoreView) -> EvictionOrder:
        """See OrderedPolicy."""
        clock = 0.0

        def score(entry: Entry) -> float:
            worth = 1.0 if self.cost == "unit" else view.recompute_s(entry)
            return clock + (entry.hits + 1) * worth / entry.size_bytes

        def evicted(priority: float) -> None:
            nonlocal clock
            clock = priority

        return HeapOrder(score, evicted)
