"""Clairvoyant: evict what is needed farthest in the future (Belady 1966), per tier.

With unit sizes and one tier this is optimal for hits.  With sizes and two tiers it is a heuristic, neither an
oracle nor a bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from simkv.simulator.entries import Entry, Move
from simkv.simulator.policies.heap import HeapOrder
from simkv.simulator.policies.ordered import EvictionOrder, OrderedPolicy

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["Clairvoyant"]


@dataclass
class Clairvoyant(OrderedPolicy):
    """Evict the farthest next use; what is never used again is dropped, not demoted."""

    name: ClassVar[str] = "clairvoyant"
    needs_future: ClassVar[bool] = True
    newcomer_stays: ClassVar[bool] = False

    def start(self, view: StoreView) -> None:
        """See Policy."""
        super().start(view)
        self._never = view.never

    def new_order(self, capacity_bytes: int | None, view: StoreView) -> EvictionOrder:
        """See OrderedPolicy."""

        def score(entry: Entry) -> float:
            assert entry.next_use is not None
            return -float(entry.next_use)

        return HeapOrder(score)

    def make_room(self, tier: int, need_bytes: int, view: StoreView) -> Iterator[Move]:
        """See OrderedPolicy."""
        for move in super().make_room(tier, need_bytes, view):
            yield Move(move.entry, None) if move.entry.next_use == self._never else move
