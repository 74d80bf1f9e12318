"""HitDensity: what a stored byte is worth is what it saves at its next use times how soon that is expected.

Gain of an option (tier, variant) over recomputing: seconds saved + alpha x quality lost (negative).  Loss of a step
down = reuse index x gain given up, per byte freed.  A request's new blocks enter where their gain is largest, the ones
that it has found move up to where it is, and whatever is then too much on a tier leaves by the smallest loss per byte,
the request's own blocks included.  The reuse index (``reuse_index.py``) is learnt online and ages.

Blocks that were asked for together are alike, so decisions are about parts of chains (``parts.py``): a decision looks
at a sample of them, whatever the number of entries.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from simkv.errors import PolicyError
from simkv.simulator.entries import Entry, Move, Placement
from simkv.simulator.policies.base import Policy
from simkv.simulator.policies.parts import Chain, Part, Parts
from simkv.simulator.policies.reuse_index import ReuseIndex

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["HitDensity"]

_COUNTS = (1, 2, 4, 8)  # access counts up to these are a class each, more is one
_NEW = (1, 3, 15)
_IDLE_S = (5.0, 20.0, 80.0, 300.0)
_FEW = 8  # blocks below which a chain's transfers count one by one
_FEATURES = (len(_NEW) + 1) * (len(_IDLE_S) + 2)


@dataclass
class HitDensity(Policy):
    """Marginal loss per byte, weighted by an ageing reuse index.

    Args:
        alpha: seconds of delay that one unit of quality is worth; larger means better and slower.
        methods: compressors to choose from; None for all in the profile.
        sample: parts looked at per decision.
        unit_s: width of the youngest age bucket.
        prior: events' worth of prior behind the hazard of a class.
        seed: of the samples.
        stripe: a long chain's tiers load side by side, so the fastest one is what is waited for while the slower ones
            take less than this share of its time, and else they are; 0 counts every transfer of its own.
    """

    alpha: float = 2.0
    methods: list[str] | None = None
    sample: int = 32
    unit_s: float = 2.0
    prior: float = 30.0
    seed: int = 0
    stripe: float = 0.85
    name: ClassVar[str] = "hitdensity"

    def __post_init__(self) -> None:
        if not (isinstance(self.alpha, (int, float)) and 0 <= self.alpha < math.inf):
            raise PolicyError(f"policy hitdensity: alpha is {self.alpha!r}; it must be a number, at least 0")
        if not (0 < self.unit_s < math.inf and 0 < self.prior < math.inf):
            raise PolicyError("policy hitdensity: unit_s and prior must be positive")
        if self.sample < 1:
            raise PolicyError(f"policy hitdensity: sample is {self.sample}; it must be at least 1")

    def start(self, view: StoreView) -> None:
        """See Policy."""
        compressors = [variant.partition(":")[0] for variant in view.variants]
        wanted = set(compressors[1:] if self.methods is None else self.methods)
        for method in wanted.difference(compressors[1:]):
            raise PolicyError(f"policy hitdensity: method {method!r} is not in the profile")
        self._variants = [v for v, c in enumerate(compressors) if v == 0 or c in wanted]
        self._view = view
        self._pristine = len(view.tiers) < len(view.costs.tiers)
        self._rng = random.Random(self.seed)
        parents = [label // (2 * _FEATURES) for label in range((len(_COUNTS) + 1) * 2 * _FEATURES)]
        self._reuse = ReuseIndex(parents, self.unit_s, self.prior)
        self._seen: dict[int, tuple[Chain, int, int]] = {}  # key -> chain, class, times asked for
        self._home: dict[int, Part] = {}
        self._depth: dict[int, int] = {}
        self._worst: dict[int, int] = {}  # key -> variant whose quality the stored copy has
        self._tiers = [Parts(self._home, self._depth, self._rng) for _ in view.tiers]
        self._tables: dict[tuple, list[tuple[float, int, Placement]]] = {}
        self._steps: dict[tuple, tuple[float, Placement | None]] = {}
        self._now = (-1, -1)
        self._chain = Chain(0.0, 1, 1, len(view.tiers))
        self._current: list[Part | None] = [None] * len(view.tiers)

    # ------------------------------------------------------------------ gains

    def _bottleneck(self, chain: Chain) -> int:
        """What a load of the chain waits for: 0 the sum of its transfers, 1 the fastest tier, 2 the slower ones."""
        if not self.stripe or chain.blocks < _FEW:
            return 0
        fast, *slow = chain.load
        return 1 if max(slow) < self.stripe * fast else 2

    def _options(self, entry: Entry, chain: Chain, worst: int, bound: int) -> list[tuple[float, int, Placement]]:
        """(gain over recomputing, bytes, placement) of every option that the entry may be brought to."""
        view, costs = self._view, self._view.costs
        row = costs.quality.seen_row[entry.key]
        recompute = costs.recompute[entry.key]
        key = (entry.size_class, row, recompute, chain.tokens, chain.blocks, worst, bound)
        table = self._tables.get(key)
        if table is None:
            if len(self._tables) > 4096:
                self._tables.clear()
            quality = costs.quality.seen[row]
            weight = self.alpha * (1.0 if costs.whole_contexts else entry.tokens / chain.tokens)
            ceiling = quality[worst]
            table = []
            for tier in range(len(view.tiers)):
                capacity = view.capacity_bytes(tier)
                for variant in self._variants:
                    size = view.size_bytes(entry, variant)
                    if capacity is not None and size > capacity:
                        continue
                    place = view.placement(tier, variant)
                    fixed = 0.0 if costs.whole_contexts else costs.decode_fixed[tier][variant] / (chain.blocks * 1e9)
                    delay = view.load_s(entry, place) + fixed
                    if bound == (2 if tier == 0 else 1):
                        delay -= costs.read[tier][variant][entry.size_class] / 1e9
                    gain = recompute / 1e9 - delay - weight * (1.0 - min(ceiling, quality[variant]))
                    table.append((gain, size, place))
            self._tables[key] = table
        return table

    def _worst_of(self, entry: Entry) -> int:
        return 0 if self._pristine else self._worst.get(entry.key, 0)

    def _best(self, entry: Entry) -> Placement | None:
        """Where the entry gains most, room aside; None where recomputing is better."""
        best, place = 0.0, None
        for gain, _, option in self._options(entry, self._chain, self._worst_of(entry), self._bottleneck(self._chain)):
            if gain > best:
                best, place = gain, option
        return place

    def _step(self, part: Part, entry: Entry) -> tuple[float, Placement | None]:
        """(gain given up per byte freed on the part's tier, target) of the part's best step down."""
        bound = self._bottleneck(part.chain)
        found = part.steps[bound]
        if found is None:
            worst = 0 if self._pristine else part.worst
            options = self._options(entry, part.chain, worst, bound)
            now = next((gain for gain, _, place in options if place == part.placement), 0.0)
            size, tier = entry.size_bytes, part.placement.tier
            best: tuple[float, Placement | None] = (now / size, None)
            for gain, bytes_then, place in options:
                if place.tier < tier or bytes_then > size or gain <= 0:
                    continue
                if place.tier == tier and (bytes_then == size or tier):
                    continue
                freed = size - bytes_then if place.tier == tier else size
                loss = (now - gain) / freed
                if loss < best[0]:
                    best = (loss, place)
            part.steps[bound] = found = best
        return found

    # ------------------------------------------------------------------ a request's step

    def _begin(self, view: StoreView) -> None:
        """First call of a request's step: its chain, its class, what its blocks' waits have taught."""
        if self._now == (view.request, view.now_ns):
            return
        self._now = (view.request, view.now_ns)
        self._current = [None] * len(self._tiers)
        own = list(dict.fromkeys(view.own))
        costs, now_s, seen = view.costs, view.now_ns / 1e9, self._seen
        tokens = sum(costs.class_tokens[costs.block_class[key]] for key in own)
        chain = self._chain = Chain(now_s, max(1, tokens), len(own), len(view.tiers))
        deepest = next((i for i in range(len(own) - 1, -1, -1) if own[i] in seen), -1)
        feature = 0
        if deepest > 0 or deepest == len(own) - 1 == 0:
            idle = now_s - seen[own[deepest]][0].since_s
            feature = 1 + sum(idle >= limit for limit in _IDLE_S)
        fresh = sum(len(own) - 1 - deepest > limit for limit in _NEW)
        feature = feature * (len(_NEW) + 1) + fresh
        closed: Counter[tuple[int, float]] = Counter()
        opened: Counter[int] = Counter()
        for depth, key in enumerate(own):
            before = seen.get(key)
            count = 1
            if before is not None:
                closed[before[1], before[0].since_s] += 1
                count = before[2] + 1
            label = (sum(count > limit for limit in _COUNTS) * _FEATURES + feature) * 2
            opened[label] += 1
            seen[key] = (chain, label, count)
            self._depth[key] = depth
            entry = view.resident(key)
            if entry is not None and entry.placement is not None:
                chain.load[entry.placement.tier] += self._read_ns(entry, entry.placement)
        for (label, since_s), blocks in closed.items():
            self._reuse.closed(label, since_s, now_s, blocks)
        for label, blocks in opened.items():
            self._reuse.opened(label, now_s, blocks)
        self._reuse.request(now_s)

    def admit(self, entry: Entry, view: StoreView) -> Placement | None:
        """Where it gains most."""
        self._begin(view)
        self._worst.pop(entry.key, None)
        return self._best(entry)

    def on_hit(self, entry: Entry, view: StoreView) -> Placement | None:
        """Where it gains most with the quality that its copy still has."""
        self._begin(view)
        old = entry.placement
        assert old is not None
        self._leave(entry, old)
        self._enter(entry)
        options = self._options(entry, self._chain, self._worst_of(entry), self._bottleneck(self._chain))
        now = next((gain for gain, _, place in options if place == old), 0.0)
        best, place = now, old
        for gain, _, option in options:
            if gain > best and (option.variant == old.variant or gain > 1.03 * now) and self._vacant(option, old):
                best, place = gain, option
        return place

    def _vacant(self, option: Placement, old: Placement) -> bool:
        return True

    def _read_ns(self, entry: Entry, place: Placement) -> int:
        return self._view.costs.read[place.tier][place.variant][entry.size_class]

    def _leave(self, entry: Entry, old: Placement) -> None:
        self._home[entry.key].chain.load[old.tier] -= self._read_ns(entry, old)
        self._tiers[old.tier].remove(entry)

    def _enter(self, entry: Entry) -> None:
        assert entry.placement is not None
        chain, label, _ = self._seen[entry.key]
        row = self._view.costs.quality.seen_row[entry.key]
        self._tiers[entry.placement.tier].add(entry, chain, label, row, self._worst.get(entry.key, 0))

    def placed(self, entry: Entry, old: Placement | None) -> None:
        """See Policy."""
        if old is not None:
            self._leave(entry, old)
        place = entry.placement
        if place is None:
            return
        self._seen[entry.key][0].load[place.tier] += self._read_ns(entry, place)
        quality = self._view.costs.quality
        seen = quality.seen[quality.seen_row[entry.key]]
        worst = self._worst.get(entry.key, 0)
        if self._pristine or seen[place.variant] < seen[worst]:
            self._worst[entry.key] = place.variant
        self._enter(entry)

    # ------------------------------------------------------------------ room

    def make_room(self, tier: int, need_bytes: int, view: StoreView) -> Iterator[Move]:
        """The smallest loss per byte among a sample of parts and the request's own, from its tail, again and again."""
        while (found := self._choose(tier)) is not None:
            part, entry = found
            yield Move(*self._tail_first(tier, entry, self._step(part, entry)[1]))

    def _choose(self, tier: int) -> tuple[Part, Entry] | None:
        parts = self._tiers[tier]
        current = self._current[tier]
        if current is not None and (current.live == 0 or parts.tail(current) is None):
            current = None
        candidates = list(self._chain.parts.values())
        if current is None:
            candidates.extend(parts.sample(self.sample))
        else:
            candidates.append(current)
        best = None
        for part in candidates:
            if part.placement.tier != tier or not part.live:
                continue
            entry = parts.tail(part)
            if entry is None:
                continue
            rank = (self._score(part, entry), part.chain.since_s)
            if best is None or rank < best[0]:
                best = (rank, part, entry)
        if best is None:
            return next(parts.free_entries(), None)
        self._current[tier] = best[1]
        return best[1], best[2]

    def _score(self, part: Part, entry: Entry) -> float:
        """Loss per byte of the part's next step down, by how soon it is expected to be asked for."""
        now_ns = self._view.now_ns
        if part.reuse_ns != now_ns:
            part.reuse = self._reuse.value(part.label, now_ns / 1e9 - part.chain.since_s)
            part.reuse_ns = now_ns
        return self._step(part, entry)[0] * part.reuse

    def _tail_first(self, tier: int, entry: Entry, to: Placement | None) -> tuple[Entry, Placement | None]:
        """A block that is to be dropped gives way to the deepest stored block of its chain on the same tier."""
        if to is not None:
            return entry, to
        for _ in range(1024):
            below = [child for child in self._view.children(entry) if not child.pins]
            below = [child for child in below if child.placement is not None and child.placement.tier == tier]
            if not below:
                break
            entry = below[-1]
        return entry, None
