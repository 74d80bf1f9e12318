"""How fast the engine replays traces, in requests per second on one core, beside a plain SimPy model of the same thing.

Run with ``pytest tests/benchmarks --benchmark-only``; figures are in the extra info.  Times include building the cost
tables and the result's frames and summary, as ``simulate`` does.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy
from pytest_benchmark.fixture import BenchmarkFixture

from simkv.profiles import load_profile
from simkv.simulator.costs import CostTables, build_costs
from simkv.simulator.engine import Engine, EngineSettings
from simkv.simulator.metrics import Result
from simkv.simulator.policies import POLICIES, make_policy
from simkv.simulator.run import simulate
from simkv.traces import load_trace
from simkv.traces.generate import generate_trace
from simkv.traces.trace import Trace
from simkv.traces.transform import assign_tasks

REQUESTS, CONTEXTS, TOKENS = 100_000, 20_000, 1_000
PROFILE = "llama-3.1-8b-a100"
GIB = 2**30
PER_REQUEST: dict[tuple[str, int], float] = {}  # (policy, entries in DRAM) -> seconds per request


@pytest.fixture(scope="module")
def zipf() -> Trace:
    """100,000 requests for 20,000 whole contexts, weights rank ** -0.9, at a rate that one GPU just manages."""
    trace = generate_trace(
        "zipf", seed=0, requests=REQUESTS, contexts=CONTEXTS, exponent=0.9, tokens=TOKENS, rate_per_s=10
    )
    return assign_tasks(trace, load_profile(PROFILE).tasks[0], 0)


@pytest.fixture(scope="module")
def mooncake(shared_traces: Path) -> Trace:
    """The Mooncake conversation trace: 12,031 requests, 288,500 requested blocks."""
    trace = load_trace(shared_traces / "mooncake" / "conversation_trace.jsonl.gz")
    return assign_tasks(trace, load_profile(PROFILE).tasks[0], 0)


def tiers_of(dram_bytes: int, ssd_bytes: int) -> dict[str, Any]:
    """Capacities of the profile's two tiers."""
    names = [tier.name for tier in load_profile(PROFILE).tiers]
    return dict(zip(names, (dram_bytes, ssd_bytes), strict=True))


def measure(benchmark: BenchmarkFixture, requests: int, run: Callable[[], Any], rounds: int = 2) -> Any:
    """Time ``run`` and report requests per second of the quickest round."""
    result = benchmark.pedantic(run, rounds=rounds)
    if benchmark.stats:  # absent under --benchmark-disable
        benchmark.extra_info["requests_per_s"] = round(requests / benchmark.stats.stats.min)
    return result


# --- the same model with processes and resources --------------------------------------------------------------------


class PlainModel:
    """LRU over DRAM and SSD as a textbook would write it: a process per request, a Resource per server.

    The same rules as the engine's on one-block requests; loads, admissions and demotions hold Resources.
    """

    def __init__(self, trace: Trace, costs: CostTables) -> None:
        self.env = simpy.Environment()
        self.trace, self.costs = trace, costs
        self.readers = [simpy.Resource(self.env, tier.channels) for tier in costs.tiers]
        self.writers = [simpy.Resource(self.env, tier.channels) for tier in costs.tiers]
        self.gpu = simpy.Resource(self.env, 1)
        self.room = [capacity // costs.size[0][0] for capacity in costs.capacity]  # all blocks are alike
        self.stored: list[OrderedDict[int, simpy.Event]] = [OrderedDict(), OrderedDict()]
        self.ttft = np.zeros(len(trace), dtype=np.int64)
        self.hits = 0

    def use(self, server: simpy.Resource, service: int) -> Generator[simpy.Event, Any, None]:
        """Wait for a server and hold it."""
        with server.request() as turn:
            yield turn
            yield self.env.timeout(service)

    def read_ns(self, tier: int) -> int:
        """Time to read one block."""
        return self.costs.read_fixed[tier][0] + self.costs.read[tier][0][0]

    def transfer(self, source: int | None, target: int, arrived: simpy.Event) -> Generator[simpy.Event, Any, None]:
        """Bytes on their way to a tier, in the background."""
        write = self.costs.write_fixed[target] + self.costs.write[target][0][0]
        jobs = [self.env.process(self.use(self.writers[target], write))]
        if source is not None:
            jobs.append(self.env.process(self.use(self.readers[source], self.read_ns(source))))
        yield self.env.all_of(jobs)
        arrived.succeed()

    def put(self, tier: int, block: int, source: int | None) -> None:
        """Store a block, sending the oldest down while there is no room."""
        arrived = self.env.event()
        self.stored[tier][block] = arrived
        self.env.process(self.transfer(source, tier, arrived))
        while len(self.stored[tier]) > self.room[tier]:
            oldest, _ = self.stored[tier].popitem(last=False)
            if tier == 0:
                self.put(1, oldest, 0)

    def request(self, ident: int, block: int, tokens: int) -> Generator[simpy.Event, Any, None]:
        """One request's life."""
        arrival = self.env.now
        tier = next((tier for tier in (0, 1) if block in self.stored[tier]), None)
        if tier is None:
            yield from self.use(self.gpu, self.costs.prefill_ns(0, tokens))
        else:
            self.hits += 1
            yield self.stored[tier][block]
            yield from self.use(self.readers[tier], self.read_ns(tier))
            with self.gpu.request() as turn:
                yield turn
        self.ttft[ident] = self.env.now - arrival
        if block in self.stored[0]:
            self.stored[0].move_to_end(block)
        else:
            self.stored[1].pop(block, None)
            self.put(0, block, None)

    def arrivals(self) -> Generator[simpy.Event, Any, None]:
        """Sends the requests."""
        blocks, inputs = self.trace.block_ids.tolist(), self.trace.input_tokens.tolist()
        for ident, arrival in enumerate(self.trace.arrival_ns.tolist()):
            yield self.env.timeout(arrival - self.env.now)
            self.env.process(self.request(ident, blocks[ident], inputs[ident]))

    def run(self) -> "PlainModel":
        """Replay the trace."""
        self.env.process(self.arrivals())
        self.env.run()
        return self


def zipf_tiers() -> dict[str, Any]:
    """DRAM for a twentieth, SSD for another twentieth of the contexts: a tenth together."""
    context = TOKENS * load_profile(PROFILE).kv_bytes_per_token
    return tiers_of(CONTEXTS // 20 * context, CONTEXTS // 20 * context)


def plain(trace: Trace) -> PlainModel:
    """Tables, and the plain model run on them."""
    profile = load_profile(PROFILE)
    capacity = zipf_tiers()
    tiers = tuple(replace(tier, capacity_bytes=capacity[tier.name]) for tier in profile.tiers)
    return PlainModel(trace, build_costs(trace, profile, tiers)).run()


def test_zipf(benchmark: BenchmarkFixture, zipf: Trace) -> None:
    """LRU over whole contexts, and how many times faster than the plain model, which agrees with it."""
    result: Result = measure(
        benchmark, REQUESTS, lambda: simulate(zipf, load_profile(PROFILE), "lru", tiers=zipf_tiers())
    )
    started = time.perf_counter()
    model = plain(zipf)
    seconds = time.perf_counter() - started
    if benchmark.stats:
        benchmark.extra_info["plain_requests_per_s"] = round(REQUESTS / seconds)
        benchmark.extra_info["times_the_plain_model"] = round(seconds / benchmark.stats.stats.min, 1)
    hits = int(result.requests["hit_blocks"].sum())
    assert 0.2 < hits / REQUESTS < 0.9
    assert hits == pytest.approx(model.hits, rel=0.01)
    assert result.summary["ttft_mean_s"] == pytest.approx(model.ttft.mean() / 1e9, rel=0.05)


@pytest.mark.parametrize("policy", ["lru", "adaptcache"])
def test_mooncake(benchmark: BenchmarkFixture, mooncake: Trace, policy: str) -> None:
    """A real trace in blocks of 512 tokens on eight GPUs; DRAM 256 GiB, SSD 2 TiB."""
    tiers = tiers_of(256 * GIB, 2048 * GIB)
    result = measure(
        benchmark,
        len(mooncake),
        lambda: simulate(mooncake, load_profile(PROFILE), policy, tiers=tiers, gpus=8),
        rounds=1,
    )
    if benchmark.stats:
        benchmark.extra_info["blocks_per_s"] = round(len(mooncake.block_ids) / benchmark.stats.stats.min)
    assert 0.05 < result.summary["block_hit_ratio"] < 0.37


BY_RESIDENTS: dict[str, dict[str, Any]] = {
    "lru": {},
    "adaptcache": {"alpha": 1.0},
    "evicpress": {"alpha": 0.1},
    "hitdensity": {"alpha": 0.1},
    "impress": {},
}
EVERY: dict[str, dict[str, Any]] = {
    **{name: {} for name in POLICIES if name not in BY_RESIDENTS},
    "adaptcache": {"alpha": 1.0, "method": "free"},
    "evicpress": {"alpha": 0.1},
    "hitdensity": {"alpha": 0.1},
    "impress": {},
}
DECISIONS = 20_000


def crowded(residents: int) -> tuple[Trace, CostTables]:
    """Requests for single blocks, nearly all new, into a DRAM that then always holds so many entries."""
    requests = residents + DECISIONS
    trace = generate_trace("zipf", seed=1, requests=requests, contexts=10 * requests, exponent=0, tokens=TOKENS)
    profile = load_profile(PROFILE)
    trace = assign_tasks(trace, profile.tasks[0], 0)
    size = TOKENS * profile.kv_bytes_per_token
    tiers = tuple(replace(t, capacity_bytes=residents * size) for t in profile.tiers[:2])
    return trace, build_costs(trace, profile, tiers)


def seconds_per_request(
    trace: Trace, costs: CostTables, residents: int, policy: str, params: dict[str, Any]
) -> tuple[float, Engine]:
    """Of the requests that come once DRAM is full, engine included; and the engine after its run."""
    engine = Engine(trace, costs, make_policy(policy, params), EngineSettings(), progress=None)
    full: list[float] = []
    admit = engine.policy.admit

    def noted(entry: Any, view: Any) -> Any:
        if engine.finished >= residents and not full:
            full.append(time.perf_counter())
        return admit(entry, view)

    engine.policy.admit = noted  # type: ignore[method-assign]
    engine.run()
    return (time.perf_counter() - full[0]) / DECISIONS, engine


@pytest.mark.parametrize("residents", [1_000, 100_000])
@pytest.mark.parametrize("policy", BY_RESIDENTS)
def test_policy_by_residents(benchmark: BenchmarkFixture, policy: str, residents: int) -> None:
    """Microseconds per request of single blocks into a DRAM that always holds so many entries, and how many LRU's."""
    trace, costs = crowded(residents)
    given = (trace, costs, residents, policy, BY_RESIDENTS[policy])
    seconds, engine = benchmark.pedantic(seconds_per_request, args=given, rounds=1)
    PER_REQUEST[policy, residents] = seconds
    benchmark.extra_info["us_per_request"] = round(seconds * 1e6, 2)
    benchmark.extra_info["times_that_at_1000"] = round(seconds / PER_REQUEST.get((policy, 1_000), seconds), 2)
    benchmark.extra_info["times_that_of_lru"] = round(seconds / PER_REQUEST.get(("lru", residents), seconds), 2)
    assert engine.store.count[0] >= residents * 0.9


@pytest.mark.slow
def test_every_policy_at_100_000_entries(benchmark: BenchmarkFixture) -> None:
    """Every policy in one process, LRU before and after them: how many times LRU's time per request each takes."""
    residents = 100_000
    trace, costs = crowded(residents)

    def every() -> dict[str, float]:
        found = {"lru": seconds_per_request(trace, costs, residents, "lru", {})[0]}
        for policy, params in EVERY.items():
            found[policy], engine = seconds_per_request(trace, costs, residents, policy, params)
            assert engine.store.count[0] >= residents * 0.9 or policy == "recompute"
        found["lru, again"] = seconds_per_request(trace, costs, residents, "lru", {})[0]
        return found

    found = benchmark.pedantic(every, rounds=1)
    lru = min(found["lru"], found["lru, again"])
    for policy, seconds in found.items():
        benchmark.extra_info[policy] = f"{seconds * 1e6:.1f} us, {seconds / lru:.2f} x lru"
    assert set(POLICIES) <= set(found)
