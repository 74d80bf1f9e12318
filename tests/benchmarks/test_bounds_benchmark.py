"""How long a bound takes, in accesses per second on one core: single blocks, and blocks in long prompts.

Run with ``pytest tests/benchmarks --benchmark-only``; the figure is ``accesses_per_s`` in the extra info.  Times
include the cost tables and all price windows of one alpha, the compiled code having been loaded before.
"""

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from simkv.profiles import load_profile
from simkv.simulator.bounds import bound
from simkv.traces.generate import generate_trace
from simkv.traces.trace import Trace, build_trace

ACCESSES = 20_000  # time grows in proportion up to millions
ALPHA = 0.1  # where quality is dear, a profile whose raw copies lose some leaves nothing to gain
PROFILE = "llama-3.1-8b-a100"
GIB = 2**30


def singles(accesses: int) -> Trace:
    """Whole contexts, none like another interval: nothing can be merged."""
    return generate_trace(
        "zipf", seed=0, requests=accesses, contexts=accesses // 5, exponent=0.9, tokens=1000, rate_per_s=10
    )


def chats(accesses: int) -> Trace:
    """Conversations of ten turns, each turn asking for all blocks so far and ten new ones."""
    turns, new = 10, 10
    sessions = accesses // (new * turns * (turns + 1) // 2)
    rng = np.random.default_rng(0)
    start = np.sort(rng.uniform(0, sessions * 5.0, sessions))
    arrival = (start[:, None] + np.cumsum(rng.exponential(60.0, (sessions, turns)), axis=1)).ravel()
    counts = np.tile(np.arange(1, turns + 1) * new, sessions)
    first = np.repeat(np.arange(sessions) * new * turns, turns)
    order = np.argsort(arrival, kind="stable")
    keys = np.concatenate([np.arange(f, f + c) for f, c in zip(first[order], counts[order], strict=True)])
    return build_trace(
        arrival_ns=(arrival[order] * 1e9).astype(np.int64),
        input_tokens=counts[order] * 512,
        output_tokens=np.ones(len(order), dtype=np.int64),
        block_counts=counts[order],
        block_keys=keys,
        occurrence_tokens=np.full(len(keys), 512),
        meta={"name": "chats", "block_size": 512},
    )


@pytest.mark.parametrize("make", [singles, chats], ids=["singles", "chats"])
@pytest.mark.parametrize("arrivals", ["closed", "open"])
def test_bound(benchmark: BenchmarkFixture, make: object, arrivals: str) -> None:
    """One alpha; the bound is above recomputing everything and below what free storage would give."""
    assert callable(make)
    profile = load_profile(PROFILE)
    task = profile.tasks[0]
    names = [tier.name for tier in profile.tiers]
    tiers = dict(zip(names, (256 * GIB, 1024 * GIB), strict=True))
    accesses = ACCESSES if benchmark.enabled else ACCESSES // 4

    def run(trace: Trace, room: dict[str, object]) -> float:
        found = bound(trace, profile, tiers=room, tasks=task, alphas=[ALPHA], arrivals=arrivals)
        return float(found.utilities[0])

    trace = make(accesses)
    run(make(2_000), tiers)  # loads the compiled code
    limit = benchmark.pedantic(lambda: run(trace, tiers), rounds=1)
    if benchmark.stats:  # absent under --benchmark-disable
        benchmark.extra_info["accesses_per_s"] = round(len(trace.block_ids) / benchmark.stats.stats.min)
    free = run(trace, dict.fromkeys(names, "unlimited"))
    recomputed = ALPHA - float(trace.input_tokens.mean()) * profile.prefill.per_token_s
    assert recomputed < limit <= free + 1e-4  # prices near zero are not quite zero
