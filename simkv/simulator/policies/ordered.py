"""OrderedPolicy: classical eviction over a chain of tiers, with one fixed variant.

New blocks enter the fastest tier in the fixed variant; what must leave a tier goes to the next slower one, and
from the last it is dropped.  A hit below the fastest tier is promoted if ``promote``.  Subclasses say only in
which order entries leave a tier, through an ``EvictionOrder``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from simkv.simulator.entries import Entry, Move, Placement
from simkv.simulator.policies.base import Policy

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["EvictionOrder", "OrderPerTier", "OrderedPolicy"]


class EvictionOrder(Protocol):
    """In which order the entries of one tier leave it."""

    def insert(self, entry: Entry) -> None:
        """The entry has come to this tier."""

    def touch(self, entry: Entry) -> None:
        """The entry was asked for."""

    def remove(self, entry: Entry) -> None:
        """The entry has left this tier, by eviction or otherwise."""

    def released(self, entry: Entry) -> None:
        """The entry is pinned no longer; an order may have set it aside when it was to leave."""

    def victim(self) -> Entry | None:
        """The unpinned entry that should leave next, None if there is none."""


class OrderPerTier(Policy):
    """A policy that keeps an order of eviction for each tier; ``start`` makes ``_orders``, fast to slow."""

    _orders: Sequence[EvictionOrder]

    def placed(self, entry: Entry, old: Placement | None) -> None:
        """See Policy."""
        if old is not None:
            self._orders[old.tier].remove(entry)
        if entry.placement is not None:
            self._orders[entry.placement.tier].insert(entry)

    def released(self, entry: Entry) -> None:
        """See Policy."""
        if entry.placement is not None:
            self._orders[entry.placement.tier].released(entry)


@dataclass
class OrderedPolicy(OrderPerTier):
    """Base of lru, fifo, lfu, s3fifo, gdsf and clairvoyant.

    Args:
        variant: in which everything is stored ("raw", or e.g. "kivi:4": a static-compression baseline).
        promote: bring an entry that was hit on a slower tier to the fastest one.
    """

    variant: str = "raw"
    promote: bool = True
    newcomer_stays: ClassVar[bool] = True

    def new_order(self, capacity_bytes: int | None, view: StoreView) -> EvictionOrder:
        """An empty order for a tier of that capacity."""
        raise NotImplementedError

    def start(self, view: StoreView) -> None:
        """See Policy."""
        self._places = [view.placement(tier, self.variant) for tier in range(len(view.tiers))]
        self._orders = [self.new_order(view.capacity_bytes(tier), view) for tier in range(len(view.tiers))]
        self._capacity = [view.capacity_bytes(tier) for tier in range(len(view.tiers))]

    def _fastest_that_holds(self, size_bytes: int, first: int = 0) -> Placement | None:
        for tier in range(first, len(self._places)):
            capacity = self._capacity[tier]
            if capacity is None or size_bytes <= capacity:
                return self._places[tier]
        return None

    def admit(self, entry: Entry, view: StoreView) -> Placement | None:
        """To the fastest tier that is large enough at all."""
        return self._fastest_that_holds(view.size_bytes(entry, self._places[0].variant))

    def on_hit(self, entry: Entry, view: StoreView) -> Placement | None:
        """Refresh its place in the order; promote."""
        placement = entry.placement
        assert placement is not None
        self._orders[placement.tier].touch(entry)
        if self.promote and placement.tier:
            return self._fastest_that_holds(entry.size_bytes)
        return placement

    def make_room(self, tier: int, need_bytes: int, view: StoreView) -> Iterator[Move]:
        """The next victims, each to the next slower tier that is large enough at all."""
        order = self._orders[tier]
        while (entry := order.victim()) is not None:
            yield Move(entry, self._fastest_that_holds(entry.size_bytes, tier + 1))
