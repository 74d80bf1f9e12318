"""Synchronous loads: the server that computes carries the bytes; only the fixed part of a load passes without it."""

from dataclasses import replace
from typing import Any

import pytest

from simkv.errors import ConfigError
from simkv.profiles import TierSpec
from simkv.simulator.run import simulate
from tests.simulator.helpers import (
    DRAM,
    DRAM_NS,
    PREFILL_NS,
    SSD,
    SSD_NS,
    US,
    Scripted,
    make_profile,
    make_trace,
    run,
    times,
)

FIXED_NS = 50 * US
TIERS = (replace(DRAM, latency_s=50e-6), SSD)
HITS = [[0], [1], [0], [1]]
TOGETHER = [0, 10_000, 20_000, 20_000]


def engine(policy: Any, requests: Any, at_us: list[int], **settings: Any) -> Any:
    """A finished run with 50 us of latency on DRAM and none on SSD."""
    return run(make_trace(requests, at_us=at_us), policy, tiers=TIERS, **settings)


def test_bytes_are_the_server_s_work() -> None:
    """Two hits at once: each waits 0.05 ms for its load to begin; 0.1 ms of bytes are work, one after the other."""
    found = times(engine("lru", HITS, TOGETHER, loading="gpu"))[2:]
    assert [(FIXED_NS, 0, DRAM_NS), (FIXED_NS, DRAM_NS, DRAM_NS)] == found


def test_beside_compute_they_are_the_channel_s() -> None:
    """The same by default: the channel takes 0.15 ms each, and nothing is left for the server."""
    found = times(engine("lru", HITS, TOGETHER))[2:]
    assert [(FIXED_NS + DRAM_NS, 0, 0), (2 * (FIXED_NS + DRAM_NS), 0, 0)] == found


def test_prefill_delays_loads() -> None:
    """A prefill of 1 ms that began just before holds the server: the hit queues for the rest of it."""
    found = times(engine("lru", [[0], [1], [0]], [0, 10_000, 10_100], loading="gpu"))[2]
    assert (FIXED_NS, PREFILL_NS - 100 * US - FIXED_NS, DRAM_NS) == found


def test_two_tiers_and_decompression_add_up() -> None:
    """A prefix on DRAM (kivi:4: 0.05 ms and 0.02 to decode) and SSD (0.2 ms): work is the sum, the wait is DRAM's."""
    plan = Scripted({0: "dram kivi:4", 1: "ssd raw"})
    found = times(engine(plan, [[0, 1], [0, 1]], [0, 10_000], loading="gpu"))[1]
    assert (FIXED_NS, 0, DRAM_NS // 2 + 20 * US + SSD_NS) == found


def test_what_cannot_be_combined() -> None:
    """A GPU that loads does not compute beside it, and a host link would be crossed by nobody."""
    trace, profile = make_trace([[0]]), make_profile()
    with pytest.raises(ConfigError, match=r"overlap.*needs loading = 'channel'"):
        simulate(trace, profile, "lru", loading="gpu", overlap="layerwise")
    link = TierSpec("host_link", None, 10**9, 10**9)
    with pytest.raises(ConfigError, match=r"engine\.loading: 'gpu'.*host_link"):
        simulate(trace, profile, "lru", loading="gpu", host_link=link)
