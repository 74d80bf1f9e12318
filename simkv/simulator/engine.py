"""The SimPy engine: the readable reference of what a run means (SPECIFICATION.md), for any policy.

A request is a chain of events: arrive (look up, plan, pin) -> load (one transfer per tier and variant, then the
host link) -> compute (FIFO) -> first token (offer blocks to the policy, start background transfers) -> last token,
where decoding is modelled.  The engine moves the clock and nothing else: durations come from ``costs.py`` and
``step_times.py``, waiting from ``tiers.py``, ``compute.py`` and ``batching.py``, rules from ``store.py``, prices of
moves from ``transfers.py``.
"""

from collections.abc import Callable

from simpy import Environment

from simkv.profiles import TierSpec
from simkv.simulator.batching import BatchingServers
from simkv.simulator.chains import next_uses, parents
from simkv.simulator.compute import Compute, ComputeServers, Job
from simkv.simulator.costs import CostTables
from simkv.simulator.entries import Entry, Load, Placement
from simkv.simulator.events import ARRIVE, LINK, READ, READY, REBALANCE, At
from simkv.simulator.garbage import seldom_collected
from simkv.simulator.metrics import Recorder
from simkv.simulator.planning import plan_reuse
from simkv.simulator.policies.base import Policy
from simkv.simulator.settings import DecodeSettings, EngineSettings
from simkv.simulator.store import Store
from simkv.simulator.tiers import Channel, FifoChannel, make_channel
from simkv.simulator.transfers import Mover
from simkv.traces.trace import Trace
from simkv.units import seconds_to_ns

__all__ = ["Engine", "EngineSettings"]

_PPB = 1_000_000_000


class Request:
    """A request under way: what it loads and how far that is."""

    __slots__ = (
        "arrival_ns",
        "begin_ns",
        "blocks",
        "decode_ns",
        "hit_tokens",
        "id",
        "loaded",
        "outstanding",
        "quality",
    )

    def __init__(self, ident: int, arrival_ns: int, blocks: list[int]) -> None:
        self.id = ident
        self.arrival_ns = arrival_ns
        self.blocks = blocks
        self.loaded: list[Entry] = []
        self.outstanding = 0
        self.begin_ns = arrival_ns
        self.decode_ns = 0
        self.hit_tokens = 0
        self.quality = 0


class Engine:
    """One run over one trace.

    Args:
        trace: requests.
        costs: tables of that trace.
        policy: decides; ``start`` is called here.
        settings: see EngineSettings.
        host_link: channel between host memory and the GPU, None for none.
        decode: how output tokens are generated, None ends a request at its first token.
        after_event: called after each event with the engine (invariant checks in tests); None for none.
        progress: called with (finished, total) now and then.
        counts: (request, ns at which it was sent) -> whether the policy's ``answered`` is told of it; None for all.
    """

    def __init__(
        self,
        trace: Trace,
        costs: CostTables,
        policy: Policy,
        settings: EngineSettings,
        *,
        host_link: TierSpec | None = None,
        decode: DecodeSettings | None = None,
        after_event: Callable[["Engine"], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
        counts: Callable[[int, int], bool] | None = None,
    ) -> None:
        self.trace = trace
        self.costs = costs
        self.policy = policy
        self.settings = settings
        self.after_event = after_event
        self.progress = progress
        self.env = Environment(initial_time=0)
        self.readers = [make_channel(self.env, tier) for tier in costs.tiers]
        self.writers: list[Channel] = [FifoChannel(self.env, tier.channels) for tier in costs.tiers]
        self.link = make_channel(self.env, host_link) if host_link is not None else None
        self.decode = decode
        self.gpus = self._servers(settings.gpus)
        usable = len(costs.tiers) - settings.pristine
        self.store = Store(costs, policy, usable, settings.touch == "reverse")
        self.store.view.connect(parents(trace), self.readers)
        policy.start(self.store.view)
        link = (self.link, FifoChannel(self.env, host_link.channels)) if self.link and host_link else None
        self.mover = Mover(costs, self.readers, self.writers, link, settings.pristine, settings.record_moves)
        self.recorder = Recorder(len(trace), len(costs.tiers))
        self.finished = 0  # first tokens
        self.under_way = len(trace)  # requests whose last token has not come
        self.profiling_ns = 0
        self._watches = type(policy).loaded is not Policy.loaded
        self._profiles = type(policy).idle_work_s is not Policy.idle_work_s
        self._tells = (counts or (lambda *_: True)) if type(policy).answered is not Policy.answered else None
        self._layers = costs.layers if settings.overlap == "layerwise" else 1
        self._arrivals = trace.arrival_ns.tolist()
        self._inputs = trace.input_tokens.tolist()
        self._outputs = [1] * len(trace) if decode is None else trace.output_tokens.tolist()
        self._offsets = trace.block_offsets.tolist()
        self._next_use = next_uses(trace, self.store.view.never) if policy.needs_future else None
        self._next = 0

    def _servers(self, count: int) -> Compute:
        if self.decode is None:
            return ComputeServers(self.env, count)
        return BatchingServers(self.env, count, self.decode, self.costs.prefill_ns, self._last_token)

    @property
    def now_ns(self) -> int:
        """The clock."""
        return int(self.env.now)

    # ------------------------------------------------------------------ run

    @seldom_collected()
    def run(self) -> None:
        """Replay the whole trace."""
        total = len(self.trace)
        if self.settings.arrivals == "closed":
            for _ in range(min(self.settings.concurrency, total)):
                self._send(0)
        elif total:
            self._send(self._arrivals[0])
        if self.policy.period_s > 0 and total:
            self._schedule_rebalance()
        step, queue_left = self.env.step, self.env.peek
        if self.after_event is None:
            while self.under_way:
                step()
        else:
            while queue_left() != float("inf") and self.under_way:
                step()
                self.after_event(self)
        self._sample(self.now_ns)

    def _send(self, time_ns: int) -> None:
        """Schedule the next request's arrival."""
        request = self._next
        self._next += 1
        At(self.env, time_ns, ARRIVE, request, 0, lambda now: self._arrive(request, now))

    def _schedule_rebalance(self) -> None:
        At(self.env, self.now_ns + seconds_to_ns(self.policy.period_s), REBALANCE, 0, 0, self._rebalance)

    def _rebalance(self, now: int) -> None:
        self._rearrange(now)
        if self.finished < len(self.trace):
            self._schedule_rebalance()

    def _rearrange(self, now: int) -> None:
        self.mover.charge(self.store.rebalance(now), now, -1, set(), set())

    # ------------------------------------------------------------------ arrive and load

    def _arrive(self, ident: int, now: int) -> None:
        if self.settings.arrivals == "open" and self._next < len(self._arrivals):
            self._send(self._arrivals[self._next])
        blocks = self.trace.block_ids[self._offsets[ident] : self._offsets[ident + 1]].tolist()
        request = Request(ident, now, blocks)
        found = self.store.lookup(blocks)
        if found and self.settings.reuse == "when_faster":
            found = plan_reuse(self, now, found, self._inputs[ident])
        if not found:
            self._compute(request, now)
            return
        request.loaded = found
        self._load(request, now)

    def _load(self, request: Request, now: int) -> None:
        """Pin the prefix and start one transfer per (tier, variant), in order of first block."""
        groups: dict[Placement, list[Entry]] = {}
        tokens = quality = 0
        limit = self._inputs[request.id]
        last: Placement | None = None
        members: list[Entry] = []
        for entry in request.loaded:
            entry.pins += 1
            placement = entry.placement
            if placement is not last:
                members = groups.setdefault(placement, [])  # type: ignore[arg-type]
                last = placement
            members.append(entry)
            counted = min(entry.tokens, limit - tokens)
            tokens += counted
            quality += counted * entry.quality_ppb
        request.hit_tokens = tokens
        request.quality = quality
        request.outstanding = len(groups)
        for part, (placement, entries) in enumerate(groups.items()):
            self._await_arrivals(request, placement, entries, part, now)

    def _await_arrivals(
        self, request: Request, placement: Placement, entries: list[Entry], part: int, now: int
    ) -> None:
        """Start the group's transfer once the bytes of all its entries have arrived on the tier."""
        ready_ns = now
        pending = 0

        def arrived(time_ns: int) -> None:
            nonlocal ready_ns, pending
            pending -= 1
            ready_ns = max(ready_ns, time_ns)
            if pending == 0:
                At(self.env, max(ready_ns, self.now_ns), READY, request.id, part, begin)

        def begin(time_ns: int) -> None:
            self._read(request, placement, entries, part, time_ns)

        for entry in entries:
            transfer = entry.transfer
            if transfer is None:
                continue
            if transfer.pending:
                pending += 1
                transfer.waiters.append(arrived)
            elif transfer.ready_ns <= now:
                entry.transfer = None
            elif transfer.ready_ns > ready_ns:
                ready_ns = transfer.ready_ns
        if pending:
            return
        if ready_ns > now:
            At(self.env, ready_ns, READY, request.id, part, begin)
        else:
            begin(now)

    def _read(self, request: Request, placement: Placement, entries: list[Entry], part: int, now: int) -> None:
        """One transfer on the tier's read channel, then on the host link."""
        tier, variant = placement
        costs = self.costs
        per_block, decode = costs.read[tier][variant], costs.decode[tier][variant]
        service, decode_ns = costs.read_fixed[tier][variant], costs.decode_fixed[tier][variant]
        asked = now
        for entry in entries:
            service += per_block[entry.size_class]
            decode_ns += decode[entry.size_class]
        request.decode_ns += max(0, decode_ns)

        def across_link(start: int, end: int) -> None:
            assert self.link is not None
            link_ns = costs.link_fixed
            for entry in entries:
                link_ns += costs.link[variant][entry.size_class]
            request.begin_ns = max(request.begin_ns, start)
            self.link.submit(end, link_ns, LINK, request.id, part, loaded)

        def loaded(start: int, end: int) -> None:
            if self.link is None and start > request.begin_ns:
                request.begin_ns = start
            if self._watches:
                self.policy.loaded(Load(placement, entries, end - asked, max(0, decode_ns)))
            request.outstanding -= 1
            if request.outstanding == 0:
                self._compute(request, end)

        if self.settings.loading == "gpu":
            wait = max(0, costs.read_fixed[tier][variant])
            asked -= max(0, service - wait)
            request.decode_ns += now - asked
            At(self.env, now + wait, READ, request.id, part, lambda end: loaded(now, end))
            return
        done = loaded if self.link is None else across_link
        self.readers[tier].submit(now, max(0, service), READ, request.id, part, done)

    # ------------------------------------------------------------------ compute and store

    def _compute(self, request: Request, now: int) -> None:
        """Decompress and prefill on a GPU; ``now`` is when the request is loaded."""
        ident, total = request.id, self._inputs[request.id]
        work = request.decode_ns + self.costs.prefill_ns(request.hit_tokens, total)
        layers = self._layers
        first = request.begin_ns - (request.begin_ns - now) // layers if request.loaded else now

        def done(queue: int, spent: int, end: int) -> None:
            self._first_token(request, end - request.arrival_ns - queue - spent, queue, spent, end)

        tail = -(-work // layers)
        job = Job(ident, first, work, tail, request.decode_ns, request.hit_tokens, total, self._outputs[ident], done)
        self.gpus.submit(now, job)

    def _first_token(self, request: Request, load: int, queue: int, work: int, now: int) -> None:
        self.recorder.request(request, self._inputs[request.id], load, queue, work)
        if self._tells is not None and self._tells(request.id, request.arrival_ns):
            self.store.view.now_ns = now
            exact = (total := self._inputs[request.id]) - request.hit_tokens
            self.policy.answered((now - request.arrival_ns) / 1e9, (request.quality / _PPB + exact) / max(1, total))
        blocks, held, next_use = request.blocks, len(request.loaded), None
        if self._next_use is not None:
            offset = self._offsets[request.id]
            next_use = self._next_use[offset : offset + len(blocks)].tolist()
        changes = self.store.step(now, request.id, request.arrival_ns, blocks, held, next_use)
        if changes:
            self.mover.charge(changes, now, request.id, set(blocks[:held]), set(blocks[held:]))
        self.finished += 1
        if self.recorder.due(self.finished):
            self._sample(now)
            if self.progress is not None:
                self.progress(self.finished, len(self.trace))
        if self._outputs[request.id] <= 1:
            self._leave(now)
        if self._profiles:
            self._use_idle_gpu(request.id, now)

    def _last_token(self, ident: int, now: int) -> None:
        self.recorder.last_token_ns[ident] = now
        self._leave(now)

    def _leave(self, now: int) -> None:
        """A request is done; in a closed loop the next one is sent."""
        self.under_way -= 1
        if self.settings.arrivals == "closed" and self._next < len(self.trace):
            self._send(now)

    def _use_idle_gpu(self, request: int, now: int) -> None:
        """Let the policy profile on a compute server that nobody waits for; what it learnt then moves entries."""
        self.store.view.now_ns = now
        work_s = self.policy.idle_work_s(self.store.view) if self.gpus.idle(now) else 0.0
        if work_s > 0:
            work = seconds_to_ns(work_s)
            self.profiling_ns += work
            At(self.env, self.gpus.hold(now, work), REBALANCE, request, 1, self._rearrange)

    def _sample(self, now: int) -> None:
        """Occupancy now; pristine copies count on their tier."""
        used, count = list(self.store.used), list(self.store.count)
        used[-1] += self.mover.pristine_bytes
        count[-1] += self.mover.pristine_count
        self.recorder.sample(now, used, count)
