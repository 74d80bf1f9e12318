"""The store: which entry is where, and the rules by which policies may change that.

What it is: ledgers (bytes per tier), residents, pins, and the step in which a finished request's blocks are
offered to the policy.  Ledgers change at once.  What it is not: a clock or a device; the *net* changes of a
step go to ``transfers.py``, which charges them.  The store never chooses.
"""

from dataclasses import dataclass

from simkv.errors import PolicyError
from simkv.simulator.costs import CostTables
from simkv.simulator.entries import Entry, Move, Placement
from simkv.simulator.policies.base import Policy
from simkv.simulator.view import StoreView

__all__ = ["Change", "Store", "StoreCounts"]


@dataclass
class StoreCounts:
    """What happened in the store that no move shows."""

    refused: int = 0  # entries that no room could be made for
    duplicate_blocks: int = 0  # computed although another request had stored them meanwhile
    held_by_pins: int = 0  # placements asked for on a hit while another request used the entry


class Change:
    """Net change of one entry in a step: from ``old`` (None: was not stored) to its placement now."""

    __slots__ = ("entry", "old", "old_size")

    def __init__(self, entry: Entry, old: Placement | None, old_size: int) -> None:
        self.entry = entry
        self.old = old
        self.old_size = old_size


class Store:
    """Entries by block, bytes by tier.

    Args:
        costs: sizes and capacities.
        policy: decides; started by the engine once the view is complete.
        usable_tiers: tiers that entries may be placed on (all but a tier reserved for pristine copies).
        touch_reverse: touch a request's blocks from its last to its first, so that a chain ages tail first.
    """

    def __init__(self, costs: CostTables, policy: Policy, usable_tiers: int, touch_reverse: bool) -> None:
        self.costs = costs
        self.policy = policy
        self.capacity = costs.capacity
        self.usable_tiers = usable_tiers
        self.touch_reverse = touch_reverse
        self.residents: list[Entry | None] = [None] * len(costs.block_class)
        self.used = [0] * len(costs.capacity)
        self.count = [0] * len(costs.capacity)
        self.counts = StoreCounts()
        self.view = StoreView(costs, self.used, self.residents, usable_tiers)
        self._changes: dict[int, Change] = {}

    # ------------------------------------------------------------------ look-up

    def lookup(self, blocks: list[int]) -> list[Entry]:
        """Entries of the longest stored prefix of ``blocks``."""
        found = []
        residents = self.residents
        for key in blocks:
            entry = residents[key]
            if entry is None:
                break
            found.append(entry)
        return found

    # ------------------------------------------------------------------ a request's step

    def step(
        self, now_ns: int, request: int, arrival_ns: int, blocks: list[int], held: int, next_use: list[int] | None
    ) -> dict[int, Change]:
        """Offer a finished request's blocks to the policy; returns net changes by block, in order of change.

        The first ``held`` blocks are those that the request loaded and pinned; each is released when it is
        touched, so no decision about an earlier block can take it away.  ``next_use`` is parallel to ``blocks``.
        """
        view = self.view
        view.now_ns, view.request, view.own = now_ns, request, blocks
        self._changes = {}
        order = range(len(blocks) - 1, -1, -1) if self.touch_reverse else range(len(blocks))
        touched: set[int] = set()
        for index in order:
            key = blocks[index]
            entry = self.residents[key]
            if key in touched:  # a block that the prompt repeats counts once
                if entry is not None and index < held:
                    self._release(entry)
                continue
            touched.add(key)
            if entry is None:
                entry = self._newcomer(key, now_ns)
                if next_use is not None:
                    entry.next_use = next_use[index]
                target = self.policy.admit(entry, view)
                if target is not None:
                    self.place(entry, target)
                continue
            if index < held:
                self._release(entry)
            else:
                self.counts.duplicate_blocks += entry.created_ns > arrival_ns
            self._touch(entry, now_ns, None if next_use is None else next_use[index])
        changes, self._changes = self._changes, {}
        return changes

    def _release(self, entry: Entry) -> None:
        entry.pins -= 1
        if not entry.pins:
            self.policy.released(entry)

    def _newcomer(self, key: int, now_ns: int) -> Entry:
        """An entry to be offered; a block evicted earlier in this step keeps its own, for only net changes count."""
        change = self._changes.get(key)
        if change is not None:
            entry = change.entry
            entry.hits, entry.created_ns, entry.last_hit_ns = 0, now_ns, now_ns
            return entry
        costs = self.costs
        size_class = costs.block_class[key]
        return Entry(key, costs.class_tokens[size_class], costs.quality.block_task[key], size_class, now_ns)

    def _touch(self, entry: Entry, now_ns: int, next_use: int | None) -> None:
        entry.hits += 1
        if next_use is not None:  # a later request may have finished earlier
            entry.next_use = next_use if entry.next_use is None else max(entry.next_use, next_use)
        target = self.policy.on_hit(entry, self.view)
        if target is not entry.placement and target != entry.placement:
            if entry.pins:
                self.counts.held_by_pins += 1
            else:
                self.place(entry, target)
        entry.last_hit_ns = now_ns

    def rebalance(self, now_ns: int) -> dict[int, Change]:
        """Carry out the moves that the policy asks for between requests; returns net changes."""
        view = self.view
        view.now_ns, view.request, view.own = now_ns, -1, []
        self._changes = {}
        for entry, to in self.policy.rebalance(view):
            if entry.pins:
                raise PolicyError(f"{self.policy.name}: rebalance moves {entry!r}, which is pinned")
            if entry.placement is None:  # an earlier move has made it leave
                continue
            self.place(entry, to)
        changes, self._changes = self._changes, {}
        return changes

    # ------------------------------------------------------------------ ledgers

    def place(self, entry: Entry, to: Placement | None) -> None:
        """Put an entry where the policy wants it, making room there if needed; refuses it if none can be made."""
        old, old_size = entry.placement, entry.size_bytes
        self._set(entry, to)
        if to is None or self.used[to.tier] <= self.capacity[to.tier]:
            return
        # What shrinks where it is needs no room of its own: it is somebody else's request for room being served.
        if old is None or old.tier != to.tier or entry.size_bytes > old_size:
            self._make_room(to.tier, entry, old)

    def _set(self, entry: Entry, to: Placement | None) -> None:
        old = entry.placement
        if entry.key not in self._changes:
            self._changes[entry.key] = Change(entry, old, entry.size_bytes)
        if old is not None:
            self.used[old.tier] -= entry.size_bytes
            self.count[old.tier] -= 1
        if to is None:
            self.residents[entry.key] = None
            entry.size_bytes = 0
        else:
            if to.tier >= self.usable_tiers:
                raise PolicyError(f"{self.policy.name}: tier {to.tier} may not be used by policies")
            entry.size_bytes = self.costs.size[to.variant][entry.size_class]
            self.used[to.tier] += entry.size_bytes
            self.count[to.tier] += 1
            self.residents[entry.key] = entry
        entry.placement = to
        self.policy.placed(entry, old)

    def _make_room(self, tier: int, newcomer: Entry, old: Placement | None) -> None:
        """Carry out the policy's moves until the tier fits; else the newcomer goes back or is refused."""
        used, capacity = self.used, self.capacity[tier]
        stays = self.policy.newcomer_stays
        newcomer.pins += stays
        for move in self.policy.make_room(tier, used[tier] - capacity, self.view):
            self._check(move, tier)
            self.place(move.entry, move.to)
            if used[tier] <= capacity:
                break
        if stays:
            self._release(newcomer)
        if used[tier] <= capacity:
            return
        self.counts.refused += 1
        back = old if old is not None and old.tier >= tier else None
        self._set(newcomer, back)
        if back is not None and used[back.tier] > self.capacity[back.tier]:
            self._set(newcomer, None)

    def _check(self, move: Move, tier: int) -> None:
        entry, to = move
        problem = None
        if entry.placement is None or entry.placement.tier != tier:
            problem = "it is not stored on that tier"
        elif entry.pins:
            problem = "it is pinned"
        elif to is not None and to.tier < tier:
            problem = "room is made towards slower tiers only"
        elif to is not None and to.tier == tier and self.costs.size[to.variant][entry.size_class] >= entry.size_bytes:
            problem = "the move frees nothing"
        if problem:
            raise PolicyError(
                f"{self.policy.name}: cannot make room on {self.view.tiers[tier]} "
                f"by moving {entry!r} to {to}: {problem}"
            )
