"""The configuration of a run or a study: read from TOML, checked, changed key by key, hashed.

What it is: the functions around the models of ``config_models.py``, and the module to import from.
What it is not: the grid of runs of a study (``experiments.py``), nor the trace or profile that a run
names (``preparation.py``).  Every mistake is one ConfigError line: where, dotted key, value, what is
allowed.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, TypeVar, overload

from pydantic import BaseModel, ValidationError

from simkv.config_errors import config_error, shown, shown_key
from simkv.config_fields import Warmup, literal
from simkv.config_files import read_tables
from simkv.config_models import (
    BoundConfig,
    EngineConfig,
    LinkConfig,
    PolicyConfig,
    PolicyGrid,
    ProfileConfig,
    RunConfig,
    StudyConfig,
    TierConfig,
    TraceConfig,
)
from simkv.errors import ConfigError, unknown_name
from simkv.models import find_model
from simkv.profile_files import PROFILE_FILE
from simkv.profiles import TierSpec, load_profile

__all__ = [
    "BoundConfig",
    "EngineConfig",
    "LinkConfig",
    "PolicyConfig",
    "PolicyGrid",
    "ProfileConfig",
    "RunConfig",
    "StudyConfig",
    "TierConfig",
    "TraceConfig",
    "Warmup",
    "config_hash",
    "load_config",
    "override",
    "parse_config",
    "parse_engine",
    "parse_run",
    "replace_values",
    "resolved",
    "with_profile_tiers",
]

_Model = TypeVar("_Model", bound=BaseModel)


def load_config(path: str | Path) -> RunConfig | StudyConfig:
    """Read a TOML file; a table ``[grid]``, ``[[policies]]`` or ``[bound]`` makes it a study.

    Relative paths of traces, profiles and models count from the file's folder when they exist there,
    and from the current folder otherwise.  Raises ConfigError.
    """
    path = Path(path)
    table = read_tables(path)
    _anchor_paths(table, path.parent)
    return parse_config(table, where=str(path))


def parse_config(table: Mapping[str, Any], where: str = "config") -> RunConfig | StudyConfig:
    """A run or a study from the tables of its file; ``where`` opens every message.  Raises ConfigError."""
    if isinstance(table, Mapping) and not {"grid", "policies", "bound"}.isdisjoint(table):
        return _parse_study(dict(table), where)
    return parse_run(table, where)


def parse_run(table: Mapping[str, Any], where: str = "config") -> RunConfig:
    """A run from the tables of its file.  Raises ConfigError, always one line."""
    return _validated(RunConfig, table, where)


def parse_engine(table: Mapping[str, Any], where: str = "engine") -> EngineConfig:
    """The section ``[engine]`` alone, from its keys.  Raises ConfigError."""
    return _validated(EngineConfig, table, where)


def resolved(config: RunConfig) -> dict[str, Any]:
    """The canonical, JSON-able tables of a run: bytes, bytes per second and seconds as numbers.

    Defaults are written out, keys that have no effect are left out, and ``parse_run`` reads it back.
    """
    table: dict[str, Any] = _without_none(config.model_dump(mode="json", by_alias=True))
    trace, engine, policy = table["trace"], table["engine"], table["policy"]
    if config.trace.generate:
        del trace["format"]
    elif not config.trace.options:
        del trace["options"]
    if config.trace.window_tokens is None:
        del trace["window_rule"]
    if config.engine.arrivals == "open":
        del engine["concurrency"]
    if config.engine.quality_view == "mean":
        del engine["quality_queries"]
    if config.engine.decode != "chunked":
        del engine["chunk_tokens"]
    if not config.tiers:
        del table["tiers"]
    policy.update(policy.pop("params"))
    return table


def config_hash(config: RunConfig, trace_sha256: str, profile_sha256: str, version: str) -> str:
    """The identity of a run, as the hex SHA-256 of its canonical JSON.

    Left out is what changes no number: the names of run and policy label, and the folders of files,
    whose content counts instead.  Of a policy from outside, the code of its module counts, but not what
    that imports.  Raises ConfigError when a model's config.json cannot be read.
    """
    table = resolved(config)
    del table["name"]
    table["policy"].pop("label", None)
    for section, key in (("trace", "file"), ("profile", "name"), ("profile", "speeds")):
        if key in table[section]:
            table[section][key] = PurePath(table[section][key]).name
    if config.model is not None:
        shape = find_model(config.model)
        table["model"] = [shape.kv_bytes_per_token, shape.layers]
    hashes = {"trace": trace_sha256, "profile": profile_sha256, "policy": _code_sha256(config.policy.name)}
    identity = {"config": table, **hashes, "version": version}
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _code_sha256(policy: str) -> str:
    module, colon, _ = policy.partition(":")
    if not colon:
        return ""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    file = Path(spec.origin) if spec and spec.origin else None
    return hashlib.sha256(file.read_bytes()).hexdigest() if file and file.is_file() else ""


def replace_values(config: RunConfig, values: Mapping[str, Any], where: str = "config") -> RunConfig:
    """A copy of the run with some dotted keys changed, such as ``tiers.dram.capacity``, checked anew.

    Tiers are addressed by name; those of the profile count when the run names none.  Raises ConfigError.
    """
    by_tier = {key: value for key, value in values.items() if key.startswith("tiers.")}
    if by_tier and not config.tiers:
        profile = {key: value for key, value in values.items() if key.split(".")[0] == "profile"}
        config = with_profile_tiers(replace_values(config, profile, where))
    table = resolved(config)
    for key, value in {**by_tier, **values}.items():
        _set(table, key, value, where)
    return parse_run(table, where)


def with_profile_tiers(config: RunConfig) -> RunConfig:
    """The run with the tiers of its profile written out, if it names none.  Raises ConfigError or ProfileError."""
    if config.tiers:
        return config
    name = config.profile.speeds or config.profile.name
    tiers = load_profile(name).tiers
    if not tiers:
        raise ConfigError(f"tiers: profile {name} has none; write them as [[tiers]]")
    return replace_values(config, {"tiers": [_tier_table(tier) for tier in tiers]})


@overload
def override(config: RunConfig, texts: Mapping[str, str], where: str = "--set") -> RunConfig: ...
@overload
def override(config: StudyConfig, texts: Mapping[str, str], where: str = "--set") -> StudyConfig: ...
def override(
    config: RunConfig | StudyConfig, texts: Mapping[str, str], where: str = "--set"
) -> RunConfig | StudyConfig:
    """A copy with keys changed from the command line: each text is a TOML value, or else a plain string.

    In a study, ``policy.*`` applies to every policy, ``grid.<key>`` replaces or adds a factor, and a key
    that is already a factor is refused.  Raises ConfigError.
    """
    values = {key: literal(text) for key, text in texts.items()}
    if isinstance(config, RunConfig):
        return replace_values(config, values, where)
    return _override_study(config, values, where)


def _override_study(config: StudyConfig, values: dict[str, Any], where: str) -> StudyConfig:
    grid = dict(config.grid)
    grid.update({key[5:]: value for key, value in values.items() if key.startswith("grid.")})
    bound = {} if config.bound is None else config.bound.model_dump()
    bound.update({key[6:]: value for key, value in values.items() if key.startswith("bound.")})
    plain = {key: value for key, value in values.items() if not key.startswith(("grid.", "bound."))}
    for key in plain:
        if key in grid or any(f"policy.{name}" == key for entry in config.policies for name in entry.grid):
            raise ConfigError(
                f"{where}: {shown_key(key)}: this key is a factor of the study's grid; set the grid instead"
            )
    own = {key: value for key, value in plain.items() if key.startswith("policy.")}
    shared = {key: value for key, value in plain.items() if key not in own}
    policies = []
    for entry in config.policies:
        run = replace_values(config.base, {"policy": _policy_table(entry.policy), **own}, where)
        policies.append({**_policy_table(run.policy), "grid": entry.grid})
    table = resolved(replace_values(config.base, shared, where))
    del table["policy"]
    asked = {"bound": bound} if bound else {}
    return _parse_study({**table, **asked, "grid": grid, "policies": policies}, where, source=config.source)


def _parse_study(table: dict[str, Any], where: str, source: str | None = None) -> StudyConfig:
    grid = _factors(table.pop("grid", {}), where, "grid")
    bound = _validated(BoundConfig, table.pop("bound"), where, "bound") if "bound" in table else None
    entries = table.pop("policies", None)
    if entries is not None and "policy" in table:
        raise ConfigError(f"{where}: policy: a study with [[policies]] has no [policy]; remove one of them")
    if entries is None:
        entries = [table.get("policy")]
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{where}: policies: {shown(entries)} is not a list of at least one table")
    base = parse_run({**table, "policy": _without_grid(entries[0])} if entries[0] is not None else table, where)
    policies = tuple(_policy_grid(entry, index, where) for index, entry in enumerate(entries))
    for key in grid:
        if key == "policy" or any(f"policy.{name}" == key for entry in policies for name in entry.grid):
            raise ConfigError(
                f"{where}: grid.{shown_key(key)}: policies and their own grids stand in [[policies]]; remove it here"
            )
    return StudyConfig(base=base, grid=grid, policies=policies, source=source or where, bound=bound)


def _policy_grid(entry: Any, index: int, where: str) -> PolicyGrid:
    name = entry.get("name") if isinstance(entry, Mapping) else None
    within = f"policies.{shown_key(name) if isinstance(name, str) else index}"
    policy = _validated(PolicyConfig, _without_grid(entry), where, within)
    grid = _factors(entry.get("grid", {}) if isinstance(entry, Mapping) else {}, where, f"{within}.grid")
    return _validated(PolicyGrid, {"policy": policy, "grid": grid}, where, within)


def _without_grid(entry: Any) -> Any:
    return {key: value for key, value in entry.items() if key != "grid"} if isinstance(entry, Mapping) else entry


def _factors(grid: Any, where: str, within: str) -> dict[str, list[Any]]:
    if not isinstance(grid, Mapping):
        raise ConfigError(f"{where}: {within}: {shown(grid)} is not a table of lists")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"{where}: {within}.{shown_key(key)}: {shown(values)} is not a list of at least one value"
            )
    return {str(key): list(values) for key, values in grid.items()}


def _validated(model: type[_Model], table: Any, where: str, within: str = "") -> _Model:
    try:
        return model.model_validate(dict(table) if isinstance(table, Mapping) else table)
    except ValidationError as error:
        raise config_error(error, table, where, within) from None


def _policy_table(policy: PolicyConfig) -> dict[str, Any]:
    label = {"label": policy.label} if policy.label else {}
    return {"name": policy.name, **label, **policy.params}


def _tier_table(tier: TierSpec) -> dict[str, Any]:
    return {
        "name": tier.name,
        "capacity": "unlimited" if tier.capacity_bytes is None else tier.capacity_bytes,
        "read": tier.read_bytes_per_s,
        "write": tier.write_bytes_per_s,
        "latency": tier.latency_s,
        "channels": tier.channels,
        "discipline": tier.discipline,
        "endurance": tier.endurance_bytes,
    }


def _set(table: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    *sections, last = dotted.split(".")
    node: Any = table
    for depth, section in enumerate(sections):
        if depth == 1 and sections[0] == "tiers" and isinstance(node, list):
            tiers = {str(tier["name"]): tier for tier in node}
            if section not in tiers:
                raise ConfigError(f"{where}: {shown_key(dotted)}: {unknown_name('tier', section, tiers)}")
            node = tiers[section]
        else:
            node = node.setdefault(section, {})
        tier_list = isinstance(node, list) and (depth, section) == (0, "tiers")
        if not isinstance(node, dict) and not tier_list:
            raise ConfigError(f"{where}: {shown_key(dotted)}: {section!r} is not a table")
    if not isinstance(node, dict):
        raise ConfigError(f"{where}: {shown_key(dotted)}: address a tier by its name, like tiers.dram.capacity")
    node[last] = value


def _without_none(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_none(value) for key, value in node.items() if value is not None}
    return [_without_none(value) for value in node] if isinstance(node, list) else node


def _anchor_paths(table: dict[str, Any], folder: Path) -> None:
    """Make relative paths, also those in the grid, count from ``folder`` where they exist there."""
    for dotted, exists in _PATHS.items():
        section, _, key = dotted.rpartition(".")
        for holder, name in ((table.get(section) if section else table, key), (table.get("grid"), dotted)):
            if isinstance(holder, dict) and name in holder:
                given = holder[name]
                anchored = [_anchored(item, folder, exists) for item in (given if isinstance(given, list) else [given])]
                holder[name] = anchored if isinstance(given, list) else anchored[0]


def _anchored(value: Any, folder: Path, exists: Callable[[Path], bool]) -> Any:
    return str(folder / value) if isinstance(value, str) and value and exists(folder / value) else value


def _is_profile(path: Path) -> bool:
    return os.path.isfile(path) or os.path.isfile(path / PROFILE_FILE)


_PATHS: dict[str, Callable[[Path], bool]] = {
    "trace.file": os.path.exists,
    "profile.name": _is_profile,
    "profile.speeds": _is_profile,
    "model": os.path.isfile,
}
