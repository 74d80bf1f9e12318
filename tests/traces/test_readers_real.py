"""The real public traces beside the checkout give exactly the numbers that were established for them."""

from pathlib import Path

import numpy as np
import pytest

from simkv.traces import Trace, load_trace
from simkv.traces.files import Source


def percentiles(values: np.ndarray) -> list[int]:
    """Min, median, mean (rounded), p90, p99 and max; percentiles are the next value of the data above."""
    p50, p90, p99 = (int(np.percentile(values, share, method="higher")) for share in (50, 90, 99))
    return [int(values.min()), p50, round(float(values.mean())), p90, p99, int(values.max())]


@pytest.fixture(scope="module")
def mooncake(shared_traces: Path) -> Trace:
    """The Mooncake conversation trace."""
    return load_trace(shared_traces / "mooncake" / "conversation_trace.jsonl.gz")


@pytest.fixture(scope="module")
def weka(shared_traces: Path) -> Trace:
    """The agentic sessions, merged."""
    return load_trace(shared_traces / "weka_agentic")


def test_mooncake_lengths_and_times(mooncake: Trace) -> None:
    """12,031 requests over 3,537.0 s with the published distribution of lengths."""
    assert 12_031 == len(mooncake)
    assert 3537.0 == round(mooncake.duration_s, 1)
    assert [891, 6_909, 12_035, 27_367, 85_401, 126_195] == percentiles(mooncake.input_tokens)
    assert [1, 350, 343, 597, 1_120, 2_000] == percentiles(mooncake.output_tokens)
    assert 144_793_823 == int(mooncake.input_tokens.sum())


def test_mooncake_blocks(mooncake: Trace) -> None:
    """288,500 requested blocks, 182,790 distinct, 138,646 used once; block counts all match the lengths."""
    uses = np.bincount(mooncake.block_ids)
    assert (288_500, 182_790, 138_646) == (len(mooncake.block_ids), mooncake.n_blocks, int((uses == 1).sum()))
    assert {0} == set(mooncake.block_ids[mooncake.block_offsets[:-1]].tolist())
    assert ["read as mooncake, recognised from the first record"] == mooncake.meta["notes"]


def test_mooncake_first_minutes(mooncake: Trace) -> None:
    """The first 600 s hold 1,750 requests and 34,850 distinct blocks."""
    early = int(np.searchsorted(mooncake.arrival_ns, 600 * 10**9))
    assert (1_750, 34_850) == (early, int(mooncake.block_ids[: mooncake.block_offsets[early]].max()) + 1)


def test_mooncake_token_reuse(mooncake: Trace) -> None:
    """An unlimited cache hits 105,710 blocks (0.3664) and 0.3736 of the tokens."""
    requested, distinct = len(mooncake.block_ids), mooncake.n_blocks
    assert (105_710, 0.3664) == (requested - distinct, round((requested - distinct) / requested, 4))
    firsts = np.unique(mooncake.block_ids, return_index=True)[1]
    first_of = np.zeros(requested, dtype=bool)
    first_of[firsts] = True
    request_of = np.repeat(np.arange(len(mooncake)), np.diff(mooncake.block_offsets))
    hits = np.bincount(request_of[~first_of], minlength=len(mooncake))
    hit_tokens = np.minimum(hits * 512, mooncake.input_tokens).sum()
    assert 0.3736 == round(float(hit_tokens) / float(mooncake.input_tokens.sum()), 4)


def test_weka_merge(weka: Trace) -> None:
    """82 sessions, 3,300 requests, 131,323 distinct of 3,262,925 requested blocks of 64 tokens."""
    assert (82, 3_300) == (len(np.unique(weka.session)), len(weka))
    assert (131_323, 3_262_925, 64) == (weka.n_blocks, len(weka.block_ids), weka.meta["block_size"])
    assert {64} == set(weka.block_tokens.tolist())
    assert int(weka.input_tokens.max()) <= 131_072
    starts = [int(weka.arrival_ns[weka.session == session][0]) for session in range(82)]
    assert [session * 60 * 10**9 for session in range(82)] == starts


@pytest.mark.slow
def test_weka_whole(shared_traces: Path) -> None:
    """With subagents and any length: 240 sessions, 16,131 requests up to 880,502 tokens, 6 outputs of zero."""
    trace = load_trace(shared_traces / "weka_agentic", include_subagents=True, max_input_tokens=10**6)
    assert (240, 16_131, 30_661_252) == (len(np.unique(trace.session)), len(trace), len(trace.block_ids))
    assert (880_502, 6) == (int(trace.input_tokens.max()), int((trace.output_tokens == 0).sum()))


def test_derived_bailian(shared_traces: Path) -> None:
    """424 requests in 24 sessions, 877,656 requested and 67,728 distinct blocks of 16 tokens."""
    trace = load_trace(shared_traces / "derived" / "bailian_schema_from_weka.jsonl.gz", "bailian")
    assert (424, 24) == (len(trace), len(np.unique(trace.session)))
    assert (877_656, 67_728) == (len(trace.block_ids), trace.n_blocks)


def test_azure(shared_traces: Path) -> None:
    """19,366 rows over 3,501.7 s with the published distribution of lengths."""
    trace = load_trace(shared_traces / "azure2023")
    assert (19_366, 3501.7) == (len(trace), round(trace.duration_s, 1))
    assert [1_020, 1_155, 2_735, 4_142, 14_050] == percentiles(trace.input_tokens)[1:]
    assert [129, 211, 424, 601, 1_000] == percentiles(trace.output_tokens)[1:]
    assert 3_501_721_937_000 == int(trace.arrival_ns[-1])


def test_lmcache_agent(shared_traces: Path) -> None:
    """45 files, 43 of them not in time order and one empty; 873 requests of 44 sessions in all."""
    files = Source(shared_traces / "lmcache_agent").files
    traces = [load_trace(file) for file in files]
    unordered = [trace for trace in traces if any("sorted by arrival" in note for note in trace.meta["notes"])]
    assert (45, 43) == (len(files), len(unordered))
    assert 1 == sum(len(trace) == 0 for trace in traces)
    whole = load_trace(shared_traces / "lmcache_agent")
    assert (873, 44) == (len(whole), len(np.unique(whole.session)))


def test_sharegpt_reuse(shared_traces: Path) -> None:
    """At 16-token blocks an unlimited cache hits 1,220 of the 15,942 full prompt blocks: 0.0765."""
    trace = load_trace(shared_traces / "llmservingsim", "sharegpt-tokens")
    hits = len(trace.block_ids) - trace.n_blocks
    assert (300, 15_942, 1_220) == (len(trace), len(trace.block_ids), hits)
    assert 0.0765 == round(hits / len(trace.block_ids), 4)
