"""Background transfers: what the net changes of a step cost.

Admissions, promotions, demotions and recompressions become one transfer per (old placement, new placement)
group: a read where the bytes come from, a write where they go, the host link where they come from or pass
through the GPU, all started now and running side by side, and decode + encode time when the variant changes.
A hit on an entry whose transfer is under way waits for it.  What the request itself has just loaded or computed
is at hand and is not read again.
"""

from array import array
from dataclasses import dataclass, field

from simkv.simulator.costs import CostTables
from simkv.simulator.entries import Entry, Placement, Transfer
from simkv.simulator.store import Change
from simkv.simulator.tiers import Channel

__all__ = ["KINDS", "Mover", "TransferCounts"]

KINDS = ("admission", "promotion", "demotion", "recompression", "eviction", "refusal")
_JOBS = 6  # most channel jobs of one group
_ADMISSION, _PROMOTION, _DEMOTION, _RECOMPRESSION, _EVICTION, _REFUSAL = range(len(KINDS))


@dataclass
class TransferCounts:
    """Bytes and work of background transfers; lists are by tier."""

    written: list[int]
    background_read: list[int]
    pristine_read_bytes: int = 0
    recodings: int = 0
    recode_ns: int = 0
    kinds: list[int] = field(default_factory=lambda: [0] * len(KINDS))


class _Group:
    """Sums over the entries that share a transfer.

    ``source`` is where the bytes come from, as a placement whose variant is what is read there (raw for a
    pristine copy); None when they are at hand.  ``decoded`` is the variant that must be decoded first, if any.
    """

    __slots__ = (
        "decode_ns",
        "decoded",
        "encode_ns",
        "entries",
        "from_gpu_ns",
        "pristine_link_ns",
        "pristine_ns",
        "read_ns",
        "source",
        "to_gpu_ns",
        "write_ns",
    )

    def __init__(self, source: Placement | None, decoded: Placement | None) -> None:
        self.entries: list[Entry] = []
        self.source = source
        self.decoded = decoded
        self.read_ns = 0
        self.write_ns = 0
        self.decode_ns = 0
        self.encode_ns = 0
        self.pristine_ns = 0
        self.pristine_link_ns = 0
        self.to_gpu_ns = 0
        self.from_gpu_ns = 0


class Mover:
    """Charges changes to channels and keeps the record of moves.

    Args:
        costs: tables.
        readers, writers: read and write channel of each tier.
        link: the host link's channels (to the GPU, from the GPU), None without a link.
        pristine: keep a raw copy of every stored block on the last tier, and recompress from it.
        record: keep one row per move.
    """

    def __init__(
        self,
        costs: CostTables,
        readers: list[Channel],
        writers: list[Channel],
        link: tuple[Channel, Channel] | None,
        pristine: bool,
        record: bool,
    ) -> None:
        self.costs = costs
        self.readers = readers
        self.writers = writers
        self.link = link
        self.counts = TransferCounts([0] * len(readers), [0] * len(readers))
        self.pristine = bytearray(len(costs.block_class)) if pristine else None
        self.pristine_bytes = 0
        self.pristine_count = 0
        self._pristine_place = Placement(len(readers) - 1, 0)
        self.rows = array("q") if record else None

    def charge(self, changes: dict[int, Change], now: int, request: int, loaded: set[int], computed: set[int]) -> None:
        """Start the transfers of a step's net changes.

        Args:
            changes: from ``Store.step`` or ``Store.rebalance``.
            now: ns.
            request: id whose step it was, -1 for a rebalance.
            loaded: blocks whose KV the request has loaded: at hand, in the quality that was stored.
            computed: blocks that it has computed: at hand and exact, so they are stored as if new.
        """
        groups: dict[tuple[Placement | None, Placement, bool], _Group] = {}
        for change in changes.values():
            entry, old, new = change.entry, change.old, change.entry.placement
            if new is None:
                self._note(_REFUSAL if old is None else _EVICTION, now, request, change)
                continue
            if new == old:
                continue
            source = None if entry.key in computed else old
            key = (source, new, entry.key in loaded)
            group = groups.get(key)
            if group is None:
                group = groups[key] = self._group(*key)
            self._add(group, entry, source, new)
            self._note(_kind(old, new), now, request, change)
        for part, ((old, new, _), group) in enumerate(groups.items()):
            self._start(group, old, new, now, request, _JOBS * part)

    def _group(self, old: Placement | None, new: Placement, at_hand: bool) -> _Group:
        if old is None:
            return _Group(None, None)
        if old.variant == new.variant or old.variant == 0:
            return _Group(None if at_hand else old, None)
        if self.pristine is not None:
            return _Group(self._pristine_place, None)
        return _Group(None if at_hand else old, old)

    def _add(self, group: _Group, entry: Entry, old: Placement | None, new: Placement) -> None:
        """Add one entry to its group, and set the quality of what will be stored."""
        costs, counts, size_class = self.costs, self.counts, entry.size_class
        group.entries.append(entry)
        group.write_ns += costs.write[new.tier][new.variant][size_class]
        counts.written[new.tier] += entry.size_bytes
        if group.source is not None:
            tier, variant = group.source
            size = costs.size[variant][size_class]
            group.read_ns += costs.read[tier][variant][size_class]
            counts.background_read[tier] += size
            if group.source is self._pristine_place:
                counts.pristine_read_bytes += size
        recoded = old is None or old.variant != new.variant
        if recoded and group.source is not None:
            group.to_gpu_ns += costs.link[group.source.variant][size_class]
        if recoded or group.source is None:
            group.from_gpu_ns += costs.link_write[new.variant][size_class]
        if recoded:
            self._recode(group, entry, old, new)

    def _recode(self, group: _Group, entry: Entry, old: Placement | None, new: Placement) -> None:
        costs, counts, size_class = self.costs, self.counts, entry.size_class
        quality = costs.quality.score_ppb[costs.quality.block_row[entry.key]][new.variant]
        if old is None or self.pristine is not None:
            entry.quality_ppb = quality
        else:
            entry.quality_ppb = min(entry.quality_ppb, quality)
        counts.recodings += old is not None
        group.encode_ns += costs.encode[new.variant][size_class]
        if group.decoded is not None:
            group.decode_ns += costs.decode[group.decoded.tier][group.decoded.variant][size_class]
        if self.pristine is not None and not self.pristine[entry.key]:
            self.pristine[entry.key] = 1
            tier = self._pristine_place.tier
            group.pristine_ns += costs.write[tier][0][size_class]
            group.pristine_link_ns += costs.link_write[0][size_class]
            counts.written[tier] += costs.size[0][size_class]
            self.pristine_bytes += costs.size[0][size_class]
            self.pristine_count += 1

    def _start(self, group: _Group, old: Placement | None, new: Placement, now: int, request: int, part: int) -> None:
        costs = self.costs
        recode_ns = 0
        if old is None or old.variant != new.variant:
            recode_ns += max(0, group.encode_ns + costs.encode_fixed[new.variant])
        if group.decoded is not None:
            tier, variant = group.decoded
            recode_ns += max(0, group.decode_ns + costs.decode_fixed[tier][variant])
        self.counts.recode_ns += recode_ns
        transfer = Transfer(now + recode_ns, recode_ns)
        for entry in group.entries:
            self._follow(entry, transfer)
        if group.source is not None:
            tier, variant = group.source
            read_ns = max(0, group.read_ns + costs.read_fixed[tier][variant])
            self.readers[tier].background(now, read_ns, request, part, transfer)
        self.writers[new.tier].background(
            now, group.write_ns + costs.write_fixed[new.tier], request, part + 1, transfer
        )
        if self.link is not None:
            if group.to_gpu_ns:
                self.link[0].background(now, group.to_gpu_ns + costs.link_fixed, request, part + 2, transfer)
            if group.from_gpu_ns:
                self.link[1].background(now, group.from_gpu_ns + costs.link_fixed, request, part + 3, transfer)
        if group.pristine_ns:
            self._start_pristine(group, now, request, part + 4)

    def _start_pristine(self, group: _Group, now: int, request: int, part: int) -> None:
        """Write the raw copies; nobody waits for them."""
        tier = self._pristine_place.tier
        write_ns = group.pristine_ns + self.costs.write_fixed[tier]
        self.writers[tier].background(now, write_ns, request, part, Transfer(now))
        if self.link is not None:
            link_ns = group.pristine_link_ns + self.costs.link_fixed
            self.link[1].background(now, link_ns, request, part + 1, Transfer(now))

    @staticmethod
    def _follow(entry: Entry, transfer: Transfer) -> None:
        """The entry now waits for ``transfer``, which itself waits for the entry's earlier one."""
        earlier, entry.transfer = entry.transfer, transfer
        if earlier is None:
            return
        if earlier.pending == 0:
            transfer.ready_ns = max(transfer.ready_ns, earlier.ready_ns)
        elif earlier is not transfer:
            transfer.pending += 1
            earlier.waiters.append(transfer.settle)

    def _note(self, kind: int, now: int, request: int, change: Change) -> None:
        self.counts.kinds[kind] += 1
        if self.rows is None:
            return
        entry, old, new = change.entry, change.old, change.entry.placement
        self.rows.extend(
            (
                now,
                request,
                entry.key,
                kind,
                -1 if old is None else old.tier,
                -1 if old is None else old.variant,
                -1 if new is None else new.tier,
                -1 if new is None else new.variant,
                entry.tokens,
                change.old_size if new is None else entry.size_bytes,
            )
        )


def _kind(old: Placement | None, new: Placement) -> int:
    if old is None:
        return _ADMISSION
    if new.tier < old.tier:
        return _PROMOTION
    return _DEMOTION if new.tier > old.tier else _RECOMPRESSION
