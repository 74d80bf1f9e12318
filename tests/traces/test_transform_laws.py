"""What every transformation conserves, over random prefix-chain traces."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simkv.errors import TraceError
from simkv.traces import transform as tf
from simkv.traces.trace import Trace, build_trace

COLUMNS = (
    "arrival_ns",
    "input_tokens",
    "output_tokens",
    "block_offsets",
    "block_ids",
    "block_tokens",
    "session",
    "task",
)


def same(one: Trace, other: Trace) -> bool:
    return one.meta == other.meta and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in COLUMNS)


def requested_tokens(trace: Trace) -> int:
    return int(trace.block_tokens[trace.block_ids].astype(np.int64).sum())


def rows(trace: Trace) -> list[list[int]]:
    return [trace.blocks_of(r).tolist() for r in range(len(trace))]


@st.composite
def chains(draw: st.DrawFn) -> Trace:
    """A trace of true prefix chains: a block's id is that of a path in a small tree; the last may be partial."""
    paths = draw(st.lists(st.lists(st.integers(0, 2), max_size=7), min_size=1, max_size=12))
    gaps = draw(st.lists(st.integers(0, 5), min_size=len(paths), max_size=len(paths)))
    sessions = draw(st.lists(st.integers(-1, 2), min_size=len(paths), max_size=len(paths)))
    ids: dict[tuple[int, ...], int] = {}
    keys = [ids.setdefault(tuple(path[: at + 1]), len(ids)) for path in paths for at in range(len(path))]
    sizes = [3 if place % 5 == 4 else 16 for place in range(len(ids))]  # by block, so a chain has one size everywhere
    tokens = np.array([sizes[key] for key in keys], dtype=np.int64)
    counts = [len(path) for path in paths]
    ends = np.concatenate([[0], np.cumsum(tokens)])
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return build_trace(
        arrival_ns=np.cumsum(gaps),
        input_tokens=np.diff(ends[offsets]) + 2,
        output_tokens=np.arange(len(paths)),
        block_counts=counts,
        block_keys=np.array(keys, dtype=np.int64),
        occurrence_tokens=tokens,
        session=np.array(sessions),
        meta={"name": "chains", "block_size": 16},
    )


CALLS: dict[str, Callable[[Trace], Trace]] = {
    "scale_rate": lambda trace: tf.scale_rate(trace, 0.3),
    "time_window": lambda trace: tf.time_window(trace, 0, 1 << 40),
    "sample_families": lambda trace: tf.sample_families(trace, 0.999999, 7),
    "jitter": lambda trace: tf.jitter(trace, 10, 7),
    "limit_window": lambda trace: tf.limit_window(trace, 20, "clip"),
    "group_blocks": lambda trace: tf.group_blocks(trace, 3),
    "to_segments": tf.to_segments,
    "assign_tasks": lambda trace: tf.assign_tasks(trace, {"qa": 1, "coding": 2}, 7),
}


@pytest.mark.parametrize("name", sorted(CALLS))
@given(trace=chains())
@settings(max_examples=25)
def test_every_step_is_pure_deterministic_and_recorded(name: str, trace: Trace) -> None:
    """Same input, same output; the input is untouched; the step's name and arguments are in the meta; ids are dense."""
    before = [getattr(trace, column).copy() for column in COLUMNS]
    after = CALLS[name](trace)
    assert same(after, CALLS[name](trace))
    assert [True] * 8 == [
        np.array_equal(old, getattr(trace, column)) for old, column in zip(before, COLUMNS, strict=True)
    ]
    assert [] == trace.meta["transforms"]
    assert after.meta["transforms"][0].startswith(f"{name}(")
    _, first = np.unique(after.block_ids, return_index=True)
    assert after.n_blocks == len(first)
    assert first.tolist() == sorted(first.tolist())


@given(trace=chains(), n=st.integers(1, 9))
@settings(max_examples=50)
def test_groups_and_segments_conserve_tokens_and_prefix_sharing(trace: Trace, n: int) -> None:
    """Coarser units hold the same tokens per request, and two requests share as many leading full groups as before."""
    grouped, segments = tf.group_blocks(trace, n), tf.to_segments(trace)
    for coarse in (grouped, segments):
        sums = [int(coarse.block_tokens[blocks].sum()) for blocks in rows(coarse)]
        assert [int(trace.block_tokens[blocks].sum()) for blocks in rows(trace)] == sums
        assert trace.input_tokens.tolist() == coarse.input_tokens.tolist()
    assert [-(-len(blocks) // n) for blocks in rows(trace)] == [len(blocks) for blocks in rows(grouped)]
    fine, coarse_rows = rows(trace), rows(grouped)
    for a in range(len(trace)):
        for b in range(a):
            full = shared(fine[a], fine[b]) // n
            whole_of_both = int(fine[a] == fine[b] and len(fine[a]) % n > 0)
            tails = shared(coarse_rows[a], coarse_rows[b])
            assert full + whole_of_both == tails


def shared(one: list[int], other: list[int]) -> int:
    """Length of the common prefix."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


@given(trace=chains())
@settings(max_examples=50)
def test_segments_are_maximal_and_occur_together(trace: Trace) -> None:
    """Distinct segments hold distinct blocks once each, and grouping again finds nothing more to merge."""
    segments = tf.to_segments(trace)
    assert int(trace.block_tokens.sum()) == int(segments.block_tokens.sum())
    again = tf.to_segments(segments.with_meta(unit="block"))
    assert segments.block_ids.tolist() == again.block_ids.tolist()


@given(trace=chains(), width=st.integers(1, 100))
@settings(max_examples=50)
def test_jitter_moves_each_request_by_less_than_the_width(trace: Trace, width: int) -> None:
    """Every request (told by its output tokens) stays within [0, width) after its time; nothing else changes."""
    moved = tf.jitter(trace, width, 3)
    shift = moved.arrival_ns[np.argsort(moved.output_tokens)] - trace.arrival_ns
    assert 0 <= shift.min() <= shift.max() < width
    assert requested_tokens(trace) == requested_tokens(moved)
    assert sorted(trace.input_tokens.tolist()) == sorted(moved.input_tokens.tolist())


@given(trace=chains(), share=st.floats(0.1, 0.9), seed=st.integers(0, 50))
@settings(max_examples=50)
def test_samples_are_nested_and_keep_families_whole(trace: Trace, share: float, seed: int) -> None:
    """What a share keeps a larger one keeps too; requests of one session stay or go together."""
    kept = [set(output_of_sample(trace, part, seed)) for part in (share, share + 0.1)]
    assert kept[0] <= kept[1]
    for session in range(3):
        members = set(trace.output_tokens[trace.session == session].tolist())
        assert kept[0] & members in (set(), members)


def output_of_sample(trace: Trace, share: float, seed: int) -> list[int]:
    """The kept requests, told by their output tokens; none where the sample is empty."""
    try:
        return tf.sample_families(trace, share, seed).output_tokens.tolist()
    except TraceError:
        return []


@given(trace=chains(), tokens=st.integers(1, 100))
@settings(max_examples=50)
def test_the_window_rules_agree_on_what_is_too_long(trace: Trace, tokens: int) -> None:
    """Clipped prompts and their blocks fit the window, filtered ones are gone, and shorter ones are untouched."""
    clipped = tf.limit_window(trace, tokens, "clip")
    assert np.minimum(trace.input_tokens, tokens).tolist() == clipped.input_tokens.tolist()
    long = trace.input_tokens > tokens
    for request, blocks in enumerate(rows(clipped)):
        before = int(trace.block_tokens[trace.blocks_of(request)].sum())
        assert (min(before, tokens) if long[request] else before) == int(clipped.block_tokens[blocks].sum())
    if long.all():
        with pytest.raises(TraceError, match="leaves none of"):
            tf.limit_window(trace, tokens, "filter")
    else:
        kept = trace.output_tokens[~long].tolist()
        assert kept == tf.limit_window(trace, tokens, "filter").output_tokens.tolist()


@given(trace=chains(), factor=st.sampled_from([0.05, 0.1, 1 / 3, 0.7, 2, 3, 10, 1e-6]))
@settings(max_examples=50)
def test_scaled_arrivals_keep_their_order_and_their_blocks(trace: Trace, factor: float) -> None:
    """Only arrival times change, by at most half a nanosecond from the exact quotient."""
    scaled = tf.scale_rate(trace, factor)
    assert pytest.approx(trace.arrival_ns / factor, abs=0.5, rel=1e-12) == scaled.arrival_ns
    assert trace.block_ids.tolist() == scaled.block_ids.tolist()


def test_traces_without_blocks_pass_through_every_step() -> None:
    """A trace of arrivals and lengths only is legal input everywhere."""
    trace = build_trace(
        arrival_ns=[0, 1, 2],
        input_tokens=[5, 50, 15],
        output_tokens=[1, 1, 1],
        block_counts=[0, 0, 0],
        block_keys=[],
        occurrence_tokens=np.array([], dtype=np.int64),
        meta={"reuse": False},
    )
    for name, call in CALLS.items():
        assert 3 == len(call(trace)), name
