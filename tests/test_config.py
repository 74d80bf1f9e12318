"""Configurations: what parses, what is refused and in which words, overrides, identity."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simkv.config import (
    RunConfig,
    StudyConfig,
    Warmup,
    config_hash,
    load_config,
    override,
    parse_config,
    parse_engine,
    parse_run,
    replace_values,
    resolved,
    with_profile_tiers,
)
from simkv.errors import ConfigError, SimkvError

DRAM = {"name": "dram", "capacity": "256 GiB", "read": "15.3 GB/s", "write": "15.3 GB/s"}
SSD = {
    "name": "ssd",
    "capacity": "1 TB",
    "read": "4 GB/s",
    "write": "2 GB/s",
    "latency": "10 us",
    "endurance": "1.2 PB",
}
REMOTE = {"name": "remote", "capacity": "unlimited", "read": "1 GB/s", "write": "1 GB/s"}
SHIPPED = "adaptcache-a100-1gbps"


def table(**changes: Any) -> dict[str, Any]:
    """The tables of a small valid run; sections in ``changes`` are merged, other values replaced."""
    base: dict[str, Any] = {
        "trace": {"file": "conversation.jsonl"},
        "profile": {"name": SHIPPED},
        "tiers": [dict(DRAM), dict(SSD)],
        "policy": {"name": "lru", "variant": "kivi:2"},
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return base


def refusal(call: Callable[[], object]) -> str:
    """The message of the ConfigError that ``call`` raises, which must be a single line."""
    with pytest.raises(ConfigError) as caught:
        call()
    assert 1 == len(str(caught.value).splitlines())
    return str(caught.value)


def refused(**changes: Any) -> str:
    """The message with which a run changed in this way is refused."""
    return refusal(lambda: parse_run(table(**changes), "run.toml"))


def test_quantities_become_integers_with_their_units_in_the_names() -> None:
    """Sizes, rates and durations are parsed once; unlimited is None."""
    run = parse_run(table(tiers=[DRAM, SSD, REMOTE], trace={"start": "1.5 s", "stop": "2 min"}))
    assert [256 * 2**30, 10**12, None] == [tier.capacity_bytes for tier in run.tiers]
    assert (4 * 10**9, 2 * 10**9) == (run.tiers[1].read_bytes_per_s, run.tiers[1].write_bytes_per_s)
    assert (10_000, 12 * 10**14) == (run.tiers[1].latency_ns, run.tiers[1].endurance_bytes)
    assert (1_500_000_000, 120_000_000_000) == (run.trace.start_ns, run.trace.stop_ns)


def test_policy_parameters_are_all_other_keys() -> None:
    """Everything in [policy] but name and label is a parameter."""
    policy = parse_run(table(policy={"name": "adaptcache", "label": "AC", "alpha": 1.0, "mix": ["a", "b"]})).policy
    assert {"variant": "kivi:2", "alpha": 1.0, "mix": ["a", "b"]} == policy.params
    assert "AC" == policy.title
    assert "lru" == parse_run(table()).policy.title


def test_specs_have_what_the_tables_have() -> None:
    """A tier and a link become the simulator's records; a link writes as fast as it reads unless told."""
    run = parse_run(table(host_link={"read": "25 GB/s", "channels": 2}))
    ssd = run.tiers[1].to_spec()
    assert ("ssd", 10**12, 1e-5, 12 * 10**14) == (ssd.name, ssd.capacity_bytes, ssd.latency_s, ssd.endurance_bytes)
    assert run.host_link is not None
    link = run.host_link.to_spec()
    assert (25 * 10**9, 25 * 10**9, 2, None) == (
        link.read_bytes_per_s,
        link.write_bytes_per_s,
        link.channels,
        link.capacity_bytes,
    )


def test_warmup_is_a_time_or_a_share() -> None:
    """A percentage is a share of the requests, anything else a duration."""
    assert Warmup(share=0.2) == parse_engine({"warmup": "20 %"}).warmup
    assert Warmup(duration_ns=90 * 10**9) == parse_engine({"warmup": "1.5 min"}).warmup
    assert Warmup() == parse_engine({}).warmup
    assert "engine: warmup: '100 %' is not a share" in refusal(lambda: parse_engine({"warmup": "100 %"}))


def test_models_are_frozen() -> None:
    """A configuration does not change once it is parsed."""
    with pytest.raises(ValueError, match="frozen"):
        parse_run(table()).seed = 1


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"sed": 1}, "unknown key 'sed'", "did you mean 'seed'"),
        ({"trace": {"windw_tokens": 5}}, "trace: unknown key", "did you mean 'window_tokens'"),
        ({"tiers": [{**DRAM, "capcity": 1}]}, "tiers.dram: unknown key", "did you mean 'capacity'"),
        ({"engine": {"arrivals": "clsed"}}, "engine.arrivals:", "did you mean 'closed'"),
        ({"model": "llama-3.1-8"}, "model:", "did you mean 'llama-3.1-8b'"),
        ({"tiers": [{**DRAM, "read": "5 GB"}]}, "tiers.dram.read:", "'GB' in '5 GB'"),
        ({"tiers": [{**DRAM, "channels": 0}]}, "tiers.dram.channels:", "greater than or equal to 1"),
        ({"tiers": [{"name": "dram"}]}, "tiers.dram.capacity:", "this key is missing (and 2 more)"),
        ({"tiers": [DRAM, DRAM]}, "tiers:", "two tiers are called 'dram'"),
        ({"tiers": [{**DRAM, "name": "recompute"}]}, "tiers.recompute.name:", "call the tier otherwise"),
        ({"tiers": [{**DRAM, "name": "my tier"}]}, "tiers.my tier.name:", "a letter followed by"),
        ({"tiers": {"dram": DRAM}}, "tiers:", "not a list"),
        ({"trace": {"rate": 0}}, "trace.rate: 0", "greater than 0"),
        ({"trace": {"rate": float("nan")}}, "trace.rate: nan", "finite"),
        ({"trace": {"sample": 1.5}}, "trace.sample: 1.5", "less than or equal to 1"),
        ({"trace": {"generate": "zipf"}}, "trace.file:", "both are given"),
        ({"trace": {"options": {"limits": 5}}}, "trace.options.limits", "other keys"),
        ({"trace": {"window_rule": "clip"}}, "trace.window_rule:", "without window_tokens"),
        ({"trace": {"start": "9 s", "stop": "9 s"}}, "trace.stop:", "9 s is not after start (9 s)"),
        ({"trace": {"file": 5}}, "trace.file: 5", "valid string"),
        ({"trace": "zipf"}, "trace:", "'zipf' is not a table"),
        ({"engine": {"concurrency": 2}}, "engine.concurrency:", "without arrivals = 'closed'"),
        ({"engine": {"quality_queries": 9}}, "engine.quality_queries:", "without quality_view = 'sampled'"),
        ({"engine": {"pristine": True}}, "engine.pristine:", "'ssd', to have capacity = 'unlimited'"),
        ({"engine": {"pristine": 1}}, "engine.pristine: 1", "valid boolean"),
        ({"engine": {"arrivals": "closed"}, "trace": {"rate": 2.0}}, "trace.rate:", "engine.arrivals = 'closed'"),
        ({"seed": -1}, "seed: -1", "greater than or equal to 0"),
        ({"seed": True}, "seed: True", "valid integer"),
        ({"tasks": {"qa": 0}}, "tasks:", "the share of 'qa' is 0"),
        ({"tasks": []}, "tasks:", "neither the name of a task nor"),
        ({"policy": {"name": ""}}, "policy.name: ''", "at least 1 character"),
        ({"policy": {"alpha": {"a": 1}}}, "policy.alpha:", "is not text, a number"),
        ({"policy": {"alpha": float("inf")}}, "policy.alpha: inf", "is not text, a number"),
    ],
)
def test_a_mistake_is_named_by_its_key(changes: dict[str, Any], key: str, words: str) -> None:
    """Each rule is told in one line that opens with the file and the dotted key and says what is allowed."""
    message = refused(**changes)
    assert message.startswith(f"run.toml: {key}")
    assert words in message


@pytest.mark.parametrize(
    ("trace", "key", "words"),
    [
        ({}, "trace.file", "neither is given"),
        ({"generate": "zipf", "format": "auto"}, "trace.format", "without file"),
        ({"generate": "zipf", "options": {"seed": 3}}, "trace.options.seed", "other keys"),
    ],
)
def test_mistakes_of_generated_traces(trace: dict[str, Any], key: str, words: str) -> None:
    """A trace needs a source, and what belongs to files is refused beside generate."""
    given_table = {**table(), "trace": trace}
    message = refusal(lambda: parse_run(given_table, "run.toml"))
    assert message.startswith(f"run.toml: {key}: ")
    assert words in message


def test_explicit_defaults_do_not_change_the_identity() -> None:
    """Writing out a default is the same run as leaving it out."""
    written = table(seed=0, engine={"gpus": 1, "warmup": "0 s"}, trace={"rate": 1, "jitter": "0 ms", "unit": "block"})
    assert resolved(parse_run(table())) == resolved(parse_run(written))


def test_resolved_leaves_out_what_has_no_effect() -> None:
    """Keys that only count with another one are absent without it, so that resolved tables parse again."""
    plain = resolved(parse_run(table()))
    assert {"concurrency", "quality_queries", "max_batch", "chunk_tokens"}.isdisjoint(plain["engine"])
    assert {"window_rule", "options"}.isdisjoint(plain["trace"])
    full = resolved(
        parse_run(table(engine={"arrivals": "closed", "quality_view": "sampled"}, trace={"window_tokens": 9}))
    )
    assert (1, 50, "reject") == (
        full["engine"]["concurrency"],
        full["engine"]["quality_queries"],
        full["trace"]["window_rule"],
    )


def test_step_times_are_picoseconds() -> None:
    """What a cached token costs may be less than a nanosecond; a bare number is in seconds."""
    given = parse_engine({"decode": "chunked", "step_base": 0.008, "step_per_token": "1.5 ns"})
    assert (8 * 10**9, 1500, None) == (given.step_base_ps, given.step_per_token_ps, given.step_per_sequence_ps)


def test_identity_depends_on_content_not_on_names_or_folders() -> None:
    """Labels, the run's name and the folder of a file do not count; values, hashes and version do."""

    def identity(*hashes: str, **changes: Any) -> str:
        return config_hash(parse_run(table(**changes)), *(hashes or ("t", "p", "1")))

    same = identity()
    assert 64 == len(same)
    assert same == identity(name="other", policy={"label": "L"}, trace={"file": "/elsewhere/conversation.jsonl"})
    others = [
        identity("x", "p", "1"),
        identity("t", "x", "1"),
        identity("t", "p", "2"),
        identity(seed=1),
        identity(policy={"variant": "kivi:4"}),
        identity(model="llama-3.1-8b"),
        identity(model="llama-3.1-70b"),
        identity(tiers=[DRAM]),
    ]
    assert len(others) == len({same, *others}) - 1


def test_identity_of_an_outside_policy_follows_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Editing the module of a policy makes a new run of it."""
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "my_policy_of_test_config.py"
    run = parse_run(table(policy={"name": "my_policy_of_test_config:Mine"}))
    hashes = []
    for code in ("a = 1", "a = 22"):
        module.write_text(code, encoding="utf-8")
        hashes.append(config_hash(run, "t", "p", "1"))
    assert 2 == len({*hashes})
    assert config_hash(run, "t", "p", "1") == hashes[1]
    assert 64 == len(config_hash(parse_run(table(policy={"name": "no.such_module:Mine"})), "t", "p", "1"))


def test_overrides_are_toml_values_or_text() -> None:
    """``--set`` reads numbers, booleans, lists and quoted text as TOML and everything else as text."""
    changes = {
        "policy.alpha": "0.5",
        "policy.variant": "kivi:4",
        "policy.classes": "[1, 2]",
        "engine.pristine": "false",
        "tiers.dram.capacity": "64 GiB",
        "policy.label": '"2"',
        "host_link.read": "25 GB/s",
        "name": "two\nlines = 1",
    }
    run = override(parse_run(table()), changes)
    assert {"alpha": 0.5, "variant": "kivi:4", "classes": [1, 2]} == run.policy.params
    assert ("2", "two\nlines = 1", False) == (run.policy.label, run.name, run.engine.pristine)
    assert [64 * 2**30, 10**12] == [tier.capacity_bytes for tier in run.tiers]
    assert run.host_link is not None
    assert 25 * 10**9 == run.host_link.read_bytes_per_s


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tiers.drm.capacity", "1 GB", "did you mean 'dram'"),
        ("tiers.dram", "1 GB", "tiers.dram.capacity"),
        ("tiers.dram.capcity", "1 GB", "did you mean 'capacity'"),
        ("engin.gpus", "2", "did you mean 'engine'"),
        ("seed.x", "2", "'seed' is not a table"),
        ("", "2", "unknown key ''"),
    ],
)
def test_wrong_overrides_are_refused(key: str, value: str, words: str) -> None:
    """A dotted key that leads nowhere is told like any other mistake."""
    message = refusal(lambda: override(parse_run(table()), {key: value}))
    assert message.startswith("--set: ")
    assert words in message


def test_tiers_of_the_profile_can_be_changed_by_name() -> None:
    """A run without tiers of its own gets the profile's, with the change, once one of them is addressed."""
    run = parse_run({key: value for key, value in table().items() if key != "tiers"})
    assert () == run.tiers
    changed = replace_values(run, {"tiers.dram.capacity": "1 GiB"})
    assert ["dram", "ssd", "remote"] == [tier.name for tier in changed.tiers]
    assert [2**30, None] == [changed.tiers[0].capacity_bytes, changed.tiers[2].capacity_bytes]
    assert changed.tiers[1:] == with_profile_tiers(run).tiers[1:]
    with pytest.raises(SimkvError, match="no-such-profile"):
        replace_values(run, {"tiers.dram.capacity": 1, "profile.name": "no-such-profile"})


STUDY = """
name = "capacity"
[trace]
file = "small.jsonl"
[profile]
name = "mine"
[[tiers]]
name = "dram"
capacity = "1 GB"
read = "1 GB/s"
write = "1 GB/s"
[grid]
seed = [0, 1]
"trace.file" = ["small.jsonl", "other.jsonl"]
[[policies]]
name = "lru"
grid = { variant = ["kivi:2", "kivi:4"] }
[[policies]]
name = "adaptcache"
label = "AC"
alpha = 2
"""


def test_files_load_with_paths_beside_them(tmp_path: Path) -> None:
    """Paths, also in the grid, count from the file's folder where they exist there, and are left alone otherwise."""
    (tmp_path / "small.jsonl").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "profile.toml").touch()
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8")
    study = load_config(tmp_path / "study.toml")
    assert isinstance(study, StudyConfig)
    small = str(tmp_path / "small.jsonl")
    assert (small, str(tmp_path / "mine")) == (study.base.trace.file, study.base.profile.name)
    assert {"seed": [0, 1], "trace.file": [small, "other.jsonl"]} == study.grid
    assert ["lru", "AC"] == [entry.policy.title for entry in study.policies]
    assert [{"variant": ["kivi:2", "kivi:4"]}, {}] == [entry.grid for entry in study.policies]
    assert {"alpha": 2} == study.policies[1].policy.params


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"seed = ", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        (b"x = " + b"[" * 100_000, "not valid TOML"),
        (b"x = " + b"9" * 5000, "not valid TOML"),
        (b"#" * (2**20 + 1), "larger than 1048576 bytes"),
        (b"seed = 0x" + b"f" * 5000, "seed: <int>"),
        (b"seed = 2024-01-01", "seed: datetime.date(2024, 1, 1)"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    """Whatever is in the file, the answer is one line that names it."""
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    message = refusal(lambda: load_config(path))
    assert message.startswith(f"{path}: ")
    assert words in message


def test_missing_files_are_refused(tmp_path: Path) -> None:
    """A file or folder that cannot be read is named."""
    for path in (tmp_path / "absent.toml", tmp_path, Path("nul\0")):
        assert "cannot read the configuration" in refusal(partial(load_config, path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": {"seed": []}}, "grid.seed: [] is not a list of at least one value"),
        ({"grid": {"seed": 5}}, "grid.seed: 5 is not a list"),
        ({"grid": 5}, "grid: 5 is not a table of lists"),
        ({"policies": []}, "policies: [] is not a list of at least one table"),
        ({"policies": [{"label": "x"}]}, "policy.name: this key is missing"),
        ({"policies": [{"name": "lru"}, {"name": "fifo", "grid": {"a": 1}}]}, "policies.fifo.grid.a: 1 is not a list"),
        ({"policies": [{"name": "lru"}, {"name": "fifo", "a": {}}]}, "policies.fifo.a: {} is not text"),
        ({"policies": [{"name": "lru"}, 5]}, "policies.1: 5 is not a table"),
        (
            {"policies": [{"name": "lru", "grid": {"a": [1]}}], "grid": {"policy.a": [2]}},
            "grid.policy.a: policies and their own grids stand in [[policies]]",
        ),
    ],
)
def test_mistakes_of_studies(changes: dict[str, Any], words: str) -> None:
    """The grid holds lists of values, and each policy stands in [[policies]] with its own grid."""
    tables = {key: value for key, value in table().items() if key != "policy"}
    message = refusal(lambda: parse_config({**tables, "policies": [{"name": "lru"}], **changes}, "study.toml"))
    assert message.startswith(f"study.toml: {words}")


def test_a_study_has_no_policy_beside_its_policies() -> None:
    """[policy] serves a study with a grid alone; with [[policies]] it would have no effect."""
    study = parse_config(table(grid={"seed": [1, 2]}))
    assert isinstance(study, StudyConfig)
    assert ["lru"] == [entry.policy.name for entry in study.policies]
    assert "remove one of them" in refusal(lambda: parse_config(table(policies=[{"name": "lru"}])))


def test_overrides_of_a_study(tmp_path: Path) -> None:
    """Plain keys change the base, policy keys every policy, grid keys a factor; a factor itself is refused."""
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8")
    study = load_config(tmp_path / "study.toml")
    assert isinstance(study, StudyConfig)
    changed = override(study, {"engine.gpus": "2", "policy.alpha": "3", "grid.seed": "[7]"})
    assert 2 == changed.base.engine.gpus
    assert [{"alpha": 3}, {"alpha": 3}] == [entry.policy.params for entry in changed.policies]
    assert [7] == changed.grid["seed"]
    assert study.source == changed.source
    assert study.policies[0].grid == changed.policies[0].grid
    assert "seed: this key is a factor" in refusal(lambda: override(study, {"seed": "3"}))
    assert "policy.variant: this key is a factor" in refusal(lambda: override(study, {"policy.variant": "raw"}))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["64 GiB", "unlimited", "2 GB/s", "1.5 s", "20 %", "99.9 %", "closed", "sampled", "kivi:2"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TOP_KEYS = [
    "seed",
    "tasks",
    "model",
    "name",
    "trace",
    "profile",
    "tiers",
    "host_link",
    "engine",
    "policy",
    "grid",
    "policies",
]
KEYS_OF = {
    "trace": [
        "file",
        "rate",
        "start",
        "stop",
        "sample",
        "jitter",
        "window_tokens",
        "window_rule",
        "group_blocks",
        "unit",
        "x",
    ],
    "profile": ["name", "sizes", "speeds", "tasks.lcc"],
    "tiers": ["dram.capacity", "ssd.read", "ssd.latency", "dram.channels", "ssd.name", "tape.read"],
    "host_link": ["read", "discipline"],
    "engine": [
        *("arrivals", "concurrency", "warmup", "quality_view", "pristine", "gpus", "decode", "max_batch"),
        *("chunk_tokens", "step_base", "step_per_token", "slo_ttft"),
    ],
    "policy": ["name", "label", "alpha"],
}
KEYS = st.sampled_from(
    [*TOP_KEYS, *KEYS_OF, *(f"{section}.{key}" for section, keys in KEYS_OF.items() for key in keys)]
)


@example({"profile": [], "profile.tasks.lcc": None}, True)
@given(st.dictionaries(st.text(max_size=6) | KEYS, VALUES, max_size=6), st.booleans())
def test_any_table_parses_or_is_refused_in_one_line(changes: dict[str, Any], dotted: bool) -> None:
    """Random tables and random changes give a configuration or a ConfigError, never anything else."""
    try:
        run = replace_values(parse_run(table()), changes) if dotted else parse_config({**table(), **changes})
    except ConfigError as error:
        assert 1 == len(str(error).splitlines())
    else:
        base = run.base if isinstance(run, StudyConfig) else run
        assert resolved(base) == resolved(parse_run(resolved(base)))


@given(
    start=st.integers(0, 2**63 - 2),
    share=st.floats(0, 1, exclude_max=True),
    rate=st.floats(1e-9, 1e9),
    capacity=st.none() | st.integers(0, 2**63 - 1),
    seed=st.integers(0, 2**63 - 1),
    tasks=st.none() | st.text(min_size=1) | st.dictionaries(st.text(min_size=1), st.floats(1e-6, 1e6), min_size=1),
    params=st.dictionaries(st.text(min_size=1), st.booleans() | st.floats(-1e9, 1e9) | st.lists(st.text()), max_size=4),
)
def test_resolved_tables_say_it_all(
    start: int, share: float, rate: float, capacity: int | None, seed: int, tasks: Any, params: dict[str, Any]
) -> None:
    """Parsing the canonical tables, after a trip through JSON, gives the same configuration to the last bit."""
    tier = {**DRAM, "capacity": "unlimited" if capacity is None else capacity, "latency": f"{start} ns"}
    run = parse_run(
        {
            "seed": seed,
            "tasks": tasks,
            "trace": {"file": "f", "start": f"{start} ns", "rate": rate},
            "profile": {"name": "p"},
            "tiers": [tier],
            "engine": {
                "warmup": f"{share * 100} %",
                "decode": "chunked",
                "step_base": f"{1 + start} ps",
                "slo_tpot": rate,
            },
            "policy": {**params, "name": "lru"},
        }
    )
    again = parse_run(json.loads(json.dumps(resolved(run), allow_nan=False)))
    assert isinstance(again, RunConfig)
    assert run.tiers == again.tiers
    assert run.engine == again.engine
    assert (run.seed, run.tasks, run.policy.params) == (again.seed, again.tasks, again.policy.params)
    assert (run.trace.start_ns, run.trace.rate) == (again.trace.start_ns, again.trace.rate)
    assert config_hash(run, "t", "p", "1") == config_hash(again, "t", "p", "1")
