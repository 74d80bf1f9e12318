"""Least frequently used, counted while resident, least recently used among equals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from simkv.simulator.policies.heap import HeapOrder
from simkv.simulator.policies.ordered import EvictionOrder, OrderedPolicy

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["Lfu"]


@dataclass
class Lfu(OrderedPolicy):
    """Evict what was asked for least often since it came."""

    name: ClassVar[str] = "lfu"

    def new_order(self, capacity_bytes: int | None, view: StoreView) -> EvictionOrder:
        """See OrderedPolicy."""
        return HeapOrder(lambda entry: float(entry.hits))
