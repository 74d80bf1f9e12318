"""Trace statistics: known facts of real traces, hand-worked cases, and agreement with cache replays."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simkv.errors import ConfigError, TraceError
from simkv.simulator.hits import count_hits
from simkv.traces import load_trace
from simkv.traces.reuse import miss_ratio_curve, stack_distances
from simkv.traces.stats import Spread, trace_stats
from simkv.traces.trace import Trace
from tests.conftest import make_trace

REQUESTS = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=25).filter(any)
TOUCH = st.sampled_from(["forward", "reverse"])


@pytest.fixture(scope="module")
def mooncake(shared_traces: Path) -> Trace:
    """The Mooncake conversation trace."""
    return load_trace(shared_traces / "mooncake" / "conversation_trace.jsonl.gz")


# --- Known facts of real traces ---------------------------------------------------------------------------------


def test_mooncake_facts(mooncake: Trace) -> None:
    """The Mooncake conversation trace has its known lengths, blocks and reuse."""
    stats = trace_stats(mooncake)
    lengths = stats.input_tokens
    outputs = stats.output_tokens
    assert (12_031, 3_537.0, 144_793_823) == (stats.requests, round(stats.duration_s, 1), stats.total_input_tokens)
    assert (891, 6_909, 27_367, 85_401, 126_195) == (
        lengths.minimum,
        lengths.p50,
        lengths.p90,
        lengths.p99,
        lengths.maximum,
    )
    assert (1, 350, 597, 1_120, 2_000) == (
        outputs.minimum,
        outputs.p50,
        outputs.p90,
        outputs.p99,
        outputs.maximum,
    )
    assert (12_035, 343) == (round(lengths.mean), round(outputs.mean))
    assert stats.reuse is not None
    assert (288_500, 182_790, 138_646) == (
        stats.reuse.requested_blocks,
        stats.reuse.distinct_blocks,
        stats.reuse.once_blocks,
    )
    assert (0.3664, 0.3736) == (round(stats.reuse.block_hit_ratio, 4), round(stats.reuse.token_hit_ratio, 4))


def test_mooncake_first_ten_minutes(mooncake: Trace) -> None:
    """The first of the 600 s windows holds 34,850 distinct blocks, and 1,750 requests arrive in it."""
    stats = trace_stats(mooncake)
    assert stats.reuse is not None
    _, ten_minutes, whole = stats.reuse.working_sets
    assert (600, 34_850) == (ten_minutes.window_s, ten_minutes.blocks[0])
    assert 1_750 == stats.arrival_counts[:10].sum()
    assert [182_790] == whole.blocks.tolist()


def test_azure_has_lengths_and_arrivals_only(shared_traces: Path) -> None:
    """A trace without reuse information gets its known lengths, and no reuse."""
    stats = trace_stats(load_trace(shared_traces / "azure2023" / "AzureLLMInferenceTrace_conv.csv.gz"))
    lengths = stats.input_tokens
    assert (19_366, 3_501.7) == (stats.requests, round(stats.duration_s, 1))
    assert (1_020, 1_155, 2_735, 4_142, 14_050) == (
        lengths.p50,
        round(lengths.mean),
        lengths.p90,
        lengths.p99,
        lengths.maximum,
    )
    assert stats.reuse is None
    assert not [name for name, _, _ in stats.rows() if "hit" in name or "block" in name]


@pytest.mark.parametrize("touch", ["forward", "reverse"])
def test_mooncake_curve_equals_replayed_lru(mooncake: Trace, touch: str) -> None:
    """One pass of stack distances gives the LRU hits of any capacity, in blocks and in bytes."""
    capacities = [1, 10, 1_000, 5_000, 12_345, 100_000, 200_000]
    curve = miss_ratio_curve(mooncake, touch=touch)
    assert count_hits(mooncake, "lru", capacities, touch=touch).hits.tolist() == [curve.hits_at(c) for c in capacities]
    kv_bytes_per_token = 131_072
    sizes = mooncake.block_tokens.astype(np.int64) * kv_bytes_per_token
    in_bytes = [gib * 2**30 for gib in (1, 64, 256, 1_024, 16_384)]
    curve = miss_ratio_curve(mooncake, touch=touch, kv_bytes_per_token=kv_bytes_per_token)
    assert count_hits(mooncake, "lru", in_bytes, touch=touch, sizes=sizes).hits.tolist() == [
        curve.hits_at(c) for c in in_bytes
    ]


# --- Stack distances --------------------------------------------------------------------------------------------


def test_stack_distances_by_hand() -> None:
    """A B C | A A touches: A returns after B and C, so at distance 3, then at once, at distance 1.

    With sizes 1, 10 and 100 these are 111 and 1.
    """
    trace = make_trace([[0, 1, 2], [0], [0]])
    assert [-1, -1, -1, 3, 1] == stack_distances(trace).tolist()
    assert [-1, -1, -1, 111, 1] == stack_distances(trace, sizes=np.array([1, 10, 100])).tolist()
    assert [-1, -1, -1, 1, 1] == stack_distances(trace, touch="reverse").tolist()


def depth(stack: list[int], block: int, sizes: list[int]) -> int:
    """Sizes from the top of the stack down to the block, -1 if it is not there."""
    return sum(sizes[other] for other in stack[: stack.index(block) + 1]) if block in stack else -1


def distances_by_definition(requests: list[list[int]], sizes: list[int], touch: str) -> list[int]:
    """Distances from a list of blocks, most recent first."""
    stack: list[int] = []
    distances = []
    for blocks in requests:
        if touch == "reverse":
            distances += [depth(stack, block, sizes) for block in blocks]
        for block in blocks if touch == "forward" else blocks[::-1]:
            if touch == "forward":
                distances.append(depth(stack, block, sizes))
            stack = [block, *(other for other in stack if other != block)]
    return distances


@settings(max_examples=200)
@given(requests=REQUESTS, sizes=st.lists(st.integers(1, 9), min_size=10, max_size=10), touch=TOUCH)
def test_stack_distances_equal_their_definition(requests: list[list[int]], sizes: list[int], touch: str) -> None:
    """The tree over steps gives the same distances as keeping the stack itself."""
    trace = make_trace(requests)
    dense = [trace.blocks_of(request).tolist() for request in range(len(trace))]
    given_sizes = np.array(sizes[: trace.n_blocks])
    expected = distances_by_definition(dense, sizes, touch)
    assert expected == stack_distances(trace, touch=touch, sizes=given_sizes).tolist()


@settings(max_examples=100)
@given(requests=REQUESTS, touch=TOUCH)
def test_curve_equals_replayed_lru_at_every_capacity(requests: list[list[int]], touch: str) -> None:
    """The miss-ratio curve is the LRU replay, in blocks and, where all blocks fit, in bytes."""
    trace = make_trace(requests)
    trace = trace.transformed("sizes", block_tokens=1 + np.arange(trace.n_blocks, dtype=np.int32) % 4)
    curve = miss_ratio_curve(trace, touch=touch)
    assert count_hits(trace, "lru", range(12), touch=touch).hits.tolist() == [curve.hits_at(c) for c in range(12)]
    curve = miss_ratio_curve(trace, touch=touch, kv_bytes_per_token=3)
    capacities = range(12, 120)
    sizes = trace.block_tokens.astype(np.int64) * 3
    hits = count_hits(trace, "lru", capacities, touch=touch, sizes=sizes).hits.tolist()
    assert hits == [curve.hits_at(c) for c in capacities]


@settings(max_examples=50)
@given(requests=REQUESTS)
def test_reuse_equals_an_unlimited_cache(requests: list[list[int]]) -> None:
    """The hit ratios of the statistics are those of an unlimited cache, by block and by token."""
    trace = make_trace(requests)
    counts = count_hits(trace, "fifo", ["unlimited"])
    reuse = trace_stats(trace).reuse
    assert reuse is not None
    assert (counts.block_hit_ratio[0], counts.token_hit_ratio[0]) == (reuse.block_hit_ratio, reuse.token_hit_ratio)


# --- Hand-worked statistics -------------------------------------------------------------------------------------


def test_statistics_by_hand() -> None:
    """Four requests 40 s apart over blocks A B | A C | A | D, 100 tokens each, 7 bytes of KV per token.

    60 s windows start at 0 (A B, A C), 60 (A) and 120 s (D).  A comes back twice after 40 s; LRU finds it
    second in the stack both times, first below B and then below C.
    """
    trace = make_trace([[0, 1], [0, 2], [0], [3]], gap_s=40, tokens=100)
    trace = trace.transformed("sessions", session=np.array([5, 5, 5, 8], dtype=np.int32))
    stats = trace_stats(trace, 7)
    reuse = stats.reuse
    assert reuse is not None
    assert (4, 120.0, 2) == (stats.requests, stats.duration_s, stats.sessions)
    assert (1, 2.0, 3) == (stats.turns.minimum, stats.turns.mean, stats.turns.maximum)
    assert (4 / 120, 0.0) == (stats.arrivals_per_s, stats.interarrival_cv)
    assert [2, 1, 1] == stats.arrival_counts.tolist()
    assert (6, 4, 3) == (reuse.requested_blocks, reuse.distinct_blocks, reuse.once_blocks)
    assert (2 / 6, 200 / 600) == (reuse.block_hit_ratio, reuse.token_hit_ratio)
    assert (40.0, 40.0) == (reuse.reuse_time_s.minimum, reuse.reuse_time_s.maximum)
    assert [(20.0, 50.0, 2)] == [
        (low, high, count)
        for low, high, count in zip(reuse.reuse_edges_s[:-1], reuse.reuse_edges_s[1:], reuse.reuse_counts, strict=True)
        if count
    ]
    minutes, ten_minutes, whole = reuse.working_sets
    assert ([0.0, 60.0, 120.0], [3, 1, 1]) == (minutes.start_s.tolist(), minutes.blocks.tolist())
    assert ([4], [400], math.inf) == (whole.blocks.tolist(), ten_minutes.tokens.tolist(), whole.window_s)
    by_blocks, by_bytes = reuse.curves
    assert ([2], [2]) == (by_blocks.capacities.tolist(), by_blocks.hits.tolist())
    assert ([1_400], "bytes", [4 / 6]) == (by_bytes.capacities.tolist(), by_bytes.unit, by_bytes.miss_ratio.tolist())
    assert [0, 2] == [by_bytes.hits_at(capacity) for capacity in (1_399, 1_400)]


def test_bursts_vary_more() -> None:
    """Gaps of 0, 0 and 3 s have mean 1 and standard deviation sqrt(2)."""
    trace = make_trace([[0], [1], [2], [3]])
    trace = trace.transformed("bursts", arrival_ns=np.array([0, 0, 0, 3], dtype=np.int64) * 10**9)
    assert math.sqrt(2) == pytest.approx(trace_stats(trace).interarrival_cv)


def test_spread_takes_observed_values() -> None:
    """Of 1..10 the 50 % quantile is 5, the 90 % quantile 9 and the 99 % quantile 10."""
    assert Spread(1, 5, 5.5, 9, 10, 10) == Spread.of(np.arange(1, 11))


def test_rows_name_units_and_denominators() -> None:
    """Rows are (name, value, unit); ratios carry their denominator, bytes appear only when known."""
    trace = make_trace([[0, 1], [0]], tokens=100)
    rows = trace_stats(trace, 7).rows()
    assert ("hit ratio by block, unlimited cache", 1 / 3, "of requested blocks") in rows
    assert ("working set, whole trace", 1_400, "bytes") in rows
    assert ("input length, p90", 200.0, "tokens") in rows
    assert "bytes" not in {unit for _, _, unit in trace_stats(trace).rows()}


def test_json_is_strict_and_bounded() -> None:
    """NaN becomes null and long arrays are thinned with both ends kept."""
    once = json.loads(trace_stats(make_trace([[0]])).to_json())
    assert (None, None, 1) == (once["interarrival_cv"], once["arrivals_per_s"], once["requests"])
    # Block k comes back at distance k + 1: touched 0..599 and then 599..0.
    blocks = [*range(600), *reversed(range(600))]
    curve = json.loads(trace_stats(make_trace([blocks])).to_json())["reuse"]["curves"][0]
    assert (500, 1, 600) == (len(curve["capacities"]), curve["capacities"][0], curve["capacities"][-1])
    assert (1, 600, 1_200) == (curve["hits"][0], curve["hits"][-1], curve["requested_blocks"])


def test_empty_trace() -> None:
    """A trace without requests has counts of zero and no distribution."""
    stats = trace_stats(make_trace([]))
    assert (0, 0, None) == (stats.requests, stats.sessions, stats.reuse)
    assert math.isnan(stats.input_tokens.p50)
    assert ("requests", 0, "") in stats.rows()
    assert 0 == json.loads(stats.to_json())["requests"]


# --- Errors -----------------------------------------------------------------------------------------------------


def test_distances_need_reuse_information() -> None:
    """Blocks without reuse information have no stack distances."""
    with pytest.raises(TraceError, match="no reuse information"):
        stack_distances(make_trace([[0], [0]], reuse=False))


def test_impossible_arguments_are_errors() -> None:
    """A size of zero or beyond 64 bits and an unknown touch order are refused."""
    trace = make_trace([[0], [0]])
    with pytest.raises(ConfigError, match="kv_bytes_per_token 0 must be a positive number"):
        trace_stats(trace, 0)
    with pytest.raises(TraceError, match=r"more than 2\^61 bytes"):
        trace_stats(trace, 2**70)
    with pytest.raises(ConfigError, match="unknown touch order 'back'; known: forward, reverse"):
        trace_stats(trace, touch="back")
