"""What the store holds and what a policy may say about it: Placement, Entry, Move.

These are plain records.  Ledgers and rules are in ``store.py``, durations in ``costs.py``, and the
read-only window through which policies see all this in ``view.py``.
"""

from typing import NamedTuple

__all__ = ["Entry", "Load", "Move", "Placement", "Transfer"]


class Placement(NamedTuple):
    """Where and in which form an entry is stored: indices into ``view.tiers`` and ``view.variants``."""

    tier: int
    variant: int


class Transfer:
    """A background transfer that entries wait for before they can be read.

    Attributes:
        ready_ns: time at which its bytes have arrived; final once ``pending`` is 0.
        pending: channel jobs whose end is not known yet (processor sharing only).
        recode_ns: decode and encode time added after the last pending job.
        waiters: called with the final ``ready_ns`` when ``pending`` falls to 0.
    """

    __slots__ = ("pending", "ready_ns", "recode_ns", "waiters")

    def __init__(self, ready_ns: int, recode_ns: int = 0) -> None:
        self.ready_ns = ready_ns
        self.recode_ns = recode_ns
        self.pending = 0
        self.waiters: list = []

    def finish(self, now_ns: int) -> None:
        """One pending job ended at ``now_ns``."""
        self.settle(now_ns + self.recode_ns)

    def settle(self, ready_ns: int) -> None:
        """Something pending is over, its bytes usable from ``ready_ns``; tell the waiters when it was the last."""
        self.pending -= 1
        self.ready_ns = max(self.ready_ns, ready_ns)
        if self.pending == 0:
            waiters, self.waiters = self.waiters, []
            for waiter in waiters:
                waiter(self.ready_ns)


class Entry:
    """The stored copy of one block, or a block about to be stored (``placement`` is None).

    Attributes:
        key: block id in the trace.
        tokens: tokens it holds.
        task: index of its task in ``view.tasks``.
        size_class: index of its token count in the cost tables.
        placement: where it is, None when not stored.
        size_bytes: bytes it occupies there.
        quality_ppb: quality of what is stored, relative to raw KV, in 1e-9.
        created_ns, last_hit_ns: when it was admitted, and last asked for (before the current request).
        hits: times it was asked for while resident.
        pins: requests that are using it; a pinned entry never moves.
        transfer: the transfer that brings its bytes, None once they are known to be there.
        next_use: request that asks for it next; only for policies with ``needs_future``, else None.
    """

    __slots__ = (
        "created_ns",
        "hits",
        "key",
        "last_hit_ns",
        "next_use",
        "pins",
        "placement",
        "quality_ppb",
        "size_bytes",
        "size_class",
        "task",
        "tokens",
        "transfer",
    )

    def __init__(self, key: int, tokens: int, task: int, size_class: int, now_ns: int) -> None:
        self.key = key
        self.tokens = tokens
        self.task = task
        self.size_class = size_class
        self.placement: Placement | None = None
        self.size_bytes = 0
        self.quality_ppb = 1_000_000_000
        self.created_ns = now_ns
        self.last_hit_ns = now_ns
        self.hits = 0
        self.pins = 0
        self.transfer: Transfer | None = None
        self.next_use: int | None = None

    def __repr__(self) -> str:
        """Key, size and placement, for error messages."""
        return f"Entry(key={self.key}, tokens={self.tokens}, placement={self.placement}, pins={self.pins})"


class Move(NamedTuple):
    """An entry and where it should be; None means no longer stored."""

    entry: Entry
    to: Placement | None


class Load(NamedTuple):
    """A load that has ended, as it was seen from outside: entries of one placement that a request has read.

    Attributes:
        placement: where they came from, and in which variant.
        entries: in prefix order; still pinned.
        elapsed_ns: from asking for the bytes to having them on the GPU side, waiting for channels included.
        decode_ns: decompression after that, where it is not part of the load.
    """

    placement: Placement
    entries: list[Entry]
    elapsed_ns: int
    decode_ns: int
