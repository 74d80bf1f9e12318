"""Gains: what finding an entry in a placement is worth over recomputing it, and which step down gives up least.

    gain = seconds saved - alpha x quality lost,   of a block of a prompt: by its share of the prompt

A long chain's tiers load side by side, so what is waited for is the slowest ones, its *bottleneck*: transfers from the
others count for nothing until they take as long.  What it is: arithmetic over the store's view,
remembered per kind of entry.  What it is not: a decision, or how soon an entry is asked for (``reuse_index.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simkv.simulator.entries import Entry, Placement
from simkv.simulator.policies.parts import Chain, Part

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["Gains", "Step", "Table"]

Way = tuple[float, int, int, int, Placement]  # (s to load, ns once per load, variant, bytes, placement)
Step = tuple[float, Placement | None]  # (gain given up per byte freed, target)

_FEW = 8  # blocks below which a chain's transfers count one by one
_MOST_TABLES = 4096
_MOST_ANSWERS = 256  # remembered per table
_GROUPS = 3  # that a long chain is in, about: a third of its blocks share the fixed part of a decompression
_EVERY = -1  # bottleneck of a chain whose transfers all count


class Table:
    """Options of entries that are alike, and what has been made of them.

    Attributes:
        options: (gain over recomputing in s, bytes, placement) of each.
        best: placement of the greatest gain; None where recomputing is better.
        steps: best step down by (placement, price of another variant).
        raises: best place after a hit by (placement, price, chance of a further hit).
    """

    __slots__ = ("best", "options", "raises", "steps")

    def __init__(self, options: list[tuple[float, int, Placement]]) -> None:
        self.options = options
        gain, _, place = max(options, key=_gain, default=(0.0, 0, None))
        self.best = place if gain > 0 else None
        self.steps: dict[tuple[Placement, float], Step] = {}
        self.raises: dict[tuple[Placement, float, float], Placement] = {}

    def gain(self, place: Placement) -> float:
        """Gain of an option, 0 of what is none."""
        return next((gain for gain, _, option in self.options if option == place), 0.0)


class Gains:
    """Gain tables of one run.

    Args:
        view: of the store.
        variants: to choose from, by index, raw first.
        alpha: seconds that one unit of quality is worth; may be changed with ``weigh``.
        stripe: tiers that take this share of the slowest one's time are the bottleneck too; 0: every transfer counts.
    """

    def __init__(self, view: StoreView, variants: list[int], alpha: float, stripe: float) -> None:
        self._view = view
        self._variants = variants
        self._stripe = stripe
        self._move_price = 0.0
        self._tables: dict[tuple, Table] = {}
        self._all_ways: dict[tuple[int, int], list[Way]] = {}  # by size class and bottleneck
        self.alpha = alpha
        self.version = 0  # of alpha and the price of a move; steps remembered under another one are stale

    def weigh(self, alpha: float) -> None:
        """Another weight of quality from now on."""
        self.alpha = alpha
        self.version += 1
        self._tables.clear()

    def charge(self, move_price: float) -> None:
        """Seconds of delay that a second of reading raw copies is worth from now on; 0 to begin with."""
        self._move_price = move_price
        self.version += 1

    def bottleneck(self, chain: Chain) -> int:
        """Which tiers a load of the chain waits for, one bit each; -1 where the sum of its transfers counts."""
        if chain.bound is None:
            chain.bound = _EVERY
            if self._stripe and chain.blocks >= _FEW:
                least = self._stripe * max(chain.load)
                chain.bound = sum(1 << tier for tier, ns in enumerate(chain.load) if ns >= least > 0) or _EVERY
        return chain.bound

    def options(self, entry: Entry, chain: Chain, worst: int, bound: int) -> Table:
        """Every option that the entry may be brought to.

        ``worst`` is the variant whose quality the stored copy has; nothing scores better than that.
        """
        costs = self._view.costs
        row = costs.quality.seen_row[entry.key]
        key = (entry.size_class, row, costs.recompute[entry.key], chain.tokens, chain.blocks, worst, bound)
        table = self._tables.get(key)
        if table is None:
            if len(self._tables) > _MOST_TABLES:
                self._tables.clear()
            table = self._tables[key] = self._table(entry, chain, row, worst, bound)
        return table

    def _table(self, entry: Entry, chain: Chain, row: int, worst: int, bound: int) -> Table:
        costs = self._view.costs
        quality = costs.quality.seen[row]
        weight = self.alpha * (1.0 if costs.whole_contexts else entry.tokens / chain.tokens)
        saved = costs.recompute[entry.key] / 1e9
        lost = [weight * (1.0 - min(quality[worst], then)) for then in quality]
        per_block = chain.blocks * 1e9 / (1 if bound == _EVERY else _GROUPS)
        return Table(
            [
                (saved - (each + once / per_block) - lost[variant], size, place)
                for each, once, variant, size, place in self._ways(entry, bound)
            ]
        )

    def _ways(self, entry: Entry, bound: int) -> list[Way]:
        """Placements that are large enough for entries of this size, and what a load from each is waited for."""
        key = entry.size_class, bound
        ways = self._all_ways.get(key)
        if ways is not None:
            return ways
        if len(self._all_ways) > _MOST_TABLES:
            self._all_ways.clear()
        view, costs = self._view, self._view.costs
        ways = self._all_ways[key] = []
        for tier in range(len(view.tiers)):
            capacity = view.capacity_bytes(tier)
            unseen = 0.0 if bound == _EVERY else 1.0 - (bound >> tier & 1) / bound.bit_count()  # shared evenly
            for variant in self._variants:
                size = view.size_bytes(entry, variant)
                if capacity is not None and size > capacity:
                    continue
                place = view.placement(tier, variant)
                each = view.load_s(entry, place) - unseen * costs.read[tier][variant][entry.size_class] / 1e9
                once = 0 if costs.whole_contexts else costs.decode_fixed[tier][variant]
                ways.append((each, once, variant, size, place))
        return ways

    def raised(self, entry: Entry, table: Table, again: float) -> Placement:
        """Where a hit entry should be: where it gains most, if ``again`` (chance of a further hit) pays for the move.

        What has been loaded is at hand and moves up as it is for nothing; another variant is made from the raw copy.
        """
        old = entry.placement
        assert old is not None
        price = self._price(entry)
        found = table.raises.get((old, price, again))
        if found is not None:
            return found
        best, found, now = 0.0, old, table.gain(old)
        for gain, _, option in table.options:
            extra = again * (gain - now) - (price if option.variant != old.variant else 0.0)
            if extra > best:
                best, found = extra, option
        if len(table.raises) > _MOST_ANSWERS:
            table.raises.clear()
        table.raises[old, price, again] = found
        return found

    def known(self, part: Part) -> Step | None:
        """The part's best step down as far as ``step`` has found it and it still holds."""
        return part.steps.get(part.chain.bound) if part.version == self.version else None

    def step(self, part: Part, entry: Entry) -> Step:
        """The part's best step down: a smaller variant on the fastest tier, any option on slower ones, or out.

        What a step costs once counts as if it were for one hit.
        """
        if part.version != self.version:
            part.steps = {}
            part.version = self.version
        bound = part.chain.bound
        if bound is None:
            bound = self.bottleneck(part.chain)
        found = part.steps.get(bound)
        if found is None:
            worst = 0 if self._view.pristine else part.worst
            table = self.options(entry, part.chain, worst, bound)
            found = part.steps[bound] = self._step(entry, table, self._price(entry))
        return found

    def _price(self, entry: Entry) -> float:
        """Seconds of delay that making another variant of a compressed entry is worth: its raw copy must be read."""
        assert entry.placement is not None
        if not (self._move_price and entry.placement.variant and self._view.pristine):
            return 0.0
        costs = self._view.costs
        read_ns = costs.read[-1][0][entry.size_class] + (costs.read_fixed[-1][0] if costs.whole_contexts else 0)
        return self._move_price * read_ns / 1e9

    @staticmethod
    def _step(entry: Entry, table: Table, price: float) -> Step:
        old = entry.placement
        assert old is not None
        found = table.steps.get((old, price))
        if found is not None:
            return found
        now, size, tier = table.gain(old), entry.size_bytes, old.tier
        found = now / size, None
        for gain, bytes_then, place in table.options:
            if place.tier < tier or bytes_then > size or gain <= 0:
                continue
            if place.tier == tier and (bytes_then == size or tier):
                continue
            once = price if place.variant != old.variant else 0.0
            loss = (now - gain + once) / (size - bytes_then if place.tier == tier else size)
            if loss < found[0]:
                found = loss, place
        if len(table.steps) > _MOST_ANSWERS:
            table.steps.clear()
        table.steps[old, price] = found
        return found


def _gain(option: tuple[float, int, Placement]) -> float:
    return option[0]
