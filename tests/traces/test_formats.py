"""Recognising formats, and load_trace, the one way to read any of them."""

import gzip
import json
from pathlib import Path

import pytest

from simkv.errors import TraceError
from simkv.traces import FORMATS, load_trace, save_trace, sniff

SAMPLES = Path(__file__).parent / "samples"
SAMPLE_OF = {
    "mooncake.jsonl": "mooncake",
    "aiperf.jsonl": "aiperf",
    "bailian.jsonl": "bailian",
    "sessions": "sessions",
    "sessions/a.json": "sessions",
    "azure2023.csv": "azure",
    "azure2024.csv": "azure",
    "burstgpt.csv": "burstgpt",
    "burstgpt_v1.csv": "burstgpt",
    "lmcache_agent.jsonl": "lmcache-agent",
    "sharegpt_tokens.jsonl": "sharegpt-tokens",
    "lookup_hash.jsonl": "lookup-hash",
}


@pytest.mark.parametrize(("name", "expected"), SAMPLE_OF.items())
def test_each_sample_is_recognised(name: str, expected: str) -> None:
    """The first record is enough to tell the format."""
    assert expected == sniff(SAMPLES / name)


def test_every_format_has_a_sample() -> None:
    """A new format comes with a sample; stored and empty traces need none."""
    assert set(FORMATS) == set(SAMPLE_OF.values()) | {"parquet", "empty"}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ('{"input_length": 5, "hash_ids": [1]}', "aiperf"),
        ('{"text_input": "hello"}', "aiperf"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1], "session_id": "a"}', "aiperf"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1], "type": "x"}', "mooncake"),
        ('\n\n  {"timestamp": 0, "total_tokens": 5, "chunk_hashes": []}', "lookup-hash"),
        ("", "empty"),
        ("\n \n", "empty"),
    ],
)
def test_the_keys_decide(tmp_path: Path, record: str, expected: str) -> None:
    """Neighbouring formats are told apart by the keys of the first record, whatever follows it."""
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress((record + ("\nrubbish" if record.strip() else "")).encode()))
    assert expected == sniff(path)


def test_leading_empty_files_of_a_folder_are_passed_over(tmp_path: Path) -> None:
    """A folder is recognised by the first record there is."""
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.jsonl").write_text((SAMPLES / "mooncake.jsonl").read_text())
    assert ("mooncake", 5) == (sniff(tmp_path), len(load_trace(tmp_path)))


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ('{"time": 1, "tokens": 7}', "its keys are ['time', 'tokens']"),
        ("id,tokens", "it begins with 'id,tokens'"),
        ("{oops", "it is not JSON"),
        ("[1, 2]", "it begins with '[1, 2]'"),
        ("{" + '"a":{' * 100_000, "it is not JSON"),
    ],
)
def test_an_unknown_format_says_what_is_known(tmp_path: Path, text: str, first: str) -> None:
    """When nothing fits, the error shows the beginning and lists the formats."""
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError) as caught:
        load_trace(path)
    assert f"no known trace format fits the first record ({first}); known: mooncake, aiperf" in str(caught.value)


def test_an_unknown_name_suggests_the_nearest() -> None:
    """A misspelt format is answered with the nearest known one."""
    with pytest.raises(TraceError, match="unknown trace format 'moncake' .did you mean 'mooncake'"):
        load_trace(SAMPLES / "mooncake.jsonl", "moncake")


def test_the_facts_say_how_the_format_was_chosen() -> None:
    """The format, and whether it was recognised or given, stand in the facts, with name and hash."""
    recognised = load_trace(SAMPLES / "mooncake.jsonl").meta
    given = load_trace(str(SAMPLES / "mooncake.jsonl"), "mooncake").meta
    assert ("mooncake", "mooncake", "mooncake.jsonl") == tuple(given[key] for key in ("format", "name", "source"))
    assert "read as mooncake, recognised from the first record" == recognised["notes"][0]
    assert "read as mooncake, as asked for" == given["notes"][0]
    assert 64 == len(given["sha256"])
    assert json.loads(json.dumps(given)) == given


@pytest.mark.parametrize("name", SAMPLE_OF)
def test_facts_are_json(name: str) -> None:
    """Every reader's facts can be stored."""
    meta = load_trace(SAMPLES / name).meta
    assert json.loads(json.dumps(meta)) == meta


def test_a_stored_trace_is_recognised_and_keeps_its_facts(tmp_path: Path) -> None:
    """Parquet files of save_trace load like any other, as they were."""
    trace = load_trace(SAMPLES / "mooncake.jsonl")
    save_trace(trace, tmp_path / "x.parquet")
    assert "parquet" == sniff(tmp_path / "x.parquet")
    stored = load_trace(tmp_path / "x.parquet", cache=False)
    assert (trace.meta, trace.block_ids.tolist()) == (stored.meta, stored.block_ids.tolist())
    assert ["x.parquet"] == [file.name for file in tmp_path.iterdir()]


def test_a_file_with_records_is_never_read_as_empty() -> None:
    """Asking for the format "empty" does not hide requests."""
    with pytest.raises(TraceError, match="line 1: not empty"):
        load_trace(SAMPLES / "mooncake.jsonl", "empty")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    """A wrong path is bad input, not a traceback."""
    with pytest.raises(TraceError, match="no such file or folder"):
        load_trace(tmp_path / "absent.jsonl")
