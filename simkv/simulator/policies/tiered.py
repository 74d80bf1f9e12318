"""TieredLru: least recently used through the tiers, where every entry has a variant of its own.

What it is: the placement half of ``impress`` and ``kvserve``, which differ in the variant that they choose.  What it
is not: ``lru``, which stores everything in one variant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from simkv.simulator.entries import Entry, Move, Placement
from simkv.simulator.policies.lru import RecencyOrder
from simkv.simulator.policies.ordered import OrderPerTier

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["TieredLru"]


@dataclass
class TieredLru(OrderPerTier):
    """New entries to the fastest tier that holds them at all, what must leave to the next slower one, hits back up."""

    newcomer_stays: ClassVar[bool] = True

    def variant_for(self, entry: Entry, tier: int) -> int:
        """The variant in which an entry, stored or not yet, goes to a tier."""
        raise NotImplementedError

    def start(self, view: StoreView) -> None:
        """See Policy."""
        self._view = view
        self._orders = [RecencyOrder(refresh=True) for _ in view.tiers]

    def _place(self, entry: Entry, first: int = 0) -> Placement | None:
        for tier in range(first, len(self._view.tiers)):
            variant = self.variant_for(entry, tier)
            room = self._view.capacity_bytes(tier)
            if room is None or self._view.size_bytes(entry, variant) <= room:
                return self._view.placement(tier, variant)
        return None

    def admit(self, entry: Entry, view: StoreView) -> Placement | None:
        """To the fastest tier that is large enough at all."""
        return self._place(entry)

    def on_hit(self, entry: Entry, view: StoreView) -> Placement | None:
        """Comes up to the fastest tier."""
        assert entry.placement is not None
        self._orders[entry.placement.tier].touch(entry)
        return self._place(entry) if entry.placement.tier else entry.placement

    def make_room(self, tier: int, need_bytes: int, view: StoreView) -> Iterator[Move]:
        """The least recently used, each to the next slower tier that is large enough at all."""
        while (entry := self._orders[tier].victim()) is not None:
            yield Move(entry, self._place(entry, tier + 1))
