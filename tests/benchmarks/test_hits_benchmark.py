"""How fast hits are counted and stack distances found, in block references per second on one core.

Run with ``pytest tests/benchmarks --benchmark-only``; the figure is ``references_per_s`` in the extra info.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from simkv.simulator.hits import HIT_POLICIES, count_hits
from simkv.traces.reuse import stack_distances
from simkv.traces.trace import Trace, build_trace

REQUESTS, BLOCKS_PER_REQUEST, POPULATION = 50_000, 20, 100_000
CAPACITY = 20_000


@pytest.fixture(scope="module")
def zipf() -> Trace:
    """A million references to 100,000 blocks, block k with weight 1 / (k + 1) ** 0.9."""
    weights = 1 / np.arange(1, POPULATION + 1) ** 0.9
    references = REQUESTS * BLOCKS_PER_REQUEST
    keys = np.random.default_rng(0).choice(POPULATION, size=references, p=weights / weights.sum())
    return build_trace(
        arrival_ns=np.arange(REQUESTS) * 10**6,
        input_tokens=np.full(REQUESTS, BLOCKS_PER_REQUEST * 16),
        output_tokens=np.ones(REQUESTS, dtype=np.int64),
        block_counts=np.full(REQUESTS, BLOCKS_PER_REQUEST),
        block_keys=keys,
        occurrence_tokens=np.full(references, 16),
        meta={"name": "zipf", "block_size": 16},
    )


def measure(benchmark: BenchmarkFixture, references: int, run: Callable[[], Any]) -> Any:
    """Time ``run`` after a first call that compiles it, and report references per second."""
    run()
    result = benchmark.pedantic(run, rounds=3)
    if benchmark.stats:  # absent under --benchmark-disable
        benchmark.extra_info["references_per_s"] = round(references / benchmark.stats.stats.min)
    return result


@pytest.mark.parametrize("policy", list(HIT_POLICIES))
def test_count_hits(benchmark: BenchmarkFixture, zipf: Trace, policy: str) -> None:
    """One capacity of one policy, preparation and counting included; some but not all repeats are hits."""
    counts = measure(benchmark, len(zipf.block_ids), lambda: count_hits(zipf, policy, [CAPACITY]))
    assert 0 < counts.hits[0] < counts.requested_blocks - zipf.n_blocks


def test_stack_distances(benchmark: BenchmarkFixture, zipf: Trace) -> None:
    """All LRU stack distances in blocks; every first touch is without one."""
    distances = measure(benchmark, len(zipf.block_ids), lambda: stack_distances(zipf))
    assert zipf.n_blocks == (distances < 0).sum()
