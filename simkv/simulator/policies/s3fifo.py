"""S3-FIFO (Yang et al., SOSP 2023): a small queue filters one-hit wonders, a ghost queue remembers them.

New entries enter the small queue (a tenth of the tier); what was hit there twice moves to the main queue, the rest is
evicted and remembered as a ghost; a ghost that comes back enters the main queue.  Main reinserts what was hit
since.  Pinned entries, which the paper does not have, go to the end of their queue.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from simkv.errors import PolicyError
from simkv.simulator.entries import Entry
from simkv.simulator.policies.ordered import EvictionOrder, OrderedPolicy

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["S3Fifo"]

_MAX_COUNT = 3
_STAYS_AT = 2  # the paper's "freq > 1"


class _S3Order:
    def __init__(self, capacity_bytes: int | None, small_share: float) -> None:
        self._small: OrderedDict[int, Entry] = OrderedDict()
        self._main: OrderedDict[int, Entry] = OrderedDict()
        self._ghost: OrderedDict[int, int] = OrderedDict()  # key -> bytes
        self._ghost_bytes = 0
        self._count: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self._main_bytes = 0
        self._newest = -1
        capacity = capacity_bytes or 0
        self._main_limit = capacity - int(capacity * small_share)  # also that of the ghosts

    def insert(self, entry: Entry) -> None:
        key = self._newest = entry.key
        self._bytes[key] = entry.size_bytes
        if key in self._ghost:
            self._ghost_bytes -= self._ghost.pop(key)
            self._enter_main(key, entry)
        else:
            self._small[key] = entry
            self._count[key] = 0

    def _enter_main(self, key: int, entry: Entry) -> None:
        self._main[key] = entry
        self._main_bytes += self._bytes[key]
        self._count[key] = 0

    def touch(self, entry: Entry) -> None:
        self._count[entry.key] = min(_MAX_COUNT, self._count[entry.key] + 1)

    def released(self, entry: Entry) -> None:
        pass  # pinned entries keep their turn at the end of their queue

    def remove(self, entry: Entry) -> None:
        key = entry.key
        size = self._bytes.pop(key)
        del self._count[key]
        if key in self._small:
            del self._small[key]
            self._remember(key, size)
        else:
            del self._main[key]
            self._main_bytes -= size

    def _remember(self, key: int, size: int) -> None:
        self._ghost[key] = size
        self._ghost_bytes += size
        while self._ghost_bytes > self._main_limit:
            self._ghost_bytes -= self._ghost.popitem(last=False)[1]

    def victim(self) -> Entry | None:
        """From main if it exceeds its share, else from small, else from the other.

        Room is made before the newest entry enters, as published: it does not count, and stays last in its queue.
        """
        into = self._main if self._newest in self._main else self._small
        main_bytes = self._main_bytes - (self._bytes[self._newest] if into is self._main else 0)
        first, second = self._from_small, self._from_main
        if main_bytes > self._main_limit:
            first, second = second, first
        found = first()
        if found is None:
            found = second()
        if self._newest in into:
            into.move_to_end(self._newest)
        return found

    def _from_small(self) -> Entry | None:
        passed_over = 0
        while passed_over < len(self._small):
            key, entry = next(iter(self._small.items()))
            if entry.pins:
                passed_over += 1
                self._small.move_to_end(key)
            elif self._count[key] < _STAYS_AT:
                return entry
            else:
                del self._small[key]
                self._enter_main(key, entry)
        return None

    def _from_main(self) -> Entry | None:
        passed_over = 0
        while passed_over < len(self._main):
            key, entry = next(iter(self._main.items()))
            if entry.pins:
                passed_over += 1
            elif self._count[key] == 0:
                return entry
            else:
                self._count[key] -= 1
                passed_over = 0
            self._main.move_to_end(key)
        return None


@dataclass
class S3Fifo(OrderedPolicy):
    """Three static queues.

    Args:
        small_share: share of a tier's bytes for the small queue, in (0, 1).
    """

    small_share: float = 0.1
    name: ClassVar[str] = "s3fifo"

    def __post_init__(self) -> None:
        if not 0 < self.small_share < 1:
            raise PolicyError(f"policy s3fifo: small_share is {self.small_share}; it must lie between 0 and 1")

    def new_order(self, capacity_bytes: int | None, view: StoreView) -> EvictionOrder:
        """See OrderedPolicy."""
        return _S3Order(capacity_bytes, self.small_share)
