"""First in, first out: hits do not refresh.

With ``promote = false`` and a KIVI variant this is AdaptCache's baseline "KIVI + LRU" as its authors coded it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from simkv.simulator.policies.lru import RecencyOrder
from simkv.simulator.policies.ordered import EvictionOrder, OrderedPolicy

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["Fifo"]


@dataclass
class Fifo(OrderedPolicy):
    """Evict what came to the tier first."""

    name: ClassVar[str] = "fifo"

    def new_order(self, capacity_bytes: int | None, view: StoreView) -> EvictionOrder:
        """See OrderedPolicy."""
        return RecencyOrder(refresh=False)
