"""Results: columns as specified, rows by hand, exact round trips, and all or nothing on disk."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simkv.errors import SimkvError
from simkv.simulator import metrics
from simkv.simulator.metrics import Result, moves_frame, occupancy_frame, requests_frame
from simkv.simulator.run import simulate
from simkv.traces.generate import generate_trace
from simkv.traces.trace import Trace
from tests.simulator.helpers import (
    DRAM,
    SIZE,
    SSD,
    TWO,
    Scripted,
    make_profile,
    make_trace,
    quality_rows,
    run,
    two_tiers,
)

FRAMES = ("requests", "moves", "occupancy")
NOISY = make_profile(
    quality=quality_rows({"raw": [1, 1, 1], "kivi:4": [0.95, 0.9, 0.7], "kivi:2": [0.8, 0.6, 0.1]}),
    tiers=(DRAM, replace(SSD, endurance_bytes=10**13)),
)


@pytest.fixture(scope="module")
def chats() -> Trace:
    """Chats in blocks of 512 tokens."""
    return generate_trace("sessions", seed=1, sessions=20)


def result_of(chats: Trace, seed: int = 3, **engine: Any) -> Result:
    """A run that compresses, demotes and evicts."""
    policy = {"name": "adaptcache", "alpha": 100.0}
    capacities = {"dram": 12 * 512_000, "ssd": 60 * 512_000}
    return simulate(chats, NOISY, policy, tiers=capacities, tasks="qa", seed=seed, **engine)


@pytest.fixture(scope="module")
def result(chats: Trace) -> Result:
    """One such result."""
    return result_of(chats, measure="revisits", warmup="10 %")


# --- frames -----------------------------------------------------------------------------------------------------------

TYPES = {
    "requests": {
        **{"request": "int64", "arrival_s": "float64", "ttft_s": "float64", "load_s": "float64"},
        **{"queue_s": "float64", "compute_s": "float64", "input_tokens": "int32", "output_tokens": "int32"},
        **{"blocks": "int64", "hit_blocks": "int64", "hit_tokens": "int64", "tokens_dram": "int64"},
        **{"tokens_ssd": "int64", "quality": "float64", "served_by": "str", "variant": "str", "revisit": "bool"},
        **{"measured": "bool", "session": "int32", "family": "int32", "task": "str"},
    },
    "moves": {
        **{"time_s": "float64", "request": "int64", "block": "int64", "kind": "category", "from_tier": "category"},
        **{"from_variant": "category", "to_tier": "category", "to_variant": "category"},
        **{"tokens": "int64", "bytes": "int64"},
    },
    "occupancy": {
        **{"time_s": "float64", "tier": "str", "used_bytes": "int64", "capacity_bytes": "float64"},
        **{"entries": "int64"},
    },
}


def kind_of(dtype: Any) -> str:
    """Name of a column's type; text is "str" whatever pandas calls it."""
    return "str" if pd.api.types.is_string_dtype(dtype) else str(dtype)


@pytest.mark.parametrize("frame", FRAMES)
def test_columns_and_types(result: Result, frame: str) -> None:
    """Columns, their order and their types are those of SPECIFICATION.md section 8."""
    found = {name: kind_of(dtype) for name, dtype in getattr(result, frame).dtypes.items()}
    assert list(TYPES[frame].items()) == list(found.items())


def test_rows_by_hand() -> None:
    """Two requests, the second with one block from DRAM raw, one from SSD kivi:4 (quality 0.9), one computed."""
    engine = run([[0, 1], [0, 1, 2]], Scripted({0: "dram raw", 1: "ssd kivi:4"}))
    frame = requests_frame(engine)
    expected = {
        **{"request": 1, "arrival_s": 1.0, "ttft_s": 0.00112, "load_s": 0.0001, "queue_s": 0.0, "compute_s": 0.00102},
        **{"input_tokens": 300, "output_tokens": 1, "blocks": 3, "hit_blocks": 2, "hit_tokens": 200},
        **{"tokens_dram": 100, "tokens_ssd": 100, "quality": 2.9 / 3, "served_by": "ssd", "variant": "raw"},
        **{"revisit": True, "measured": True, "session": -1, "family": 0, "task": "qa"},
    }
    assert expected == frame.loc[1].to_dict()
    assert ("recompute", "none", 1.0, False) == tuple(frame.loc[0, ["served_by", "variant", "quality", "revisit"]])


def test_moves_by_hand() -> None:
    """An admission and a demotion, with sizes at their destination, then an eviction with the size that left."""
    engine = run(make_trace([[0], [1], [2]], tokens=[100, 60, 100]), tiers=two_tiers(1, 1))
    frame = moves_frame(engine).astype(str)
    columns = ["time_s", "request", "block", "kind", "from_tier", "to_tier", "to_variant", "tokens", "bytes"]
    assert [
        ["0.001", "0", "0", "admission", "", "dram", "raw", "100", "100000"],
        ["1.0006", "1", "1", "admission", "", "dram", "raw", "60", "60000"],
        ["1.0006", "1", "0", "demotion", "dram", "ssd", "raw", "100", "100000"],
        ["2.001", "2", "2", "admission", "", "dram", "raw", "100", "100000"],
        ["2.001", "2", "1", "demotion", "dram", "ssd", "raw", "60", "60000"],
        ["2.001", "2", "0", "eviction", "ssd", "", "", "100", "100000"],
    ] == frame[columns].to_numpy().tolist()


def test_moves_may_be_left_out() -> None:
    """Without a record of moves the frame is empty but has its columns; the rest is the same."""
    engine = run([[0], [0]], record_moves=False)
    assert (list(TYPES["moves"]), 0) == (list(moves_frame(engine).columns), len(moves_frame(engine)))
    assert run([[0], [0]]).recorder.rows == engine.recorder.rows


def test_occupancy_by_hand() -> None:
    """One row per tier and sample; unlimited capacity is not a number."""
    frame = occupancy_frame(run([[0], [1]], tiers=two_tiers(1, None)))
    last = frame.groupby("tier").last()
    assert (SIZE, 1, SIZE) == tuple(last.loc["dram", ["used_bytes", "entries", "capacity_bytes"]])
    assert (SIZE, 1) == tuple(last.loc["ssd", ["used_bytes", "entries"]])
    assert math.isnan(last.loc["ssd", "capacity_bytes"])


@pytest.mark.parametrize("requests", [1, 1_999, 2_000, 3_999, 4_500])
def test_occupancy_is_sampled_at_most_2000_times(requests: int) -> None:
    """However many requests, there are at most 2,000 samples, and more than half as many where there could be."""
    engine = run(make_trace([[]] * requests, inputs=[1] * requests), "recompute", check=None)
    assert min(requests, 1_000) <= len(engine.recorder.samples) <= 2_000


def test_pristine_copies_occupy_their_tier() -> None:
    """The raw copies count as bytes of the last tier in the occupancy, though not as entries of policies."""
    cold = replace(SSD, name="cold")
    frame = occupancy_frame(run([[0], [1]], tiers=(*TWO, cold), pristine=True))
    assert 2 * SIZE == frame.loc[frame["tier"] == "cold", "used_bytes"].iloc[-1]


def test_times_add_up_in_whole_nanoseconds(result: Result) -> None:
    """ttft = load + queue + compute exactly, and every time is a whole number of nanoseconds."""
    table = result.requests[["ttft_s", "load_s", "queue_s", "compute_s"]].to_numpy() * 1e9
    whole = np.rint(table).astype(np.int64)
    assert np.abs(table - whole).max() < 1e-4
    assert (whole[:, 0] == whole[:, 1:].sum(axis=1)).all()


# --- files ------------------------------------------------------------------------------------------------------------


def test_round_trip(result: Result, tmp_path: Path) -> None:
    """What is loaded equals what was saved: values, types, categories, metadata."""
    again = Result.load(result.save(tmp_path / "new" / "result"))
    for frame in FRAMES:
        pd.testing.assert_frame_equal(getattr(result, frame), getattr(again, frame), check_exact=True)
    assert json.loads(json.dumps([result.meta, result.summary])) == [again.meta, again.summary]


def test_same_seed_same_files(chats: Trace, tmp_path: Path) -> None:
    """One seed gives byte-equal Parquet files and, but for the wall time, metadata; another seed does not."""
    folders = [result_of(chats, seed).save(tmp_path / str(index)) for index, seed in enumerate((3, 3, 4))]
    for frame in FRAMES:
        first, second, _ = ((folder / f"{frame}.parquet").read_bytes() for folder in folders)
        assert first == second
    facts = [json.loads((folder / "meta.json").read_text()) for folder in folders]
    for fact in facts:
        fact["summary"].pop("wall_s")
    assert facts[0] == facts[1]
    assert facts[0]["summary"]["quality_mean"] != facts[2]["summary"]["quality_mean"]


def _unwritable(monkeypatch: pytest.MonkeyPatch, result: Result) -> Result:
    return replace(result, summary={"figure": object()})


def _full_disk(monkeypatch: pytest.MonkeyPatch, result: Result) -> Result:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fail)
    return result


def _failing_swap(monkeypatch: pytest.MonkeyPatch, result: Result) -> Result:
    genuine = os.replace

    def fail(source: Any, target: Any) -> None:
        if Path(target).name == "result" and not Path(source).name.endswith(".old"):
            raise OSError("the file system went away")
        genuine(source, target)

    monkeypatch.setattr(metrics.os, "replace", fail)
    return result


@pytest.mark.parametrize("trouble", [_unwritable, _full_disk, _failing_swap])
def test_failing_save_leaves_the_old_result(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Callable[..., Result]
) -> None:
    """Whatever fails while saving, the older result is still there in full and nothing else is left in the folder."""
    result.save(tmp_path / "result")
    before = {path.name: path.read_bytes() for path in (tmp_path / "result").iterdir()}
    with pytest.raises((TypeError, OSError)), monkeypatch.context() as patch:
        trouble(patch, replace(result, summary={"newer": 1})).save(tmp_path / "result")
    assert ["result"] == [path.name for path in tmp_path.iterdir()]
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "result").iterdir()}


def test_saving_again_replaces_the_whole_result(result: Result, tmp_path: Path) -> None:
    """A newer result takes the older one's place, with nothing of it left."""
    folder = result.save(tmp_path / "result")
    (folder / "left-over.txt").write_text("old")
    replace(result, summary={"newer": 1}).save(folder)
    assert {"newer": 1} == Result.load(folder).summary
    assert ["meta.json", *sorted(f"{frame}.parquet" for frame in FRAMES)] == sorted(p.name for p in folder.iterdir())
    assert ["result"] == [path.name for path in tmp_path.iterdir()]


def test_a_folder_of_something_else_is_not_replaced(result: Result, tmp_path: Path) -> None:
    """Saving over a folder that holds no result is an error, and the folder stays."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("precious")
    with pytest.raises(SimkvError, match="holds something that is no result"):
        result.save(tmp_path / "notes")
    assert "precious" == (tmp_path / "notes" / "todo.txt").read_text()


@pytest.mark.parametrize("damage", ["meta.json", "moves.parquet"])
@pytest.mark.parametrize("content", [None, b"", b"[1]", b"PAR1 but not really"])
def test_broken_results_are_one_line_errors(result: Result, tmp_path: Path, damage: str, content: bytes | None) -> None:
    """A missing or damaged file is named by an error of one line that names the folder."""
    folder = result.save(tmp_path / "result")
    (folder / damage).unlink()
    if content is not None:
        (folder / damage).write_bytes(content)
    with pytest.raises(SimkvError, match="result: not a complete result"):
        Result.load(folder)
