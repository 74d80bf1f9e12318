"""Each format's small hand-written sample, read and compared with numbers worked out by hand."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from simkv.errors import ConfigError, TraceError
from simkv.traces import Trace, load_trace

SAMPLES = Path(__file__).parent / "samples"


def blocks(trace: Trace) -> list[list[int]]:
    return [trace.blocks_of(request).tolist() for request in range(len(trace))]


def write(folder: Path, records: Sequence[Any]) -> Path:
    path = folder / "some.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def has_note(trace: Trace, text: str) -> bool:
    return any(text in note for note in trace.meta["notes"])


def test_mooncake() -> None:
    """Milliseconds become ns, ids become dense, the partial last block holds what is left of the input."""
    trace = load_trace(SAMPLES / "mooncake.jsonl", "mooncake")
    assert [0, 0, 3_000_000_000, 3_000_500_000, 6_001_000_000] == trace.arrival_ns.tolist()
    assert [1100, 512, 1500, 30, 1024] == trace.input_tokens.tolist()
    assert [20, 0, 31, 5, 9] == trace.output_tokens.tolist()
    assert [[0, 1, 2], [0], [0, 1, 3], [4], [0, 1]] == blocks(trace)
    assert [512, 512, 76, 476, 30] == trace.block_tokens.tolist()
    assert [-1] * 5 == trace.session.tolist()
    assert (512, True, "shared") == tuple(trace.meta[key] for key in ("block_size", "reuse", "clock"))


def test_mooncake_block_count_mismatches_are_counted_not_repaired(tmp_path: Path) -> None:
    """Too many and too few ids are used as given: a surplus block holds one token; the notes count both."""
    records = [
        {"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1, 2, 3]},
        {"timestamp": 0, "input_length": 2000, "output_length": 1, "hash_ids": [4]},
        {"timestamp": 0, "input_length": 0, "output_length": 1, "hash_ids": []},
    ]
    trace = load_trace(write(tmp_path, records), "mooncake")
    assert [[0, 1, 2], [3], []] == blocks(trace)
    assert [512, 88, 1, 512] == trace.block_tokens.tolist()
    assert has_note(trace, "2 of 3 requests list another number of blocks than ceil(input / 512)")


def test_mooncake_block_size_is_an_option(tmp_path: Path) -> None:
    """The same ids mean smaller blocks when the file was made with smaller blocks."""
    record = {"timestamp": 0, "input_length": 130, "output_length": 1, "hash_ids": [1, 2, 3]}
    trace = load_trace(write(tmp_path, [record]), "mooncake", block_size=64)
    assert [64, 64, 2] == trace.block_tokens.tolist()


def test_aiperf() -> None:
    """A turn without a time arrives at its delay after the turn before it; all is sorted by arrival."""
    trace = load_trace(SAMPLES / "aiperf.jsonl", "aiperf")
    assert [400_000_000, 1_000_000_000, 1_250_500_000, 1_300_500_000, 2_000_000_000] == trace.arrival_ns.tolist()
    assert [1, 0, 0, 0, -1] == trace.session.tolist()
    assert [512, 700, 900, 1300, 64] == trace.input_tokens.tolist()
    assert [0, 10, 12, 8, 2] == trace.output_tokens.tolist()
    assert [[0], [0, 1], [0, 2], [0, 2, 3], []] == blocks(trace)
    assert trace.meta["clock"] == "turns without a timestamp arrive at their delay after the turn before arrived"
    for text in ("1 of 5 records have no hash_ids", "1 of 5 records have no output_length", "2 of 5 turns have no"):
        assert has_note(trace, text)


def test_aiperf_without_any_clock_needs_an_explicit_rule(tmp_path: Path) -> None:
    """Conversations without a timestamp are refused until their gap is given; the rule is then recorded."""
    records = [
        {"session_id": "a", "input_length": 1, "output_length": 1},
        {"session_id": "a", "input_length": 1, "output_length": 1, "delay": 2},
        {"session_id": "b", "input_length": 2, "output_length": 1},
        {"input_length": 3, "output_length": 1, "delay": 1},
    ]
    path = write(tmp_path, records)
    with pytest.raises(TraceError, match="line 1: no timestamp.*option gap_s"):
        load_trace(path, "aiperf")
    trace = load_trace(path, "aiperf", gap_s=0.5)
    assert [0, 2_000_000, 500_000_000, 1_001_000_000] == trace.arrival_ns.tolist()
    assert "conversations without a timestamp begin 500000000 ns apart" in trace.meta["clock"]
    assert not trace.meta["reuse"]


@pytest.mark.parametrize("key", ["text_input", "messages", "payload"])
def test_aiperf_text_is_refused(tmp_path: Path, key: str) -> None:
    """A prompt without its length cannot be simulated, and the error says what to do."""
    with pytest.raises(TraceError, match=f"line 1: {key} holds a prompt, not its length"):
        load_trace(write(tmp_path, [{"timestamp": 0, key: "What is it?", "output_length": 3}]))


def test_aiperf_block_size_comes_from_the_option_or_the_records(tmp_path: Path) -> None:
    """Records may state their block size; a contradiction is an error, never a guess."""
    record = {"timestamp": 0, "input_length": 100, "output_length": 1, "hash_ids": [1, 2]}
    stated = write(tmp_path, [{**record, "block_size": 64}, record])
    assert [64, 36] == load_trace(stated).block_tokens.tolist()
    with pytest.raises(TraceError, match="block_size is 64, it must be 512"):
        load_trace(stated, "aiperf", block_size=512)
    with pytest.raises(TraceError, match="line 2: block_size is 64, it must be 512"):
        load_trace(write(tmp_path, [record, {**record, "block_size": 64}]), "aiperf")


def test_bailian() -> None:
    """A session is everything with the same first turn; a parent that is not there begins a new one."""
    trace = load_trace(SAMPLES / "bailian.jsonl", "bailian")
    assert [250_000_000, 1_100_000_000, 2_000_000_000, 2_003_000_000, 3_500_000_000] == trace.arrival_ns.tolist()
    assert [0, 1, 0, 0, 2] == trace.session.tolist()
    assert [[0, 1, 2], [3], [0, 1, 4], [0, 1, 4, 5], [6, 7]] == blocks(trace)
    assert [16, 16, 8, 16, 16, 16, 16, 1] == trace.block_tokens.tolist()
    assert has_note(trace, "1 of 5 requests name a parent_chat_id that is not above them")


def test_sessions_are_merged_by_the_rule() -> None:
    """Kept sessions start a minute apart, times tie by session, ids are local, the tail is not hashed."""
    trace = load_trace(SAMPLES / "sessions", "sessions")
    assert [0, 60_000_000_000, 60_000_000_000] == trace.arrival_ns.tolist()
    assert [0, 0, 1] == trace.session.tolist()
    assert [130, 200, 70] == trace.input_tokens.tolist()
    assert [[0, 1], [0, 1, 2], [3]] == blocks(trace)
    assert [64, 64, 64, 64] == trace.block_tokens.tolist()
    assert trace.meta["clock"] == "session k starts at k x 60 s, recorded times within a session"
    assert has_note(trace, "2 of 4 session files are used")
    assert has_note(trace, "1 left out for subagents, 1 for an input above 131072 tokens")


def test_sessions_with_subagents_and_other_options() -> None:
    """A subagent's times count from its marker; the window and the gap are options."""
    trace = load_trace(SAMPLES / "sessions", include_subagents=True, gap_s="1 h", max_input_tokens=140_000)
    hour = 3600.0
    assert [0.0, 60.0, hour, hour + 1.5, hour + 3, hour + 3.75, 2 * hour, 3 * hour] == (trace.arrival_ns / 1e9).tolist()
    assert [0, 0, 1, 1, 1, 1, 2, 3] == trace.session.tolist()
    assert [[0, 1], [0, 1, 2], [3], [4, 5], [3, 6], [4, 5], [7], [8]] == blocks(trace)
    assert has_note(trace, "1 of 8 requests list another number of blocks than floor(input / 64)")


def test_a_single_session_file() -> None:
    """One file is a trace of one session."""
    assert 2 == len(load_trace(SAMPLES / "sessions" / "a.json"))


def test_sessions_with_global_ids_share_blocks(tmp_path: Path) -> None:
    """Files that declare their ids global are not told apart."""
    for name in ("a", "b"):
        requests = [{"t": 0, "in": 64, "out": 1, "hash_ids": [5]}]
        document = {"id": name, "block_size": 64, "hash_id_scope": "global", "requests": requests}
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    assert [[0], [0]] == blocks(load_trace(tmp_path))


def test_azure_2023() -> None:
    """Seven fractional digits are exact, the first arrival becomes 0, and there is no reuse information."""
    trace = load_trace(SAMPLES / "azure2023.csv", "azure")
    assert [0, 100, 13_319_410_000, 20_653_819_410_000] == trace.arrival_ns.tolist()
    assert [300, 20, 1000, 5] == trace.input_tokens.tolist()
    assert [40, 0, 7, 6] == trace.output_tokens.tolist()
    assert (False, 0, 0) == (trace.meta["reuse"], trace.n_blocks, trace.meta["block_size"])
    assert has_note(trace, "time 0 is 1700158546680590000 ns after the start of 1970")


def test_azure_2024() -> None:
    """Six digits, no digits, offsets from UTC and Z all read as the same calendar."""
    trace = load_trace(SAMPLES / "azure2024.csv", "azure")
    assert [0, 990_070_000, 2_490_070_000, 2_990_070_000] == trace.arrival_ns.tolist()


def test_burstgpt() -> None:
    """Failed requests are counted and kept or dropped; sessions are numbered; quotes may hold commas."""
    trace = load_trace(SAMPLES / "burstgpt.csv", "burstgpt")
    assert [5_000_000_000, 45_250_000_000, 45_250_000_000, 118_000_000_000] == trace.arrival_ns.tolist()
    assert [472, 1087, 30, 417] == trace.input_tokens.tolist()
    assert [18, 0, 10, 276] == trace.output_tokens.tolist()
    assert [0, -1, 1, 0] == trace.session.tolist()
    assert not trace.meta["reuse"]
    assert has_note(trace, "1 failed requests (response of 0 tokens): kept")
    assert has_note(trace, "1 rows have another total than request + response")
    dropped = load_trace(SAMPLES / "burstgpt.csv", failed="drop")
    assert [18, 10, 276] == dropped.output_tokens.tolist()
    assert has_note(dropped, "1 failed requests (response of 0 tokens): dropped")


def test_burstgpt_without_sessions() -> None:
    """The first release has neither Session ID nor Elapsed time."""
    trace = load_trace(SAMPLES / "burstgpt_v1.csv", "burstgpt")
    assert ([-1, -1], [18, 0]) == (trace.session.tolist(), trace.output_tokens.tolist())


def test_lmcache_agent() -> None:
    """Lines are sorted by time; four bytes make a token, two tokens a block; equal prefixes share ids."""
    trace = load_trace(SAMPLES / "lmcache_agent.jsonl", "lmcache-agent", block_size=2)
    assert [0, 100_000, 200_000, 300_000, 300_000] == trace.arrival_ns.tolist()
    assert [2, 3, 4, 5, 0] == trace.input_tokens.tolist()
    assert [0, 2, 1, 1, 1] == trace.output_tokens.tolist()
    assert [0, 1, 0, 0, 2] == trace.session.tolist()
    assert [[0], [1], [0, 2], [0, 3], []] == blocks(trace)
    assert has_note(trace, "pseudo-tokens of 4 UTF-8 bytes (tokenizer bytes4)")
    assert has_note(trace, "1 of 5 requests stand below a later one in the file")


def test_text_blocks_are_chained_hashes(tmp_path: Path) -> None:
    """The same text behind another prefix is another block, and order inside a prompt matters."""
    prompts = ["aaaabbbb", "bbbbaaaa", "aaaabbbbaaaa"]
    records = [{"timestamp": 1, "input": text, "output": "", "session_id": "s"} for text in prompts]
    trace = load_trace(write(tmp_path, records), block_size=1)
    assert [[0, 1], [2, 3], [0, 1, 4]] == blocks(trace)


def test_sharegpt_tokens() -> None:
    """Full blocks of token ids share a prefix; the tail has no block; a wrong input_toks is counted."""
    trace = load_trace(SAMPLES / "sharegpt_tokens.jsonl", "sharegpt-tokens", block_size=2)
    assert [10, 11, 11, 20] == trace.arrival_ns.tolist()
    assert [6, 5, 3, 4] == trace.input_tokens.tolist()
    assert [2, 1, 1, 0] == trace.output_tokens.tolist()
    assert [[0, 1, 2], [0, 1], [3], [4, 5]] == blocks(trace)
    assert has_note(trace, "1 of 4 requests list another number of token ids than input_toks")


def test_lookup_hash() -> None:
    """Only full chunks are hashed; lines are sorted; LMCache's own keys are understood."""
    trace = load_trace(SAMPLES / "lookup_hash.jsonl", "lookup-hash")
    assert [0, 1_377_000_000, 1_877_000_000, 2_877_000_000] == trace.arrival_ns.tolist()
    assert [256, 600, 100, 800] == trace.input_tokens.tolist()
    assert [[0], [0, 1], [], [0, 1, 2]] == blocks(trace)
    assert [256, 256, 256] == trace.block_tokens.tolist()
    assert has_note(trace, "4 of 4 records have no output_length")
    assert has_note(trace, "1 of 4 requests stand below a later one")


@pytest.mark.parametrize("length", ["seq_len", "input_length", "total_tokens"])
@pytest.mark.parametrize("hashes", ["chunk_hashes", "hash_ids"])
def test_lookup_hash_accepts_other_names_and_numbers(tmp_path: Path, length: str, hashes: str) -> None:
    """Lengths and hashes have several names; hashes may be numbers of any size; the unit of time is an option."""
    record = {"timestamp": 5, length: 300, "output_length": 9, hashes: [2**200, -7, "ff"]}
    trace = load_trace(write(tmp_path, [record]), "lookup-hash", time_unit="ms", block_size=100)
    assert ([300], [9], [[0, 1, 2]]) == (trace.input_tokens.tolist(), trace.output_tokens.tolist(), blocks(trace))
    assert has_note(trace, "time 0 is 5000000 ns")


def test_lookup_hash_of_several_models_needs_a_choice(tmp_path: Path) -> None:
    """Chunk hashes do not tell models apart, so a mixed log is refused until a model is chosen."""
    record = {"timestamp": 5, "seq_len": 300, "chunk_hashes": ["ff"]}
    path = write(tmp_path, [{**record, "model_name": "m"}, {**record, "model_name": "n"}])
    with pytest.raises(TraceError, match="line 2: model_name is 'n', above it was 'm': choose one with option model"):
        load_trace(path)
    trace = load_trace(path, model="n")
    assert 1 == len(trace)
    assert has_note(trace, "1 records of other models than 'n' are left out")


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("name", ["mooncake.jsonl", "azure2023.csv", "sessions/a.json", "lookup_hash.jsonl"])
def test_packed_files_read_the_same(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    """Packing changes nothing but the hash of the file."""
    expected = load_trace(SAMPLES / name)
    packed = tmp_path / f"{Path(name).name}.xz"
    packed.write_bytes(pack((SAMPLES / name).read_bytes()))
    trace = load_trace(packed)
    assert expected.arrival_ns.tolist() == trace.arrival_ns.tolist()
    assert blocks(expected) == blocks(trace)
    assert expected.meta["notes"] == trace.meta["notes"]


def test_a_folder_of_parts_is_one_trace(tmp_path: Path) -> None:
    """Parts are read in order of name as if they were one file, and each CSV part has its own header."""
    lines = (SAMPLES / "mooncake.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "part1.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "m" / "part2.jsonl").write_text("".join(lines[2:]))
    assert blocks(load_trace(SAMPLES / "mooncake.jsonl")) == blocks(load_trace(tmp_path / "m"))
    (tmp_path / "m" / "part0.jsonl").write_text("".join(lines[2:]))
    with pytest.raises(TraceError, match=r"part1.jsonl, line 1: arrives at 0 ns, before the request above it"):
        load_trace(tmp_path / "m")
    (tmp_path / "a").mkdir()
    for name in ("1.csv", "2.csv"):
        (tmp_path / "a" / name).write_text((SAMPLES / "burstgpt_v1.csv").read_text().replace("45,", "5,"))
    assert 4 == len(load_trace(tmp_path / "a"))


@pytest.mark.parametrize("name", ["mooncake", "aiperf", "bailian", "sessions", "azure", "burstgpt", "lmcache-agent"])
def test_empty_files_are_traces_without_requests(tmp_path: Path, name: str) -> None:
    """No records is no error, in every format."""
    (tmp_path / "empty.jsonl.gz").write_bytes(gzip.compress(b""))
    assert 0 == len(load_trace(tmp_path / "empty.jsonl.gz", name))


def test_times_are_exact_where_floats_are_not(tmp_path: Path) -> None:
    """4503599627.370497 s as a float times 1e9 is off by 611 ns; fractions of a ns are rounded."""
    moments = ["0.0000000004", "0.0000000006", "1.1", "4503599627.370497123"]
    path = tmp_path / "t.jsonl"
    rest = '"parent_chat_id": -1, "input_length": 0, "output_length": 0, "hash_ids": []'
    path.write_text("".join(f'{{"chat_id": {n}, "timestamp": {at}, {rest}}}\n' for n, at in enumerate(moments)))
    assert [0, 1, 1_100_000_000, 4503599627370497123] == load_trace(path).arrival_ns.tolist()
    assert 4503599627370497123 != int(np.float64(4503599627.370497123) * 1e9)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mooncake.jsonl", {"block_size": 0}),
        ("mooncake.jsonl", {"block_size": True}),
        ("mooncake.jsonl", {"block_size": "512"}),
        ("mooncake.jsonl", {"blok_size": 512}),
        ("aiperf.jsonl", {"gap_s": -1}),
        ("sessions", {"gap_s": float("nan")}),
        ("sessions", {"include_subagents": "no"}),
        ("sessions", {"max_input_tokens": -1}),
        ("burstgpt.csv", {"failed": "maybe"}),
        ("lmcache_agent.jsonl", {"tokenizer": "gpt2"}),
        ("lookup_hash.jsonl", {"time_unit": "min"}),
        ("azure2023.csv", {"block_size": 512}),
    ],
)
def test_bad_options_are_configuration_errors(name: str, options: dict[str, Any]) -> None:
    """An option that does not exist, or a value that is not allowed, is an error in one line."""
    with pytest.raises(ConfigError) as caught:
        load_trace(SAMPLES / name, **options)
    assert "\n" not in str(caught.value)
