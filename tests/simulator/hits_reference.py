"""Eviction policies written straight from their definitions, slow and obvious, to check the compiled ones against."""

from collections import OrderedDict
from dataclasses import dataclass

__all__ = ["S3Fifo", "reference_hits"]


@dataclass
class Held:
    """What the reference knows about a resident block."""

    admitted: int
    touched: int = 0
    touches: int = 0
    worth: float = 0.0


class Scan:
    """A cache that looks at every resident block to choose a victim."""

    def __init__(self, policy: str, capacity: int, sizes: list[int], string: list[int]) -> None:
        self.policy, self.capacity, self.sizes, self.string = policy, capacity, sizes, string
        self.held: dict[int, Held] = {}
        self.inflation = 0.0

    def __contains__(self, block: int) -> bool:
        return block in self.held

    def _rank(self, block: int, now: int) -> tuple[float, ...]:
        held = self.held[block]
        if self.policy == "clairvoyant":
            rest = self.string[now + 1 :]
            return (-rest.index(block) if block in rest else -len(self.string), held.touched)
        keys = {"lru": held.touched, "fifo": held.admitted, "lfu": held.touches, "gdsf": held.worth}
        return (keys[self.policy], held.touched)

    def touch(self, now: int, block: int) -> None:
        size = self.sizes[block]
        if block not in self.held:
            if size > self.capacity:
                return
            while sum(self.sizes[other] for other in self.held) + size > self.capacity:
                victim = min(self.held, key=lambda other: self._rank(other, now))
                self.inflation = self.held.pop(victim).worth
            self.held[block] = Held(admitted=now)
        held = self.held[block]
        held.touched, held.touches = now, held.touches + 1
        held.worth = self.inflation + held.touches / size


class S3Fifo:
    """S3-FIFO with ordered dicts from block to counter; ``overflow`` is libCacheSim's start-up rule."""

    def __init__(self, capacity: int, sizes: list[int], overflow: bool = False) -> None:
        self.capacity, self.sizes = capacity, sizes
        self.small: OrderedDict[int, int] = OrderedDict()
        self.main: OrderedDict[int, int] = OrderedDict()
        self.ghost: OrderedDict[int, int] = OrderedDict()
        self.overflow = overflow

    def __contains__(self, block: int) -> bool:
        return block in self.small or block in self.main

    def _used(self, queue: OrderedDict[int, int]) -> int:
        return sum(self.sizes[block] for block in queue)

    def touch(self, _: int, block: int) -> None:
        for queue in (self.small, self.main):
            if block in queue:
                queue[block] = min(queue[block] + 1, 3)
                return
        if self.sizes[block] > self.capacity:
            return
        target = self.main if block in self.ghost else self.small
        self.ghost.pop(block, None)
        while self._used(self.small) + self._used(self.main) + self.sizes[block] > self.capacity:
            self.overflow = False
            self._evict()
        if self.overflow and self._used(self.small) >= self.capacity // 10:
            target = self.main
        target[block] = 0

    def _evict(self) -> None:
        main_share = self.capacity - self.capacity // 10
        if self._used(self.main) > main_share or not self.small:
            while True:
                victim, touches = self.main.popitem(last=False)
                if not touches:
                    return
                self.main[victim] = touches - 1
        while self.small:
            victim, touches = self.small.popitem(last=False)
            if touches < 2:
                while self.ghost and self._used(self.ghost) + self.sizes[victim] > main_share:
                    self.ghost.popitem(last=False)
                if self.sizes[victim] <= main_share:
                    self.ghost[victim] = 0
                return
            self.main[victim] = 0


def reference_hits(
    requests: list[list[int]], policy: str, capacity: int, sizes: list[int], touch: str, lookup: str
) -> int:
    """Hits counted straight from the definition."""
    string = [block for blocks in requests for block in (blocks if touch == "forward" else blocks[::-1])]
    cache = S3Fifo(capacity, sizes) if policy == "s3fifo" else Scan(policy, capacity, sizes, string)
    now = hits = 0
    for blocks in requests:
        found = [block in cache for block in blocks]
        for place, block in enumerate(blocks if touch == "forward" else blocks[::-1]):
            if touch == "forward":
                found[place] = block in cache
            cache.touch(now, block)
            now += 1
        if lookup == "prefix":
            found = found[: found.index(False)] if False in found else found
        hits += sum(found)
    return hits
