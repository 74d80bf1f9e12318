"""The engine without time against the untimed counters of ``hits.py``: one tier, one request at a time, front to back.

Two independent programs, one full of events and one a compiled loop over an array, must count the same hits.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from simkv.simulator.hits import HIT_POLICIES, count_hits
from simkv.simulator.policies import Policy
from simkv.traces import load_trace
from simkv.traces.generate import generate_trace
from simkv.traces.reuse import touch_schedule
from simkv.traces.trace import Trace
from simkv.traces.transform import assign_tasks, time_window
from tests.simulator.helpers import DRAM, SIZE, make_trace, rows, run
from tests.simulator.test_policies import Demanding

# Clairvoyant is left out: the engine may bypass, and knows the request of the next use, not the place within it.
POLICIES = ["fifo", "gdsf", "lfu", "lru", "s3fifo"]


def engine_hits(trace: Trace, policy: Policy | str, capacity_bytes: int, **options: Any) -> list[int]:
    """Hit blocks of each request in the engine, raw, with one tier of that capacity."""
    tiers = (replace(DRAM, capacity_bytes=capacity_bytes),)
    engine = run(trace, policy, tiers=tiers, arrivals="closed", touch="forward", check=None, **options)
    return [row.hit_blocks for row in rows(engine)]


def untimed_hits(trace: Trace, policy: str, capacity_bytes: int) -> list[int]:
    """Hit blocks of each request's prefix, from the compiled loop."""
    order, due = touch_schedule(trace, "forward")
    sizes = trace.block_tokens.astype(np.int64) * 1000
    touched = HIT_POLICIES[policy](np.array(trace.block_ids[order], dtype=np.int32), due, sizes, capacity_bytes)
    hit: NDArray[np.bool_] = np.empty_like(touched)
    hit[order] = touched
    parts = np.split(hit, trace.block_offsets[1:-1])
    return [int(np.cumprod(part).sum()) for part in parts]


@pytest.fixture(scope="module")
def chats() -> Trace:
    """Multi-turn chats in blocks of 64 tokens, the last block of a prompt shorter."""
    trace = generate_trace("sessions", seed=5, sessions=60, rate_per_s=2.0)
    return assign_tasks(trace, "qa", 0)


@pytest.mark.parametrize("blocks", [30, 100])
@pytest.mark.parametrize("policy", POLICIES)
def test_chats(chats: Trace, policy: str, blocks: int) -> None:
    """Every request of the chats has the same hit blocks in both programs; some but not all revisits hit."""
    capacity = blocks * int(chats.block_tokens.max()) * 1000
    counted = untimed_hits(chats, policy, capacity)
    assert counted == engine_hits(chats, policy, capacity)
    assert 0 < sum(counted) < sum(untimed_hits(chats, policy, 2**50))


@pytest.mark.parametrize("policy", POLICIES)
def test_random_strings_of_unequal_blocks(policy: str) -> None:
    """The same for single blocks of 50 to 250 tokens in a heavy-tailed random order."""
    rng = np.random.default_rng(8)
    trace = make_trace([[int(b)] for b in rng.zipf(1.2, 1500) % 80], tokens=rng.integers(50, 251, 80).tolist())
    assert untimed_hits(trace, policy, 15 * SIZE) == engine_hits(trace, policy, 15 * SIZE)


def test_belady() -> None:
    """For single equal blocks the clairvoyant policy, made to store every miss, has exactly Belady's hits."""
    rng = np.random.default_rng(9)
    trace = make_trace([[int(b)] for b in rng.zipf(1.2, 2000) % 80])
    counted = count_hits(trace, "clairvoyant", [12], lookup="prefix").hits[0]
    assert counted == sum(engine_hits(trace, Demanding(), 12 * SIZE))
    assert counted <= sum(engine_hits(trace, "clairvoyant", 12 * SIZE))


@pytest.mark.parametrize("policy", POLICIES)
def test_mooncake(shared_traces: Path, policy: str) -> None:
    """The first minutes of a real trace (some 3,000 requests, 60,000 blocks): equal for every request."""
    trace = load_trace(shared_traces / "mooncake" / "conversation_trace.jsonl.gz")
    trace = assign_tasks(time_window(trace, 0, int(trace.arrival_ns[3_000])), "qa", 0)
    capacity = 3_000 * 512 * 1000
    counted = untimed_hits(trace, policy, capacity)
    assert 4_000 < sum(counted)
    assert counted == engine_hits(trace, policy, capacity, params={}, link=None)
