"""Killed measurements: whenever it comes, a kill leaves nothing that a rerun does not go on from or remove."""

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from simkv.errors import SimkvError
from simkv.profiler import tiers
from simkv.profiler.everything import WholePlan, measure_all
from simkv.profiler.measurement import QualityPlan, measure_quality
from simkv.profiler.rows import Row, SpeedRow
from simkv.profiler.speed_measurement import SpeedPlan, measure_speed
from simkv.profiler.tiers import TierPlan, measure_tiers

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
NAMES = ("int8",)
QUALITY = QualityPlan(tasks=("qa",), compressors=NAMES, contexts=2, questions=2, length=64, quick=True)
SPEED = SpeedPlan(compressors=NAMES, lengths=(32, 48, 64), batches=(1,), seconds=0.001, quick=True)
LEFT = {
    "quality": {"mine.rows.jsonl"},
    "speed": {"mine.rows.jsonl"},
    "tiers": {"disk"},
    "all": {"disk", "mine.parts"},
}


def verbs(folder: Path) -> dict[str, Callable[[], Any]]:
    """The smallest measurement of each kind; what they write is called mine."""
    (folder / "disk").mkdir(exist_ok=True)
    told = TierPlan(folder / "disk", 1 << 20, 0.001, quick=True)
    out = folder / "mine"
    return {
        "quality": lambda: measure_quality(QUALITY, out),
        "speed": lambda: measure_speed(SPEED, out),
        "tiers": lambda: measure_tiers(told, out),
        "all": lambda: measure_all(
            WholePlan(QUALITY, SPEED, told), out, lambda what: contextlib.nullcontext(lambda done, of: None)
        ),
    }


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(tiers, "_QUICK_COPY_SIZES", (1 << 16,))
    monkeypatch.setattr(tiers, "compare_with_fio", lambda *_: {})


def _dying(run: Callable[[], Any], change: int) -> None:
    """Run it, and be killed right before the so-manieth change of a file."""
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in CHANGES:
            seen += 1
            if seen == change:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    run()


def _child(run: Callable[..., Any], *arguments: Any) -> multiprocessing.process.BaseProcess:
    child = multiprocessing.get_context("fork").Process(target=run, args=arguments)
    child.start()
    return child


def _rows(folder: Path) -> int:
    """Measured points on disk so far, in the parts of a whole measurement too, those timed again once."""
    found = {
        (path.name, *line.split(", ")[:5])
        for path in [*folder.glob("*.rows.jsonl"), *folder.glob("*/*.rows.jsonl")]
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("[")
    }
    return len(found)


def _is_in_its_place(verb: str, folder: Path) -> bool:
    """Only what is the measurement's own: finished, to go on from, or a folder that says whose it was."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".tmp-")}
    return names <= {"mine", "disk", *LEFT[verb]} and {"simkv-tiers"} >= set(os.listdir(folder / "disk"))


@pytest.mark.parametrize("verb", ["quality", "speed", "tiers", "all"])
def test_a_kill_at_any_change_of_a_file_leaves_what_a_rerun_goes_on_from(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the first change, then going on and killed at the second, and so on until it gets through."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    work = tmp_path / "work"
    work.mkdir()
    run = verbs(work)[verb]
    for change in range(1, 60):
        before = _rows(work)
        child = _child(_dying, run, change)
        child.join()
        assert _is_in_its_place(verb, work)
        if child.exitcode == 0 or (verb == "tiers" and (work / "mine").exists()):
            break
        assert -signal.SIGKILL == child.exitcode
        assert (work / "mine").exists() or _rows(work) >= before
    else:
        pytest.fail("it never got through")
    assert change > 5
    if verb == "tiers":  # finished when it was killed, so that a rerun refuses, and tidies up
        with pytest.raises(SimkvError, match="exists already"):
            run()
    assert {"mine", "disk"} == {path.name for path in work.iterdir()}
    assert not [*(work / "disk").iterdir(), *(tmp_path / "elsewhere").iterdir()]


@pytest.mark.parametrize("verb", ["quality", "speed"])
def test_a_kill_at_any_moment_costs_no_row(verb: str, tmp_path: Path) -> None:
    """Rows that were on disk when it was killed are in the profile, measured once."""
    run, moments = verbs(tmp_path)[verb], random.Random(1)
    for _ in range(3):
        child = _child(run)
        until, wanted = time.monotonic() + 60, _rows(tmp_path) + moments.randrange(1, 3)
        while child.is_alive() and _rows(tmp_path) < wanted and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.003))
        child.kill()
        child.join()
    kind = Row if verb == "quality" else SpeedRow
    kept = _rows(tmp_path)
    told: list[int] = []
    measure = measure_quality if verb == "quality" else measure_speed
    profile = measure(QUALITY if kind is Row else SPEED, tmp_path / "mine", lambda done, of: told.append(done))  # type: ignore[operator]
    assert told[0] == kept
    assert told[-1] == len(profile.quality if kind is Row else profile.speed_rows)
