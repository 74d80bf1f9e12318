"""GreedyDual-Size-Frequency (Cherkasova 1998): priority = clock + uses x cost / size, clock = priority last evicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from simkv.errors import PolicyError
from simkv.simulator.entries import Entry
from simkv.simulator.policies.heap import HeapOrder
from simkv.simulator.policies.ordered import EvictionOrder, OrderedPolicy

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["Gdsf"]


def _one(entry: Entry) -> float:
    return 1.0


class _AgeingOrder(HeapOrder):
    """Smallest priority first.  The newcomer counts from the clock after room was made for it, as published."""

    def __init__(self, worth: Callable[[Entry], float]) -> None:
        super().__init__(self._priority, self._evicted)
        self._worth = worth
        self._clock = 0.0
        self._newest: Entry | None = None

    def insert(self, entry: Entry) -> None:
        self._newest = entry
        super().insert(entry)

    def _priority(self, entry: Entry) -> float:
        return self._clock + (entry.hits + 1) * self._worth(entry) / entry.size_bytes

    def _evicted(self, priority: float) -> None:
        if priority > self._clock:
            self._clock = priority
            if self._newest is not None and self._newest.pins:
                super().insert(self._newest)


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
        return _AgeingOrder(view.recompute_s if self.cost == "recompute" else _one)
