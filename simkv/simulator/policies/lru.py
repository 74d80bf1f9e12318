"""Least recently used.  With variant "raw" this is plain offloading; with a variant, a static-compression baseline."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from simkv.simulator.entries import Entry
from simkv.simulator.policies.ordered import EvictionOrder, OrderedPolicy

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["Lru", "RecencyOrder"]


class RecencyOrder:
    """Oldest access first (``refresh``), or oldest insertion first."""

    def __init__(self, refresh: bool) -> None:
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._refresh = refresh

    def insert(self, entry: Entry) -> None:
        """See EvictionOrder."""
        self._entries[entry.key] = entry

    def touch(self, entry: Entry) -> None:
        """See EvictionOrder."""
        if self._refresh:
            self._entries.move_to_end(entry.key)

    def remove(self, entry: Entry) -> None:
        """See EvictionOrder."""
        del self._entries[entry.key]

    def victim(self) -> Entry | None:
        """See EvictionOrder."""
        for entry in self._entries.values():
            if not entry.pins:
                return entry
        return None


@dataclass
class Lru(OrderedPolicy):
    """Evict what has not been asked for the longest."""

    name: ClassVar[str] = "lru"

    def new_order(self, capacity_bytes: int | None, view: StoreView) -> EvictionOrder:
        """See OrderedPolicy."""
        return RecencyOrder(refresh=True)
