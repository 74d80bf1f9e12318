"""Stored traces: exact round trips, the mapped copy, damaged and foreign files."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simkv.errors import TraceError
from simkv.traces import Trace, build_trace, load_trace, open_arrow, read_trace, save_arrow, save_trace, storage

SAMPLES = Path(__file__).parent / "samples"
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


def assert_equal(expected: Trace, found: Trace) -> None:
    for column in COLUMNS:
        left, right = getattr(expected, column), getattr(found, column)
        assert (left.dtype, left.tolist()) == (right.dtype, right.tolist()), column
    assert expected.meta == found.meta


@pytest.fixture
def trace() -> Trace:
    """A small trace with sessions, shared blocks and facts."""
    return load_trace(SAMPLES / "bailian.jsonl").with_meta(task_names=["qa"], transforms=["none really"], note="ü")


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Any small trace, also without requests or without blocks."""
    requests = draw(st.lists(st.lists(st.integers(-5, 5), max_size=4), max_size=6))
    flat = [key for keys in requests for key in keys]
    rows = len(requests)

    def column(least: int, most: int, size: int = rows) -> Any:
        return np.array(draw(st.lists(st.integers(least, most), min_size=size, max_size=size)), dtype=np.int64)

    return build_trace(
        arrival_ns=np.sort(column(0, 2**62)),
        input_tokens=column(0, 2**31 - 1),
        output_tokens=column(0, 2**31 - 1),
        block_counts=np.array([len(keys) for keys in requests], dtype=np.int64),
        block_keys=np.array(flat, dtype=np.int64),
        occurrence_tokens=column(1, 2**31 - 1, len(flat)),
        session=column(-1, 2**31 - 1),
        task=column(-1, 2**15 - 1),
        meta={"name": draw(st.text(max_size=5)), "notes": draw(st.lists(st.text(max_size=5), max_size=2))},
    )


@settings(max_examples=40)
@given(traces())
def test_round_trips_are_exact(trace: Trace) -> None:
    """Parquet, its mapped copy and the Arrow file give back every array, type and fact."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.parquet")
        save_trace(trace, path)
        assert_equal(trace, read_trace(path, cache=False))
        assert_equal(trace, read_trace(path))
        assert_equal(trace, read_trace(path))
        save_arrow(trace, Path(folder, "t.arrow"))
        assert_equal(trace, open_arrow(Path(folder, "t.arrow")))


def test_one_row_is_one_request(tmp_path: Path, trace: Trace) -> None:
    """Any table tool sees requests with their blocks and the tokens of each."""
    save_trace(trace, tmp_path / "t.parquet")
    rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
    first = {"arrival_ns": 250_000_000, "input_tokens": 40, "output_tokens": 5, "session": 0, "task": -1}
    assert {**first, "block_ids": [0, 1, 2], "block_tokens": [16, 16, 8]} == rows[0]
    assert 5 == len(rows)


def test_the_mapped_copy_is_read_only_and_not_copied(tmp_path: Path) -> None:
    """Arrays of a megabyte are views of the file: opening them allocates next to nothing."""
    many = np.arange(300_000)
    big = build_trace(
        arrival_ns=many,
        input_tokens=many,
        output_tokens=many,
        block_counts=np.ones(300_000, dtype=np.int64),
        block_keys=many,
        occurrence_tokens=many + 1,
        meta={"name": "big"},
    )
    save_arrow(big, tmp_path / "t.arrow")
    before = pa.total_allocated_bytes()
    mapped = open_arrow(tmp_path / "t.arrow")
    assert 100_000 > pa.total_allocated_bytes() - before
    for column in COLUMNS:
        assert not getattr(mapped, column).flags.writeable
        assert not getattr(mapped, column).flags.owndata
    assert_equal(big, mapped)


def test_the_copy_is_made_once_and_used(tmp_path: Path, trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second read does not open the Parquet file at all."""
    path = tmp_path / "t.parquet"
    save_trace(trace, path)
    read_trace(path)
    assert ["t.parquet", "t.parquet.arrow"] == sorted(file.name for file in tmp_path.iterdir())
    monkeypatch.setattr(storage, "_read_parquet", lambda path: pytest.fail("the copy was not used"))
    assert_equal(trace, read_trace(path))


def test_a_copy_of_another_file_is_not_used(tmp_path: Path, trace: Trace) -> None:
    """A new Parquet file of the same name, whatever its size and age, is what is read."""
    path = tmp_path / "t.parquet"
    save_trace(trace, path)
    read_trace(path)
    other = trace.with_meta(name="bailiam")
    save_trace(other, path)
    os.utime(path, ns=(1, 1))
    assert_equal(other, read_trace(path))
    assert_equal(other, open_arrow(tmp_path / "t.parquet.arrow"))


def test_a_copy_survives_a_new_date(tmp_path: Path, trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying both files elsewhere changes the date but not the content, so the copy still counts."""
    path = tmp_path / "t.parquet"
    save_trace(trace, path)
    read_trace(path)
    os.utime(path, ns=(10**18, 10**18))
    monkeypatch.setattr(storage, "_read_parquet", lambda path: pytest.fail("the copy was not used"))
    assert_equal(trace, read_trace(path))


@pytest.mark.parametrize("damage", [b"", b"ARROW1\x00\x00", b"rubbish" * 100, None])
def test_a_damaged_copy_is_ignored_and_made_again(tmp_path: Path, trace: Trace, damage: bytes | None) -> None:
    """An empty, foreign or half-written copy costs a read of the Parquet file, nothing else."""
    path, copy = tmp_path / "t.parquet", tmp_path / "t.parquet.arrow"
    save_trace(trace, path)
    read_trace(path)
    whole = copy.read_bytes()
    copy.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert_equal(trace, read_trace(path))
    assert_equal(trace, open_arrow(copy))


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a place for the copy, the trace is read and nothing is left behind."""
    path = tmp_path / "t.parquet"
    save_trace(trace, path)

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "replace", refuse)
    assert_equal(trace, read_trace(path))
    assert ["t.parquet"] == [file.name for file in tmp_path.iterdir()]
    with pytest.raises(TraceError, match="cannot be written"):
        save_trace(trace, tmp_path / "u.parquet")
    assert ["t.parquet"] == [file.name for file in tmp_path.iterdir()]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that breaks off changes nothing and leaves no temporary file."""
    path = tmp_path / "t.parquet"
    save_trace(trace, path)

    def half(table: pa.Table, file: Path, **_: object) -> None:
        file.write_bytes(b"PAR1 half")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", half)
    with pytest.raises(TraceError, match="cannot be written: disk full"):
        save_trace(trace.with_meta(name="new"), path)
    assert_equal(trace, read_trace(path, cache=False))
    assert ["t.parquet"] == [file.name for file in tmp_path.iterdir()]


@pytest.mark.parametrize("read", [read_trace, open_arrow])
def test_missing_foreign_and_cut_files_are_errors(tmp_path: Path, trace: Trace, read: Any) -> None:
    """A path that is not there, a folder, files of other kinds and half a file are bad input."""
    with pytest.raises(TraceError, match="no such file"):
        read(tmp_path / "absent")
    with pytest.raises(TraceError, match="no such file"):
        read(tmp_path)
    save_trace(trace, tmp_path / "whole")
    cut = (tmp_path / "whole").read_bytes()[:-20]
    for content in (b"", b"PAR1", b"PAR1" * 10, b"ARROW1\x00\x00", b"hello", cut):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(TraceError, match="not a stored trace, or damaged"):
            read(tmp_path / "x")


@settings(max_examples=80)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_changed_byte_is_an_error_or_harmless(where: float, change: int) -> None:
    """Checksums: a changed byte is found, or it is one that does not matter."""
    trace = load_trace(SAMPLES / "bailian.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.parquet")
        save_trace(trace, path)
        content = bytearray(path.read_bytes())
        content[int(where * len(content))] ^= change
        path.write_bytes(content)
        try:
            found = read_trace(path, cache=False)
        except TraceError as error:
            assert "\n" not in str(error)
        else:
            assert_equal(trace, found)


@settings(max_examples=80)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_changed_byte_of_an_arrow_file_is_an_error_or_harmless(where: float, change: int) -> None:
    """The mapped file is checked as well, so a damaged copy is never replayed."""
    trace = load_trace(SAMPLES / "bailian.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.arrow")
        save_arrow(trace, path)
        content = bytearray(path.read_bytes())
        content[int(where * len(content))] ^= change
        path.write_bytes(content)
        try:
            assert_equal(trace, open_arrow(path))
        except TraceError as error:
            assert "\n" not in str(error)


def table(header: str = '{"version": 1, "meta": {}}', **changes: Any) -> pa.Table:
    """A table with the columns of a stored trace, some of them changed."""
    columns: dict[str, Any] = {
        "arrival_ns": [0, 5],
        "input_tokens": [3, 4],
        "output_tokens": [1, 1],
        "session": [-1, -1],
        "task": [-1, -1],
        "block_ids": [[0, 1], [0]],
        "block_tokens": [[2, 1], [2]],
    }
    columns |= changes
    made = pa.table({name: values for name, values in columns.items() if values is not None})
    return made.replace_schema_metadata({"simkv_trace": header})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"task": None}, "task"),
        ({"arrival_ns": [5, 0]}, "arrival_ns must not decrease"),
        ({"arrival_ns": [-1, 0]}, "the first arrival is negative"),
        ({"arrival_ns": ["a", "b"]}, "not a stored trace"),
        ({"input_tokens": [2**40, 1]}, "not a stored trace"),
        ({"input_tokens": [-1, 1]}, "token counts must not be negative"),
        ({"input_tokens": [None, 1]}, "not a stored trace"),
        ({}, "the contents do not match their checksum"),
        ({"block_ids": [[70], [70]]}, "block_ids and block_tokens differ in length"),
        ({"block_ids": [[70, None], [70]]}, "must not hold nulls"),
        ({"block_ids": [None, [70]]}, "not a stored trace"),
        ({"block_tokens": [[0, 1], [0]]}, "every block must hold at least one token"),
        ({"block_ids": [1, 2]}, "not a stored trace"),
    ],
)
def test_a_bad_table_is_an_error(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    """Missing columns, other types, nulls and numbers out of range are refused."""
    pq.write_table(table(**changes), tmp_path / "bad.parquet")
    with pytest.raises(TraceError) as caught:
        read_trace(tmp_path / "bad.parquet")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_without_facts_is_no_stored_trace(tmp_path: Path) -> None:
    """Other Parquet files are refused: their blocks and units are anyone's guess."""
    pq.write_table(table().replace_schema_metadata(None), tmp_path / "mine.parquet")
    with pytest.raises(TraceError, match="not a stored trace: no simkv_trace"):
        read_trace(tmp_path / "mine.parquet")


def test_a_table_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests and requested blocks are counted while reading, and limited."""
    pq.write_table(table(), tmp_path / "t.parquet")
    monkeypatch.setattr(storage, "_MAX_BLOCKS", 2)
    with pytest.raises(TraceError, match="more than 2 requests and requested blocks"):
        read_trace(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("[]", "another version"),
        ('{"version": 2, "meta": {}}', "another version"),
        ('{"version": 1, "meta": []}', "facts are not an object"),
        ('{"version": 1, "meta": {}, "origin": 3}', "facts are not an object"),
        ('{"version": 1, "meta": {"notes": "text"}}', "the stored fact notes must be list, not str"),
        ('{"version": 1, "meta": {"reuse": 1}}', "the stored fact reuse must be bool, not int"),
        ("{", "not a stored trace"),
        ("[" * 100_000, "not a stored trace"),
    ],
)
def test_bad_facts_are_an_error(tmp_path: Path, header: str, problem: str) -> None:
    """The facts of a file from outside are checked before they are believed."""
    pq.write_table(table(header), tmp_path / "bad.parquet")
    with pytest.raises(TraceError) as caught:
        read_trace(tmp_path / "bad.parquet")
    assert problem in str(caught.value)


def test_what_cannot_be_stored_exactly_is_refused(tmp_path: Path, trace: Trace) -> None:
    """Blocks out of order of appearance, unused blocks and facts that are not JSON are errors of the writer."""
    swapped = trace.transformed("swap", block_ids=trace.block_ids[::-1].copy())
    unused = trace.transformed("more", block_tokens=np.append(trace.block_tokens, np.int32(7)))
    for odd in (swapped, unused):
        with pytest.raises(TraceError, match="numbered 0.. by first appearance"):
            save_trace(odd, tmp_path / "t.parquet")
    for fact in ({1, 2}, float("nan")):
        with pytest.raises(TraceError, match="the facts of the trace are not JSON"):
            save_trace(trace.with_meta(odd=fact), tmp_path / "t.parquet")
    with pytest.raises(TraceError, match="cannot be written"):
        save_trace(trace, tmp_path / "absent" / "t.parquet")
    assert [] == list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="cannot be written"):
        save_trace(trace, tmp_path / "file" / "t.parquet")


def test_the_same_trace_gives_the_same_bytes(tmp_path: Path, trace: Trace) -> None:
    """Files can be compared by hash."""
    for name in ("a", "b"):
        save_trace(trace, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_facts_are_readable_json_in_the_file(tmp_path: Path, trace: Trace) -> None:
    """Other tools find the facts, with the version of the format, in the schema's metadata."""
    save_trace(trace, tmp_path / "t.parquet")
    stored = json.loads(pq.read_schema(tmp_path / "t.parquet").metadata[b"simkv_trace"])
    assert (1, trace.meta) == (stored["version"], stored["meta"])
