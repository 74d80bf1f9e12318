"""The tables of durations: exact rounding, published lines, and prefill against its fit."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simkv.errors import ProfileError, TraceError
from simkv.profiles import RAW, Line, PrefillFit, load_profile
from simkv.simulator.costs import UNLIMITED, CostTables, block_starts, build_costs, transfer_ns
from simkv.simulator.run import simulate
from simkv.traces.trace import Trace
from simkv.traces.transform import assign_tasks
from tests.simulator.helpers import DRAM, KIVI4, SSD, TWO, make_profile, make_trace, quality_rows


def tables(trace: Trace, **changes: object) -> CostTables:
    """Cost tables of a trace under the round-number profile."""
    return build_costs(trace, make_profile(**changes), TWO)


# --- bytes and transfers --------------------------------------------------------------------------------------------


@given(st.integers(0, 2**50), st.integers(1, 10**12))
def test_transfer_time_is_exact_and_rounded_up(count: int, bytes_per_s: int) -> None:
    """The ceiling of bytes / bandwidth in exact fractions, far beyond where bytes x 1e9 overflows 64 bits."""
    exact = Fraction(count * 10**9, bytes_per_s)
    assert exact <= transfer_ns(count, bytes_per_s) < exact + 1


def test_twelve_gibibytes_do_not_overflow() -> None:
    """12 GiB at 25 GB/s are 515,396,076 ns; in 64-bit arithmetic the product would have wrapped round."""
    assert 515_396_076 == transfer_ns(12 * 2**30, 25 * 10**9)


@given(st.integers(1, 10**6), st.integers(1, 10**9))
def test_stored_bytes_are_rounded_up(tokens: int, ratio_ppb: int) -> None:
    """tokens x bytes per token x ratio, the ratio in exact 1e-9, rounded up: never 0, never above raw."""
    profile = make_profile(
        kv_bytes_per_token=131_072, size_ratio=dict.fromkeys(make_profile().variants, ratio_ppb / 1e9)
    )
    costs = build_costs(make_trace([[0]], tokens=tokens), profile, TWO)
    exact = Fraction(tokens * 131_072 * ratio_ppb, 10**9)
    assert exact <= costs.size[1][0] < exact + 1
    assert 1 <= costs.size[1][0] <= tokens * 131_072


def test_size_classes() -> None:
    """Blocks of equal length share a class; a class knows its tokens, bytes and times."""
    costs = tables(make_trace([[0, 1, 2]], tokens=[100, 37, 100]))
    assert ([37, 100], [1, 0, 1]) == (costs.class_tokens, costs.block_class)
    assert ([37_000, 100_000], [18_500, 50_000], [9_250, 25_000]) == tuple(costs.size)
    assert ([37_000, 100_000], [74_000, 200_000]) == (costs.read[0][0], costs.read[1][0])
    assert ([148_000, 400_000], [74_000, 200_000]) == (costs.write[1][0], costs.write[1][1])


def test_unlimited_and_whole_contexts() -> None:
    """No capacity is a very large number; requests of at most one block are whole contexts."""
    assert (UNLIMITED, UNLIMITED) == tables(make_trace([[0], []])).capacity
    assert tables(make_trace([[0], [1], []])).whole_contexts
    assert not tables(make_trace([[0, 1]])).whole_contexts


# --- fitted lines ---------------------------------------------------------------------------------------------------


def test_published_line_to_the_nanosecond() -> None:
    """AdaptCache's kivi:2 on a 1 GB/s disk, in a whole run: 2.3640e-5 s x 14,300 tokens + 0.3193 s = 0.657352 s."""
    profile = load_profile("adaptcache-a100-1gbps")
    task = profile.tasks[0]
    trace = make_trace([[0], [0]], tokens=14_300, gap_us=60_000_000, task=task)
    tiers = [replace(profile.tiers[1], capacity_bytes=None)]
    result = simulate(trace, profile, {"name": "lru", "variant": "kivi:2"}, tiers=tiers)
    assert 657_352_000 == round(result.requests["ttft_s"][1] * 1e9)
    assert (0.657352, 0.0, 0.0) == tuple(result.requests.loc[1, ["load_s", "queue_s", "compute_s"]])
    assert "ssd" == result.requests["served_by"][1]


def test_a_load_line_replaces_bandwidth_and_decoding() -> None:
    """Where a line covers transfer and decompression, no decode time is charged beside it."""
    lines = {(tier, v): Line(1e-6, 2e-3) for tier in ("dram", "ssd") for v in make_profile().variants}
    costs = tables(make_trace([[0]]), load_lines=lines)
    assert (2_000_000, [100_000]) == (costs.read_fixed[1][1], costs.read[1][1])
    assert (0, [0]) == (costs.decode_fixed[1][1], costs.decode[1][1])


def test_a_run_charges_what_was_measured_where_no_line_fits() -> None:
    """Of 150 tokens: prefill halfway between 20 and 30 ms, then decode halfway between 5 and 9 ms after 75 us of load.

    Blocks that share a load keep to the line, since points do not add up: 200 tokens x 200 ns after 100 us.
    """
    lines = {KIVI4: Line(2e-7, points=((100, 5e-3), (200, 9e-3)))}
    changes = {"decode_lines": lines, "prefill": PrefillFit(0.0, 1e-5, points=((100, 0.02), (200, 0.03)))}
    profile = make_profile(variants=(RAW, KIVI4), size_ratio={RAW: 1.0, KIVI4: 0.5}, **changes)
    policy = {"name": "lru", "variant": "kivi:4"}
    whole = simulate(make_trace([[0], [0]], tokens=150), profile, policy).requests
    assert [pytest.approx(0.025), pytest.approx(0.007075)] == whole["ttft_s"].tolist()
    blocks = simulate(make_trace([[0, 1], [0, 1]]), profile, policy).requests
    assert [pytest.approx(0.03), pytest.approx(0.00014)] == blocks["ttft_s"].tolist()


def test_missing_numbers_are_errors() -> None:
    """A tier without load line and a variant without decode line cannot be costed."""
    with pytest.raises(ProfileError, match="decode line of kivi:4"):
        tables(make_trace([[0]]), decode_lines={})
    lines = {("dram", v): Line(1e-6) for v in make_profile().variants}
    with pytest.raises(ProfileError, match="load line of raw on ssd"):
        tables(make_trace([[0]]), load_lines=lines)


# --- prefill --------------------------------------------------------------------------------------------------------


@given(
    st.floats(-0.2, 0.2),
    st.floats(1e-6, 1e-3),
    st.sampled_from([0.0, 1e-10, 3e-9]),
    st.sampled_from([0.0, 0.01]),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), min_size=1, max_size=20),
)
def test_prefill_table_is_the_fit(
    base_s: float, per_token_s: float, per_token2_s: float, floor_s: float, cases: list[tuple[int, int]]
) -> None:
    """For any cached and new tokens the table gives the fit's seconds, to the rounding of its three terms."""
    fit = PrefillFit(base_s, per_token_s, per_token2_s, floor_s)
    costs = tables(make_trace([[0]], tokens=10_000), prefill=fit)
    for cached, new in cases:
        assert abs(fit.seconds(new, cached) * 1e9 - costs.prefill_ns(cached, cached + new)) <= 2


def test_prefill_of_nothing_is_free() -> None:
    """No new tokens, no time, whatever the base or the floor."""
    costs = tables(make_trace([[0]]), prefill=PrefillFit(0.5, 1e-5, 0.0, 0.7))
    assert (0, 700_000_000) == (costs.prefill_ns(100, 100), costs.prefill_ns(99, 100))


def test_prefill_in_parts_costs_the_same_without_a_base() -> None:
    """With a negative constant and no floor, prefill of 0..m and m..n adds up to 0..n for every m."""
    costs = tables(make_trace([[0]], tokens=3_000), prefill=PrefillFit(-0.01, 1e-5, 2e-9))
    whole = costs.prefill_ns(0, 3_000)
    assert {whole} == {costs.prefill_ns(0, m) + costs.prefill_ns(m, 3_000) for m in range(0, 3_001, 100)}


def test_prefill_never_falls_with_length() -> None:
    """More tokens never take less time."""
    costs = tables(make_trace([[0]], tokens=3_000), prefill=PrefillFit(-0.01, 1e-5, 2e-9))
    assert (np.diff(costs.prefill) >= 0).all()


def test_recompute_of_a_block_counts_its_place() -> None:
    """Quadratic prefill makes the second block of a chain dearer: (200^2 - 100^2) against 100^2, in ns."""
    costs = tables(make_trace([[0, 1]]), prefill=PrefillFit(0.0, 0.0, 1e-9))
    assert [10_000, 30_000] == costs.recompute


def test_recompute_of_a_whole_context_counts_base_and_floor() -> None:
    """Where every request is one block, its recompute time is that of its prompt: base + 1 ms."""
    costs = tables(make_trace([[0]]), prefill=PrefillFit(2e-3, 1e-5))
    assert [3_000_000] == costs.recompute
    assert [5_000_000] == tables(make_trace([[0]]), prefill=PrefillFit(2e-3, 1e-5, 0.0, 5e-3)).recompute


def test_block_starts() -> None:
    """Tokens in front of each block, where it first occurs, also behind empty requests."""
    trace = make_trace([[0, 1], [], [0, 2, 1], [3]], tokens=[10, 20, 30, 40])
    assert [0, 10, 10, 0] == block_starts(trace).tolist()


# --- quality --------------------------------------------------------------------------------------------------------


def test_each_context_keeps_one_measured_row() -> None:
    """Blocks of one chain share a sample row; over many contexts each of three rows is used about equally often."""
    quality = quality_rows({"raw": [1, 1, 1], "kivi:4": [0.9, 0.8, 0.7], "kivi:2": [0.1, 0.5, 0.6]})
    trace = make_trace([[2 * context, 2 * context + 1] for context in range(3_000)])
    rows = np.array(build_costs(trace, make_profile(quality=quality), TWO, seed=1).quality.block_row)
    assert (rows[::2] == rows[1::2]).all()
    assert (np.abs(np.bincount(rows[::2], minlength=3) - 1_000) < 100).all()
    again = build_costs(trace, make_profile(quality=quality), TWO, seed=2).quality.block_row
    assert 0.2 < float((rows == np.array(again)).mean()) < 0.5


def test_policies_see_means_or_noisy_samples_but_scores_are_measured() -> None:
    """ "mean" shows the task's mean; "sampled" differs from the row, and less so with more queries."""
    quality = quality_rows({"raw": [1, 1], "kivi:4": [0.9, 0.7], "kivi:2": [0.2, 0.4]})
    trace = make_trace([[context] for context in range(400)])
    profile = make_profile(quality=quality)
    mean = build_costs(trace, profile, TWO).quality
    assert [1.0, 0.8, 0.3] == pytest.approx(mean.seen[mean.seen_row[7]])

    def spread(queries: int) -> float:
        seen = build_costs(trace, profile, TWO, quality_view="sampled", quality_queries=queries).quality
        assert seen.score_ppb == mean.score_ppb and seen.block_row == mean.block_row
        true = np.array(seen.score_ppb)[seen.block_row] / 1e9
        return float((np.array(seen.seen)[seen.seen_row] - true)[:, 1].std())

    assert 0.02 < spread(50) < 0.05
    assert spread(50) / 10 == pytest.approx(spread(5_000), rel=0.15)


def test_tasks_are_needed() -> None:
    """A trace without tasks is refused in one line that names those of the profile."""
    trace = make_trace([[0]], task=None)
    with pytest.raises(TraceError, match="set tasks in the config to one of qa"):
        build_costs(trace, make_profile(), TWO)
    assert [0] == build_costs(assign_tasks(trace, "qa", 0), make_profile(), TWO).quality.block_task


def test_raw_is_lossless_unless_measured() -> None:
    """Without a raw row its quality is 1; with one, it is what was measured."""
    without = make_profile(quality=quality_rows({"kivi:4": [0.9], "kivi:2": [0.6]}))
    assert 10**9 == build_costs(make_trace([[0]]), without, TWO).quality.score_ppb[0][0]
    below = make_profile(quality=quality_rows({"raw": [0.97], "kivi:4": [0.9], "kivi:2": [0.6]}))
    assert 970_000_000 == build_costs(make_trace([[0]]), below, TWO).quality.score_ppb[0][0]


def test_variants_and_tiers_by_name() -> None:
    """Index 0 is raw; tiers keep the order given."""
    costs = build_costs(make_trace([[0]]), make_profile(), (SSD, DRAM))
    assert ("raw", str(KIVI4)) == costs.variants[:2]
    assert (str(RAW), ["ssd", "dram"]) == (costs.variants[0], [tier.name for tier in costs.tiers])
