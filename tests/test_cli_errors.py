"""Bad input on the command line: one line, the right exit code, nothing half-written."""

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simkv.cli import app
from simkv.traces import read_trace, save_trace
from simkv.traces.generate import generate_trace

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = Path(__file__).parent / "traces" / "samples"
RUN = """
tasks = "qmsum"
[trace]
file = "trace.parquet"
[profile]
name = "adaptcache-a100-1gbps"
[policy]
name = "lru"
"""
POLICY = """
from dataclasses import dataclass
from simkv.simulator.policies.base import Policy

@dataclass
class Broken(Policy):
    name = "broken"
    how: str = "mistake"

    def admit(self, entry, view):
        if self.how == "interrupt":
            raise KeyboardInterrupt
        return {}["no such key"]
"""


def call(*args: Any) -> Any:
    """The outcome of one command, run in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the test, with good and bad inputs."""
    save_trace(generate_trace("zipf", seed=1, requests=20, contexts=4), tmp_path / "trace.parquet")
    read_trace(tmp_path / "trace.parquet")  # its copy for quick reading is no new file later
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    (tmp_path / "study.toml").write_text(RUN + "[grid]\nseed = [1, 2]\n", encoding="utf-8")
    (tmp_path / "away.toml").write_text('name = "../away"\n' + RUN, encoding="utf-8")
    (tmp_path / "torn.toml").write_text("[trace\n", encoding="utf-8")
    (tmp_path / "unknown.toml").write_text(RUN + "[engine]\ngpu = 8\n", encoding="utf-8")
    record = '{"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": [1]}\n'
    (tmp_path / "corrupt.jsonl").write_text(record + '{"timestamp": oops}\n', encoding="utf-8")
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress((record * 500).encode())[:-20])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "broken_policy.py").write_text(POLICY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


BAD = {
    "missing file": ("run nothing.toml", "nothing.toml"),
    "malformed config": ("run torn.toml", "torn.toml: not valid TOML"),
    "unknown key": ("run unknown.toml", "engine: unknown key 'gpu' (did you mean 'gpus'?)"),
    "study given to run": ("run study.toml", "use `simkv sweep study.toml`"),
    "unknown policy": ("run run.toml --policy lruu", "unknown policy 'lruu' (did you mean 'lru'?)"),
    "unknown parameter": ("run run.toml --set policy.varient=raw", "'varient' (did you mean 'variant'?)"),
    "unknown variant": ("run run.toml --set policy.variant=kivi:3", "kivi:3"),
    "unknown profile": ("run run.toml --set profile.name=nobody", "unknown profile 'nobody'"),
    "unknown task": ("run run.toml --set tasks=cooking", "cooking"),
    "unknown --set": ("run run.toml --set policy.name", "--set 'policy.name': write it as KEY=VALUE"),
    "unknown tier": ("run run.toml --set tiers.drum.capacity=1GiB", "unknown tier 'drum' (did you mean 'dram'?)"),
    "missing trace": ("run run.toml --set trace.file=no.jsonl", "no.jsonl"),
    "corrupt line": ("run run.toml --set trace.file=corrupt.jsonl", "corrupt.jsonl, line 2: "),
    "truncated gzip": ("trace stats torn.jsonl.gz", "torn.jsonl.gz"),
    "capacity too small": (
        "run run.toml --set tiers.dram.capacity=1KiB --set tiers.ssd.capacity=1KiB --set tiers.remote.capacity=1KiB",
        "cannot hold even the smallest entry",
    ),
    "out below a file": ("run run.toml --out run.toml/out", "run.toml"),
    "out holds other things": ("run run.toml --out full", "full: is there already"),
    "out is a file": ("run run.toml --out run.toml", "run.toml: is there already"),
    "sweep below a file": ("sweep run.toml --out run.toml/out", "run.toml"),
    "study leaves results": ("sweep away.toml", "'../away' cannot be the name of a folder"),
    "factor and value": ("sweep study.toml --set seed=3", "this key is a factor of the study's grid"),
    "unknown label": ("sweep study.toml --compare LRU", "unknown label 'LRU'"),
    "no results": ("plot full", "full: neither the results of a sweep"),
    "unknown figure": ("plot full --figure delay", "unknown figure 'delay' (did you mean 'delay-quality'?); known:"),
    "unknown kind of file": ("plot full --format gif", "unknown format 'gif'"),
    "unknown format": ("trace stats trace.parquet --format csv", "unknown trace format 'csv'"),
    "unknown model": ("trace stats trace.parquet --model gpt", "unknown model 'gpt'"),
    "no reuse": (f"trace hits {SAMPLES / 'azure2023.csv'} --capacity-blocks 9", "no reuse information"),
    "no capacity": ("trace hits trace.parquet", "give either --capacity-blocks"),
    "two capacities": ("trace hits trace.parquet --capacity 1GiB --capacity-blocks 9", "give either"),
    "not a number": ("trace hits trace.parquet --capacity-blocks 10,many", "'many' is neither a whole number"),
    "negative capacity": ("trace hits trace.parquet --capacity-blocks -5", "capacity -5 must be"),
    "capacity without model": ("trace hits trace.parquet --capacity 1GiB", "--capacity needs --model"),
    "unknown hit policy": ("trace hits trace.parquet --capacity-blocks 9 --policy arc", "unknown policy 'arc'"),
    "unknown touch": ("trace hits trace.parquet --capacity-blocks 9 --touch back", "'back'"),
    "unknown lookup": ("trace hits trace.parquet --capacity-blocks 9 --lookup suffix", "unknown lookup 'suffix'"),
    "not Parquet": ("trace convert trace.parquet out.csv", "out.csv: traces are written as Parquet"),
    "bad window": ("trace convert trace.parquet out.parquet --window-tokens 10", "more than the window of 10"),
    "bad duration": ("trace convert trace.parquet out.parquet --stop soon", "trace.stop: 'soon' is not a duration"),
    "unknown generator": ("trace generate zip out.parquet", "unknown generator 'zip' (did you mean 'zipf'?)"),
    "unknown option": ("trace generate zipf out.parquet --set request=5", "'request' (did you mean 'requests'?)"),
    "generate below a file": ("trace generate zipf run.toml/out.parquet", "run.toml"),
    "unknown trace": ("trace fetch mooncake", "unknown trace 'mooncake'"),
    "no such profile": ("profile show nobody", "unknown profile 'nobody'"),
    "no such sizes": ("profile show adaptcache-a100-1gbps --sizes guessed", "guessed"),
}


@pytest.mark.parametrize("line, part", BAD.values(), ids=BAD)
def test_bad_input_is_one_line(line: str, part: str, folder: Path) -> None:
    """Exit code 2, nothing on stdout, one line on stderr that names the fault, and no new files."""
    before = sorted(folder.rglob("*"))
    outcome = call(*line.split())
    assert (2, "") == (outcome.exit_code, outcome.stdout), outcome.stderr
    (text,) = outcome.stderr.splitlines()
    assert text.startswith("simkv: error: ")
    assert part in text
    assert before == sorted(folder.rglob("*"))


@pytest.mark.parametrize("line", ["run", "run run.toml --jsn", "sweep run.toml --workers 0", "trace", "rum"])
def test_wrong_usage_ends_with_2(line: str, folder: Path) -> None:
    """A missing argument, an unknown option or verb, or a number out of range: the usage, and exit code 2."""
    outcome = call(*line.split())
    assert 2 == outcome.exit_code
    assert "Usage: " in outcome.stdout + outcome.stderr


@pytest.mark.parametrize("line", ["--debug run nothing.toml", "run nothing.toml --debug", "trace --debug stats no.csv"])
def test_debug_shows_the_traceback(line: str, folder: Path) -> None:
    """``--debug``, before or after the verb, adds the traceback and keeps line and exit code."""
    outcome = call(*line.split())
    assert 2 == outcome.exit_code
    assert outcome.stderr.startswith("Traceback (most recent call last):")
    assert outcome.stderr.splitlines()[-1].startswith("simkv: error: ")


def test_internal_errors_point_at_debug(folder: Path) -> None:
    """A mistake in code, here in a policy from outside, is one line with its type and exit code 1."""
    outcome = call("run", "run.toml", "--policy", "broken_policy:Broken")
    assert (1, "") == (outcome.exit_code, outcome.stdout)
    assert "simkv: internal error: KeyError: 'no such key'; see where with --debug\n" == outcome.stderr
    debugged = call("--debug", "run", "run.toml", "--policy", "broken_policy:Broken")
    assert 1 == debugged.exit_code
    assert 'broken_policy.py", line' in debugged.stderr


def test_interrupt_ends_with_130(folder: Path) -> None:
    """Ctrl-C is one line and exit code 130."""
    outcome = call("run", "run.toml", "--policy", "broken_policy:Broken", "--set", "policy.how=interrupt")
    assert (130, "simkv: interrupted\n", "") == (outcome.exit_code, outcome.stderr, outcome.stdout)


def test_foreign_folder_is_not_replaced(folder: Path) -> None:
    """A folder that is not a result keeps what is in it."""
    call("run", "run.toml", "--out", "full")
    assert "mine" == (folder / "full" / "precious.txt").read_text(encoding="utf-8")


def test_closed_pipe_is_silent() -> None:
    """A reader that goes away, such as ``head``, ends the program without a word."""
    with subprocess.Popen(
        [sys.executable, "-m", "simkv", "trace", "list"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as ran:
        assert ran.stdout and ran.stderr
        ran.stdout.close()
        assert b"" == ran.stderr.read()
    assert 141 == ran.returncode


def test_policy_of_the_current_folder(folder: Path) -> None:
    """The installed program finds ``module:Class`` in the current folder, as ``python -m`` does."""
    code = f"import sys; sys.path[0] = {str(ROOT)!r}; from simkv.cli import main; main()"
    args = ["run", "run.toml", "--policy", "broken_policy:Broken"]
    ran = subprocess.run([sys.executable, "-c", code, *args], cwd=folder, capture_output=True, text=True, check=False)
    assert "simkv: internal error: KeyError: 'no such key'; see where with --debug\n" == ran.stderr
