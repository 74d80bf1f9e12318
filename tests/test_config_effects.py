"""Every key that a config accepts changes some output, or is refused: nothing is silently ignored."""

import hashlib
from dataclasses import fields
from typing import Any

import pandas as pd
import pytest

from simkv.config import EngineConfig, LinkConfig, ProfileConfig, RunConfig, TierConfig, TraceConfig, parse_run
from simkv.errors import SimkvError
from simkv.simulator.policies import POLICIES, make_policy
from simkv.simulator.run import run_config

BASE: dict[str, Any] = {
    "seed": 1,
    "tasks": {"qmsum": 1.0, "lcc": 1.0},
    "trace": {
        "generate": "sessions",
        "options": {"sessions": 40, "turns": 5.0, "think_s": 20.0, "rate_per_s": 2.0, "block_tokens": 256},
    },
    "profile": {"name": "llama-3.1-8b-a100"},
    "tiers": [
        {"name": "dram", "capacity": "256 MiB", "read": "15 GB/s", "write": "2 GB/s", "latency": "10 us"},
        {"name": "ssd", "capacity": "512 MiB", "read": "2 GB/s", "write": "1 GB/s", "endurance": "1 PB"},
        {"name": "remote", "capacity": "unlimited", "read": "1 GB/s", "write": "1 GB/s"},
    ],
    "host_link": {"read": "25 GB/s"},
    "policy": {"name": "lru", "variant": "kivi:4"},
}
ADAPT = {"policy": {"name": "adaptcache", "alpha": 1.0}}
CLOSED = {"engine.arrivals": "closed"}
DECODE = {"engine.decode": "prefill_first", "engine.step_base": "10 ms"}

# key -> (new value, other keys that both sides need first)
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "seed": (2, {}),
    "tasks": ("lcc", {}),
    "model": ("qwen2.5-7b", {}),
    "trace.generate": ("rag", {"trace.options": {}}),
    "trace.options": ({"sessions": 41}, {}),
    "trace.rate": (2.0, {}),
    "trace.start": ("2 s", {}),
    "trace.stop": ("10 s", {}),
    "trace.sample": (0.5, {}),
    "trace.jitter": ("5 s", {}),
    "trace.window_tokens": (4096, {"trace.window_rule": "clip", "trace.window_tokens": 100_000}),
    "trace.window_rule": ("filter", {"trace.window_rule": "clip", "trace.window_tokens": 2048}),
    "trace.group_blocks": (4, {}),
    "trace.unit": ("segment", {}),
    "profile.name": ("adaptcache-a100-4gbps", {"tiers": [], "host_link": None}),
    "profile.sizes": ("nominal", {}),
    "profile.speeds": ("adaptcache-a100-4gbps", {"tiers": [], "host_link": None}),
    "profile.tasks": ({"mine": "lcc"}, {"tasks": "mine", "profile.tasks": {"mine": "qmsum"}}),
    "tiers.name": ("nvme", {}),
    "tiers.capacity": ("300 MiB", {}),
    "tiers.read": ("1 GB/s", {}),
    "tiers.write": ("100 MB/s", {}),
    "tiers.latency": ("5 ms", {}),
    "tiers.channels": (2, {}),
    "tiers.discipline": ("fair", {}),
    "tiers.endurance": ("2 PB", {}),
    "host_link.read": ("5 GB/s", {}),
    "host_link.write": ("100 MB/s", {}),
    "host_link.latency": ("5 ms", {}),
    "host_link.channels": (2, {"host_link.read": "1 GB/s"}),
    "host_link.discipline": ("fair", {"host_link.read": "1 GB/s", "engine.reuse": "always"}),
    "engine.arrivals": ("closed", {}),
    "engine.concurrency": (3, CLOSED),
    "engine.gpus": (2, {}),
    "engine.reuse": ("always", {}),
    "engine.loading": ("gpu", {"host_link": None}),
    "engine.overlap": ("layerwise", {}),
    "engine.pristine": (True, ADAPT),
    "engine.touch": ("forward", {}),
    "engine.measure": ("revisits", {}),
    "engine.warmup": ("20 %", {}),
    "engine.quality_view": ("sampled", ADAPT),
    "engine.quality_queries": (1, {**ADAPT, "engine.quality_view": "sampled"}),
    "engine.decode": ("chunked", DECODE),
    "engine.max_batch": (2, DECODE),
    "engine.chunk_tokens": (64, {**DECODE, "engine.decode": "chunked"}),
    "engine.step_base": ("11 ms", DECODE),
    "engine.step_per_sequence": ("1 ms", DECODE),
    "engine.step_per_token": ("700 ps", DECODE),
    "engine.slo_ttft": ("100 ms", {"engine.slo_ttft": "1 s"}),
    "engine.slo_tpot": ("10 ms", {**DECODE, "engine.slo_tpot": "20 ms"}),
}
# Text for people, a check that must change nothing, what CHANGES sets by other means, and file input (readers' tests).
EXEMPT = {
    "name",
    "engine.check",
    "trace.file",
    "trace.format",
    "policy",
    "profile",
    "trace",
    "tiers",
    "host_link",
    "engine",
}


def _set(table: dict[str, Any], key: str, value: Any) -> None:
    section, _, leaf = key.partition(".")
    if not leaf:
        if value is None:
            table.pop(section, None)
        else:
            table[section] = value
    elif section == "tiers":
        table["tiers"][1][leaf] = value
    else:
        table.setdefault(section, {})[leaf] = value


def _config(changes: dict[str, Any]) -> RunConfig:
    table = {
        key: [dict(t) for t in value] if key == "tiers" else dict(value) if isinstance(value, dict) else value
        for key, value in BASE.items()
    }
    for key, value in changes.items():
        _set(table, key, value)
    return parse_run(table)


def _fingerprint(config: RunConfig) -> str:
    result = run_config(config)
    hashes = [
        pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes() for frame in (result.requests, result.moves)
    ]
    figures = sorted(
        (key, str(value)) for key, value in result.summary.items() if key not in ("wall_s", "seed", "params")
    )
    return hashlib.sha256(b"".join(hashes) + repr(figures).encode()).hexdigest()


def test_every_key_is_covered() -> None:
    """The list above names every key of every section, so a new key cannot slip through."""
    keys = {field.alias or name for name, field in RunConfig.model_fields.items()}
    sections = {
        "trace": TraceConfig,
        "profile": ProfileConfig,
        "tiers": TierConfig,
        "host_link": LinkConfig,
        "engine": EngineConfig,
    }
    for section, model in sections.items():
        keys |= {f"{section}.{field.alias or name}" for name, field in model.model_fields.items()}
    assert keys == set(CHANGES) | EXEMPT


@pytest.mark.parametrize("key", sorted(CHANGES))
def test_key_changes_the_output_or_is_refused(key: str) -> None:
    """The run with the key changed differs from the run without, or the key is refused with one line."""
    value, needed = CHANGES[key]
    before = _fingerprint(_config(needed))
    try:
        changed = _config({**needed, key: value})
    except SimkvError as error:
        assert "\n" not in str(error)
        return
    assert before != _fingerprint(changed)


OTHER_VALUES: dict[str, Any] = {
    "variant": "kivi:8",
    "promote": False,
    "small_share": 0.5,
    "cost": "recompute",
    "alpha": 10.0,
    "preset": "paper",
    "alpha_on": "quality",
    "delay": "transfer",
    "frequency": "decayed",
    "drop_after_uses": 2,
    "per": "step",
    "window_s": 5.0,
    "methods": ["streamingllm"],
    "method": "free",
    "recompute": False,
    "drop_from": "best",
    "insert": "quality",
    "reprofile_below": 0.0,
    "reprofile_queries": 1,
    "reprofile_s": 30.0,
    "removed": 0.5,
    "agreement": 0.1,
    "agreement_sd": 0.0,
    "scatter": 4.0,
    "seed": 1,
    "hit": "promote",
    "sample": 1,
    "unit_s": 0.01,
    "prior": 3000.0,
    "stripe": 0.0,
    "min_quality": 0.5,
    "candidates": 1,
    "epsilon": 0.9,
    "rate": 0.9,
    "encode": True,
    "move_price": 1e6,
    "quality_floor": 0.6,
    "ttft_slo_s": 0.05,
    "slo_share": 0.2,
}
# policy -> (its parameters, its world) in which the others take effect.
WORLDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adaptcache": (
        {"alpha": 3.0},
        {"tasks": {"hotpotqa": 1.0, "triviaqa": 1.0}, "profile.sizes": "nominal", "tiers.read": "500 MB/s"},
    ),
    "evicpress": (
        {"alpha": 3.0, "reprofile_below": 0.05},
        {"engine.quality_view": "sampled", "engine.quality_queries": 1, "tiers.read": "500 MB/s"},
    ),
    "hitdensity": ({"sample": 2, "alpha": 0.3}, {"engine.pristine": True}),
    "impress": ({"agreement": 0.3}, {}),
    "kvserve": ({"min_quality": 0.8}, {"tiers.read": "500 MB/s"}),
}
VALUES_OF: dict[str, dict[str, Any]] = {
    "evicpress": {"frequency": "none", "per": "byte"},
    "impress": {"method": "streamingllm"},
    "hitdensity": {"methods": ["kivi"]},  # in its world it drops tokens anyway
}

NEEDED: dict[str, dict[str, Any]] = {"window_s": {"frequency": "decayed"}, "slo_share": {"ttft_slo_s": 0.05}}


@pytest.mark.parametrize(
    ("name", "parameter"),
    [(name, field.name) for name, policy in sorted(POLICIES.items()) for field in fields(policy)],
)
def test_policy_parameter_changes_the_output(name: str, parameter: str) -> None:
    """Every parameter of every policy changes what happens."""
    own, world = WORLDS.get(name, ({}, {}))
    params: dict[str, Any] = {"name": name, **own}
    params.update(NEEDED.get(parameter, {}))
    value = {**OTHER_VALUES, **VALUES_OF.get(name, {})}[parameter]
    before = _fingerprint(_config({**world, "policy": params}))
    assert getattr(make_policy(name, own), parameter) != value
    assert before != _fingerprint(_config({**world, "policy": {**params, parameter: value}}))
