"""EvicPress (arXiv 2512.14946): compression and tier chosen together, per context, by utility.

Utility of an option: (alpha x quality - seconds to first token) x frequency, with the quality of this context as k
training queries showed it (``engine.quality_view = "sampled"``).  A new entry goes where its utility is greatest;
while a tier is over capacity, the operation with the smallest drop of utility is carried out, over all its entries:
another variant that is smaller, or leaving for the best of all options on slower tiers and recomputing.  What leaves
may overflow the next tier, which is repaired in the same way.  When answers are worse than the profile of their
context says, and a GPU has nothing to do, the context is profiled anew and placed anew.

Each entry has one next operation and one heap row, so a decision costs O(log n).  Nothing is ever raised or promoted
but by profiling anew, as published.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from simkv.errors import PolicyError
from simkv.simulator.entries import Entry, Move, Placement
from simkv.simulator.policies.heap import HeapOrder
from simkv.simulator.policies.ordered import OrderPerTier
from simkv.simulator.policies.utilities import Options, chosen_variants

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["EvicPress"]

_CHOICES = {
    "frequency": ("count", "none"),
    "per": ("step", "byte"),
    "drop_from": ("current", "best"),
    "insert": ("utility", "quality"),
}
_MOST_DROPS = 1_000_000


@dataclass
class EvicPress(OrderPerTier):
    """Placement by utility with greedy repair; defaults are the published choices.

    Args:
        alpha: seconds that a quality of 1 is worth; larger is better and slower.
        frequency: factor on every utility: "count" of accesses, or "none" (all alike, as in the published runs).
        per: drops are compared per "step", or per "byte" that the operation frees.
        drop_from: utility before the operation is that of the "current" option, or of the "best" one.
        insert: a new entry goes to the option of greatest "utility", or first to that of greatest "quality" (raw, on
            the fastest tier), as the paper's Algorithm 1 has it.
        methods: compressors to choose from; None for all in the profile.
        recompute: False takes recomputing out of the options (an entry then leaves only when no tier has room).
        reprofile_below: profile a context anew when its quality is this much below its profile; 0 for never.
        reprofile_queries: queries of a new profile.
        reprofile_s: seconds of a GPU that a new profile takes (not published).
    """

    alpha: float = 1.0
    frequency: str = "count"
    per: str = "step"
    drop_from: str = "current"
    insert: str = "utility"
    methods: list[str] | None = None
    recompute: bool = True
    reprofile_below: float = 0.3
    reprofile_queries: int = 50
    reprofile_s: float = 1.0
    name: ClassVar[str] = "evicpress"

    def __post_init__(self) -> None:
        for parameter in ("alpha", "reprofile_below", "reprofile_s"):
            given = getattr(self, parameter)
            if not 0 <= given < math.inf:
                raise PolicyError(f"policy evicpress: {parameter} is {given!r}; it must be a number, at least 0")
        if self.reprofile_s < 1e-9:
            raise PolicyError(f"policy evicpress: reprofile_s is {self.reprofile_s!r}; it must be at least 1e-9")
        if self.reprofile_queries < 1:
            raise PolicyError(f"policy evicpress: reprofile_queries is {self.reprofile_queries}; it must be at least 1")
        for parameter, allowed in _CHOICES.items():
            given = getattr(self, parameter)
            if given not in allowed:
                raise PolicyError(f"policy evicpress: {parameter} is {given!r}; allowed: {', '.join(allowed)}")

    def start(self, view: StoreView) -> None:
        """See Policy."""
        self._view = view
        self._options = Options(view, self.alpha, chosen_variants(view, self.methods, self.name))
        self._orders = [HeapOrder(self._score) for _ in view.tiers]
        self._drops: dict[tuple[int, ...], tuple[float, Placement | None]] = {}
        self._next: dict[int, Placement | None] = {}
        self._uses: dict[int, int] = {}
        self._doubted: deque[int] = deque()
        self._turn: dict[int, int] = {}
        self._measuring: deque[int] = deque()

    # ------------------------------------------------------------------ the next operation

    def _score(self, entry: Entry) -> float:
        """Key of the heap: what the entry's next operation loses; the operation itself is noted."""
        assert entry.placement is not None
        alike = (*entry.placement, *self._options.alike(entry))
        known = self._drops.get(alike)
        if known is None:
            if len(self._drops) >= _MOST_DROPS:
                self._drops.clear()
            known = self._drops[alike] = self._drop(entry)
        loss, self._next[entry.key] = known
        return loss * self._uses[entry.key] if self.frequency == "count" else loss

    def _drop(self, entry: Entry) -> tuple[float, Placement | None]:
        """(loss of utility per step or byte, target) of the best operation from the present placement."""
        options, placement = self._options, entry.placement
        assert placement is not None
        utilities = options.utilities(entry)
        tier, column = placement.tier, options.column[placement.variant]
        smaller = options.sizes(entry).bytes < entry.size_bytes
        before = float(utilities.max() if self.drop_from == "best" else utilities[tier, column])
        out, freed = self._way_out(entry, utilities), float(entry.size_bytes)
        loss = before - (
            options.recompute(entry) if out is None else float(utilities[out.tier, options.column[out.variant]])
        )
        loss, target = loss / freed if self.per == "byte" else loss, out
        if smaller.any():
            losses = np.where(smaller, before - utilities[tier], np.inf)
            if self.per == "byte":
                losses /= np.where(smaller, entry.size_bytes - options.sizes(entry).bytes, 1.0)
            best = int(losses.argmin())
            if losses[best] < loss:
                loss, target = float(losses[best]), options.places[tier][best]
        return loss, target

    def _way_out(self, entry: Entry, utilities: np.ndarray) -> Placement | None:
        """The best option on slower tiers; None if there is none or recomputing is better."""
        assert entry.placement is not None
        below = utilities.copy()
        below[: entry.placement.tier + 1] = -np.inf
        if not self._view.pristine:  # what is lost cannot come back
            below[:, self._options.sizes(entry).bytes > entry.size_bytes] = -np.inf
        out = self._options.best(below)
        return None if self.recompute and float(below.max()) <= self._options.recompute(entry) else out

    # ------------------------------------------------------------------ decisions

    def _best(self, entry: Entry) -> Placement | None:
        utilities = self._options.utilities(entry)
        if self.recompute and float(utilities.max()) < self._options.recompute(entry):
            return None
        return self._options.best(utilities)

    def admit(self, entry: Entry, view: StoreView) -> Placement | None:
        """To the option of greatest utility; making room may take it on at once."""
        self._uses[entry.key] = self._uses.get(entry.key, 0) + 1
        if self.insert == "utility":
            return self._best(entry)
        fits = np.isfinite(self._options.sizes(entry).load_s)
        return self._options.best(np.where(fits, self._options.qualities(entry), -np.inf))

    def on_hit(self, entry: Entry, view: StoreView) -> Placement | None:
        """Stays where it is; a disappointing answer puts its profile in doubt."""
        placement = entry.placement
        assert placement is not None
        self._uses[entry.key] = self._uses.get(entry.key, 0) + 1
        if self.frequency == "count":
            self._orders[placement.tier].touch(entry)
        if self.reprofile_below and placement.variant:
            known = self._options.qualities(entry)[self._options.column[placement.variant]]
            if known - entry.quality_ppb / 1e9 > self.reprofile_below and self._turn.get(entry.key, 0) >= 0:
                self._turn[entry.key] = ~self._turn.get(entry.key, 0)  # negative: in the queue
                self._doubted.append(entry.key)
        return placement

    def placed(self, entry: Entry, old: Placement | None) -> None:
        """See Policy."""
        if old is not None:
            del self._next[entry.key]
        super().placed(entry, old)

    def make_room(self, tier: int, need_bytes: int, view: StoreView) -> Iterator[Move]:
        """The operation with the smallest drop, again and again."""
        while (entry := self._orders[tier].victim()) is not None:
            yield Move(entry, self._next[entry.key])

    # ------------------------------------------------------------------ profiling anew

    def idle_work_s(self, view: StoreView) -> float:
        """One context that is in doubt at a time."""
        if not self._doubted:
            return 0.0
        self._measuring.append(self._doubted.popleft())
        return self.reprofile_s

    def rebalance(self, view: StoreView) -> Iterable[Move]:
        """Where the context that has just been profiled should now be."""
        if self._measuring:  # all take equally long, so the one that began first has ended
            key = self._measuring.popleft()
            turn = self._turn[key] = ~self._turn[key] + 1
            self._options.learn(key, view.measure_quality(key, self.reprofile_queries, turn))
            entry = view.resident(key)
            if entry is None:
                return
            assert entry.placement is not None
            best = entry.placement if entry.pins else self._best(entry)
            if best == entry.placement:
                self._orders[entry.placement.tier].touch(entry)
            else:
                yield Move(entry, best)
