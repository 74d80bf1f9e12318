"""Queueing theory: waiting on the GPU and sharing a channel against closed formulas and independent recursions.

Means are over independent replications with fixed seeds; a formula must lie within the 99 % confidence interval of
the simulated mean, and the interval must be narrow enough to mean something.
"""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from simkv.profiles import PrefillFit, TierSpec
from simkv.traces.trace import Trace, build_trace
from tests.simulator.helpers import DRAM, MS, SSD, Scripted, make_engine, make_profile, rows

SERVICE_NS = MS
Array = NDArray[np.int64]


def interval(means: list[float], confidence: float = 0.99) -> tuple[float, float]:
    """Student's confidence interval of the mean of independent replications."""
    low, high = stats.t.interval(confidence, len(means) - 1, np.mean(means), stats.sem(means))
    return float(low), float(high)


def agrees(expected: float, means: list[float], width: float) -> None:
    """The expected value lies in the interval of the means, whose width is at most that share of it."""
    low, high = interval(means)
    assert low <= expected <= high
    assert high - low <= width * expected


def poisson(rng: np.random.Generator, count: int, mean_gap_ns: float, start_ns: int = 0) -> Array:
    """Poisson arrival times in ns."""
    return start_ns + np.cumsum(rng.exponential(mean_gap_ns, count)).astype(np.int64)


def computing(arrivals: Array, tokens: Array | int) -> Trace:
    """Prompts without blocks: each takes 10 us of GPU per token and touches no store."""
    count = len(arrivals)
    return build_trace(
        arrival_ns=arrivals,
        input_tokens=np.zeros(count, dtype=np.int64) + tokens,
        output_tokens=np.ones(count, dtype=np.int64),
        block_counts=np.zeros(count, dtype=np.int64),
        block_keys=np.zeros(0, dtype=np.int64),
        occurrence_tokens=np.zeros(0, dtype=np.int64),
        meta={"name": "computing"},
    )


def waits(trace: Trace, gpus: int = 1) -> Array:
    """Time each request queues for the GPU, ns."""
    engine = make_engine(trace, "recompute", gpus=gpus, check=None)
    engine.run()
    return np.array([row.queue for row in rows(engine)])


def kiefer_wolfowitz(arrivals: Array, services: Array, servers: int) -> Array:
    """Waiting times in a first-come-first-served queue with several servers, from the sorted workload vector."""
    workload = np.zeros(servers, dtype=np.int64)
    waiting = np.zeros(len(arrivals), dtype=np.int64)
    before = 0
    for index, (arrival, service) in enumerate(zip(arrivals.tolist(), services.tolist(), strict=True)):
        workload = np.maximum(workload - (arrival - before), 0)
        waiting[index] = workload[0]
        workload[0] += service
        workload.sort()
        before = arrival
    return waiting


# --- the GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("load", "width"), [(0.5, 0.08), (0.8, 0.16)])
def test_md1(load: float, width: float) -> None:
    """Equal prompts at Poisson times wait rho S / (2 (1 - rho)) on average."""
    means = []
    for seed in range(20):
        arrivals = poisson(np.random.default_rng([seed, 1]), 10_000, SERVICE_NS / load)
        means.append(float(waits(computing(arrivals, 100))[500:].mean()))
    agrees(load * SERVICE_NS / (2 * (1 - load)), means, width)


@pytest.mark.parametrize("servers", [1, 2, 5])
def test_gpus_are_the_kiefer_wolfowitz_recursion(servers: int) -> None:
    """Every single wait equals the recursion's, for prompts of different lengths and bursts of equal arrival times."""
    rng = np.random.default_rng(servers)
    arrivals = np.repeat(poisson(rng, 1_000, 1.5 * SERVICE_NS / servers), 2)
    tokens = rng.integers(0, 250, len(arrivals))
    waited = waits(computing(arrivals, tokens), servers)
    assert kiefer_wolfowitz(arrivals, tokens * 10_000, servers).tolist() == waited.tolist()
    assert waited.max() > SERVICE_NS


def test_closed_loop_keeps_its_concurrency() -> None:
    """With three requests in flight on one GPU each waits for the two before it: 2 S, from the third on."""
    engine = make_engine(
        computing(np.zeros(200, dtype=np.int64), 100), "recompute", arrivals="closed", concurrency=3, check=None
    )
    engine.run()
    assert {2 * SERVICE_NS} == {row.queue for row in rows(engine)[2:]}
    assert 200 * SERVICE_NS == engine.now_ns


# --- a read channel -------------------------------------------------------------------------------------------------

SIZES = {"two-point": ([20, 420], [0.8, 0.2]), "equal": ([100], [1.0])}  # tokens; both 100 on average
WARM_NS = 10**9
UNIT_NS = 1_000  # one token from DRAM


def reading(seed: int, load: float, kind: str, count: int) -> tuple[Trace, Array]:
    """Requests for single stored blocks at Poisson times, after each block was computed once; and their tokens."""
    rng = np.random.default_rng([seed, 2])
    sizes, shares = np.array(SIZES[kind][0]), SIZES[kind][1]
    chosen = rng.choice(len(sizes), count, p=shares)
    blocks = np.concatenate([np.arange(len(sizes)), chosen])
    arrivals = poisson(rng, count, 100 * UNIT_NS / load, WARM_NS)
    first = np.arange(len(sizes)) * SERVICE_NS
    trace = build_trace(
        arrival_ns=np.concatenate([first, arrivals]),
        input_tokens=sizes[blocks],
        output_tokens=np.ones(len(blocks), dtype=np.int64),
        block_counts=np.ones(len(blocks), dtype=np.int64),
        block_keys=blocks,
        occurrence_tokens=sizes[blocks],
        task=np.zeros(len(blocks), dtype=np.int64),
        meta={"name": "reading", "task_names": ["qa"]},
    )
    return trace, sizes[chosen]


def loads(trace: Trace, dram: TierSpec) -> Array:
    """Time each of the Poisson requests spends loading, ns."""
    blocks = dict.fromkeys(range(trace.n_blocks), "dram raw")
    engine = make_engine(trace, Scripted(blocks), tiers=(dram, SSD), record_moves=False, check=None)
    engine.run()
    assert {0} == {row.work for row in rows(engine)[trace.n_blocks :]}
    return np.array([row.load for row in rows(engine)[trace.n_blocks :]])


@pytest.mark.parametrize("kind", list(SIZES))
def test_fair_channel_is_processor_sharing(kind: str) -> None:
    """A load of dedicated time x takes x / (1 - rho) on average, whatever the distribution of the others."""
    load = 0.6
    means: dict[int, list[float]] = {}
    for seed in range(10):
        trace, tokens = reading(seed, load, kind, 4_000)
        spent = loads(trace, replace(DRAM, discipline="fair"))
        for size in SIZES[kind][0]:
            means.setdefault(size, []).append(float(spent[300:][tokens[300:] == size].mean()))
    for size, found in means.items():
        agrees(size * UNIT_NS / (1 - load), found, 0.12)


def test_fifo_channel_is_pollaczek_khinchine() -> None:
    """Loads of 20 or 420 us wait lambda E[S^2] / (2 (1 - rho)) on average."""
    load = 0.5
    second_moment = 0.8 * 20**2 + 0.2 * 420**2  # us^2
    means = []
    for seed in range(10):
        trace, tokens = reading(seed, load, "two-point", 4_000)
        means.append(float((loads(trace, DRAM) - tokens * UNIT_NS)[300:].mean()))
    agrees(load / 100 * second_moment / (2 * (1 - load)) * UNIT_NS, means, 0.2)


def test_fifo_channels_are_the_kiefer_wolfowitz_recursion() -> None:
    """Every load on two channels takes its own time plus the wait of the recursion."""
    trace, tokens = reading(0, 1.4, "two-point", 1_500)
    arrivals = trace.arrival_ns[trace.n_blocks :]
    services = tokens * UNIT_NS
    expected = kiefer_wolfowitz(arrivals, services, 2) + services
    assert expected.tolist() == loads(trace, replace(DRAM, channels=2)).tolist()


def test_throughput_of_a_saturated_channel_is_its_bandwidth() -> None:
    """In a closed loop of 16 loads the channel never idles: 1,000 loads of 100 us take 100 ms, shared or in turn."""
    blocks = np.zeros(1_001, dtype=np.int64)
    for discipline in ("fifo", "fair"):
        trace = build_trace(
            arrival_ns=blocks,
            input_tokens=blocks + 100,
            output_tokens=blocks + 1,
            block_counts=blocks + 1,
            block_keys=blocks,
            occurrence_tokens=blocks + 100,
            task=blocks,
            meta={"name": "saturated", "task_names": ["qa"]},
        )
        engine = make_engine(
            trace,
            Scripted({0: "dram raw"}),
            tiers=(replace(DRAM, discipline=discipline, write_bytes_per_s=10**14), SSD),
            profile=make_profile(prefill=PrefillFit(0.0, 0.0)),
            arrivals="closed",
            concurrency=16,
        )
        engine.run()
        loaded = sum(row.hit_blocks for row in rows(engine))
        assert loaded > 980
        assert abs(loaded * 100_000 - engine.now_ns) < 20


def test_the_recursion_is_a_recursion() -> None:
    """The yardstick itself, by hand: services 5, 5, 1 at 0, 1, 2 on one server wait 0, 4, 8; on two 0, 0, 3."""
    arrivals, services = np.array([0, 1, 2]), np.array([5, 5, 1])
    assert [0, 4, 8] == kiefer_wolfowitz(arrivals, services, 1).tolist()
    assert [0, 0, 3] == kiefer_wolfowitz(arrivals, services, 2).tolist()
