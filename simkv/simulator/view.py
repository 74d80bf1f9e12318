"""StoreView: the read-only window through which a policy sees the store, the costs and the request at hand.

What it is: names, sizes, estimates, occupancy.  What it is not: a way to change anything; a policy acts only
through the placements and moves that it returns.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simkv.errors import PolicyError, unknown_name
from simkv.simulator.costs import UNLIMITED, CostTables
from simkv.simulator.entries import Entry, Placement

__all__ = ["StoreView"]


class Busy(Protocol):
    """A channel, as far as a view looks at it: ns of service that it has been asked for so far."""

    busy_ns: int


class StoreView:
    """What a policy may look at.

    Attributes:
        now_ns: time of the decision.
        request: id of the request being decided for, -1 in a rebalance.
        tiers: names of the tiers that policies may use, fast to slow (a tier reserved for pristine copies
            is left out).
        variants: names, index 0 is "raw".
        tasks: names of tasks.
        pristine: whether a raw copy of every stored block is kept, so that recompression may raise quality again.
        never: value of ``entry.next_use`` for what is never asked for again.
    """

    never = 2**62

    def __init__(self, costs: CostTables, used: list[int], residents: list[Entry | None], usable_tiers: int) -> None:
        self.now_ns = 0
        self.request = -1
        self.own: list[int] = []
        self.costs = costs
        self.tiers = tuple(tier.name for tier in costs.tiers[:usable_tiers])
        self.variants = costs.variants
        self.tasks = costs.quality.tasks
        self.pristine = usable_tiers < len(costs.tiers)
        self._used = used
        self._residents = residents
        self._placements = [[Placement(t, v) for v in range(len(costs.variants))] for t in range(usable_tiers)]
        self._readers: Sequence[Busy] = ()
        self._parent: NDArray[np.int32] | None = None
        self._children: dict[int, list[int]] | None = None  # made when first asked for

    def placement(self, tier: str | int, variant: str | int = "raw") -> Placement:
        """The placement of that tier and variant, by name or index.  Raises PolicyError for unknown names."""
        if isinstance(tier, str):
            tier = self._index("tier", tier, self.tiers)
        if isinstance(variant, str):
            variant = self._index("variant", variant, self.variants)
        return self._placements[tier][variant]

    @staticmethod
    def _index(kind: str, name: str, known: tuple[str, ...]) -> int:
        if name not in known:
            raise PolicyError(unknown_name(kind, name, known))
        return known.index(name)

    def size_bytes(self, entry: Entry, variant: int) -> int:
        """Bytes that the entry occupies in a variant."""
        return self.costs.size[variant][entry.size_class]

    def used_bytes(self, tier: int) -> int:
        """Bytes in use on a tier."""
        return self._used[tier]

    def capacity_bytes(self, tier: int) -> int | None:
        """Capacity of a tier, None for unlimited."""
        capacity = self.costs.capacity[tier]
        return None if capacity == UNLIMITED else capacity

    def free_bytes(self, tier: int) -> int:
        """Bytes not in use on a tier (a very large number when it is unlimited)."""
        return self.costs.capacity[tier] - self._used[tier]

    def load_s(self, entry: Entry, placement: Placement) -> float:
        """Estimated seconds to load and decompress the entry alone from a placement, without queueing.

        Fixed parts of a transfer count only on traces of whole contexts, where a transfer is one entry.
        """
        tier, variant = placement
        costs, size_class = self.costs, entry.size_class
        total = (
            costs.read[tier][variant][size_class]
            + costs.decode[tier][variant][size_class]
            + costs.link[variant][size_class]
        )
        if costs.whole_contexts:
            total += costs.read_fixed[tier][variant] + costs.decode_fixed[tier][variant] + costs.link_fixed
        return max(0, total) / 1e9

    def encode_s(self, entry: Entry, variant: int) -> float:
        """Estimated seconds to compress the entry alone into a variant; fixed parts as in ``load_s``."""
        costs = self.costs
        fixed = costs.encode_fixed[variant] if costs.whole_contexts else 0
        return max(0, costs.encode[variant][entry.size_class] + fixed) / 1e9

    def recompute_s(self, entry: Entry) -> float:
        """Estimated seconds to prefill the entry's tokens at their place in the prompt."""
        return self.costs.recompute[entry.key] / 1e9

    def quality(self, entry: Entry, variant: int) -> float:
        """Quality of the entry in a variant as the policy may know it: task mean or noisy estimate."""
        seen = self.costs.quality
        return seen.seen[seen.seen_row[entry.key]][variant]

    def qualities(self, entry: Entry) -> list[float]:
        """``quality`` in every variant."""
        seen = self.costs.quality
        return seen.seen[seen.seen_row[entry.key]]

    def measure_quality(self, key: int, queries: int, turn: int) -> list[float]:
        """Quality of a block in every variant, measured anew with so many queries; ``turn`` numbers the measurements.

        The time that this takes is the caller's to declare (``Policy.idle_work_s``).
        """
        return self.costs.quality.measure(key, queries, turn)

    def weight(self, entry: Entry) -> float:
        """Share of a prompt that the entry makes up: 1 for whole contexts, else its tokens / the mean prompt length.

        A prompt's quality is the token-weighted mean over its entries, while their delays add up; with this
        weight on quality the two can be traded per entry.
        """
        return 1.0 if self.costs.whole_contexts else entry.tokens / self.costs.mean_prompt_tokens

    def resident(self, key: int) -> Entry | None:
        """The stored entry of a block, None if it is not stored."""
        return self._residents[key]

    def connect(self, parent: NDArray[np.int32], readers: Sequence[Busy]) -> None:
        """Used by the engine: parent block of each block, -1 for the first of a chain; read channel of each tier."""
        self._parent = parent
        self._readers = readers

    def asked_s(self, tier: int) -> float:
        """Seconds of reading that a tier has been asked for since the start, by loads and moves, per parallel channel.

        Of any tier: -1 is the last one, which has the raw copies where ``pristine`` is true.  0 where nothing is timed.
        """
        return self._readers[tier].busy_ns / (1e9 * self.costs.tiers[tier].channels) if self._readers else 0.0

    def children(self, entry: Entry) -> list[Entry]:
        """Stored entries of the blocks that follow this one in some chain, by key."""
        if self._children is None:
            self._children = {}
            if self._parent is not None:
                order = np.argsort(self._parent, kind="stable")
                order = order[self._parent[order] >= 0]
                for key in order.tolist():
                    self._children.setdefault(int(self._parent[key]), []).append(key)
        found = [self._residents[key] for key in self._children.get(entry.key, ())]
        return [child for child in found if child is not None]
