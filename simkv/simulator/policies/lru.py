"""Least recently used.  With variant "raw" this is plain offloading; with a variant, a static-compression baseline."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from simkv.simulator.entries import Entry
from simkv.simulator.policies.ordered import EvictionOrder, OrderedPolicy

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["Lru", "RecencyOrder"]


class RecencyOrder:
    """Oldest access first (``refresh``), or oldest insertion first.

    Pinned entries that come to the front are set aside; once released they are older than the whole queue, and
    a heap keeps the order among them.
    """

    def __init__(self, refresh: bool) -> None:
        self._queue: OrderedDict[int, tuple[int, Entry]] = OrderedDict()  # key -> (sequence, entry)
        self._aside: dict[int, tuple[int, Entry]] = {}
        self._front: list[tuple[int, Entry]] = []
        self._in_front: dict[int, int] = {}  # key -> sequence of its live row in ``_front``
        self._refresh = refresh
        self._sequence = 0

    def insert(self, entry: Entry) -> None:
        """See EvictionOrder."""
        self._sequence += 1
        self._queue[entry.key] = (self._sequence, entry)

    def touch(self, entry: Entry) -> None:
        """See EvictionOrder."""
        if self._refresh:
            self.remove(entry)
            self.insert(entry)

    def remove(self, entry: Entry) -> None:
        """See EvictionOrder."""
        key = entry.key
        if self._queue.pop(key, None) is None and self._aside.pop(key, None) is None:
            del self._in_front[key]

    def released(self, entry: Entry) -> None:
        """See EvictionOrder."""
        row = self._aside.pop(entry.key, None)
        if row is not None:
            self._in_front[entry.key] = row[0]
            heapq.heappush(self._front, row)

    def victim(self) -> Entry | None:
        """See EvictionOrder."""
        while self._front:
            sequence, entry = self._front[0]
            if self._in_front.get(entry.key) == sequence:
                if not entry.pins:
                    return entry
                self._aside[entry.key] = (sequence, entry)
                del self._in_front[entry.key]
            heapq.heappop(self._front)
        while self._queue:
            key, row = next(iter(self._queue.items()))
            if not row[1].pins:
                return row[1]
            self._aside[key] = self._queue.pop(key)
        return None


@dataclass
class Lru(OrderedPolicy):
    """Evict what has not been asked for the longest."""

    name: ClassVar[str] = "lru"

    def new_order(self, capacity_bytes: int | None, view: StoreView) -> EvictionOrder:
        """See OrderedPolicy."""
        return RecencyOrder(refresh=True)
