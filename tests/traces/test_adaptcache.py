"""AdaptCache's workloads: the published counts and lengths, two visits each, and the file of lengths."""

from pathlib import Path

import numpy as np
import pytest

from simkv.errors import ConfigError, TraceError
from simkv.traces import shipped
from simkv.traces.adaptcache import adaptcache, read_lengths
from simkv.traces.generate import generate_trace

ADAPTCACHE = [
    ("adaptcache-coding", 300, {"lcc": 156, "repobench-p": 144}),
    ("adaptcache-qa", 400, {"triviaqa": 200, "hotpotqa": 200}),
    ("adaptcache-summarization", 400, {"qmsum": 200, "samsum": 200}),
]


@pytest.mark.parametrize(("name", "contexts", "tasks"), ADAPTCACHE)
def test_adaptcache_visits_every_context_exactly_twice(name: str, contexts: int, tasks: dict[str, int]) -> None:
    """Published counts; each context is one block; second visits come in nearly the order of the first."""
    trace = generate_trace(name, seed=0)
    assert (2 * contexts, contexts) == (len(trace), trace.n_blocks)
    assert [2] * contexts == np.bincount(trace.block_ids).tolist()
    assert trace.input_tokens.tolist() == trace.block_tokens[trace.block_ids].tolist()
    assert {100} == set(trace.output_tokens.tolist())
    assert 0 == trace.meta["block_size"]
    assert 131_072 >= trace.input_tokens.max()
    by_task = {task: int((trace.task == index).sum()) // 2 for index, task in enumerate(trace.task_names)}
    assert tasks == by_task
    _, first = np.unique(trace.block_ids, return_index=True)
    second = np.delete(trace.block_ids, first)
    assert 0.9 < np.corrcoef(np.arange(contexts), second)[0, 1]
    assert {0} == set((trace.arrival_ns % 1_000_000_000).tolist())


def test_adaptcache_first_visits_precede_second_ones() -> None:
    """In the coding workload (300 contexts, second visits 360 s later) no second visit comes among the first 250."""
    trace = generate_trace("adaptcache-coding", seed=0)
    assert list(range(250)) == trace.block_ids[:250].tolist()


def test_adaptcache_coding_lengths_are_the_published_ones() -> None:
    """Mean 14.3k tokens, 563 GB of raw KV at 131,072 B/token, and the published percentiles."""
    trace = generate_trace("adaptcache-coding", seed=0)
    tokens = trace.block_tokens.astype(np.int64)
    assert pytest.approx(14_319, abs=1) == tokens.mean()
    assert pytest.approx(563.0, abs=0.1) == tokens.sum() * 131_072 / 1e9
    assert pytest.approx([1_900, 6_100, 14_100, 20_800, 30_400], rel=0.03) == np.percentile(tokens, [5, 25, 50, 75, 95])
    lcc = trace.input_tokens[trace.task == 0]
    assert lcc.max() <= trace.input_tokens[trace.task == 1].min()
    assert "dataset label by length" in trace.meta["notes"][0]


def test_adaptcache_assumed_lengths_say_so_and_fit_the_published_prefill_mean() -> None:
    """QA: prefill at 1.17926e-4 s/token - 0.1436 s averages 1.381 s as published, within 3 % over 20 seeds."""
    traces = [generate_trace("adaptcache-qa", seed=seed) for seed in range(20)]
    prefill = [float(np.mean(1.17926e-4 * trace.input_tokens - 0.1436)) for trace in traces]
    assert pytest.approx(1.381, rel=0.03) == np.mean(prefill)
    assert "assumed, not published" in traces[0].meta["notes"][0]


def test_adaptcache_options_do_what_they_say() -> None:
    """A share keeps that many contexts, visits repeat them, and the order of contexts has a seed of its own."""
    half = generate_trace("adaptcache-coding", seed=0, share=0.5, visits=3)
    assert (150, [3] * 150) == (half.n_blocks, np.bincount(half.block_ids).tolist())
    one, other = (generate_trace("adaptcache-coding", seed=seed).block_tokens.tolist() for seed in (0, 1))
    assert one == other
    shuffled = generate_trace("adaptcache-coding", seed=0, shuffle_seed=7).block_tokens.tolist()
    assert one != shuffled
    assert sorted(one) == sorted(shuffled)


def test_an_installed_simkv_finds_its_files_under_the_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from a checkout the files are in share/simkv/traces of the prefix; a checkout's own come first."""
    monkeypatch.setattr(shipped.sys, "prefix", str(tmp_path))
    folder = tmp_path / "share" / "simkv" / "traces"
    folder.mkdir(parents=True)
    for name in ("other.csv", "registry.toml"):
        (folder / name).write_text("")
    assert folder / "other.csv" == shipped.shipped_file("other.csv")
    assert tmp_path not in shipped.shipped_file("registry.toml").parents


def test_a_missing_shipped_file_is_named() -> None:
    """The error says which file is missing and where it was looked for."""
    with pytest.raises(
        TraceError, match=r"no-such\.csv: this file of simkv is missing; looked in .*traces and .*traces"
    ):
        shipped.shipped_file("no-such.csv")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "header 'tokens'"),
        ("# comment\nlength\n3\n", "header 'tokens'"),
        ("tokens\n3\n-4\n", "line 3: '-4' is not a length"),
        ("# c\n\ntokens\n0\n", "line 4: '0' is not a length"),
        ("tokens\n3.5\n", r"line 2: '3\.5' is not a length"),
        ("tokens\n99999999999999999999\n", "line 2: '99999999999999999999' is not a length"),
        ("tokens\n²\n", "line 2: '²' is not a length"),
    ],
)
def test_a_malformed_file_of_lengths_names_the_line(tmp_path: Path, text: str, says: str) -> None:
    """Bad numbers, a wrong header and emptiness are one line each with file and line."""
    path = tmp_path / "lengths.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TraceError, match=says) as caught:
        read_lengths(path)
    assert str(path) in str(caught.value)


def test_an_unreadable_file_of_lengths_is_one_line(tmp_path: Path) -> None:
    """Missing, binary and oversized files are refused."""
    with pytest.raises(TraceError, match="cannot read context lengths"):
        read_lengths(tmp_path / "none.csv")
    path = tmp_path / "lengths.csv"
    path.write_bytes(b"tokens\n\xff\xfe\n")
    with pytest.raises(TraceError, match="cannot read context lengths"):
        read_lengths(path)
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(TraceError, match="larger than 1048576 bytes"):
        read_lengths(path)


def test_an_unknown_task_names_the_nearest() -> None:
    """Called directly, the workload's task is checked too."""
    with pytest.raises(ConfigError, match=r"unknown AdaptCache task 'codng' .did you mean 'coding'"):
        adaptcache("codng")
