"""The verbs of ``simkv profile`` on the shipped profiles and on a broken copy."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simkv.cli import app
from simkv.profiles import list_profiles

ROOT = Path(__file__).resolve().parents[1]
NAME = "adaptcache-a100-1gbps"


def call(*args: Any) -> Any:
    """The outcome of one command, run in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_list_shows_every_profile() -> None:
    """All shipped profiles are listed with their model, as text and as JSON."""
    text = call("profile", "list").stdout.splitlines()
    assert list_profiles() == [line.split()[0] for line in text[1:]]
    rows = {row["name"]: row for row in json.loads(call("profile", "list", "--json").stdout)}
    assert ("llama-3.1-8b", 7, 6) == tuple(rows[NAME][key] for key in ("model", "variants", "tasks"))


def test_list_survives_a_broken_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that cannot be read is a row that says so."""
    (tmp_path / "profiles" / "broken").mkdir(parents=True)
    (tmp_path / "profiles" / "broken" / "profile.toml").write_text("format = 9", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    outcome = call("profile", "list")
    (line,) = (line for line in outcome.stdout.splitlines() if line.startswith("broken "))
    assert "cannot be read: " in line
    assert NAME in outcome.stdout


def test_show_prints_sizes_quality_and_front() -> None:
    """A row per variant: size ratio, quality by task, and a star on the Pareto front; then times and tiers."""
    lines = call("profile", "show", NAME).stdout.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line.startswith(("raw", "kivi", "streamingllm"))}
    quality = lines.index(
        "variant                 size ratio  qmsum  samsum  triviaqa  hotpotqa  repobench-p    lcc   mean"
    )
    assert ["kivi:4", "*", "0.3125"] == lines[quality + 3].split()[:3]
    assert ["streamingllm:0.7286", "0.7286"] == lines[quality + 5].split()[:2]
    # 1000 * (0.0171 + 8.5467e-06 * 10,000) ms to load a raw context of 10,000 tokens from DRAM
    assert "102.6" == rows["raw"][3]
    squeezed = [" ".join(line.split()) for line in lines]
    assert "dram 97 GiB 15.3 GB/s 15.3 GB/s 0 s 1 fifo -" in squeezed
    assert "load_lines authors-code 7, assumed 7" in squeezed


def test_show_takes_the_other_sizes() -> None:
    """``--sizes nominal`` shows the sizes that the authors charge."""
    facts = json.loads(call("profile", "show", NAME, "--sizes", "nominal", "--json").stdout)
    ratios = {row["variant"]: row["size_ratio"] for row in facts["variants"]}
    assert ("nominal", 0.485714286) == (facts["sizes"], ratios["kivi:4"])


def test_show_json_has_speeds_and_origins() -> None:
    """JSON holds the lines themselves and where each number comes from."""
    facts = json.loads(call("profile", "show", NAME, "--json").stdout)
    raw = facts["variants"][0]
    assert {"per_token_s": 8.5467e-06, "fixed_s": 0.0171} == raw["load"]["dram"]
    assert ["dram", "ssd", "remote"] == [tier["name"] for tier in facts["tiers"]]
    assert "published" == facts["provenance"]["numbers"]["model"]["status"]


@pytest.mark.parametrize("name", list_profiles())
def test_check_accepts_what_is_shipped(name: str) -> None:
    """Every shipped profile passes, and can be shown."""
    outcome = call("profile", "check", ROOT / "profiles" / name)
    assert (0, True) == (outcome.exit_code, outcome.stdout.startswith(f"OK: {name}: "))
    assert 0 == call("profile", "show", name).exit_code


def test_check_names_the_first_mistake(tmp_path: Path) -> None:
    """A wrong number is one line naming file and key, with exit code 2."""
    folder = tmp_path / "mine"
    shutil.copytree(ROOT / "profiles" / NAME, folder)
    text = (folder / "profile.toml").read_text(encoding="utf-8")
    (folder / "profile.toml").write_text(text.replace("layers = 32", "layers = -32"), encoding="utf-8")
    outcome = call("profile", "check", folder)
    assert (2, "") == (outcome.exit_code, outcome.stdout)
    (line,) = outcome.stderr.splitlines()
    assert line.startswith(f"simkv: error: {folder / 'profile.toml'}")
    assert "layers" in line
