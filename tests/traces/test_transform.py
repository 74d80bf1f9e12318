"""Transformations by hand, and on the real Mooncake trace where it is present; laws are in test_transform_laws.py."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from simkv.errors import ConfigError, TraceError
from simkv.traces import transform as tf
from simkv.traces.formats import load_trace
from simkv.traces.generate import generate_trace
from simkv.traces.trace import Trace
from tests.conftest import make_trace

SECOND = 1_000_000_000


def requested_tokens(trace: Trace) -> int:
    return int(trace.block_tokens[trace.block_ids].astype(np.int64).sum())


def rows(trace: Trace) -> list[list[int]]:
    return [trace.blocks_of(r).tolist() for r in range(len(trace))]


def test_scaling_is_exact_in_decimals() -> None:
    """0.1 means one tenth: 3 ns become exactly 30, also far beyond what a float holds; halves round up."""
    trace = make_trace([[0], [0]])
    far = trace.transformed("by hand", arrival_ns=np.array([3, 2**59 + 1], dtype=np.int64))
    assert [30, 10 * (2**59 + 1)] == tf.scale_rate(far, 0.1).arrival_ns.tolist()
    assert [2, (2**59 + 2) // 2] == tf.scale_rate(far, 2).arrival_ns.tolist()
    with pytest.raises(TraceError, match="moves the last arrival beyond"):
        tf.scale_rate(far, 0.01)


def test_neutral_steps_return_the_trace_itself() -> None:
    """Rate 1, share 1, jitter 0 and groups of 1 change nothing and leave no record."""
    trace = make_trace([[0, 1], [0, 2]])
    for step in (
        tf.scale_rate(trace, 1),
        tf.sample_families(trace, 1.0, 0),
        tf.jitter(trace, 0, 0),
        tf.group_blocks(trace, 1),
    ):
        assert step is trace


def test_a_time_window_is_half_open_and_starts_at_zero() -> None:
    """Of arrivals at 0, 1, 2, 3 s the window [1 s, 3 s) keeps two, at 0 and 1 s, with blocks numbered anew."""
    trace = make_trace([[5, 6], [7], [7, 5], [6]])
    window = tf.time_window(trace, SECOND, 3 * SECOND)
    assert [0, SECOND] == window.arrival_ns.tolist()
    assert [[0], [0, 1]] == rows(window)
    assert [0, SECOND, 2 * SECOND] == tf.time_window(trace, SECOND).arrival_ns.tolist()
    with pytest.raises(TraceError, match=r"hand-made: time_window\(.*\) leaves none of 4 requests"):
        tf.time_window(trace, 10 * SECOND)
    with pytest.raises(ConfigError, match="stop_ns = 5 must be a whole number from 6"):
        tf.time_window(trace, 5, 5)


def test_block_sizes_survive_renumbering() -> None:
    """Blocks of different sizes keep theirs when others disappear."""
    trace = generate_trace("zipf", seed=0, requests=200, sd_tokens=4000)
    window = tf.time_window(trace, trace.arrival_ns[100])
    assert trace.input_tokens[100:].tolist() == window.block_tokens[window.block_ids].tolist()


def test_groups_by_hand() -> None:
    """Five blocks in groups of two: two full groups and a tail; an equal prefix is one group, a longer tail another."""
    trace = make_trace([[1, 2, 3, 4, 5], [1, 2, 3], [1, 2, 3, 4], [1, 9]], tokens=512)
    grouped = tf.group_blocks(trace, 2)
    assert [[0, 1, 2], [0, 3], [0, 1], [4]] == rows(grouped)
    assert [1024, 1024, 512, 512, 1024] == grouped.block_tokens.tolist()
    assert ("group:2", 1024) == (grouped.meta["unit"], grouped.meta["block_size"])
    with pytest.raises(TraceError, match="only blocks can be grouped, not units of 'group:2'"):
        tf.group_blocks(grouped, 2)


def test_a_short_group_is_never_a_full_one() -> None:
    """Where ids are not prefix hashes, a lone last block is told from a full group that ends in it."""
    assert [[0], [1]] == rows(tf.group_blocks(make_trace([[1, 2], [2]]), 2))


def test_segments_by_hand() -> None:
    """1-2 always occur together and so do 3-4; 5 follows 4 only once, so it stands alone."""
    trace = make_trace([[1, 2, 3, 4, 5], [1, 2], [1, 2, 3, 4]], tokens=10)
    segments = tf.to_segments(trace)
    assert [[0, 1, 2], [0], [0, 1]] == rows(segments)
    assert [20, 20, 10] == segments.block_tokens.tolist()
    assert ("segment", 0) == (segments.meta["unit"], segments.meta["block_size"])
    with pytest.raises(TraceError, match="in segments already"):
        tf.to_segments(segments)


def test_segments_need_the_same_neighbours_on_both_sides() -> None:
    """A block that follows two different ones joins neither, and a repeated block joins nothing."""
    assert [[0, 1], [2, 1]] == rows(tf.to_segments(make_trace([[1, 3], [2, 3]])))
    assert [[0, 0]] == rows(tf.to_segments(make_trace([[4, 4]])))
    assert [[0]] == rows(tf.to_segments(make_trace([[4, 5, 6]])))


def test_window_rules_by_hand() -> None:
    """Of four 512-token blocks a window of 1,100 tokens drops the last and cuts the third to 76 tokens."""
    trace = make_trace([[1, 2], [1, 2, 3, 4], [1, 2, 3, 4]], tokens=512)
    clipped = tf.limit_window(trace, 1100, "clip")
    assert [[0, 1], [0, 1, 2], [0, 1, 2]] == rows(clipped)
    assert [512, 512, 76] == clipped.block_tokens.tolist()
    assert [1024, 1100, 1100] == clipped.input_tokens.tolist()
    assert "2 requests lost 1896 tokens, 2 blocks dropped and 2 cut" in clipped.meta["notes"][-1]
    filtered = tf.limit_window(trace, 1100, "filter")
    assert [[0, 1]] == rows(filtered)
    assert "2 requests of more than 1100 tokens left out" in filtered.meta["notes"][-1]
    with pytest.raises(
        TraceError, match=r"request 1 has 2048 input tokens, more than the window of 1100 \(2 requests do\)"
    ):
        tf.limit_window(trace, 1100, "reject")
    assert rows(trace) == rows(tf.limit_window(trace, 2048, "reject"))
    with pytest.raises(ConfigError, match=r"unknown window rule 'clipp' .did you mean 'clip'"):
        tf.limit_window(trace, 1100, "clipp")


def test_a_cut_block_is_not_the_whole_one() -> None:
    """A block that one request holds whole and another only in part becomes two blocks."""
    trace = make_trace([[1, 2], [3, 1, 2]], tokens=100)
    assert [[0, 1], [2, 0, 3]] == rows(tf.limit_window(trace, 250, "clip"))


def test_families_by_hand() -> None:
    """Family: the session; else the second block; else the only block; else the request itself."""
    trace = make_trace([[0, 1], [0, 1, 2], [0, 3], [0], [], [], [0, 3], [0, 1]])
    trace = trace.transformed("by hand", session=np.array([-1, -1, -1, -1, -1, -1, 4, 4], dtype=np.int32))
    assert [0, 0, 0, 1] == tf.block_contexts(trace).tolist()
    names = [f"t{number}" for number in range(500)]
    task = tf.assign_tasks(trace, dict.fromkeys(names, 1.0), 11).task.tolist()
    assert task[0] == task[1]
    assert task[6] == task[7]
    assert 6 == len(set(task))


def test_contexts_without_blocks_or_requests() -> None:
    """A block that no request asks for has context -1; a trace without blocks has none."""
    trace = make_trace([[0], [1]])
    longer = trace.transformed("by hand", block_tokens=np.array([1, 1, 1], dtype=np.int32))
    assert [0, 1, -1] == tf.block_contexts(longer).tolist()
    assert [] == tf.block_contexts(make_trace([[], []])).tolist()


def test_tasks_follow_their_weights_and_are_not_the_sample() -> None:
    """A quarter of 4,000 contexts get the lighter task, also within a sample drawn with the same seed."""
    trace = generate_trace("zipf", seed=0, requests=40_000, contexts=4_000, exponent=0)
    mixed = tf.assign_tasks(trace, {"qa": 1, "coding": 3}, 5)
    assert ["qa", "coding"] == mixed.task_names
    assert pytest.approx(0.25, abs=0.02) == (mixed.task == 0).mean()
    sampled = tf.sample_families(mixed, 0.25, 5)
    assert pytest.approx(0.25, abs=0.03) == len(sampled) / len(trace)
    assert pytest.approx(0.25, abs=0.05) == (sampled.task == 0).mean()
    per_context = {(block, task) for block, task in zip(mixed.block_ids.tolist(), mixed.task.tolist(), strict=True)}
    assert trace.n_blocks == len(per_context)
    assert {0} == set(tf.assign_tasks(trace, "qa", 0).task.tolist())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda trace: tf.scale_rate(trace, 0), "rate factor = 0 must be"),
        (lambda trace: tf.sample_families(trace, 1.5, 0), "sample share = 1.5 must be"),
        (lambda trace: tf.sample_families(trace, 0.5, -1), "seed = -1 must be"),
        (lambda trace: tf.jitter(trace, -1, 0), "jitter width_ns = -1 must be"),
        (lambda trace: tf.limit_window(trace, 0, "clip"), "window_tokens = 0 must be"),
        (lambda trace: tf.group_blocks(trace, 0), "group_blocks = 0 must be"),
        (lambda trace: tf.assign_tasks(trace, {}, 0), "must be a task name or a mixture"),
        (lambda trace: tf.assign_tasks(trace, "", 0), "must be a task name or a mixture"),
        (lambda trace: tf.assign_tasks(trace, {"qa": 0}, 0), "weight of task qa = 0 must be"),
        (lambda trace: tf.time_window(trace, -1), "start_ns = -1 must be"),
    ],
)
def test_arguments_out_of_range_are_named(call: Callable[[Trace], Trace], says: str) -> None:
    """The error names the argument and its value."""
    with pytest.raises(ConfigError, match=says):
        call(make_trace([[0], [1]]))


def test_times_beyond_64_bits_are_refused() -> None:
    """Jitter that would overflow is an error, not a wrap-around."""
    trace = make_trace([[0]]).transformed("by hand", arrival_ns=np.array([2**63 - 10], dtype=np.int64))
    with pytest.raises(TraceError, match="jitter of 100 ns moves the last arrival beyond"):
        tf.jitter(trace, 100, 0)


@pytest.fixture(scope="module")
def mooncake(shared_traces: Path) -> Trace:
    return load_trace(shared_traces / "mooncake" / "conversation_trace.jsonl.gz")


def test_mooncake_first_ten_minutes(mooncake: Trace) -> None:
    """The first 600 s hold 1,750 requests and 34,850 distinct blocks."""
    window = tf.time_window(mooncake, 0, 600 * SECOND)
    assert (1_750, 34_850) == (len(window), window.n_blocks)


def test_mooncake_samples_keep_whole_families(mooncake: Trace) -> None:
    """A tenth of the families: every request of a kept family is kept, and about a tenth of the requests remain."""
    sample = tf.sample_families(mooncake, 0.1, 0)
    assert pytest.approx(0.1, abs=0.02) == len(sample) / len(mooncake)

    def families(trace: Trace) -> dict[int, int]:
        """Requests per family, as the multiset of (size, total input) that identifies it across renumbering."""
        second = np.array([(blocks[1] if len(blocks) > 1 else blocks[0]) for blocks in rows(trace)])
        totals: dict[int, int] = {}
        for family in np.unique(second):
            members = second == family
            key = hash((int(members.sum()), tuple(trace.input_tokens[members].tolist())))
            totals[key] = totals.get(key, 0) + 1
        return totals

    whole, part = families(mooncake), families(sample)
    assert [] == [key for key, count in part.items() if whole.get(key, 0) < count]


def test_mooncake_groups_and_segments_hold_all_tokens(mooncake: Trace) -> None:
    """144,793,823 input tokens in blocks, in groups of eight and in segments; groups number ceil(blocks / 8)."""
    grouped, segments = tf.group_blocks(mooncake, 8), tf.to_segments(mooncake)
    assert [144_793_823] * 3 == [requested_tokens(trace) for trace in (mooncake, grouped, segments)]
    assert (-(-np.diff(mooncake.block_offsets) // 8)).tolist() == np.diff(grouped.block_offsets).tolist()
    assert int(mooncake.block_tokens.astype(np.int64).sum()) == int(segments.block_tokens.astype(np.int64).sum())
    assert 15_787 == segments.n_blocks


def test_mooncake_clipping_at_a_block_border_cuts_nothing(mooncake: Trace) -> None:
    """A window of 64 blocks of 512 tokens drops whole blocks only."""
    clipped = tf.limit_window(mooncake, 32_768, "clip")
    assert 64 == int(np.diff(clipped.block_offsets).max())
    assert clipped.meta["notes"][-1].endswith("and 0 cut")
