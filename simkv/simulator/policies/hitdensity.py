"""HitDensity: what a stored byte is worth is what it saves at its next use times how soon that is expected.

A request's new blocks enter where they gain most (``gains.py``), the ones that it has found move up to where they do
if that pays for the move, and whatever is then too much on a tier leaves by the smallest loss: gain given up per byte
freed x reuse index, the request's own blocks included.  Only the net changes of all this are carried out.  The reuse
index (``reuse_index.py``) is learnt online, per class (``reuse_classes.py``), and ages.

Blocks that were asked for together are alike, so decisions are about parts of chains (``parts.py``): a decision looks
at a sample of them, whatever the number of entries, and holds for several blocks of the part.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from simkv.errors import PolicyError
from simkv.simulator.entries import Entry, Move, Placement
from simkv.simulator.policies.base import Policy
from simkv.simulator.policies.gains import Gains
from simkv.simulator.policies.move_price import MovePrice
from simkv.simulator.policies.parts import Chain, Part, Parts
from simkv.simulator.policies.reuse_classes import ReuseClasses
from simkv.simulator.policies.target import Target
from simkv.simulator.policies.utilities import chosen_variants

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["HitDensity"]

_KEPT = 4  # parts of a sample that are used before the next one is drawn
_BATCH = 8  # blocks for which a decision holds


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
        stripe: a long chain's tiers load side by side, and the slowest is waited for, together with those that take
            this share of its time; 0 counts every transfer of its own.
        move_price: seconds of delay that a second of reading raw copies is worth while their channel is asked for half
            of what it can do; near 0 when it idles, steeply more when it is full (``move_price.py``).
        quality_floor: mean quality of the measured requests to keep; alpha is then where the search for it begins.
        ttft_slo_s: seconds within which ``slo_share`` of the requests shall have their first token; likewise.
        slo_share: that share.
    """

    alpha: float = 2.0
    methods: list[str] | None = None
    sample: int = 32
    unit_s: float = 2.0
    prior: float = 30.0
    seed: int = 0
    stripe: float = 0.85
    move_price: float = 0.03
    quality_floor: float | None = None
    ttft_slo_s: float | None = None
    slo_share: float = 0.9
    name: ClassVar[str] = "hitdensity"

    def __post_init__(self) -> None:
        if not (isinstance(self.alpha, (int, float)) and 0 <= self.alpha < math.inf):
            raise PolicyError(f"policy hitdensity: alpha is {self.alpha!r}; it must be a number, at least 0")
        for key in ("unit_s", "prior"):
            if not 0 < (given := getattr(self, key)) < math.inf:
                raise PolicyError(f"policy hitdensity: {key} is {given!r}; it must be a positive number")
        if self.sample < 1:
            raise PolicyError(f"policy hitdensity: sample is {self.sample}; it must be at least 1")
        for key in ("seed", "move_price"):
            if not 0 <= (given := getattr(self, key)) < math.inf:
                raise PolicyError(f"policy hitdensity: {key} is {given!r}; it must be a number, at least 0")
        if not 0 <= self.stripe <= 1:
            raise PolicyError(f"policy hitdensity: stripe is {self.stripe!r}; it must be a number from 0 to 1")
        if not 0 < self.slo_share < 1:
            raise PolicyError(f"policy hitdensity: slo_share is {self.slo_share!r}; it must be between 0 and 1")
        if self.ttft_slo_s is None and self.slo_share != type(self).slo_share:
            raise PolicyError(f"policy hitdensity: slo_share is {self.slo_share!r}; it counts only with ttft_slo_s")
        self._new_target()

    def _new_target(self) -> Target | None:
        if self.quality_floor is None and self.ttft_slo_s is None:
            return None
        return Target(self.alpha, self.quality_floor, self.ttft_slo_s, self.slo_share)

    def start(self, view: StoreView) -> None:
        """See Policy."""
        self._view = view
        self._target = self._new_target()
        variants = chosen_variants(view, self.methods, self.name)
        alpha = self.alpha if self._target is None else self._target.alpha
        self._gains = Gains(view, variants, alpha, self.stripe)
        self._price = MovePrice(self.move_price)
        self._classes = ReuseClasses(self.unit_s, self.prior)
        self._home: dict[int, Part] = {}
        self._worst: dict[int, int] = {}  # key -> variant whose quality the stored copy has
        rng = random.Random(self.seed)
        self._tiers = [Parts(self._home, rng) for _ in view.tiers]
        self._answered, self._since_s = 0, 0.0
        self._now = (-1, -1)
        self._chain = Chain(0.0, 1, 1, len(view.tiers))
        self._current: list[tuple[Part, int] | None] = [None] * len(view.tiers)
        self._spare: list[list[Part]] = [[] for _ in view.tiers]

    def answered(self, ttft_s: float, quality: float) -> None:
        """See Policy: brings alpha nearer to what meets the target."""
        if self._target is not None:
            if not self._answered:
                self._since_s = self._view.now_ns / 1e9
            self._answered += 1
            rate = self._answered / max(1e-9, self._view.now_ns / 1e9 - self._since_s)
            self._target.answered(ttft_s, quality, rate * self._classes.index.usual_wait_s())
            if self._target.alpha != self._gains.alpha:
                self._gains.weigh(self._target.alpha)

    def missed(self, ttft_s: np.ndarray, quality: np.ndarray) -> str | None:
        """See Policy."""
        return None if self._target is None else self._target.missed(ttft_s, quality)

    # ------------------------------------------------------------------ a request's step

    def _begin(self, view: StoreView) -> None:
        """First call of a request's step: its chain, and what its blocks' waits have taught."""
        if self._now == (view.request, view.now_ns):
            return
        self._now = (view.request, view.now_ns)
        self._current = [None] * len(self._tiers)
        if view.pristine and self._price.observe(view.asked_s(-1), view.now_ns / 1e9):
            self._gains.charge(self._price.now)
        own = list(dict.fromkeys(view.own))
        costs = view.costs
        tokens = sum(costs.class_tokens[costs.block_class[key]] for key in own)
        chain = self._chain = Chain(view.now_ns / 1e9, max(1, tokens), len(own), len(view.tiers))
        self._classes.request(own, chain)
        for key in own:
            entry = view.resident(key)
            if entry is not None and entry.placement is not None:
                self._shift(chain, entry, entry.placement, 1)

    def admit(self, entry: Entry, view: StoreView) -> Placement | None:
        """Where it gains most."""
        self._begin(view)
        self._worst.pop(entry.key, None)
        gains, chain = self._gains, self._chain
        return gains.options(entry, chain, 0, gains.bottleneck(chain)).best

    def on_hit(self, entry: Entry, view: StoreView) -> Placement | None:
        """Where it gains most with the quality that its copy still has, if that pays for the move."""
        self._begin(view)
        old = entry.placement
        assert old is not None
        self._leave(entry, old)
        self._enter(entry)
        gains, chain = self._gains, self._chain
        worst = 0 if view.pristine else self._worst.get(entry.key, 0)
        table = gains.options(entry, chain, worst, gains.bottleneck(chain))
        return gains.raised(entry, table, self._classes.index.again(self._classes.seen[entry.key][1]))

    def _shift(self, chain: Chain, entry: Entry, place: Placement, sign: int) -> None:
        tier, variant = place
        chain.shift(tier, sign * self._view.costs.read[tier][variant][entry.size_class])

    def _leave(self, entry: Entry, old: Placement) -> None:
        self._shift(self._home[entry.key].chain, entry, old, -1)
        self._tiers[old.tier].remove(entry)

    def _enter(self, entry: Entry) -> None:
        assert entry.placement is not None
        chain, label, _, depth = self._classes.seen[entry.key]
        row = self._view.costs.quality.seen_row[entry.key]
        self._tiers[entry.placement.tier].add(entry, chain, depth, label, row, self._worst.get(entry.key, 0))

    def placed(self, entry: Entry, old: Placement | None) -> None:
        """See Policy."""
        if old is not None:
            self._leave(entry, old)
        place = entry.placement
        if place is None:
            return
        self._shift(self._classes.seen[entry.key][0], entry, place, 1)
        seen = self._view.qualities(entry)
        if self._view.pristine or seen[place.variant] < seen[self._worst.get(entry.key, 0)]:
            self._worst[entry.key] = place.variant
        self._enter(entry)

    # ------------------------------------------------------------------ room

    def make_room(self, tier: int, need_bytes: int, view: StoreView) -> Iterator[Move]:
        """The smallest loss per byte among a sample of parts and the request's own, from its tail, again and again."""
        while (found := self._choose(tier)) is not None:
            part, entry = found
            yield Move(*self._tail_first(tier, entry, self._gains.step(part, entry)[1]))

    def _choose(self, tier: int) -> tuple[Part, Entry] | None:
        parts = self._tiers[tier]
        candidates = [part for part in self._chain.parts.values() if part.placement.tier == tier]
        current = self._current[tier]
        if current is not None and current[0].live and (entry := parts.tail(current[0])) is not None:
            part, left = current
            if left:
                self._current[tier] = part, left - 1
                return part, entry
            candidates.append(part)
        else:
            candidates.extend(self._sampled(tier))
        best, least, oldest = None, math.inf, math.inf
        now_s = self._view.now_ns / 1e9
        for part in candidates:
            entry = parts.tail(part)
            if entry is None:
                continue
            score = self._score(part, entry, now_s)
            if score < least or (score == least and part.chain.since_s < oldest):
                best, least, oldest = (part, entry), score, part.chain.since_s
        if best is None:
            return next(parts.free_entries(), None)
        self._current[tier] = best[0], _BATCH
        return best

    def _sampled(self, tier: int) -> list[Part]:
        """One of the best few parts of a sample; a new sample is drawn when all of them have had their turn."""
        parts, spare, now_s = self._tiers[tier], self._spare[tier], self._view.now_ns / 1e9
        while spare:
            part = spare.pop()
            if part.live and parts.tail(part) is not None:
                return [part]
        known, value, ranked = self._gains.known, self._classes.index.value, []
        for part in parts.sample(self.sample):
            step, since_s = known(part), part.chain.since_s
            if step is None:
                entry = parts.tail(part)
                if entry is None:
                    continue
                step = self._gains.step(part, entry)
            ranked.append((step[0] * value(part.label, now_s - since_s), since_s, part.index, part))
        ranked.sort()
        free = (row[3] for row in ranked if parts.tail(row[3]) is not None)
        spare.extend(islice(free, _KEPT))
        spare.reverse()
        return [spare.pop()] if spare else []

    def _score(self, part: Part, entry: Entry, now_s: float) -> float:
        """Loss per byte of the part's next step down, by how soon it is expected to be asked for."""
        return self._gains.step(part, entry)[0] * self._classes.index.value(part.label, now_s - part.chain.since_s)

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
