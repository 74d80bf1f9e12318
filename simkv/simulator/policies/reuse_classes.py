"""Which reuse class each block is in, and what the waits of a request's blocks have taught about the classes.

A class is how often a block was asked for, how many new blocks its last request brought, and how long the
conversation had rested before it.  What it is: the record of every block ever asked for (also of dropped ones: what was
not stored teaches as much), and its feed to ``reuse_index.py``.  What it is not: anything about placements.
"""

from collections import Counter
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
        seen: chain that asked for a block last, its class, how often it was asked for; by key.
        depth: place of each block in that chain, by key.
    """

    def __init__(self, unit_s: float, prior: float) -> None:
        parents = [label // _FEATURES for label in range((len(_COUNTS) + 1) * _FEATURES)]
        self.index = ReuseIndex(parents, unit_s, prior)
        self.seen: dict[int, tuple[Chain, int, int]] = {}
        self.depth: dict[int, int] = {}

    def request(self, own: Sequence[int], chain: Chain) -> None:
        """A request for these distinct blocks is over: their waits end, and new ones begin with ``chain``."""
        now_s, seen = chain.since_s, self.seen
        feature = self._feature(own, now_s)
        closed: Counter[tuple[int, float]] = Counter()
        opened: Counter[int] = Counter()
        for depth, key in enumerate(own):
            before = seen.get(key)
            count = 1
            if before is not None:
                closed[before[1], before[0].since_s] += 1
                count = before[2] + 1
            label = sum(count > limit for limit in _COUNTS) * _FEATURES + feature
            opened[label] += 1
            seen[key] = (chain, label, count)
            self.depth[key] = depth
        for (label, since_s), blocks in closed.items():
            self.index.closed(label, since_s, now_s, blocks)
        for label, blocks in opened.items():
            self.index.opened(label, now_s, blocks)
        self.index.request(now_s)

    def _feature(self, own: Sequence[int], now_s: float) -> int:
        """New blocks after the deepest known one, and how long that one had waited."""
        seen = self.seen
        deepest = next((i for i in range(len(own) - 1, -1, -1) if own[i] in seen), -1)
        idle = 0
        if deepest > 0 or deepest == len(own) - 1 == 0:
            rested_s = now_s - seen[own[deepest]][0].since_s
            idle = 1 + sum(rested_s >= limit for limit in _IDLE_S)
        return idle * (len(_NEW) + 1) + sum(len(own) - 1 - deepest > limit for limit in _NEW)
