"""How much of a stored prefix is loaded: ``reuse = "when_faster"`` by hand, and layerwise overlap by brute force."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simpy import Environment

from simkv.profiles import PrefillFit
from simkv.simulator.compute import ComputeServers
from simkv.simulator.entries import Placement
from simkv.simulator.view import StoreView
from tests.simulator.helpers import (
    DRAM,
    MS,
    SSD,
    TWO,
    US,
    Scripted,
    Ticking,
    make_profile,
    make_trace,
    rows,
    run,
    times,
    two_tiers,
)

FAR = two_tiers(latency_s=5e-3)  # an SSD whose latency exceeds five blocks of prefill
SLOW = (replace(DRAM, read_bytes_per_s=2 * 10**8), SSD)  # DRAM at 5 ns per byte: half a block's prefill
FASTER = {"reuse": "when_faster"}


# --- when it is faster ----------------------------------------------------------------------------------------------


def test_loads_all_when_loading_is_faster() -> None:
    """0.2 ms of DRAM against 2 ms of prefill."""
    assert (200 * US, 0, 0) == times(run([[0, 1], [0, 1]], **FASTER))[1]


def test_recomputes_all_when_that_is_faster() -> None:
    """5 ms of latency against 2 ms of prefill; with ``always`` the blocks are loaded all the same."""
    plan = {0: "ssd raw", 1: "ssd raw"}
    assert (0, 0, 2 * MS) == times(run([[0, 1], [0, 1]], Scripted(plan), tiers=FAR, **FASTER))[1]
    assert (5_400 * US, 0, 0) == times(run([[0, 1], [0, 1]], Scripted(plan), tiers=FAR))[1]


def test_loads_the_part_that_is_worth_it() -> None:
    """Block 0 from DRAM and 1 ms of prefill (1.1 ms) beat both 2 ms of prefill and 5.2 ms of SSD."""
    engine = run([[0, 1], [0, 1]], Scripted({0: "dram raw", 1: "ssd raw"}), tiers=FAR, **FASTER)
    assert (100 * US, 0, MS) == times(engine)[1]
    assert (1, 100) == (rows(engine)[1].hit_blocks, rows(engine)[1].hit_tokens)


def test_what_is_stored_but_not_loaded_is_touched_not_admitted() -> None:
    """The recomputed block 1 of the case above stays stored, as one entry with one more use."""
    engine = run([[0, 1], [0, 1]], Scripted({0: "dram raw", 1: "ssd raw"}), tiers=FAR, **FASTER)
    entry = engine.store.residents[1]
    assert entry is not None
    assert (1, 0, 0) == (entry.hits, entry.pins, engine.store.counts.duplicate_blocks)


def test_slow_block_in_front_may_be_worth_what_follows() -> None:
    """One block on SSD (5.2 ms) followed by nine in DRAM: 5.2 ms beside 0.9 ms beats 10 ms of prefill."""
    plan = {0: "ssd raw", **dict.fromkeys(range(1, 10), "dram raw")}
    engine = run([[*range(10)], [*range(10)]], Scripted(plan), tiers=FAR, **FASTER)
    assert (5_200 * US, 0, 0) == times(engine)[1]


def test_ties_load_more() -> None:
    """DRAM at 10 ns per byte takes exactly as long as prefill, 1 ms: the block is loaded."""
    tie = (replace(DRAM, read_bytes_per_s=10**8), SSD)
    assert (MS, 0, 0) == times(run([[0], [0]], tiers=tie, **FASTER))[1]


@pytest.mark.parametrize("discipline", ["fifo", "fair"])
def test_backlog_counts(discipline: str) -> None:
    """Three requests for a block of 0.5 ms at once: 0.5 and 1.0 ms (a tie) are loaded, 1.5 ms is recomputed."""
    trace = make_trace([[0], [0], [0], [0]], at_us=[0, 10_000, 10_000, 10_000])
    tiers = (replace(SLOW[0], discipline=discipline), SSD)
    engine = run(trace, tiers=tiers, **FASTER)
    assert [1, 1, 0] == [row.hit_blocks for row in rows(engine)[1:]]


def test_bytes_under_way_count() -> None:
    """A block that reaches SSD only after 3 ms of waiting is recomputed, in 1 ms."""
    trace = make_trace([[0], [0]], at_us=[0, 1_100])
    slow = (DRAM, replace(SSD, write_bytes_per_s=10**8 // 4))  # 40 ns per byte: 4 ms
    engine = run(trace, Scripted({0: "ssd raw"}), tiers=slow, **FASTER)
    assert (0, 0, MS) == times(engine)[1]


def test_decompression_and_link_count() -> None:
    """50 us of DRAM, 20 us of decoding, and the link: 0.97 ms at 18 ns per byte, but 1.02 ms, too long, at 19."""
    policy = Scripted({0: "dram kivi:4"})
    link = replace(DRAM, name="link", write_bytes_per_s=10**9)
    fits = replace(link, read_bytes_per_s=10**9 // 18 + 1)
    assert 1 == rows(run([[0], [0]], policy, link=fits, **FASTER))[1].hit_blocks
    slow = replace(link, read_bytes_per_s=10**9 // 19 + 1)
    assert 0 == rows(run([[0], [0]], policy, link=slow, **FASTER))[1].hit_blocks


class Loose(Scripted):
    """Scripted with a placement object of its own each time, as an outside policy might make them."""

    def _place(self, text: str | None, view: StoreView) -> Placement | None:
        place = super()._place(text, view)
        return None if place is None else Placement(*place)


def test_runs_are_found_by_value() -> None:
    """Ends of runs, the only cuts that are considered, do not depend on equal placements being the same object.

    With a prefill of at least 2.5 ms, two blocks (0.4 + 2.5 ms) would beat three (0.6 + 2.5), but are no end of a run.
    """
    plan = dict.fromkeys(range(3), "ssd raw")
    profile = make_profile(prefill=PrefillFit(0.0, 10e-6, floor_s=2.5e-3))
    trace = make_trace([[0, 1, 2], [0, 1, 2, 3]])
    ways = [run(trace, kind(plan), profile=profile, **FASTER) for kind in (Scripted, Loose)]
    assert [(600 * US, 0, 2_500 * US)] * 2 == [times(engine)[1] for engine in ways]


# --- layerwise overlap ----------------------------------------------------------------------------------------------


def layer_by_layer(begin: int, loaded: int, work: int, layers: int, free: int) -> Fraction:
    """When the last layer is computed: layer k arrives linearly between begin and loaded and waits for layer k - 1."""
    end = Fraction(free)
    for layer in range(1, layers + 1):
        arrives = begin + Fraction(loaded - begin, 1) * layer / layers
        end = max(end, arrives) + Fraction(work, layers)
    return end


@given(st.integers(0, 50), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 100), st.integers(0, 2 * 10**6))
def test_overlap_formula_is_the_flow_shop(begin: int, load: int, work: int, layers: int, free: int) -> None:
    """The closed form equals the explicit loop over layers, rounded up by at most 2 ns."""
    loaded = begin + load
    server = ComputeServers(Environment(), 1)
    server.free_at = [free]
    _, finish = server.start(begin - (begin - loaded) // layers, work, loaded, -(-work // layers))
    exact = layer_by_layer(begin, loaded, work, layers, free)
    assert 0 <= finish - exact < 2


def test_overlap_bound_by_compute() -> None:
    """4 layers, 0.1 ms of loading, 1 ms of computing: starts after 25 us, never stalls, ends at 1.025 ms."""
    assert (25 * US, 0, MS) == times(run([[0], [0, 1]], overlap="layerwise"))[1]


def test_overlap_bound_by_loading() -> None:
    """Ten blocks from SSD (2 ms) beside 0.01 ms of computing: the last layer's 2.5 us come after the last byte."""
    plan = dict.fromkeys(range(10), "ssd raw")
    trace = make_trace([[*range(10)], [*range(10)]], inputs=[1000, 1001])
    load, queue, work = times(run(trace, Scripted(plan), overlap="layerwise"))[1]
    assert (2 * MS + 2_500, 0, 10 * US) == (load + queue + work, queue, work)


def test_overlap_starts_when_the_channel_does() -> None:
    """A load that waits 80 us for a background read begins then: f = 80 + 25 us, and 1 ms of computing."""
    trace = make_trace([[0], [1], [1, 2]], at_us=[0, 0, 10_020])
    engine = run(trace, Ticking({0: "dram raw", 1: "dram raw"}, at=[(10_000, 0, "ssd raw")]), overlap="layerwise")
    assert (105 * US, 0, MS) == times(engine)[2]


def test_overlap_with_a_link_begins_at_the_tier() -> None:
    """The same load behind a link: from 80 us, when the tier begins, to 280 us; f = 80 + 50 us."""
    trace = make_trace([[0], [1], [1, 2]], at_us=[0, 0, 10_020])
    policy = Ticking({0: "dram raw", 1: "dram raw"}, at=[(10_000, 0, "ssd raw")])
    engine = run(trace, policy, link=replace(DRAM, name="link"), overlap="layerwise")
    assert (130 * US, 0, MS) == times(engine)[2]


def test_overlap_with_a_busy_gpu() -> None:
    """The first layer is there at 10.125 ms, the GPU is busy until 10.5 ms: a queue of 0.375 ms."""
    trace = make_trace([[0], [9], [0, 1]], at_us=[0, 9_500, 10_100])
    engine = run(trace, Scripted({0: "dram raw"}), overlap="layerwise")
    assert (25 * US, 375 * US, MS) == times(engine)[2]


def test_overlap_does_nothing_without_a_load() -> None:
    """A request that loads nothing is computed as ever."""
    assert (0, 0, MS) == times(run([[0]], overlap="layerwise"))[0]


def test_one_layer_is_no_overlap() -> None:
    """With a model of one layer, layerwise is the same as none, for every request."""
    profile = make_profile(layers=1, prefill=PrefillFit(0.0, 10e-6))
    trace = make_trace([[0], [0, 1], [0, 1, 2], [0]], at_us=[0, 1_000, 1_010, 2_500])
    runs = [run(trace, profile=profile, tiers=TWO, overlap=overlap) for overlap in ("none", "layerwise")]
    assert times(runs[0]) == times(runs[1])


def test_a_gpu_that_carries_the_bytes_takes_tiers_one_by_one() -> None:
    """Raw from DRAM 100 us and from SSD 200 us, or 120 us of prefill a block: load the first, compute the second."""
    profile = make_profile(prefill=PrefillFit(0.0, 1.2e-6))
    trace = [[0, 1], [0, 1]]
    engine = run(
        trace, Scripted({0: "dram raw", 1: "ssd raw"}), profile=profile, tiers=TWO, loading="gpu", reuse="when_faster"
    )
    assert 220 * US == sum(times(engine)[1])
