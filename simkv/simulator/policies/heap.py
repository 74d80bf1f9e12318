"""HeapOrder: entries leave a tier by smallest (score, sequence); scores may change at any time.

Changed scores are pushed again and the old heap rows are recognised by their version, so every call costs
O(log n) amortised.  Pinned entries that come to the top are set aside until they are released.  The heap is rebuilt
when stale rows outnumber live ones.
"""

import heapq
from collections.abc import Callable

from simkv.simulator.entries import Entry

__all__ = ["HeapOrder"]


class HeapOrder:
    """An EvictionOrder from a score function.

    Args:
        score: smaller leaves first; called when an entry comes or is touched.
        chosen: called with the score of each chosen victim (GDSF's clock), optional.
    """

    def __init__(self, score: Callable[[Entry], float], chosen: Callable[[float], None] | None = None) -> None:
        self._score = score
        self._chosen = chosen
        self._heap: list[tuple[float, int, Entry]] = []
        self._current: dict[int, int] = {}  # key -> sequence number of its live row
        self._aside: dict[int, tuple[float, int, Entry]] = {}  # rows of pinned entries that were at the top
        self._sequence = 0

    def __len__(self) -> int:
        """Entries in the order."""
        return len(self._current)

    def insert(self, entry: Entry) -> None:
        """See EvictionOrder."""
        self._sequence += 1
        self._current[entry.key] = self._sequence
        heapq.heappush(self._heap, (self._score(entry), self._sequence, entry))
        if len(self._heap) > 2 * len(self._current) + 64:
            self._heap = self._live()
            heapq.heapify(self._heap)

    def _live(self) -> list[tuple[float, int, Entry]]:
        return [row for row in self._heap if self._current.get(row[2].key) == row[1]]

    def rescore(self) -> None:
        """Compute every score anew: O(n), for changes that concern all entries."""
        self._heap = [(self._score(entry), sequence, entry) for _, sequence, entry in self._live()]
        heapq.heapify(self._heap)
        for key, (_, sequence, entry) in self._aside.items():
            self._aside[key] = (self._score(entry), sequence, entry)

    def touch(self, entry: Entry) -> None:
        """See EvictionOrder."""
        self.insert(entry)

    def remove(self, entry: Entry) -> None:
        """See EvictionOrder."""
        del self._current[entry.key]
        self._aside.pop(entry.key, None)

    def released(self, entry: Entry) -> None:
        """See EvictionOrder."""
        row = self._aside.pop(entry.key, None)
        if row is not None:
            heapq.heappush(self._heap, row)

    def victim(self) -> Entry | None:
        """See EvictionOrder."""
        while self._heap:
            score, sequence, entry = self._heap[0]
            if self._current.get(entry.key) != sequence:
                heapq.heappop(self._heap)
            elif entry.pins:
                self._aside[entry.key] = heapq.heappop(self._heap)
            else:
                if self._chosen is not None:
                    self._chosen(score)
                return entry
        return None
