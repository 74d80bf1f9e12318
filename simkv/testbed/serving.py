"""One request's timed work, which replays and calibration share: load, decode, prefill, first token.

What it is: the steps in a row, each with its seconds, and the clock that tells them.  What it is not: which request, or
what happens after the first token.
"""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from simkv.profiler.timing import Clock
from simkv.testbed.server import Server, Started

__all__ = ["OwnClock", "Served", "serve"]

_STATISTICS = "/proc/thread-self/schedstat"
_NS_PER_S = 1_000_000_000


class OwnClock:
    """Seconds less those in which this thread could have run but others had the processors.

    Linux counts that wait per thread; it is what makes times on a shared machine repeatable.  Elsewhere nothing is
    taken off.  On a GPU the clock waits for all kernels first.

    Args:
        device: "cpu", "cuda" or "cuda:1".

    Attributes:
        counts_waits: whether the system tells.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._thread = threading.local()
        self.counts_waits = os.path.exists(_STATISTICS)

    def seconds(self) -> float:
        """See profiler.timing.Clock."""
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
        while True:
            before, now, after = self.waited_s(), perf_counter(), self.waited_s()
            if before == after:  # else it waited in between, and the two do not belong together
                return now - before

    def waited_s(self) -> float:
        """Seconds that this thread has waited for a processor so far."""
        if not self.counts_waits:
            return 0.0
        descriptor: int | None = getattr(self._thread, "descriptor", None)
        if descriptor is None:
            self._thread.descriptor = descriptor = os.open(_STATISTICS, os.O_RDONLY)
        return int(os.pread(descriptor, 128, 0).split()[1]) / _NS_PER_S


@dataclass
class Served:
    """What one request took, seconds, and what it left: its sequence, its first token, the payload that it loaded."""

    load_s: float
    decode_s: float
    prefill_s: float
    started: Started
    first: int
    payload: bytes | None


def serve(
    server: Server,
    clock: Clock,
    sent: float,
    read: Callable[[], bytes] | None,
    variant: int,
    context: Sequence[int],
    query: Sequence[int],
    more: int,
) -> Served:
    """Load a context's payload and prefill the question after it, or prefill both.

    Args:
        server: computes.
        clock: tells the time.
        sent: when the request was sent, by that clock.
        read: gives the payload; None when there is none.
        variant: index of the payload's variant.
        context, query: tokens.
        more: tokens that will follow.

    Raises:
        PayloadError: a damaged payload.
    """
    if read is None:
        loaded = clock.seconds()
        started = server.empty(len(context) + len(query) + more)
        first = server.next_token(started, [*context, *query])
        return Served(loaded - sent, 0.0, clock.seconds() - loaded, started, first, None)
    payload = read()
    loaded = clock.seconds()
    started = server.decoded(payload, variant, len(query) + more)
    decoded = clock.seconds()
    first = server.next_token(started, query)
    return Served(loaded - sent, decoded - loaded, clock.seconds() - decoded, started, first, payload)
