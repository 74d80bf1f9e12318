"""Which reuse class each block is in, and what the waits of a request's blocks have taught about the classes.

A class is how often a block was asked for, how many new blocks its last request brought, and how long the
conversation had rested before it.  What it is: the record of every block ever asked for (also of dropped ones: what was
not stored teaches as much), and its feed to ``reuse_index.py``.  What it is not: anything about placements.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from simkv.simulator.policies.parts import Chain
from simkv.simulator.policies.reuse_index import ReuseIndex

__all__ = ["ReuseClasses"]

_COUNTS = (1, 2, 4, 8)  # access counts up to these are a class each, more is one
_NEW = (1, 3, 15)
_IDLE_S = (5.0, 20.0, 80.0, 300.0)
_FEATURES = (len(_NEW) + 1) * (len(_IDLE_S) + 2)


class ReuseClasses:
    """Blocks by class, and the index of each.

    Args:
        unit_s, prior: see ``ReuseIndex``.

    Attributes:
        index: hits per second of holding, by class and age.
        seen: chain that asked for a block last, its class, how often it was asked for, its place in that chain; by key.
    """

    def __init__(self, unit_s: float, prior: float) -> None:
        parents = [label // _FEATURES for label in range((len(_COUNTS) + 1) * _FEATURES)]
        self.index = ReuseIndex(parents, unit_s, prior)
        self.seen: dict[int, tuple[Chain, int, int, int]] = {}

    def request(self, own: Sequence[int], chain: Chain) -> None:
        """A request for these distinct blocks is over: their waits end, and new ones begin with ``chain``."""
        now_s, seen = chain.since_s, self.seen
        feature = self._feature(own, now_s)
        closed: dict[tuple[int, float], int] = {}  # (class, since when) -> blocks
        opened: dict[int, int] = {}  # class -> blocks
        for depth, key in enumerate(own):
            before = seen.get(key)
            count = 1
            if before is not None:
                wait = before[1], before[0].since_s
                closed[wait] = closed.get(wait, 0) + 1
                count = before[2] + 1
            label = bisect_left(_COUNTS, count) * _FEATURES + feature
            opened[label] = opened.get(label, 0) + 1
            seen[key] = (chain, label, count, depth)
        for (label, since_s), blocks in closed.items():
            self.index.closed(label, since_s, now_s, blocks)
        for label, blocks in opened.items():
            self.index.opened(label, now_s, blocks)
        self.index.request(now_s)

    def _feature(self, own: Sequence[int], now_s: float) -> int:
        """New blocks after the deepest known one, and how long that one had waited."""
        seen = self.seen
        last = deepest = len(own) - 1
        while deepest >= 0 and own[deepest] not in seen:
            deepest -= 1
        idle = 0
        if deepest > 0 or deepest == last == 0:
            idle = 1 + bisect_right(_IDLE_S, now_s - seen[own[deepest]][0].since_s)
        return idle * (len(_NEW) + 1) + bisect_left(_NEW, last - deepest)
