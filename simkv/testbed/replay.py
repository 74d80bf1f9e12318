"""The real store of one replay: the simulator's own ledgers and policy, with real payloads behind every entry.

What it is: the look-up of a request, the step after its first token, and the moves of real bytes that follow from it,
which both loops share; and the closed loop, in which a request is sent when the one before it is over, its answer and
its background work included.  What it is not: the open loop (``open_loop.py``), or the simulator's idea of time.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from simkv.errors import SimkvError
from simkv.profiler.compressors.payload import PayloadError
from simkv.simulator.chains import next_uses, parents
from simkv.simulator.costs import CostTables
from simkv.simulator.entries import Entry, Placement
from simkv.simulator.policies.base import Policy
from simkv.simulator.store import Store
from simkv.testbed.bench import Bench, Requests
from simkv.testbed.payloads import Payloads
from simkv.testbed.prediction import Decision
from simkv.testbed.server import Server, Started
from simkv.testbed.serving import OwnClock, serve
from simkv.traces.trace import Trace

__all__ = ["RealStore", "Timed", "Work", "closed_loop"]


@dataclass
class Timed:
    """What one request really took, seconds, and what it was served from (None: computed).

    Parts and their sum are by ``OwnClock`` in a closed loop and by the clock on the wall in an open one.

    Attributes:
        wall_s: the whole by the clock on the wall.
        waited_s: how long the threads that served it could have run in that time but had no processor.
        unwaited_s: the whole as it would have been without any request's such waits.
        answer: tokens.
        payload: that it loaded.
    """

    request: int
    placement: Placement | None = None
    load_s: float = 0.0
    queue_s: float = 0.0
    decode_s: float = 0.0
    prefill_s: float = 0.0
    ttft_s: float = 0.0
    wall_s: float = 0.0
    waited_s: float = 0.0
    unwaited_s: float = 0.0
    answer: list[int] = field(default_factory=list)
    payload: bytes | None = None


@dataclass(frozen=True)
class Work:
    """One entry's move, to be carried out with what is at hand: the computed sequence, or the payload just loaded."""

    key: int
    old: Placement | None
    new: Placement | None
    tokens: int
    computed: Started | None
    payload: bytes | None

    @property
    def at_hand(self) -> bool:
        """Whether its bytes need not be read where it was."""
        return self.computed is not None or self.payload is not None


class RealStore:
    """Store, policy and payloads of one replay.

    Args:
        bench, requests: what is asked.
        trace: of these requests, at the times that count.
        costs: the simulator's tables, which policies see.
        policy: a new one.
        server: computes.
        tiers: payloads of each tier, empty.

    Attributes:
        decisions: moves so far.
        most_bytes: most real bytes on each tier so far.
    """

    def __init__(
        self,
        bench: Bench,
        requests: Requests,
        trace: Trace,
        costs: CostTables,
        policy: Policy,
        server: Server,
        tiers: Sequence[Payloads],
    ) -> None:
        self.bench, self.requests, self.trace, self.costs = bench, requests, trace, costs
        self.server, self.tiers = server, tiers
        self.store = Store(costs, policy, len(costs.tiers), touch_reverse=True)
        self.store.view.connect(parents(trace), ())
        policy.start(self.store.view)
        self.decisions: list[Decision] = []
        self.most_bytes = [0] * len(tiers)
        self._next_use = next_uses(trace, self.store.view.never) if policy.needs_future else None
        self._loaded: dict[bytes, bytes] = {}

    def kept(self, payload: bytes | None) -> bytes | None:
        """The payload, held once however many requests loaded the same bytes."""
        return None if payload is None else self._loaded.setdefault(payload, payload)

    def found(self, request: int) -> Entry | None:
        """The stored entry of a request's context, pinned."""
        entries = self.store.lookup([int(self.trace.block_ids[request])])
        if not entries:
            return None
        entries[0].pins += 1
        return entries[0]

    def source(self, request: int) -> tuple[Placement | None, Callable[[], bytes] | None]:
        """Where a request's context is stored, and what reads it from there; it is pinned until the step."""
        entry = self.found(request)
        if entry is None or entry.placement is None:
            return None, None
        placement = entry.placement
        return placement, lambda: self.tiers[placement.tier].read(entry.key)

    def damaged(self, request: int, placement: Placement | None, error: Exception) -> SimkvError:
        """What to raise for a payload that could not be decoded."""
        tier = "no tier" if placement is None else self.costs.tiers[placement.tier].name
        return SimkvError(f"request {request}: the payload that it read from {tier} is damaged: {error}")

    def longest(self, request: int) -> int:
        """Most tokens of a request's answer."""
        return self.bench.longest(int(self.requests.context[request]))

    def step(self, now_ns: int, request: int, arrival_ns: int, payload: bytes | None, started: Started) -> list[Work]:
        """Offer a request's context to the policy after its first token; the moves that follow.

        Args:
            now_ns: time that the policy sees.
            request: which.
            arrival_ns: when it was sent, on the same clock.
            payload: what it loaded, None when it computed.
            started: its sequence.
        """
        block = int(self.trace.block_ids[request])
        next_use = None if self._next_use is None else [self._next_use[request]]
        held = int(payload is not None)
        changes = self.store.step(now_ns, request, arrival_ns, [block], held, next_use)
        works = []
        for key, change in changes.items():
            new = change.entry.placement
            if new == change.old and new is not None:
                continue
            self.decisions.append((request, key, change.old, new))
            own = key == block
            computed = started if own and not held else None
            works.append(Work(key, change.old, new, change.entry.tokens, computed, payload if own else None))
        return works

    def carry_out(self, works: Sequence[Work], read: Callable[[Placement, int], bytes]) -> None:
        """Move a step's real bytes, never holding more on a tier than its ledger does before or after.

        First what leaves goes, also what is at hand; then what moves, from the slowest tier on, as room is made towards
        slower tiers; last what is at hand is written.

        Args:
            works: of one step.
            read: gives what is stored at a placement.
        """
        moving = [work for work in works if work.new is not None and not work.at_hand]
        for work in works:
            if work.old is not None and (work.new is None or work.at_hand):
                self.tiers[work.old.tier].drop(work.key)
        for work in sorted(moving, key=lambda work: -work.old.tier if work.old else 0):
            assert work.old is not None
            assert work.new is not None
            self._write(work, read(work.old, work.key))
            if work.new.tier != work.old.tier:
                self.tiers[work.old.tier].drop(work.key)
        for work in works:
            if work.new is not None and work.at_hand:
                self._write(work, work.payload)

    def _write(self, work: Work, payload: bytes | None) -> None:
        """Put an entry where it belongs now, from its payload, or from what was computed when there is none."""
        assert work.new is not None
        if payload is None:
            assert work.computed is not None
            payload = self.server.encoded(self.server.cache(work.computed, work.tokens), work.new.variant)
        elif work.old is not None and work.old.variant != work.new.variant:
            payload = self.server.reencoded(payload, work.old.variant, work.new.variant)
        tier = self.tiers[work.new.tier]
        tier.write(work.key, payload)
        used = sum(tier.sizes.values())
        self.most_bytes[work.new.tier] = max(self.most_bytes[work.new.tier], used)

    def check(self) -> None:
        """Refuse to go on when what is really stored is not what the ledgers say.  Raises SimkvError."""
        for number, tier in enumerate(self.tiers):
            entries = {e.key: e for e in self.store.residents if e is not None and e.placement.tier == number}  # type: ignore[union-attr]
            if entries.keys() != tier.sizes.keys():
                raise SimkvError(f"tier {number}: payloads of {sorted(tier.sizes)}, entries of {sorted(entries)}")
            for key, size in tier.sizes.items():
                if size > entries[key].size_bytes:
                    raise SimkvError(
                        f"tier {number}: block {key} has {size} bytes, {entries[key].size_bytes} in the ledger"
                    )

    def answer(self, request: int, started: Started, first: int) -> list[int]:
        """The whole greedy answer."""
        context = int(self.requests.context[request])
        return self.server.answer(started, first, self.bench.longest(context), self.bench.stop(context))


def closed_loop(real: RealStore, clock: OwnClock, progress: Callable[[int, int], None]) -> list[Timed]:
    """One request at a time; policies see the trace's times, to which the measured ones are added.

    Reads are done in the thread that waits for them, since there is nothing to do beside them.

    Raises:
        SimkvError: damaged payloads, a full disk, or payloads that are not what the ledgers say.
    """
    rows = []
    total = len(real.trace)
    gc.collect()
    gc.disable()
    try:
        for request in range(total):
            rows.append(_served(real, request, clock))
            progress(request + 1, total)
    finally:
        gc.enable()
    return rows


def _served(real: RealStore, request: int, clock: OwnClock) -> Timed:
    """One request from its arrival to the end of its background work."""
    tiers = real.tiers
    context, query = real.bench.prompt(real.requests, request)
    more = real.longest(request)
    began, waited, sent = perf_counter(), clock.waited_s(), clock.seconds()
    placement, read = real.source(request)
    try:
        variant = 0 if placement is None else placement.variant
        served = serve(real.server, clock, sent, read, variant, context, query, more)
    except PayloadError as error:
        raise real.damaged(request, placement, error) from error
    wall_s, waited_s = perf_counter() - began, clock.waited_s() - waited
    ttft_s = served.load_s + served.decode_s + served.prefill_s
    row = Timed(
        request, placement, served.load_s, 0.0, served.decode_s, served.prefill_s, ttft_s, wall_s, waited_s, ttft_s
    )
    row.answer = real.answer(request, served.started, served.first)
    arrival_ns = int(real.trace.arrival_ns[request])
    works = real.step(arrival_ns + round(ttft_s * 1e9), request, arrival_ns, served.payload, served.started)
    real.carry_out(works, lambda placement, key: tiers[placement.tier].read(key))
    real.check()
    row.payload = real.kept(served.payload)
    return row
