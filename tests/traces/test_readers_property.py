"""Readers under random input: valid records come back as written, damaged ones load or raise TraceError."""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simkv.errors import TraceError
from simkv.traces import Trace, load_trace

SAMPLES = Path(__file__).parent / "samples"
NAMES = [
    "mooncake.jsonl",
    "aiperf.jsonl",
    "bailian.jsonl",
    "azure2023.csv",
    "azure2024.csv",
    "burstgpt.csv",
    "lmcache_agent.jsonl",
    "sharegpt_tokens.jsonl",
    "lookup_hash.jsonl",
    "sessions/b.json",
]

tokens = st.integers(0, 10_000)


@st.composite
def requests(draw: st.DrawFn, size: int, tail: bool) -> list[dict[str, Any]]:
    """Requests in order of time (whole ms), with as many block ids as their input needs."""
    moments = sorted(draw(st.lists(st.integers(0, 10**9), max_size=8)))
    found = []
    for moment in moments:
        length = draw(tokens)
        blocks = -(-length // size) if tail else length // size
        ids = draw(st.lists(st.integers(0, 2**40 - 1), min_size=blocks, max_size=blocks))
        found.append({"ms": moment, "in": length, "out": draw(tokens), "ids": ids})
    return found


def load(lines: list[str], name: str, **options: Any) -> Trace:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "some.jsonl")
        path.write_text("\n".join(lines))
        return load_trace(path, name, **options)


def assert_same(found: list[dict[str, Any]], trace: Trace, tail: bool, size: int, first_ms: int = 0) -> None:
    assert [(request["ms"] - first_ms) * 1_000_000 for request in found] == trace.arrival_ns.tolist()
    assert [request["in"] for request in found] == trace.input_tokens.tolist()
    assert [request["out"] for request in found] == trace.output_tokens.tolist()
    flat = np.array([key for request in found for key in request["ids"]], dtype=np.int64)
    assert pd.factorize(flat)[0].tolist() == trace.block_ids.tolist()
    assert not any("another number of blocks" in note for note in trace.meta["notes"])
    if len(flat) == len(set(flat.tolist())):
        covered = sum(request["in"] if tail else request["in"] // size * size for request in found)
        assert covered == int(trace.block_tokens.sum())


@settings(max_examples=40)
@given(requests(size=512, tail=True))
def test_mooncake_round_trip(found: list[dict[str, Any]]) -> None:
    """Lines written from valid requests read back as these requests."""
    keys = {"ms": "timestamp", "in": "input_length", "out": "output_length", "ids": "hash_ids"}
    lines = [json.dumps({keys[key]: value for key, value in request.items()}) for request in found]
    assert_same(found, load(lines, "mooncake"), True, 512)
    assert_same(found, load(lines, "aiperf"), True, 512)


@settings(max_examples=40)
@given(requests(size=256, tail=True), st.randoms(use_true_random=False))
def test_bailian_round_trip(found: list[dict[str, Any]], chooser: random.Random) -> None:
    """Times in seconds come back to the ms, and sessions are the trees of parents."""
    lines: list[str] = []
    roots: list[int] = []
    for number, request in enumerate(found):
        parent = chooser.randrange(-1, number)
        roots.append(number if parent < 0 else roots[parent])
        record = {"chat_id": number, "parent_chat_id": parent, "input_length": request["in"]}
        record |= {"output_length": request["out"], "hash_ids": request["ids"]}
        text = f"{request['ms'] // 1000}.{request['ms'] % 1000:03}"
        lines.append(json.dumps({**record, "timestamp": "@"}).replace('"@"', text))
    trace = load(lines, "bailian", block_size=256)
    assert_same(found, trace, True, 256)
    assert pd.factorize(np.array(roots, dtype=np.int64))[0].tolist() == trace.session.tolist()


@settings(max_examples=40)
@given(requests(size=64, tail=False))
def test_sessions_round_trip(found: list[dict[str, Any]]) -> None:
    """One session keeps its recorded times, its ids and its unhashed tails."""
    entries = [
        {"t": request["ms"] / 1000, "in": request["in"], "out": request["out"], "hash_ids": request["ids"]}
        for request in found
    ]
    trace = load([json.dumps({"block_size": 64, "requests": entries})], "sessions")
    assert_same(found, trace, False, 64)


@settings(max_examples=40)
@given(requests(size=256, tail=False), st.randoms(use_true_random=False))
def test_lookup_hash_round_trip(found: list[dict[str, Any]], chooser: random.Random) -> None:
    """Lines in any order, with hashes as hex text, read back sorted by time."""
    found = [{**request, "ms": 7 * number} for number, request in enumerate(found)]
    lines = [
        json.dumps(
            {
                "timestamp": request["ms"],
                "seq_len": request["in"],
                "output_length": request["out"],
                "chunk_hashes": [f"0x{key:x}" for key in request["ids"]],
            }
        )
        for request in found
    ]
    chooser.shuffle(lines)
    assert_same(found, load(lines, "lookup-hash", time_unit="ms"), False, 256, first_ms=0)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.datetimes(pd.Timestamp("1971-01-01"), pd.Timestamp("2060-01-01")), tokens, tokens), max_size=8
    )
)
def test_azure_round_trip(rows: list[tuple[Any, int, int]]) -> None:
    """Calendar times to the microsecond come back as exact distances from the first."""
    rows = sorted(rows, key=lambda row: row[0])
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens", *(f"{at:%Y-%m-%d %H:%M:%S.%f},{a},{b}" for at, a, b in rows)]
    trace = load(lines, "azure")
    expected = [round((at - rows[0][0]) / pd.Timedelta("1us")) * 1000 for at, _, _ in rows]
    assert expected == trace.arrival_ns.tolist()
    assert [(a, b) for _, a, b in rows] == list(
        zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
    )


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=8), st.integers(1, 4))
def test_token_blocks_are_equal_exactly_where_prefixes_are(prompts: list[list[int]], size: int) -> None:
    """Blocks of token ids are shared if and only if everything up to their end is equal."""
    lines = [json.dumps({"arrival_time_ns": 0, "input_tok_ids": prompt, "output_toks": 0}) for prompt in prompts]
    trace = load(lines, "sharegpt-tokens", block_size=size)
    prefixes = [tuple(prompt[: end + size]) for prompt in prompts for end in range(0, len(prompt) - size + 1, size)]
    numbers: dict[tuple[int, ...], int] = {}
    assert [numbers.setdefault(prefix, len(numbers)) for prefix in prefixes] == trace.block_ids.tolist()


JUNK = [
    "",
    "-",
    "1e400",
    "NaN",
    "null",
    "true",
    "{",
    "[",
    '"',
    ",",
    "\\u",
    "9" * 30,
    "0.5",
    "-1",
    "é",
    "\x00",
    "\n",
    "[[]]",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("asked", ["auto", "its own"])
@settings(max_examples=60)
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(JUNK)), min_size=1, max_size=3))
def test_damaged_text_loads_or_is_a_trace_error(name: str, asked: str, edits: list[tuple[float, int, str]]) -> None:
    """Whatever replaces a piece of a valid file, the outcome is a trace or one line of TraceError."""
    text = (SAMPLES / name).read_text()
    own = load_trace(SAMPLES / name).meta["format"]
    for where, length, junk in edits:
        start = int(where * len(text))
        text = text[:start] + junk + text[start + length :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "some.jsonl")
        path.write_text(text)
        try:
            assert load_trace(path, "auto" if asked == "auto" else own).arrival_ns.dtype == np.int64
        except TraceError as error:
            assert "\n" not in str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("jsonl")])
@settings(max_examples=60)
@given(line=st.integers(0, 3), key=st.integers(0, 9), value=json_values)
def test_any_json_value_anywhere_loads_or_is_a_trace_error(name: str, line: int, key: int, value: Any) -> None:
    """Each value of a record may be any JSON at all."""
    records = [json.loads(text) for text in (SAMPLES / name).read_text().splitlines()]
    keys = sorted(records[line])
    records[line][keys[key % len(keys)]] = value
    own = load_trace(SAMPLES / name).meta["format"]
    try:
        trace = load([json.dumps(record) for record in records], own)
        assert len(records) == len(trace)
    except TraceError as error:
        assert "\n" not in str(error)
