"""The verbs of ``simkv trace`` on hand-made and generated traces; counts worked out by hand."""

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simkv.cli import app
from simkv.config import parse_run
from simkv.preparation import prepare_trace
from simkv.traces import read_trace
from simkv.traces.fetch import registry
from simkv.traces.generate import generate_trace

SAMPLES = Path(__file__).parent / "traces" / "samples"
# Blocks of 512 tokens: requests ask for 1 2, 1 2, 3, and 1 2 3.
REQUESTS = ([1, 2], [1, 2], [3], [1, 2, 3])


def call(*args: Any) -> Any:
    """The outcome of one command, run in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The four requests as a Mooncake trace, a second apart."""
    lines = [
        {"timestamp": 1000 * index, "input_length": 512 * len(ids), "output_length": 5, "hash_ids": ids}
        for index, ids in enumerate(REQUESTS)
    ]
    path = tmp_path / "four.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_hits_are_those_worked_out_by_hand(trace: Path) -> None:
    """LRU of two blocks hits the second request only; unlimited, everything but the first touches."""
    outcome = call(
        *("trace", "hits", trace, "--policy", "lru", "--capacity-blocks", "2,unlimited"),
        *("--touch", "forward", "--lookup", "block", "--json"),
    )
    rows = json.loads(outcome.stdout)
    assert [(2, 2, 0.25), (None, 5, 0.625)] == [(row["capacity"], row["hits"], row["block_hit_ratio"]) for row in rows]
    assert {"lru"} == {row["policy"] for row in rows}
    assert {8} == {row["requested_blocks"] for row in rows}
    assert {("forward", "block")} == {(row["touch"], row["lookup"]) for row in rows}


def test_hits_reverse_and_prefix(trace: Path) -> None:
    """Touched in reverse, block 1 outlives the third request: the last request then hits a prefix of one block."""
    outcome = call(
        *("trace", "hits", trace, "--policy", "lru", "--capacity-blocks", "2"),
        *("--touch", "reverse", "--lookup", "prefix", "--json"),
    )
    assert [3] == [row["hits"] for row in json.loads(outcome.stdout)]


def test_hits_of_several_policies_in_bytes(trace: Path) -> None:
    """Capacities in bytes count real sizes: 128 MiB hold two blocks of 512 tokens of 128 KiB each."""
    args = ("trace", "hits", trace, "--policy", "lru,clairvoyant", "--capacity", "128MiB", "--model", "llama-3.1-8b")
    outcome = call(*args)
    assert ["lru", "128", "MiB", "2", "25.0", "25.0"] == outcome.stdout.splitlines()[-2].split()
    lru, clairvoyant = json.loads(call(*args, "--json").stdout)
    assert "bytes" == lru["capacity_unit"]
    assert lru["hits"] < clairvoyant["hits"]


def test_hits_of_a_folder() -> None:
    """A folder of sessions is one trace, and what was left out of it is one warning."""
    outcome = call("trace", "hits", SAMPLES / "sessions", "--policy", "lru", "--capacity-blocks", "unlimited", "--json")
    assert 0 == outcome.exit_code, outcome.stderr
    assert json.loads(outcome.stdout)[0]["requested_blocks"] > 0
    assert all(line.startswith("simkv: warning: ") for line in outcome.stderr.splitlines())


def test_stats_as_text_and_json(trace: Path, tmp_path: Path) -> None:
    """Numbers carry units, bytes need a model, and JSON holds the same numbers."""
    outcome = call("trace", "stats", trace, "--model", "llama-3.1-8b", "--plot", tmp_path / "stats.png")
    lines = [line.split("  ") for line in outcome.stdout.splitlines()]
    rows = [(line[0], line[-1].strip()) for line in lines]
    assert ("total input", "4,096 tokens") in rows
    assert ("working set, whole trace", "192 MiB") in rows
    assert b"\x89PNG" == (tmp_path / "stats.png").read_bytes()[:4]
    facts = json.loads(call("trace", "stats", trace, "--json").stdout)
    assert (4, 4096, 0.625) == (facts["requests"], facts["total_input_tokens"], facts["reuse"]["block_hit_ratio"])
    assert "iB" not in call("trace", "stats", trace).stdout


def test_stats_without_reuse() -> None:
    """A trace without blocks gets lengths and arrivals."""
    outcome = call("trace", "stats", SAMPLES / "azure2023.csv", "--json")
    assert json.loads(outcome.stdout)["reuse"] is None


def test_convert_does_what_a_configuration_does(trace: Path, tmp_path: Path) -> None:
    """The written trace is the one that a run with the same section ``[trace]`` and seed replays."""
    out = tmp_path / "converted.parquet"
    steps = {"start": "1 s", "stop": "10 s", "rate": 2.0, "jitter": "1 s", "group_blocks": 2, "window_tokens": 1024}
    options = [part for key, value in steps.items() for part in (f"--{key.replace('_', '-')}", value)]
    outcome = call("trace", "convert", trace, out, *options, "--window-rule", "clip", "--seed", 5)
    assert (0, "", f"{out}: 3 requests") == (outcome.exit_code, outcome.stderr, outcome.stdout.partition(",")[0])
    section = {"file": str(trace), "window_rule": "clip", **steps}
    table = {"seed": 5, "trace": section, "profile": {"name": "any"}, "policy": {"name": "lru"}}
    expected, written = prepare_trace(parse_run(table)), read_trace(out)
    assert expected.arrival_ns.tolist() == written.arrival_ns.tolist()
    assert expected.block_ids.tolist() == written.block_ids.tolist()
    assert expected.meta["transforms"] == written.meta["transforms"]


def test_convert_passes_options_to_the_reader(tmp_path: Path, trace: Path) -> None:
    """``--set`` reaches the reader: blocks of 600 tokens."""
    assert 0 == call("trace", "convert", trace, tmp_path / "c.parquet", "--set", "block_size=600").exit_code
    assert 600 == read_trace(tmp_path / "c.parquet").meta["block_size"]


def test_generate_is_the_library_call(tmp_path: Path) -> None:
    """The file holds the trace that ``generate_trace`` gives for the same seed and options."""
    out = tmp_path / "new" / "z.parquet"
    options = ("--set", "requests=40", "--set", "contexts=5", "--set", "arrivals=uniform")
    outcome = call("trace", "generate", "zipf", out, "--seed", 7, *options)
    assert f"{out}: 40 requests, 5 distinct blocks" == outcome.stdout.rpartition(",")[0]
    expected = generate_trace("zipf", seed=7, requests=40, contexts=5, arrivals="uniform")
    assert expected.meta == read_trace(out).meta
    assert expected.block_ids.tolist() == read_trace(out).block_ids.tolist()


def test_list_is_the_registry() -> None:
    """Every public trace is a row with format, licence and whether it has reuse."""
    rows = {row["name"]: row for row in json.loads(call("trace", "list", "--json").stdout)}
    assert ("mooncake", "Apache-2.0", True) == tuple(
        rows["mooncake-conversation"][key] for key in ("format", "licence", "reuse")
    )
    text = call("trace", "list").stdout.splitlines()
    assert ["name", "format", "size", "licence", "reuse", "fetch", "what"] == text[0].split()
    assert list(rows) == [line.split()[0] for line in text[1:]]


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served over HTTP in place of the public addresses."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("SIMKV_TRACE_MIRROR", f"http://127.0.0.1:{server.server_port}")
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


def test_fetch_prints_where_the_trace_is(mirror: Path, tmp_path: Path) -> None:
    """An unverified trace is fetched only when that is allowed; nothing is drawn on a piped stderr."""
    name = "azure-2024-code"
    (file,) = registry()[name].files
    (mirror / name).mkdir()
    (mirror / name / file).write_bytes((SAMPLES / "azure2024.csv").read_bytes())
    refused = call("trace", "fetch", name, "--folder", tmp_path / "here")
    assert 2 == refused.exit_code
    assert "no checksum is known" in refused.stderr
    fetched = call("trace", "fetch", name, "--folder", tmp_path / "here", "--allow-unverified")
    assert (0, "") == (fetched.exit_code, fetched.stderr)
    assert (SAMPLES / "azure2024.csv").read_bytes() == Path(fetched.stdout.strip()).read_bytes()
