"""The README is true: its examples run as printed, its commands and files exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from simkv import Result, generate_trace, load_profile, simulate
from simkv.traces import save_trace

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def _example(name: str) -> str:
    found = re.search(rf"<!-- example: {re.escape(name)} -->\n```python\n(.*?)```", TEXT, re.DOTALL)
    assert found, f"README.md has no example {name!r}"
    return found.group(1)


def test_python_example_runs(tmp_path: Path) -> None:
    """The ten-line example prints one line per policy, and AdaptCache beats recomputing."""
    save_trace(generate_trace("adaptcache-coding", seed=42), tmp_path / "coding.parquet")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + _example("python")
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    delay = {line.split()[0]: float(line.split()[1]) for line in ran.stdout.splitlines()[:3]}
    assert ["recompute", "lru", "adaptcache"] == list(delay)
    assert delay["adaptcache"] < delay["recompute"]
    assert 12 >= len(_example("python").splitlines())


def test_policy_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy of the README runs by its module name, keeps the newest raw in DRAM and the older 4-bit on SSD."""
    (tmp_path / "my_policies.py").write_text(_example("my_policies.py"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    trace = generate_trace("adaptcache-coding", seed=42)
    profile = load_profile("adaptcache-a100-1gbps")
    result = simulate(trace, profile, {"name": "my_policies:HotRaw"}, arrivals="closed", check=True)
    saved = Result.load(result.save(tmp_path / "result"))
    assert {"cold": "kivi:4"} == saved.summary["params"]
    kept = result.moves.loc[result.moves["kind"] == "demotion", ["to_tier", "to_variant"]].drop_duplicates()
    assert [["ssd", "kivi:4"]] == kept.astype(str).to_numpy().tolist()
    assert 0 < result.summary["request_share_dram"] < 1


def test_compressor_example_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compressor of the README is measured by its module name and keeps what its knob says."""
    from typer.testing import CliRunner

    from simkv.cli import app

    (tmp_path / "my_compressors.py").write_text(_example("my_compressors.py"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    few = ["--tasks", "qa", "--contexts", "1", "--questions", "2", "--tokens", "128"]
    out = tmp_path / "mine"
    done = CliRunner().invoke(
        app, ["profile", "quality", "--compressors", "my_compressors:EveryOther", *few, "--out", str(out)]
    )
    assert 0 == done.exit_code, done.output
    profile = load_profile(out)
    assert ["raw", *(f"every-other:{kept}" for kept in ("0.75", "0.5", "0.25", "0.1"))] == list(
        map(str, profile.variants)
    )
    assert pytest.approx(0.5, abs=0.01) == list(profile.size_ratio.values())[2]


def test_files_that_are_named_exist() -> None:
    """Every repository path that the README names is there."""
    named = set(re.findall(r"`((?:simkv|profiles|experiments|notebooks|\.github|\.ci)/[\w./-]+)`", TEXT))
    named |= set(re.findall(r"(experiments/[\w-]+/config\.toml)", TEXT))
    assert len(named) > 6
    assert [] == sorted(path for path in named if not (ROOT / path).exists())


def test_policies_are_all_listed() -> None:
    """The README's table of policies has every known policy."""
    from simkv.simulator.policies import POLICIES

    assert [] == [name for name in POLICIES if f"`{name}`" not in TEXT]


def test_config_reference_names_every_key() -> None:
    """simkv/CONFIG.md has every key of every section and every parameter of every policy."""
    from dataclasses import fields

    from simkv.config import BoundConfig, EngineConfig, LinkConfig, ProfileConfig, RunConfig, TierConfig, TraceConfig
    from simkv.simulator.policies import POLICIES

    text = (ROOT / "simkv" / "CONFIG.md").read_text(encoding="utf-8")
    models = (RunConfig, TraceConfig, ProfileConfig, TierConfig, LinkConfig, EngineConfig, BoundConfig)
    keys = {field.alias or name for model in models for name, field in model.model_fields.items()}
    keys -= {"trace", "profile", "tiers", "host_link", "engine", "policy"}
    keys |= {field.name for policy in POLICIES.values() for field in fields(policy) if field.init}
    assert [] == sorted(key for key in keys if f"`{key}`" not in text)
