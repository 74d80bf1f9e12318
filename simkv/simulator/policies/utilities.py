"""Utilities of every (tier, variant) for one entry at a time, as arrays: what EvicPress chooses from.

    utility = alpha x quality - seconds to load,     of recomputing: alpha - seconds to prefill

What it is: arithmetic over the store's view, in constant time per entry.  What it is not: an order or a decision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkv.errors import PolicyError
from simkv.simulator.entries import Entry, Placement

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["Options", "SizeRow", "chosen_variants"]


class SizeRow(NamedTuple):
    """What options cost an entry of one size: ``load_s`` [t, v] seconds (inf: too large), ``bytes`` [v]."""

    load_s: NDArray[np.float64]
    bytes: NDArray[np.float64]


def chosen_variants(view: StoreView, methods: list[str] | None, policy: str) -> list[int]:
    """Variants of the named compressors (None: all), raw first.  Raises PolicyError for an unknown one."""
    compressors = [variant.partition(":")[0] for variant in view.variants]
    wanted = set(compressors[1:]) if methods is None else set(methods)
    for method in wanted:
        if method not in compressors[1:]:
            known = ", ".join(dict.fromkeys(compressors[1:]))
            raise PolicyError(f"policy {policy}: method {method!r} is not in the profile; it has {known}")
    return [0, *(index for index, name in enumerate(compressors) if index and name in wanted)]


class Options:
    """Utilities of an entry's options.

    Args:
        view: of the store.
        alpha: weight of quality.
        variants: to choose from, by index, raw first.
    """

    def __init__(self, view: StoreView, alpha: float, variants: list[int]) -> None:
        self._view = view
        self._alpha = alpha
        self._pick = np.array(variants)
        self._sizes: dict[int, SizeRow] = {}
        self._learnt: dict[int, NDArray[np.float64]] = {}
        self._learnt_row: dict[int, int] = {}
        self._lessons = 0
        self.places = [[view.placement(tier, variant) for variant in variants] for tier in range(len(view.tiers))]
        self.column = {variant: index for index, variant in enumerate(variants)}

    def learn(self, key: int, qualities: list[float]) -> None:
        """From now on the block has these qualities, by variant."""
        self._learnt[key] = np.array(qualities)[self._pick]
        self._lessons += 1
        self._learnt_row[key] = -self._lessons  # new each time: what was decided on an earlier lesson is not alike

    def qualities(self, entry: Entry) -> NDArray[np.float64]:
        """float64[v]: what is known of the entry's quality."""
        learnt = self._learnt.get(entry.key)
        return np.array(self._view.qualities(entry))[self._pick] if learnt is None else learnt

    def sizes(self, entry: Entry) -> SizeRow:
        """Load times and sizes of entries of this size."""
        row = self._sizes.get(entry.size_class)
        if row is None:
            view = self._view
            size = np.array([float(view.size_bytes(entry, place.variant)) for place in self.places[0]])
            load = np.array([[view.load_s(entry, place) for place in places] for places in self.places])
            for tier in range(len(load)):
                room = view.capacity_bytes(tier)
                if room is not None:
                    load[tier, size > room] = np.inf
            row = self._sizes[entry.size_class] = SizeRow(load, size)
        return row

    def alike(self, entry: Entry) -> tuple[int, int, int]:
        """Entries with equal ones have equal options: size, what is known of quality, time to recompute."""
        costs = self._view.costs
        row = self._learnt_row.get(entry.key)
        seen = costs.quality.seen_row[entry.key] if row is None else row
        return entry.size_class, seen, costs.recompute[entry.key]

    def utilities(self, entry: Entry) -> NDArray[np.float64]:
        """float64[t, v]; minus infinity where the entry is larger than the tier."""
        worth = self._alpha * self._view.weight(entry) * self.qualities(entry)
        return worth - self.sizes(entry).load_s

    def recompute(self, entry: Entry) -> float:
        """Utility of not storing it."""
        return self._alpha * self._view.weight(entry) - self._view.recompute_s(entry)

    def best(self, utilities: NDArray[np.float64]) -> Placement | None:
        """Placement of the greatest utility, fastest tier and first variant among equals; None if none is finite."""
        index = int(utilities.argmax())
        tier, column = divmod(index, utilities.shape[1])
        return self.places[tier][column] if utilities[tier, column] > -np.inf else None
