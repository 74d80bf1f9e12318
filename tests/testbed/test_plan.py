"""Plans: what a file may say, and what too little room makes of it."""

from pathlib import Path

import pytest

from simkv.errors import ConfigError, SimkvError
from simkv.profiler.sources import open_source
from simkv.testbed.bench import make_bench
from simkv.testbed.plan import Plan, WorkloadPlan, load_plan, parse_plan
from simkv.testbed.storing import settings_of_plan
from tests.testbed.conftest import TINY


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"reqests": 3}, r"unknown key 'reqests' \(did you mean 'requests'\?\)"),
        ({"workload": {"longest": 64, "shortest": 128}}, r"workload\.longest: 64 tokens are fewer"),
        ({"policies": [{"name": "lru"}, {"name": "lru", "variant": "kivi:4"}]}, "give them labels that differ"),
        ({"loops": ["circular"]}, "unknown value 'circular'"),
        ({"dram": "4 bananas"}, "dram"),
        ({"loads": [], "loops": ["open"]}, "an open loop needs loads or rates"),
        ({"variants": ["kivi:4", "kivi:4"]}, "names one twice"),
    ],
)
def test_mistakes_are_named(tables: dict, message: str) -> None:
    """Each mistake is one line with the key."""
    with pytest.raises(ConfigError, match=message):
        parse_plan(tables)


def test_larger_tiers_are_scaled_down_with_the_contexts() -> None:
    """30 GB of tiers in a budget of 3 GB leaves a tenth of both tiers and of the contexts."""
    plan = parse_plan({"dram": "10 GB", "disk": "20 GB", "budget": "3 GB", "workload": {"contexts": 500}})
    assert (0.1, (1_000_000_000, 2_000_000_000), 50) == (plan.scale, plan.capacities, plan.contexts)
    small = parse_plan({"dram": "10 MB", "disk": "20 MB", "budget": "3 GB", "workload": {"contexts": 500}})
    assert (1.0, (10_000_000, 20_000_000), 500) == (small.scale, small.capacities, small.contexts)


def test_options_replace_keys_of_the_file(tmp_path: Path) -> None:
    """What the command line gives wins; the rest is the file's."""
    path = tmp_path / "plan.toml"
    path.write_text('requests = 7\ndram = "1 MB"\n[[policies]]\nname = "fifo"\n', encoding="utf-8")
    plan = load_plan(path, {"requests": 9})
    assert (9, 1_000_000, "fifo") == (plan.requests, plan.dram, plan.policies[0].name)


def test_the_shipped_plan_is_valid(repository: Path) -> None:
    """experiments/validate/config.toml has at least 300 requests, three policies and three repeats."""
    plan = load_plan(repository / "experiments" / "validate" / "config.toml", {})
    assert plan.requests >= 300
    assert len(plan.policies) >= 3
    assert plan.repeats >= 3


def test_every_key_is_documented(repository: Path) -> None:
    """simkv/CONFIG.md has every key of a validation."""
    text = (repository / "simkv" / "CONFIG.md").read_text(encoding="utf-8").partition("## Validations")[2]
    keys = set(Plan.model_fields) - {"workload"} | {f"workload.{key}" for key in WorkloadPlan.model_fields}
    keys -= {"workload.longest", "workload.step"}
    assert [] == sorted(key for key in {*keys, "longest", "step"} if f"`{key}`" not in text and f"[{key}]" not in text)


@pytest.mark.parametrize(
    "changed",
    [
        {"tasks": ["needle"]},
        {"contexts": 7},
        {"shortest": 96},
        {"longest": 192},
        {"step": 16},
        {"questions": 6},
        {"exponent": 3.0},
        {"seed": 1},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_key_of_the_workload_has_an_effect(changed: dict) -> None:
    """A changed key gives other contexts, other questions, or other requests."""

    def made(changes: dict) -> list:
        workload = {**TINY["workload"], **{key: value for key, value in changes.items() if key != "seed"}}  # type: ignore[dict-item]
        plan = parse_plan({"workload": workload, "seed": changes.get("seed", 0)})
        bench = make_bench(open_source("small", "cpu"), plan.workload, plan.contexts, plan.seed)
        requests = bench.requests(20, plan.workload.exponent, 1.0, plan.seed)
        asked = [bench.asked(number) for number in range(len(bench.contexts))]
        return [[one.tokens.tolist() for one in bench.contexts], asked, requests.context.tolist()]

    assert made({}) == made({})
    assert made({}) != made(changed)


@pytest.mark.parametrize(
    ("variant", "message"), [("snapkv:0.5", "needs queries"), ("streamingllm:0.5", "drops tokens")]
)
def test_variants_that_cannot_be_recompressed_are_refused(variant: str, message: str) -> None:
    """Query-aware compressors and droppers are named before anything is measured."""
    plan = parse_plan({"variants": [variant], "workload": {"longest": 128}})
    with pytest.raises(SimkvError, match=f"{variant} {message}"):
        settings_of_plan(plan, open_source("small", "cpu"))
