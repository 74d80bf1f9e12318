"""Parts: blocks that were last asked for together and are stored alike, so that one decision serves them all.

What it is: ``Chain`` (one request's blocks), ``Part`` (those of its blocks in one placement, one reuse class and one
row of costs), ``Parts`` (all parts of a tier, sampled uniformly).  What it is not: a decision.
"""

import random
from collections.abc import Iterator

from simkv.simulator.entries import Entry, Placement

__all__ = ["Chain", "Part", "Parts"]


class Chain:
    """A request's blocks from its first token on, until a later request asks for them.

    Attributes:
        since_s: when the request was answered.
        tokens: of its prompt, as far as it is in blocks.
        blocks: how many it asked for.
        load: ns of transfer from each tier for those that are stored; change it with ``shift``.
        bound: what a load waits for, as ``gains.py`` has it; None when that is to be found out again.
        parts: live parts by (class, placement, size class, quality row, worst variant).
    """

    __slots__ = ("blocks", "bound", "load", "parts", "since_s", "tokens")

    def __init__(self, since_s: float, tokens: int, blocks: int, tiers: int) -> None:
        self.since_s = since_s
        self.tokens = tokens
        self.blocks = blocks
        self.load = [0] * tiers
        self.bound: int | None = None
        self.parts: dict[tuple, Part] = {}

    def shift(self, tier: int, load_ns: int) -> None:
        """So much more (or less) is to be loaded from a tier."""
        self.load[tier] += load_ns
        self.bound = None


class Part:
    """Entries of one chain that are alike.

    Attributes:
        chain, label, placement: whose, reuse class, where.
        worst: variant whose quality the entries have.
        live: entries in it.
        steps: loss per byte freed and the placement of the best step down, by bottleneck, as far as asked for.
        version: of the weight of quality for which ``steps`` holds.
        index: position in its tier's list.
    """

    __slots__ = (
        "chain",
        "entries",
        "index",
        "key",
        "label",
        "live",
        "placement",
        "sorted",
        "steps",
        "version",
        "worst",
    )

    def __init__(self, chain: Chain, key: tuple, label: int, placement: Placement, worst: int) -> None:
        self.chain = chain
        self.key = key
        self.label = label
        self.placement = placement
        self.worst = worst
        self.entries: list[tuple[int, int, Entry]] = []  # (depth, key, entry), deepest last once sorted
        self.live = 0
        self.steps: dict[int | None, tuple[float, Placement | None]] = {}
        self.version = 0
        self.index = -1
        self.sorted = True


class Parts:
    """The parts of one tier, and in which of them each entry is.

    Args:
        home: part of each entry by key, shared by all tiers.
        rng: for samples.
    """

    def __init__(self, home: dict[int, Part], rng: random.Random) -> None:
        self._home = home
        self._rng = rng
        self.all: list[Part] = []

    def add(self, entry: Entry, chain: Chain, depth: int, label: int, row: int, worst: int) -> None:
        """Put a stored entry, so deep in its chain, into the part of it where it belongs."""
        assert entry.placement is not None
        key = (label, entry.placement, entry.size_class, row, worst)
        part = chain.parts.get(key)
        if part is None:
            part = chain.parts[key] = Part(chain, key, label, entry.placement, worst)
            part.index = len(self.all)
            self.all.append(part)
        part.sorted = not part.entries
        part.entries.append((depth, entry.key, entry))
        part.live += 1
        self._home[entry.key] = part

    def remove(self, entry: Entry) -> None:
        """The entry has left its part."""
        part = self._home.pop(entry.key)
        part.live -= 1
        if part.live:
            return
        last = self.all.pop()
        if last is not part:
            self.all[part.index] = last
            last.index = part.index
        del part.chain.parts[part.key]

    def tail(self, part: Part) -> Entry | None:
        """Its deepest entry that may move; None when that one is in use, and all before it then as a rule are."""
        entries, home = part.entries, self._home
        if not part.sorted:
            entries.sort()
            part.sorted = True
        while entries:
            _, key, entry = entries[-1]
            if home.get(key) is part:
                return None if entry.pins else entry
            entries.pop()
        return None

    def sample(self, count: int) -> set[Part]:
        """Some parts, uniformly with replacement; all of them where there are no more than that."""
        return set(self._rng.choices(self.all, k=count) if len(self.all) > count else self.all)

    def free_entries(self) -> Iterator[tuple[Part, Entry]]:
        """Every entry that is not in use, by a full scan: the last resort."""
        for part in list(self.all):
            for _, key, entry in part.entries[::-1]:
                if self._home.get(key) is part and not entry.pins:
                    yield part, entry
