"""Records that are not valid: each is one line of TraceError that names file, place, key and value."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from simkv.errors import TraceError
from simkv.traces import load_trace
from simkv.traces.files import Place
from simkv.traces.records import MAX_BLOCKS_PER_REQUEST, Columns

GOOD: dict[str, dict[str, Any]] = {
    "mooncake": {"timestamp": 5, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]},
    "aiperf": {"session_id": "s", "timestamp": 5, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]},
    "bailian": {
        "chat_id": 1,
        "parent_chat_id": -1,
        "timestamp": 5,
        "input_length": 20,
        "output_length": 1,
        "hash_ids": [1, 2],
    },
    "lmcache-agent": {"timestamp": 5, "input": "a", "output": "b", "session_id": "s"},
    "sharegpt-tokens": {"arrival_time_ns": 5, "input_tok_ids": [1, 2], "input_toks": 2, "output_toks": 1},
    "lookup-hash": {"timestamp": 5, "seq_len": 600, "chunk_hashes": ["a", "b"], "chunk_size": 256, "output_length": 3},
}
TIMES = {name: "arrival_time_ns" if name == "sharegpt-tokens" else "timestamp" for name in GOOD}
LENGTHS = {
    "mooncake": ["input_length", "output_length"],
    "aiperf": ["input_length", "output_length", "block_size"],
    "bailian": ["input_length", "output_length"],
    "lmcache-agent": [],
    "sharegpt-tokens": ["input_toks", "output_toks"],
    "lookup-hash": ["seq_len", "output_length", "chunk_size"],
}
IDS = {name: "chunk_hashes" if name == "lookup-hash" else "hash_ids" for name in GOOD if name != "lmcache-agent"}
IDS["sharegpt-tokens"] = "input_tok_ids"
OPTIONAL = {
    ("aiperf", "session_id"),
    ("aiperf", "output_length"),
    ("aiperf", "hash_ids"),
    ("sharegpt-tokens", "input_toks"),
}
OPTIONAL |= {("lookup-hash", "chunk_size"), ("lookup-hash", "output_length")}

NO_LENGTHS = ["-1", "1.5", "1.0", "true", '"7"', "[]", "{}", "100000001", "1" * 4000, "1e3"]
NO_TIMES = ["-1", "-0.5", "true", '"5"', "[]", "1e30", "1e999999", "9" * 4000]
NO_IDS = ["7", '"a"', "{}", "[1.5]", "[true]", "[null]", "[[1]]", "[1, {}]"]
NO_NUMERIC_IDS = ["[-1]", "[9223372036854775808]", '["a"]', f"[{'9' * 4000}]"]


def refused(folder: Path, name: str, lines: list[str]) -> str:
    """The error that a file of these lines gives; it must be one short line."""
    path = folder / "bad.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(TraceError) as caught:
        load_trace(path, name)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400 + len(str(folder))
    return message


def with_raw(name: str, key: str, raw: str) -> str:
    """The good record of a format as JSON text, with ``raw`` in the place of one value."""
    return json.dumps({**GOOD[name], key: "@"}).replace('"@"', raw)


def cases(keys: dict[str, Any], values: list[str]) -> list[tuple[str, str, str]]:
    spread = ((name, key) for name, found in keys.items() for key in ([found] if isinstance(found, str) else found))
    return [(name, key, raw) for name, key in spread for raw in values]


def short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


BAD = cases(LENGTHS, NO_LENGTHS) + cases(TIMES, NO_TIMES) + cases(IDS, NO_IDS)
BAD += cases({name: key for name, key in IDS.items() if name != "lookup-hash"}, NO_NUMERIC_IDS)
BAD += cases({"lookup-hash": "chunk_hashes"}, ['["xyz"]', '[""]', f'["{"f" * 300}"]'])
BAD += cases({"bailian": ["chat_id", "parent_chat_id"]}, ["-2", "1.5", "null", "true", "9223372036854775808"])
BAD += cases({"bailian": "chat_id"}, ["-1"])
BAD += cases({"lmcache-agent": ["input", "output", "session_id"]}, ["7", "null", "[]"])
BAD += cases({"aiperf": "session_id"}, ["true", "[]", "1.5"])
BAD += cases({"aiperf": "block_size", "lookup-hash": "chunk_size"}, ["0"])


@pytest.mark.parametrize(("name", "key", "raw"), BAD, ids=short)
def test_a_bad_value_names_file_line_and_key(tmp_path: Path, name: str, key: str, raw: str) -> None:
    """Wrong types, negative, absurd and huge numbers, and booleans for numbers are all refused."""
    message = refused(tmp_path, name, [json.dumps(GOOD[name]), with_raw(name, key, raw)])
    assert message.startswith(f"{tmp_path}/bad.jsonl, line 2: ")
    assert key in message


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("raw", ["NaN", "Infinity", "-Infinity", "1e999999999999999999999", "9" * 5000])
def test_numbers_that_are_none_are_refused(tmp_path: Path, name: str, raw: str) -> None:
    """NaN, infinities and numbers too long to convert are not JSON numbers of a trace."""
    message = refused(tmp_path, name, ["", with_raw(name, TIMES[name], raw)])
    assert message.startswith(f"{tmp_path}/bad.jsonl, line 2: not usable JSON")


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in GOOD for key in GOOD[name]])
def test_a_missing_key_is_named(tmp_path: Path, name: str, key: str) -> None:
    """Every key that a format needs is asked for by name."""
    record = {other: value for other, value in GOOD[name].items() if other != key}
    if (name, key) in OPTIONAL:
        assert 1 == len(load_one(tmp_path, name, record))
    else:
        message = refused(tmp_path, name, [json.dumps(record)])
        assert "line 1" in message
        assert key in message or "no timestamp" in message


def load_one(folder: Path, name: str, record: dict[str, Any]) -> Any:
    path = folder / "good.jsonl"
    path.write_text(json.dumps(record))
    return load_trace(path, name)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("line", ["[1, 2]", "7", "null", '"text"', "{", "{]", "hello", "{'a': 1}", "[" * 100_000])
def test_lines_that_are_no_objects_are_refused(tmp_path: Path, name: str, line: str) -> None:
    """Whatever stands on a line, it is an object of the format or an error."""
    assert "line 2: " in refused(tmp_path, name, [json.dumps(GOOD[name]), line])


@pytest.mark.parametrize("name", GOOD)
def test_a_cut_last_line_is_an_error(tmp_path: Path, name: str) -> None:
    """A plain file that ends inside a record was cut short; the record is not dropped."""
    whole = json.dumps(GOOD[name])
    message = refused(tmp_path, name, [whole, whole, whole[:-3]])
    assert "line 3: not JSON, or cut short" in message


@pytest.mark.parametrize("name", ["mooncake", "bailian", "sharegpt-tokens"])
def test_falling_times_are_an_error_where_the_format_is_ordered(tmp_path: Path, name: str) -> None:
    """A request that arrives before the one above it is named."""
    later, earlier = json.dumps(GOOD[name]), with_raw(name, TIMES[name], "4")
    assert re.search(r"line 2: arrives at \d+ ns, before", refused(tmp_path, name, [later, earlier]))


@pytest.mark.parametrize("name", ["aiperf", "lmcache-agent", "lookup-hash"])
def test_falling_times_are_sorted_where_the_format_is_not_ordered(tmp_path: Path, name: str) -> None:
    """Formats that declare unordered lines are sorted, and equal times keep the order of the file."""
    path = tmp_path / "some.jsonl"
    moments = ["9", "4", "9", "4"]
    lines = [with_raw(name, TIMES[name], moment) for moment in moments]
    if name == "lmcache-agent":
        lines = [line.replace('"s"', f'"{number}"') for number, line in enumerate(lines)]
        path.write_text("\n".join(lines))
        assert [1, 3, 0, 2] == load_trace(path, name).session.tolist()
    else:
        key = "input_length" if name == "aiperf" else "seq_len"
        path.write_text("\n".join(line.replace(f'"{key}": 600', f'"{key}": {n}') for n, line in enumerate(lines)))
        assert [1, 3, 0, 2] == load_trace(path, name).input_tokens.tolist()


def test_delays_may_not_leave_the_range_of_times(tmp_path: Path) -> None:
    """Delays that add up beyond 146 years are refused before they overflow."""
    line = '{"session_id": "s", "delay": 4000000000000, "input_length": 1}'
    path = tmp_path / "some.jsonl"
    path.write_text(f"{line}\n{line}")
    with pytest.raises(TraceError, match=r"line 2: arrives at \d+ ns, at most"):
        load_trace(path, "aiperf", gap_s=1)


def test_a_request_with_too_many_blocks_is_refused() -> None:
    """More than ten million blocks in one request is absurd."""
    keys = range(MAX_BLOCKS_PER_REQUEST + 1)
    with pytest.raises(TraceError, match="f, line 1: more than 10000000 blocks in a request"):
        Columns(1).add(Place("f", 1), arrival_ns=0, input_tokens=1, output_tokens=1, keys=keys)


SESSION_REQUEST = {"t": 1.0, "type": "n", "in": 64, "out": 1, "hash_ids": [1]}


def session(**changes: Any) -> str:
    return json.dumps({"id": "a", "block_size": 64, "requests": [SESSION_REQUEST, SESSION_REQUEST], **changes})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (session(block_size=0), "line 1: block_size is 0, it must be positive"),
        (session(block_size="64"), "line 1: block_size is '64', it must be a whole number"),
        (session(hash_id_scope="planet"), "line 1: hash_id_scope is 'planet'"),
        (session(requests={}), "requests must be a list"),
        (session(requests=[SESSION_REQUEST, 7]), "request 2: the entry is 7, it must be an object"),
        (session(requests=[{**SESSION_REQUEST, "t": -1}]), "request 1: t is -1"),
        (
            session(requests=[SESSION_REQUEST, {**SESSION_REQUEST, "t": 0.5}]),
            "request 2: t is Decimal('0.5'), it must be",
        ),
        (session(requests=[{**SESSION_REQUEST, "in": 1.5}]), "request 1: in is Decimal('1.5')"),
        (session(requests=[{**SESSION_REQUEST, "out": None}]), "request 1: out is None"),
        (session(requests=[{**SESSION_REQUEST, "hash_ids": [2**40]}]), "request 1: hash_ids is 1099511627776"),
        (session(requests=[{**SESSION_REQUEST, "hash_ids": [True]}]), "request 1: hash_ids is [True]"),
        (session(requests=[{"t": 1, "type": "subagent"}]), "request 1: key 'requests' is missing"),
        (
            session(requests=[{"t": 1, "type": "subagent", "requests": [SESSION_REQUEST, {}]}]),
            "request 1, subagent request 2: key 't' is missing",
        ),
        (json.dumps({"block_size": 64}), "line 1: key 'requests' is missing"),
        (json.dumps({"requests": []}), "line 1: key 'block_size' is missing"),
        ("[]", "line 1: a JSON list, it must be an object"),
        (session()[:-5], "line 1: not JSON, or cut short"),
    ],
)
def test_a_bad_session_names_its_request(tmp_path: Path, text: str, problem: str) -> None:
    """Errors in a session document name the request, counted from 1, also inside a subagent."""
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(TraceError) as caught:
        load_trace(path, "sessions", include_subagents=True)
    assert str(caught.value).startswith(f"{path}, ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_endless_nesting_of_subagents_is_refused(tmp_path: Path) -> None:
    """Subagents of subagents are fine up to a depth that no real session has."""
    entry: dict[str, Any] = SESSION_REQUEST
    for _ in range(9):
        entry = {"t": 0, "type": "subagent", "requests": [entry]}
    path = tmp_path / "a.json"
    path.write_text(session(requests=[entry]))
    with pytest.raises(TraceError, match="at most 8 subagents deep"):
        load_trace(path, include_subagents=True)
    path.write_text(session(requests=entry["requests"]))
    assert 1 == len(load_trace(path, include_subagents=True))


def test_sessions_of_different_block_sizes_do_not_mix(tmp_path: Path) -> None:
    """One trace has one block size."""
    (tmp_path / "a.json").write_text(session())
    (tmp_path / "b.json").write_text(session(block_size=32))
    with pytest.raises(TraceError, match=r"b.json, line 1: block_size is 32, it must be 64"):
        load_trace(tmp_path)


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"


@pytest.mark.parametrize(
    ("header", "row", "problem"),
    [
        (AZURE, "2023-11-16 18:15:46.68059001234,1,2", "TIMESTAMP is "),
        (AZURE, "2023-02-30 18:15:46,1,2", "TIMESTAMP is "),
        (AZURE, "2023-02-03 25:15:46,1,2", "TIMESTAMP is "),
        (AZURE, "1969-12-31 23:59:59,1,2", "TIMESTAMP is "),
        (AZURE, "2523-12-31 23:59:59,1,2", "TIMESTAMP is "),
        (AZURE, "yesterday,1,2", "TIMESTAMP is "),
        (AZURE, "٢٠٢٣-11-16 18:15:46,1,2", "TIMESTAMP is "),
        (AZURE, "2023-11-16 18:15:46,1.5,2", "ContextTokens is "),
        (AZURE, "2023-11-16 18:15:46,-1,2", "ContextTokens is "),
        (AZURE, "2023-11-16 18:15:46,,2", "ContextTokens is "),
        (AZURE, "2023-11-16 18:15:46,1,nan", "GeneratedTokens is "),
        (AZURE, "2023-11-16 18:15:46,1,99999999999999999999", "GeneratedTokens is "),
        (AZURE, "2023-11-16 18:15:46,1", "2 fields, the header has 3"),
        (AZURE, "2023-11-16 18:15:46,1,2,3", "4 fields, the header has 3"),
        (AZURE, '"2023-11-16 18:15:46,1,2', "not a CSV row"),
        (BURST, "-5,m,1,2,3,log", "Timestamp is "),
        (BURST, "1e5,m,1,2,3,log", "Timestamp is "),
        (BURST, "5,m,one,2,3,log", "Request tokens is "),
        (BURST, "5,m,1,2.0,3,log", "Response tokens is "),
        (BURST, "5,m,1,2,,log", "Total tokens is "),
    ],
)
def test_a_bad_row_names_its_line_and_column(tmp_path: Path, header: str, row: str, problem: str) -> None:
    """CSV fields are checked like JSON values."""
    path = tmp_path / "bad.csv"
    path.write_text(f"{header}\r\n{row}\r\n")
    with pytest.raises(TraceError) as caught:
        load_trace(path)
    assert str(caught.value).startswith(f"{path}, line 2: {problem}")


@pytest.mark.parametrize(("name", "header"), [("azure", BURST), ("burstgpt", AZURE), ("azure", "{}")])
def test_a_header_of_another_format_is_an_error(tmp_path: Path, name: str, header: str) -> None:
    """A CSV file without the needed columns is refused at its header."""
    path = tmp_path / "bad.csv"
    path.write_text(header)
    with pytest.raises(TraceError, match="line 1: the header lacks the column"):
        load_trace(path, name)


def test_falling_times_in_a_table_are_an_error(tmp_path: Path) -> None:
    """Rows of a table are in order of time."""
    path = tmp_path / "bad.csv"
    path.write_text(f"{AZURE}\n2023-11-16 18:15:46.5,1,2\n2023-11-16 18:15:46.4,1,2")
    with pytest.raises(TraceError, match="line 3: arrives at"):
        load_trace(path)
