"""``simkv validate`` as a whole: its report, and what a kill at any point leaves behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from simkv import cli_validate
from simkv.cli import app
from simkv.profiles import load_profile
from simkv.testbed.folder import report_folder
from simkv.testbed.report import NAMES, REPORT
from simkv.testbed.serving import OwnClock
from tests.testbed.conftest import TINY

CONFIG = """
variants = ["kivi:4", "kivi:2"]
dram = "400 kB"
disk = "300 kB"
rounds = 3
requests = 20
repeats = 1
loops = ["closed"]
[workload]
tasks = ["qa", "code"]
contexts = 6
shortest = 64
longest = 128
step = 64
questions = 4
[[policies]]
name = "lru"
[[policies]]
name = "adaptcache"
preset = "paper"
alpha = 0.001
"""

# Forks before torch has computed anything; each child kills itself at one point of a validation.
KILLS = """
import json, os, signal, sys
from contextlib import contextmanager
from pathlib import Path
import simkv.testbed.folder, simkv.testbed.payloads
from simkv.testbed import validate
from simkv.testbed.plan import parse_plan

plan, home = parse_plan(json.loads(sys.argv[1])), Path(sys.argv[2])
disk, out = home / "disk", home / "out"

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def bars_that_kill(at):
    left = [at]
    @contextmanager
    def bars(what):
        def progress(done, total):
            left[0] -= 1
            if not left[0]:
                die()
        yield progress
    return bars

def child(point):
    if isinstance(point, int):
        validate(plan, disk, out, bars_that_kill(point))
        return
    if point == "moving":
        simkv.testbed.folder.os.replace = die
    if point == "writing":
        real, count = simkv.testbed.payloads.os.pwritev, [4]
        def pwritev(*given):
            count[0] -= 1
            return real(*given) if count[0] else die()
        simkv.testbed.payloads.os.pwritev = pwritev
    validate(plan, disk, out, bars_that_kill(0))

for point in ["writing", 11, "moving", "end"]:
    pid = os.fork()
    if not pid:
        try:
            child(point)
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    left = sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    print(json.dumps([point, status, left]), flush=True)
"""


def test_the_verb_reports_what_it_did(tmp_path: Path) -> None:
    """A whole run writes its report, figures and profile, agrees on every placement, and leaves nothing on the disk."""
    (tmp_path / "plan.toml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "disk").mkdir()
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app,
        ["validate", str(tmp_path / "plan.toml"), "--ssd", str(tmp_path / "disk"), "--out", str(out), "--json"],
    )
    assert 0 == done.exit_code, done.output
    facts = json.loads(done.stdout)
    assert [("lru", True), ("adaptcache", True)] == [
        (line["policy"], line["placements_identical"]) for line in facts["replays"]
    ]
    assert json.loads((out / "report.json").read_text())["replays"] == facts["replays"]
    frame = pd.read_parquet(out / "requests.parquet")
    assert 40 == len(frame)
    parts = frame[["measured_load_s", "measured_queue_s", "measured_decode_s", "measured_prefill_s"]].sum(axis=1)
    assert frame["measured_ttft_s"].tolist() == pytest.approx(parts.tolist())
    moves = pd.read_parquet(out / "moves.parquet")
    sides = [
        moves[moves["side"] == side].drop(columns="side").to_numpy().tolist() for side in ("predicted", "measured")
    ]
    assert sides[0] == sides[1]
    assert sum(line["moves"] for line in facts["replays"]) == len(sides[0]) > 0
    assert (out / "closed-scatter.png").is_file()
    assert (out / "closed-cdf.png").is_file()
    assert ["raw", "kivi:4", "kivi:2"] == [str(name) for name in load_profile(out / "profiles" / "repeat-1").variants]
    assert [] == list((tmp_path / "disk").iterdir())


def test_one_length_in_tiers_too_small_for_it(tmp_path: Path) -> None:
    """Contexts of one length are served in both loops; a tier that holds none of them is warned of; older figures go.

    The closed loop's times leave waits for a processor out where the system tells them, the open loop's do not.
    """
    (tmp_path / "plan.toml").write_text(
        'variants = ["kivi:4"]\nrequests = 5\nrepeats = 1\nrates = [50]\nrounds = 3\n'
        '[workload]\ntasks = ["qa"]\ncontexts = 1\nshortest = 64\nlongest = 64\n',
        encoding="utf-8",
    )
    out = tmp_path / "out"
    with report_folder(out, NAMES, REPORT) as part:
        for name in ("open-load-0.3-cdf.png", REPORT):
            (part / name).touch()
    options = ["--ssd", str(tmp_path), "--out", str(out), "--dram", "1 kB", "--disk", "1 MB", "--seed", "3", "--json"]
    done = CliRunner().invoke(app, ["validate", str(tmp_path / "plan.toml"), *options])
    assert 0 == done.exit_code, done.output
    assert "tier dram: no context fits into 1000 B in any variant" in done.stderr
    facts = json.loads(done.stdout)
    assert (1000, 1_000_000, 3) == tuple(facts["plan"][key] for key in ("dram", "disk", "seed"))
    figures = [f"{stem}-{name}.png" for stem in ("closed", "open-50-per-s") for name in ("cdf", "scatter")]
    assert figures == sorted(path.name for path in out.glob("*.png"))
    assert [("closed", OwnClock().counts_waits), ("open", False)] == [
        (line["loop"], line["waits_taken_off"]) for line in facts["replays"]
    ]
    assert {"recompute": 1, "ssd": 4} == {
        source: found["requests"] for source, found in facts["replays"][0]["by_source"].items()
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dram", "0"], "'0' has no unit; write it like '32 GiB'"),
        (["--dram", "0 B"], "dram"),
        (["--policy", "evicpress"], "policy evicpress: acts between requests"),
    ],
    ids=["no unit", "nothing", "by the clock"],
)
def test_what_cannot_be_is_refused_before_anything_is_done(tmp_path: Path, options: list[str], message: str) -> None:
    """Sizes without a unit or of nothing, and policies that cannot be replayed, leave no folder behind."""
    done = CliRunner().invoke(app, ["validate", *options, "--ssd", str(tmp_path), "--out", str(tmp_path / "o")])
    assert 2 == done.exit_code
    assert message in done.stderr
    assert [] == list(tmp_path.iterdir())


def test_a_calibration_beyond_the_budget_is_refused(tmp_path: Path) -> None:
    """The key is named before anything is measured: 7 lengths in 4 variants on two tiers are more than 2 MB."""
    (tmp_path / "plan.toml").write_text('budget = "2 MB"\n', encoding="utf-8")
    options = ["--ssd", str(tmp_path), "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(app, ["validate", str(tmp_path / "plan.toml"), *options])
    assert 2 == done.exit_code
    assert "budget: the calibration stores a context of every length" in done.stderr
    assert ["plan.toml"] == [path.name for path in tmp_path.iterdir()]


def test_sigterm_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation that is told to end in its calibration removes its payloads and its unfinished report."""
    (tmp_path / "plan.toml").write_text(CONFIG, encoding="utf-8")
    seen: list[int] = []

    @contextmanager
    def bars(what: str) -> Iterator[Callable[[int, int], None]]:
        def progress(done: int, total: int) -> None:
            if what == "calibration 1" and done == 1:
                seen.append(len(list(tmp_path.rglob("*.kv"))))
                os.kill(os.getpid(), signal.SIGTERM)

        yield progress

    monkeypatch.setattr(cli_validate, "request_bar", bars)
    options = ["--ssd", str(tmp_path), "--out", str(tmp_path / "o")]
    before = signal.getsignal(signal.SIGTERM)
    done = CliRunner().invoke(app, ["validate", str(tmp_path / "plan.toml"), *options])
    assert 130 == done.exit_code
    assert [6] == seen
    assert ["plan.toml"] == [path.name for path in tmp_path.iterdir()]
    assert before == signal.getsignal(signal.SIGTERM)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Nothing is made for a device that torch cannot use."""
    done = CliRunner().invoke(
        app, ["validate", "--device", "tpu", "--ssd", str(tmp_path), "--out", str(tmp_path / "o")]
    )
    assert 2 == done.exit_code
    assert "device tpu: this machine has no such device" in done.stderr
    assert [] == list(tmp_path.iterdir())


def test_a_kill_leaves_nothing_outside_its_folders(tmp_path: Path) -> None:
    """Killed at three points, the next run begins anew, and the last one leaves a report and an empty disk."""
    (tmp_path / "disk").mkdir()
    workload = {**TINY["workload"], "contexts": 2, "questions": 2}  # type: ignore[dict-item]
    plan = json.dumps({**TINY, "variants": ["kivi:4"], "requests": 6, "loops": ["closed"], "workload": workload})
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLS, plan, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert 0 == ran.returncode, ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [9] * 3 + [0] == [status for _, status, _ in lines], ran.stderr
    for point, _, left in lines:
        assert all(path.startswith(("disk/simkv-testbed/", "out/")) for path in left), (point, left)
    assert any(path.endswith(".kv") for _, _, left in lines[:-1] for path in left), "no payloads were killed"
    assert "out/report.json" in lines[-1][2]
    assert [] == [path for path in lines[-1][2] if path.startswith("disk") or ".part" in path]
