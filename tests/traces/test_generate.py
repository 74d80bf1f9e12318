"""Generators: determinism, the promised shapes, lengths and arrivals, and errors that name the option."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from simkv.errors import ConfigError, TraceError
from simkv.traces.arrivals import arrival_times_ns, streams, token_lengths, zipf_shares
from simkv.traces.generate import GENERATORS, generate_trace, generator_options
from simkv.traces.trace import Trace

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
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in COLUMNS)


def requested_tokens(trace: Trace) -> np.ndarray:
    """Tokens of the blocks of each request, int64[R]."""
    sums = np.concatenate([[0], np.cumsum(trace.block_tokens[trace.block_ids])])
    return np.diff(sums[trace.block_offsets])


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_the_same_seed_gives_the_same_trace_and_another_seed_another(name: str) -> None:
    """Every generator is a function of its seed and says in its meta how it was made."""
    trace = generate_trace(name, seed=3)
    assert same(trace, generate_trace(name, seed=3))
    assert not same(trace, generate_trace(name, seed=4))
    assert trace.meta["source"].startswith(f"generated: {name}(seed=3, ")
    assert ("generated", name, True) == (trace.meta["format"], trace.meta["name"], trace.meta["reuse"])
    assert trace.meta["clock"].startswith("generated: ")
    assert 0 == trace.arrival_ns[0]


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_every_listed_option_is_accepted_and_a_misspelt_one_is_not(name: str) -> None:
    """The defaults that are listed are those used; an unknown option names the nearest."""
    options = generator_options(name)
    assert same(generate_trace(name, seed=1), generate_trace(name, seed=1, **options))
    with pytest.raises(
        ConfigError, match=f"unknown option of generator {name}: 'output_tokns' .did you mean 'output_t"
    ):
        generate_trace(name, seed=1, output_tokns=3)


def test_an_unknown_generator_names_the_nearest() -> None:
    """A misspelt generator is answered with the known one."""
    with pytest.raises(ConfigError, match=r"unknown generator 'adaptcache-codng' .did you mean 'adaptcache-coding'"):
        generate_trace("adaptcache-codng", seed=0)


BAD_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("zipf", {"requests": 0}),
    ("zipf", {"requests": 2.5}),
    ("zipf", {"requests": True}),
    ("zipf", {"contexts": "many"}),
    ("zipf", {"exponent": -1}),
    ("zipf", {"exponent": math.nan}),
    ("zipf", {"tokens": 0}),
    ("zipf", {"sd_tokens": math.inf}),
    ("zipf", {"block_tokens": -1}),
    ("zipf", {"rate_per_s": 0}),
    ("zipf", {"rate_per_s": "fast"}),
    ("zipf", {"output_tokens": -1}),
    ("zipf", {"burstiness": 0}),
    ("sessions", {"sessions": 0}),
    ("sessions", {"turns": 0.5}),
    ("sessions", {"think_s": 0}),
    ("sessions", {"think_sd_s": -1}),
    ("sessions", {"user_tokens": 0}),
    ("sessions", {"output_sd_tokens": -1}),
    ("sessions", {"block_tokens": 0}),
    ("sessions", {"window_tokens": 0}),
    ("sessions", {"system_tokens": -1}),
    ("rag", {"documents": 3, "documents_per_request": 4}),
    ("rag", {"question_tokens": -1}),
    ("rag", {"system_tokens": -1}),
    ("adaptcache-coding", {"share": 0}),
    ("adaptcache-coding", {"visits": 0}),
    ("adaptcache-qa", {"gap_s": -1}),
    ("adaptcache-qa", {"revisit_s": math.nan}),
    ("adaptcache-summarization", {"shuffle_seed": -1}),
    ("adaptcache-summarization", {"output_tokens": 1.5}),
]


@pytest.mark.parametrize(("name", "options"), BAD_OPTIONS)
def test_a_value_out_of_range_names_its_option(name: str, options: dict[str, Any]) -> None:
    """The error names the option and its value in one line."""
    key, value = list(options.items())[-1]
    with pytest.raises(ConfigError) as caught:
        generate_trace(name, seed=0, **options)
    assert f"{key} = {value!r} must be" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_seed_or_arrival_process_is_refused() -> None:
    """Seeds are whole numbers from 0; the arrival process is one of three."""
    with pytest.raises(ConfigError, match=r"seed = -1 must be a whole number"):
        generate_trace("zipf", seed=-1)
    with pytest.raises(ConfigError, match=r"unknown arrival process 'poison' .did you mean 'poisson'"):
        generate_trace("zipf", seed=0, arrivals="poison")


def test_what_would_not_fit_in_memory_or_time_is_refused() -> None:
    """Options whose product is too large are refused before anything is allocated."""
    with pytest.raises(ConfigError, match="these options make 8192000000 requested blocks"):
        generate_trace("zipf", seed=0, requests=1_000_000, block_tokens=1)
    with pytest.raises(ConfigError, match="would last longer than 146 years"):
        generate_trace("zipf", seed=0, requests=10_000, rate_per_s=1e-6)


def test_arrival_processes_have_the_rate_and_spread_they_promise() -> None:
    """Mean gap 1 / rate; coefficient of variation 0, 1 and the one asked for."""
    for arrivals, spread in (("uniform", 0.0), ("poisson", 1.0), ("bursty", 3.0)):
        times = arrival_times_ns(streams(0, 1)[0], 200_000, rate_per_s=4.0, arrivals=arrivals, burstiness=3.0)
        gaps = np.diff(times) / 1e9
        assert 0 == times[0]
        assert pytest.approx(0.25, rel=0.02) == gaps.mean()
        assert pytest.approx(spread, rel=0.03, abs=1e-9) == gaps.std() / gaps.mean()
    exact = arrival_times_ns(streams(0, 1)[0], 3, rate_per_s=4.0, arrivals="uniform", burstiness=1.0)
    assert [0, 250_000_000, 500_000_000] == exact.tolist()


def test_lengths_have_the_mean_and_spread_they_promise() -> None:
    """Log-normal lengths: mean and sd before clipping; sd 0 is the mean itself; clipping is exact."""
    rng = streams(0, 1)[0]
    drawn = token_lengths(rng, 200_000, 12_500, 6_000)
    assert pytest.approx(12_500, rel=0.01) == drawn.mean()
    assert pytest.approx(6_000, rel=0.02) == drawn.std()
    assert [8192] * 5 == token_lengths(rng, 5, 8192, 0).tolist()
    clipped = token_lengths(rng, 1000, 100, 400, most=300)
    assert (1, 300) == (clipped.min(), clipped.max())


def test_zipf_shares_by_hand() -> None:
    """Three ranks with exponent 1: 6/11, 3/11, 2/11; exponent 0 is uniform."""
    assert pytest.approx([6 / 11, 3 / 11, 2 / 11]) == zipf_shares(3, 1.0)
    assert pytest.approx([0.25] * 4) == zipf_shares(4, 0.0)


def test_zipf_requests_follow_the_popularity() -> None:
    """The most popular of ten contexts gets its Zipf share of 20,000 requests."""
    trace = generate_trace("zipf", seed=5, requests=20_000, contexts=10)
    counts = np.sort(np.bincount(trace.block_ids))[::-1]
    assert pytest.approx(zipf_shares(10, 1.0), abs=0.01) == counts / counts.sum()


def test_zipf_blocks_cut_a_context_without_loss() -> None:
    """Blocks of 512 tokens hold exactly the context; the only short one is the last; the same draws underlie both."""
    whole = generate_trace("zipf", seed=2, contexts=20, tokens=3000, sd_tokens=2000)
    cut = generate_trace("zipf", seed=2, contexts=20, tokens=3000, sd_tokens=2000, block_tokens=512)
    assert whole.input_tokens.tolist() == requested_tokens(whole).tolist() == requested_tokens(cut).tolist()
    assert whole.arrival_ns.tolist() == cut.arrival_ns.tolist()
    last = np.zeros(len(cut.block_ids), dtype=bool)
    last[cut.block_offsets[1:] - 1] = True
    assert {512} == set(cut.block_tokens[cut.block_ids[~last]].tolist())
    assert (512, 0) == (cut.meta["block_size"], whole.meta["block_size"])


def test_changing_one_option_leaves_the_other_draws_alone() -> None:
    """Bursty arrivals change the times and nothing else (common random numbers)."""
    one = generate_trace("zipf", seed=2)
    other = generate_trace("zipf", seed=2, arrivals="bursty")
    assert one.block_ids.tolist() == other.block_ids.tolist()
    assert one.arrival_ns.tolist() != other.arrival_ns.tolist()


@pytest.fixture(scope="module")
def chats() -> Trace:
    return generate_trace("sessions", seed=1, sessions=200, system_tokens=1100, block_tokens=512)


def test_sessions_are_true_prefix_chains(chats: Trace) -> None:
    """A block has one predecessor wherever it occurs, and prompts are covered by their blocks."""
    assert chats.input_tokens.tolist() == requested_tokens(chats).tolist()
    starts = np.zeros(len(chats.block_ids), dtype=bool)
    starts[chats.block_offsets[:-1]] = True
    before = np.where(starts, -1, np.concatenate([[-1], chats.block_ids[:-1]]))
    assert chats.n_blocks == len(set(zip(before.tolist(), chats.block_ids.tolist(), strict=True)))


def test_each_turn_repeats_the_full_blocks_of_the_turn_before(chats: Trace) -> None:
    """All full blocks of a turn lead the next one; its partial last block never comes back."""
    seen_again = 0
    for session in range(200):
        turns = [chats.blocks_of(r) for r in np.flatnonzero(chats.session == session).tolist()]
        for before, after in pairwise(turns):
            full = before[chats.block_tokens[before] == 512]
            assert full.tolist() == after[: len(full)].tolist()
            assert not set(before[len(full) :].tolist()) & set(after.tolist())
            seen_again += 1
    assert seen_again == len(chats) - 200 > 500


def test_sessions_share_the_full_blocks_of_the_system_prompt_and_nothing_else(chats: Trace) -> None:
    """1,100 system tokens are two full shared blocks; every other block belongs to one session."""
    owners = [{chats.session[r] for r in range(len(chats)) if block in chats.blocks_of(r)} for block in (0, 1)]
    assert [200, 200] == [len(owner) for owner in owners]
    of_block = np.repeat(chats.session, np.diff(chats.block_offsets))
    others = {
        (block, owner) for block, owner in zip(chats.block_ids.tolist(), of_block.tolist(), strict=True) if block > 1
    }
    assert len(others) == len({block for block, _ in others}) == chats.n_blocks - 2


def test_a_chat_ends_at_the_window(chats: Trace) -> None:
    """With a small window long chats lose their tail, which is counted; with a tiny one nothing is left."""
    limited = generate_trace("sessions", seed=1, sessions=200, system_tokens=1100, window_tokens=3000)
    assert 3000 >= limited.input_tokens.max()
    left_out = len(chats) - len(limited)
    assert 0 < left_out
    assert [f"{left_out} turns of more than 3000 prompt tokens left out"] == limited.meta["notes"]
    with pytest.raises(TraceError, match="no prompt fits window_tokens = 1000"):
        generate_trace("sessions", seed=1, system_tokens=1100, window_tokens=1000)


def test_rag_blocks_are_identified_by_their_prefix() -> None:
    """Equal leading documents give equal blocks, all 6 x 5 x 4 orders occur; the question has tokens but no block."""
    trace = generate_trace("rag", seed=4, requests=5000, documents=6, documents_per_request=3, exponent=0)
    rows = trace.block_ids.reshape(len(trace), 4)
    assert {0} == set(rows[:, 0].tolist())
    assert 6 + 6 * 5 + 6 * 5 * 4 == trace.n_blocks - 1
    for depth in range(1, 4):
        paths = {tuple(row[: depth + 1]) for row in rows.tolist()}
        assert len(paths) == len({path[-1] for path in paths})
    assert {50} == set((trace.input_tokens - requested_tokens(trace)).tolist())


def test_rag_draws_popular_documents_first_more_often() -> None:
    """With exponent 1 the first document of a prompt follows the Zipf shares."""
    trace = generate_trace("rag", seed=4, requests=20_000, documents=5, documents_per_request=1, system_tokens=0)
    counts = np.sort(np.bincount(trace.block_ids))[::-1]
    assert pytest.approx(zipf_shares(5, 1.0), abs=0.01) == counts / counts.sum()
