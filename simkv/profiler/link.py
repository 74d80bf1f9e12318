"""Bandwidth between host memory and a GPU: pinned and pageable, both directions, by size and copies at once.

What it is: CUDA copies on streams of their own, timed from the first to the last.  What it is not: the device's own
memory (``speed.py``), or a link to other machines.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch

from simkv.profile_types import TierSpec
from simkv.profiler.rows import SpeedRow
from simkv.profiler.timing import Clock, Patience, WallClock, timed

__all__ = ["Known", "host_link_of", "link_rows"]

Known = Callable[..., SpeedRow | None]
"""The row of a key (what, variant, tokens, cached, batch), if it is measured."""

_SIZES = tuple(1 << power for power in range(18, 31, 2))  # 256 KiB to 1 GiB
_QUICK_SIZES = (1 << 18, 1 << 24, 1 << 28)
_AT_ONCE = (1, 2, 4, 8)
_QUICK_AT_ONCE = (1, 4)
_MOST_BYTES = 2 << 30  # of host buffers in one point: pinned memory is never given to anybody else
_LONG = 1 << 26  # a copy of so many bytes shows the bandwidth rather than the latency


def link_rows(device: str, patience: Patience, known: Known, quick: bool = False) -> Iterator[SpeedRow]:
    """Rows "h2d" and "d2h": ``bytes`` of one copy, ``batch`` copies at once, ``implementation`` pinned or pageable.

    Seconds are of all copies of a point together.
    """
    sizes, at_once = (_QUICK_SIZES, _QUICK_AT_ONCE) if quick else (_SIZES, _AT_ONCE)
    for kind, size, count in product(("pinned", "pageable"), sizes, at_once):
        wanted = [what for what in ("h2d", "d2h") if not known(what, f"{kind} {size}", 0, 0, count)]
        if not wanted or size * count > _MOST_BYTES:
            continue
        host = [torch.zeros(size, dtype=torch.uint8, pin_memory=kind == "pinned") for _ in range(count)]
        there = [torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(count)]
        for what in wanted:
            pairs = list(zip(there, host, strict=True)) if what == "h2d" else list(zip(host, there, strict=True))
            took = timed(_copies(device, pairs), _clock(device), patience)
            yield SpeedRow(what, "", 0, 0, count, size, took.median_s, took.p95_s, took.repeats, kind)


def _clock(device: str) -> Clock:
    return WallClock(device)


def _copies(device: str, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
    """All (target, source) pairs at once, each on its stream; the clock waits for all of them."""
    streams = [torch.cuda.Stream(device) for _ in pairs]

    def call() -> None:
        for stream, (target, source) in zip(streams, pairs, strict=True):
            with torch.cuda.stream(stream):
                target.copy_(source, non_blocking=True)

    return call


def host_link_of(rows: Sequence[SpeedRow]) -> TierSpec | None:
    """The link that a serving engine uses, with pinned memory: None without such rows.

    Bandwidth is the best of the long copies (all copies of a point together); latency is the time of the shortest
    single copy, less what its bytes take.
    """
    pinned = [row for row in rows if row.implementation == "pinned"]
    rates = {}
    for what in ("h2d", "d2h"):
        found = [row for row in pinned if row.what == what]
        long = [row for row in found if row.bytes >= _LONG] or found
        rates[what] = max((row.bytes * row.batch / row.seconds for row in long), default=0.0)
    if not all(rates.values()):
        return None
    shortest = min((row for row in pinned if row.what == "h2d" and row.batch == 1), key=lambda row: row.bytes)
    latency = max(0.0, shortest.seconds - shortest.bytes / rates["h2d"])
    return TierSpec("host_link", None, int(rates["h2d"]), int(rates["d2h"]), latency, discipline="fair")
