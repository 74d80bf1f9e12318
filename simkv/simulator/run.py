"""simulate: trace + profile + policy -> Result, from Python objects or from a config.

What it is: the place where the parts of the simulator are put together and the result is labelled with what
it depends on.  What it is not: a sweep (``simkv.experiments``).
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from simkv.config import EngineConfig, RunConfig, parse_engine, resolved
from simkv.errors import ConfigError, ProfileError, TraceError, unknown_name
from simkv.models import find_model
from simkv.preparation import prepare_trace, sub_seed
from simkv.profiles import Profile, TierSpec, compose, load_profile
from simkv.simulator.costs import UNLIMITED, CostTables, build_costs
from simkv.simulator.engine import Engine
from simkv.simulator.invariants import check_engine
from simkv.simulator.measured_range import beyond_measured, extrapolation_warning
from simkv.simulator.metrics import Result, moves_frame, occupancy_frame, requests_frame, revisits
from simkv.simulator.options import decode_settings, engine_settings
from simkv.simulator.policies import Policy, make_policy
from simkv.simulator.service import Slo, decode_facts, service
from simkv.simulator.summary import counting, measured_rows, summarize
from simkv.simulator.transfers import KINDS
from simkv.traces.trace import Trace
from simkv.traces.transform import assign_tasks
from simkv.units import format_bytes, parse_bytes
from simkv.version import simkv_version

__all__ = ["choose_tiers", "hardware", "prepare_profile", "run_config", "simulate", "tables"]

_LOG = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def simulate(
    trace: Trace,
    profile: Profile,
    policy: str | Mapping[str, Any] | Policy = "lru",
    *,
    tiers: Mapping[str, Any] | Sequence[TierSpec] | None = None,
    host_link: TierSpec | None = None,
    tasks: str | Mapping[str, float] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **engine: Any,
) -> Result:
    """Replay a trace through a hierarchy under a policy.

    Args:
        trace: requests (``load_trace``, ``generate_trace``).
        profile: quality, sizes, speeds (``load_profile``).
        policy: a known name, "module:Class", ``{"name": ..., parameter: ...}``, or a Policy object.
        tiers: new capacities of the profile's tiers ({"dram": "256 GiB"}), or a list of TierSpec, fast to slow.
        host_link: channel between host memory and GPU; None takes the profile's.
        tasks: needed when the trace has none: one task of the profile or a mixture {task: weight}.
        seed: assigns measured samples (and tasks) to contexts.
        progress: called with (finished, total) requests now and then.
        engine: keys of ``[engine]`` in a config, such as arrivals="closed", gpus=4, overlap="layerwise".

    Raises:
        SimkvError: (TraceError, ProfileError, ConfigError, PolicyError) for bad input.
    """
    settings = parse_engine(engine, "simulate")
    chosen = _policy(policy)
    if tasks is not None:
        trace = assign_tasks(trace, tasks if isinstance(tasks, str) else dict(tasks), sub_seed(seed, "tasks"))
    specs = choose_tiers(profile, tiers)
    return _execute(trace, profile, chosen, specs, host_link or profile.host_link, settings, seed, progress)


def run_config(
    config: RunConfig, *, trace: Trace | None = None, profile: Profile | None = None, progress: Progress | None = None
) -> Result:
    """One run from its config; ``trace`` (already prepared) and ``profile`` may be given to save loading them.

    Raises SimkvError for bad input.
    """
    policy = make_policy(config.policy.name, dict(config.policy.params))
    profile = prepare_profile(config) if profile is None else profile
    specs, link = hardware(config, profile)
    trace = prepare_trace(config) if trace is None else trace
    result = _execute(trace, profile, policy, specs, link, config.engine, config.seed, progress)
    result.meta["config"] = resolved(config)
    result.summary.update(label=config.policy.title, policy=config.policy.name)
    return result


def hardware(config: RunConfig, profile: Profile) -> tuple[tuple[TierSpec, ...], TierSpec | None]:
    """Tiers and host link of a run: the config's, or else the profile's."""
    specs = tuple(tier.to_spec() for tier in config.tiers) or profile.tiers
    return specs, config.host_link.to_spec() if config.host_link else profile.host_link


def prepare_profile(config: RunConfig) -> Profile:
    """The profile of a run, composed, with other names of tasks and another model's KV bytes if the config says so.

    Raises ProfileError or ConfigError.
    """
    profile = load_profile(config.profile.name, config.profile.sizes)
    if config.profile.speeds is not None:
        profile = compose(profile, load_profile(config.profile.speeds))
    profile = profile.with_tasks(config.profile.tasks)
    if config.model is None:
        return profile
    shape = find_model(config.model)
    if shape.name != profile.model:
        _LOG.warning(
            "model: %s gives the KV bytes; prefill, decompression and quality stay those of %s, as profile %s has them",
            shape.name,
            profile.model,
            profile.name,
        )
    if profile.load_lines and shape.kv_bytes_per_token != profile.kv_bytes_per_token:
        raise ProfileError(
            f"model: profile {profile.name} has load times measured for {profile.model}; "
            f"another model needs a profile of bandwidths"
        )
    return replace(profile, model=shape.name, kv_bytes_per_token=shape.kv_bytes_per_token, layers=shape.layers)


def _policy(policy: str | Mapping[str, Any] | Policy) -> Policy:
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, str):
        return make_policy(policy, {})
    params = dict(policy)
    name = params.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError("simulate: policy needs a 'name'")
    return make_policy(name, params)


def choose_tiers(profile: Profile, tiers: Mapping[str, Any] | Sequence[TierSpec] | None) -> tuple[TierSpec, ...]:
    """The profile's tiers, with new capacities if ``tiers`` is a mapping, or the given ones.  Raises ConfigError."""
    if tiers is None:
        return profile.tiers
    if not isinstance(tiers, Mapping):
        return tuple(tiers)
    known = {tier.name for tier in profile.tiers}
    for name in tiers:
        if name not in known:
            raise ConfigError(unknown_name(f"tier of profile {profile.name}:", name, known))

    def capacity(tier: TierSpec) -> int | None:
        given = tiers.get(tier.name, tier.capacity_bytes)
        return None if given in (None, "unlimited") else parse_bytes(given)

    return tuple(replace(tier, capacity_bytes=capacity(tier)) for tier in profile.tiers)


def _execute(
    trace: Trace,
    profile: Profile,
    policy: Policy,
    tiers: tuple[TierSpec, ...],
    host_link: TierSpec | None,
    config: EngineConfig,
    seed: int,
    progress: Progress | None,
) -> Result:
    started = time.perf_counter()
    _check_trace(trace, policy)
    costs = tables(trace, profile, tiers, host_link, config, seed)
    engine = Engine(
        trace,
        costs,
        policy,
        engine_settings(config),
        host_link=host_link,
        decode=decode_settings(config, profile, costs),
        after_event=check_engine if config.check else None,
        progress=progress,
        counts=counting(revisits(trace.block_ids, trace.block_offsets), config.measure, config.warmup.amount),
    )
    engine.run()
    result = _result(engine, profile, config, seed)
    result.summary["wall_s"] = round(time.perf_counter() - started, 3)
    return result


def tables(
    trace: Trace,
    profile: Profile,
    tiers: tuple[TierSpec, ...],
    host_link: TierSpec | None,
    config: EngineConfig,
    seed: int,
) -> CostTables:
    """The cost tables of a run, after checks of profile and tiers.  Raises SimkvError."""
    _check_measured_loads(profile, tiers, host_link)
    if config.loading == "gpu" and host_link is not None:
        raise ConfigError("engine.loading: 'gpu' carries loads on the compute server; there is no host_link to cross")
    costs = build_costs(
        trace,
        profile,
        tiers,
        host_link=host_link,
        seed=seed,
        quality_view=config.quality_view,
        quality_queries=config.quality_queries,
    )
    _check_tiers(costs, config.pristine)
    return costs


def _check_trace(trace: Trace, policy: Policy) -> None:
    name = trace.meta.get("name", "trace")
    if not len(trace):
        raise TraceError(f"{name}: the trace has no requests")
    if (not trace.meta.get("reuse", True) or not trace.n_blocks) and policy.name != "recompute":
        raise TraceError(
            f"{name}: the trace has no reuse information (format {trace.meta.get('format')}), so nothing can be hit; "
            f"only policy 'recompute' can replay it"
        )


def _check_measured_loads(profile: Profile, tiers: tuple[TierSpec, ...], host_link: TierSpec | None) -> None:
    """Load times that were measured from end to end cannot be given another bandwidth, latency or link."""
    measured = {tier for tier, _ in profile.load_lines}
    own = {tier.name: tier for tier in profile.tiers}
    for tier in tiers:
        if tier.name not in measured:
            continue
        if host_link is not None:
            raise ConfigError(
                f"host_link: profile {profile.name} has load times of tier {tier.name!r} measured from end to end, "
                f"which include the link; use a profile of bandwidths"
            )
        for key, attribute in (("read", "read_bytes_per_s"), ("latency", "latency_s")):
            if getattr(tier, attribute) != getattr(own.get(tier.name, tier), attribute):
                raise ConfigError(
                    f"tiers.{tier.name}.{key}: profile {profile.name} has measured load times for this tier, "
                    f"so it cannot be changed; use a profile of bandwidths"
                )


def _check_tiers(costs: CostTables, pristine: bool) -> None:
    if not costs.tiers:
        raise ConfigError("tiers: neither the config nor the profile has any")
    if pristine and costs.capacity[-1] != UNLIMITED:
        raise ConfigError(f"engine.pristine needs the last tier, {costs.tiers[-1].name!r}, to be unlimited")
    if pristine and len(costs.tiers) < 2:
        raise ConfigError("engine.pristine needs a tier besides the one with the pristine copies")
    if not costs.class_tokens:
        return
    smallest = min(sizes[0] for sizes in costs.size)
    for tier, capacity in list(zip(costs.tiers, costs.capacity, strict=True))[: len(costs.tiers) - pristine]:
        if capacity < smallest:
            raise ConfigError(
                f"tiers.{tier.name}.capacity: {format_bytes(capacity)} cannot hold even the smallest entry "
                f"({format_bytes(smallest)})"
            )


def _result(engine: Engine, profile: Profile, config: EngineConfig, seed: int) -> Result:
    trace = engine.trace
    requests = requests_frame(engine)
    requests["measured"] = measured_rows(
        requests["revisit"].to_numpy(), requests["arrival_s"].to_numpy(), config.measure, config.warmup.amount
    )
    policy, rows = engine.policy, requests[requests["measured"]]
    params = {field.name: getattr(policy, field.name) for field in fields(policy) if field.init}
    summary = {
        "policy": engine.policy.name,
        "label": engine.policy.name,
        "params": params,
        "seed": seed,
        **summarize(engine, requests, seed),
        **service(engine, requests, Slo(config.slo_ttft_ns, config.slo_tpot_ns), seed),
        "engine": "simpy",
        "unit": trace.meta.get("unit", "block"),
    }
    beyond = beyond_measured(trace, profile, engine.decode.steps if engine.decode else None)
    missed = policy.missed(rows["ttft_s"].to_numpy(), rows["quality"].to_numpy())
    told = (profile.provenance.get("warning"), extrapolation_warning(profile.name, beyond), missed)
    summary["warnings"] = [*summary["warnings"], *(warning for warning in told if isinstance(warning, str))]
    meta = _meta(engine, profile, seed) | ({"measured_to": beyond} if beyond else {})
    return Result(requests, moves_frame(engine), occupancy_frame(engine), meta, summary)


def _meta(engine: Engine, profile: Profile, seed: int) -> dict[str, Any]:
    tiers = engine.costs.tiers
    busy = {tier.name: channel.busy_ns / 1e9 for tier, channel in zip(tiers, engine.readers, strict=True)}
    return {
        "simkv_version": simkv_version(),
        "seed": seed,
        "trace": trace_facts(engine.trace),
        "profile": {
            "name": profile.name,
            "model": profile.model,
            "sizes": profile.size_accounting,
            "sha256": profile.sha256,
        },
        "tiers": [vars(tier) for tier in tiers],
        "engine": vars(engine.settings),
        **decode_facts(engine),
        "moves": dict(zip(KINDS, engine.mover.counts.kinds, strict=True)),
        "busy_s": {**{f"read_{name}": seconds for name, seconds in busy.items()}, "gpu": engine.gpus.busy_ns / 1e9},
        "profiling_s": engine.profiling_ns / 1e9,
        "recode_s": engine.mover.counts.recode_ns / 1e9,
        "held_by_pins": engine.store.counts.held_by_pins,
    }


def trace_facts(trace: Trace) -> dict[str, Any]:
    """What identifies a trace in a result: its metadata and counts."""
    return {**trace.meta, "requests": len(trace), "blocks": len(trace.block_ids), "distinct_blocks": trace.n_blocks}
