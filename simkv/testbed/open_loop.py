"""The open loop: requests are sent at their arrival times, whatever else is under way.

What it is: one thread that sleeps until arrivals, one reader per tier, one that computes, and one that moves bytes in
the background, as the simulator's channels and compute server are one each.  A hit on bytes that are still on their way
waits for them.  Times are by the clock on the wall; how long threads had no processor is kept beside them, and what
times would have been without that.  What it is not: a serving engine; answers beyond the first token
are generated when all requests are over, since in the simulation they take no time.
"""

import gc
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from simkv.errors import SimkvError
from simkv.profiler.compressors.payload import PayloadError
from simkv.profiler.timing import WallClock
from simkv.simulator.entries import Placement
from simkv.testbed.replay import RealStore, Timed, Work
from simkv.testbed.server import Started
from simkv.testbed.serving import OwnClock, Served, serve
from simkv.units import format_bytes

__all__ = ["Stay", "leave_waits_out", "open_loop"]

Read = Callable[[], bytes]


def open_loop(real: RealStore, budget: int, progress: Callable[[int, int], None]) -> list[Timed]:
    """Send every request at its time; rows in the order of the trace.

    Args:
        real: store, at the trace's times.
        budget: most bytes of caches that may wait for their answers.
        progress: takes (finished, all) requests.

    Raises:
        SimkvError: damaged payloads, a full disk, payloads that are not what the ledgers say, or too many requests.
    """
    model = real.server.model
    longest = int(real.trace.input_tokens.max()) + int(real.trace.output_tokens.max())
    size = model.model.dtype.itemsize + real.server.half.itemsize  # of the cache itself, and of the payload loaded
    kept = len(real.trace) * longest * model.kv_bytes_per_token * size // real.server.half.itemsize
    if kept > budget:
        raise SimkvError(
            f"requests: an open loop keeps the caches of all {len(real.trace)} until its end, up to "
            f"{format_bytes(kept)}; the budget is {format_bytes(budget)}"
        )
    with ExitStack() as stack:
        loop = _OpenLoop(real, progress, lambda: stack.enter_context(ThreadPoolExecutor(1)))
        gc.collect()
        gc.disable()
        try:
            loop.run()
        finally:
            gc.enable()
    real.check()
    return [loop.rows[request] for request in range(len(real.trace))]


@dataclass(frozen=True)
class Stay:
    """One request at the thread that computes, in the order of that thread; seconds, less waits for a processor.

    Attributes:
        row: whose ``unwaited_s`` is to be filled in.
        sent: when it was sent.
        ready: when its payload was there.
        served_s: how long it was decoded and prefilled.
        busy_s: how long the thread was taken by it, which decides on moves after the first token.
    """

    row: Timed
    sent: float
    ready: float
    served_s: float
    busy_s: float


def leave_waits_out(stays: Iterable[Stay]) -> None:
    """TTFT as it would have been, one request after another, had no thread waited for a processor.

    Waits of the requests before it count for a request too: they made its queue.  What it cannot take out is what
    the waits made happen otherwise, such as a hit that came too late.
    """
    free = float("-inf")
    for stay in stays:
        begun = max(stay.ready, free)
        stay.row.unwaited_s = begun + stay.served_s - stay.sent
        free = begun + stay.busy_s


class _OpenLoop:
    """One open loop under way.

    Attributes:
        rows: finished requests.
    """

    def __init__(
        self,
        real: RealStore,
        progress: Callable[[int, int], None],
        worker: Callable[[], ThreadPoolExecutor],
    ) -> None:
        self.rows: dict[int, Timed] = {}
        self._real, self._progress = real, progress
        self._clock = WallClock(str(real.server.model.device))
        self._own = OwnClock(str(real.server.model.device))
        self._stays: list[Stay] = []
        self._readers = [worker() for _ in real.tiers]
        self._computer, self._mover = worker(), worker()
        self._ledgers = threading.Lock()
        self._on_their_way: dict[int, Future[None]] = {}
        self._unanswered: list[tuple[Timed, Started, int]] = []
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._start = 0.0

    def run(self) -> None:
        """From the first arrival to the last answer; raises what went wrong in any thread."""
        arrivals = (self._real.trace.arrival_ns / 1e9).tolist()
        self._start = time.perf_counter()
        for request, arrival in enumerate(arrivals):
            pause = self._start + arrival - time.perf_counter()
            if self._over.wait(pause) if pause > 0 else self._over.is_set():
                break
            self._guarded(self._arrive, request)
        self._over.wait()
        self._mover.shutdown(wait=True)
        if self._failure is not None:
            raise self._failure
        leave_waits_out(self._stays)
        for row, started, first in self._unanswered:
            row.answer = self._real.answer(row.request, started, first)

    def _guarded(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Call it; a failure ends the loop."""
        try:
            call(*arguments)
        except BaseException as error:
            self._failure = self._failure or error
            self._over.set()

    def _arrive(self, request: int) -> None:
        sent = time.perf_counter()
        with self._ledgers:
            placement, read = self._real.source(request)
            bytes_here = self._on_their_way.get(int(self._real.trace.block_ids[request]))
        if placement is None or read is None:
            self._computer.submit(self._guarded, self._compute, request, sent, sent, 0.0, None, None)
            return
        load = partial(self._readers[placement.tier].submit, self._guarded, self._load, request, sent, placement, read)
        if bytes_here is None:
            load()
        else:
            bytes_here.add_done_callback(lambda _: load())

    def _load(self, request: int, sent: float, placement: Placement, read: Read) -> None:
        before = self._own.waited_s()
        payload = read()
        loaded, waited = time.perf_counter(), self._own.waited_s() - before
        self._computer.submit(self._guarded, self._compute, request, sent, loaded, waited, placement, payload)

    def _compute(
        self,
        request: int,
        sent: float,
        loaded: float,
        load_waited: float,
        placement: Placement | None,
        payload: bytes | None,
    ) -> None:
        real = self._real
        context, query = real.bench.prompt(real.requests, request)
        begun, waits = time.perf_counter(), [self._own.waited_s()]
        served = self._served(request, placement, payload, context, query)
        end = time.perf_counter()
        waits.append(self._own.waited_s())
        decode_s = served.decode_s
        row = Timed(request, placement, loaded - sent, begun - loaded, decode_s, end - begun - decode_s, end - sent)
        row.wall_s, row.waited_s = row.ttft_s, load_waited + waits[1] - waits[0]
        row.payload = payload
        arrival_ns = int(real.trace.arrival_ns[request])
        with self._ledgers:
            works = real.step(round((end - self._start) * 1e9), request, arrival_ns, payload, served.started)
            if works:
                moved = self._mover.submit(self._guarded, self._move, works)
                self._on_their_way |= dict.fromkeys((work.key for work in works), moved)
        free_s, waited_s = time.perf_counter() - begun, self._own.waited_s() - waits[0]
        served_s = end - begun - (waits[1] - waits[0])
        self._stays.append(Stay(row, sent, loaded - load_waited, served_s, max(served_s, free_s - waited_s)))
        self._unanswered.append((row, served.started, served.first))
        self.rows[request] = row
        self._progress(len(self.rows), len(real.trace))
        if len(self.rows) == len(real.trace):
            self._over.set()

    def _served(
        self, request: int, placement: Placement | None, payload: bytes | None, context: list[int], query: list[int]
    ) -> Served:
        real = self._real
        variant = 0 if placement is None else placement.variant
        read = None if payload is None else (lambda: payload)
        try:
            sent = self._clock.seconds()
            return serve(real.server, self._clock, sent, read, variant, context, query, real.longest(request))
        except PayloadError as error:
            raise real.damaged(request, placement, error) from error

    def _move(self, works: list[Work]) -> None:
        """Carry out a step's moves; what they read goes through the tier's reader, in turn with the loads."""
        tiers, readers = self._real.tiers, self._readers
        self._real.carry_out(
            works, lambda placement, key: readers[placement.tier].submit(tiers[placement.tier].read, key).result()
        )
