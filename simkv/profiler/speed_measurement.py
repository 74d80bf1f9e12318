"""A whole measurement of speed, from a plan to a profile folder.

What it is: subject, compressors and rows put together; what ``simkv profile speed`` calls.  What it is not: the
parts.  A killed measurement goes on from ``OUT.rows.jsonl`` when it is called again with the same plan.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from simkv.errors import SimkvError, unknown_name
from simkv.profile_saving import save_profile
from simkv.profile_types import Profile, Variant
from simkv.profiler.compressors.base import Compressor
from simkv.profiler.fitting import calibrated
from simkv.profiler.makers import maker_of
from simkv.profiler.plan import Parameters, built, default_names, further_knobs, parts_of, settings_of
from simkv.profiler.provenance import facts_of_machine
from simkv.profiler.quality import Setting
from simkv.profiler.random_caches import CacheShape, random_cache
from simkv.profiler.retiming import time_again
from simkv.profiler.rows import RowFile, SpeedRow
from simkv.profiler.speed import Grid, SpeedRun
from simkv.profiler.speed_profile import profile_of_speeds
from simkv.profiler.subjects import Subject, open_subject
from simkv.profiler.timing import Clock, Patience, WallClock
from simkv.version import measuring_identity

__all__ = ["SpeedPlan", "measure_speed"]

_CALIBRATION_TOKENS = 512
_CALIBRATION_SEED = 1 << 20
_SMALL_LENGTHS = (128, 256, 512, 1024)
_CPU_LENGTHS = (256, 512, 1024, 2048)
_GPU_LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768)
_QUICK_LENGTHS = 3
_BATCHES = (1, 2, 4, 8, 16)
_QUICK_BATCHES = (1, 4)
_DECODERS = ("fused", "reference")
_PATIENCE_S = 1.0
_QUICK_PATIENCE_S = 0.2


@dataclass(frozen=True)
class SpeedPlan:
    """What to measure.

    Attributes:
        model: "small" and its kin, a name of ``simkv.models`` (random weights), or a Hugging Face name or folder.
        device: "cpu" or "cuda".
        compressors: names as ``make_compressor`` knows them; empty for all that are built in.
        rates: further knobs by compressor name.
        parameters: of compressors, by name.
        lengths: tokens of caches and prompts; empty for what suits model and device.
        batches: sequences that generate side by side.
        seed: of weights, tokens and caches.
        seconds: about how long one point is timed; None for 1 s, or 0.2 s when quick.
        decoders: "fused" where they compile, "reference", or None: fused on a GPU, reference on the CPU, where
            compiling takes minutes.
        quick: two knobs of every compressor, three lengths, two batches.
    """

    model: str = "small"
    device: str = "cpu"
    compressors: Sequence[str] = ()
    rates: Mapping[str, Sequence[str]] = field(default_factory=dict)
    parameters: Parameters = field(default_factory=dict)
    lengths: Sequence[int] = ()
    batches: Sequence[int] = ()
    seed: int = 0
    seconds: float | None = None
    decoders: str | None = None
    quick: bool = False


def measure_speed(
    plan: SpeedPlan, out: Path, progress: Callable[[int, int], None] | None = None, clock: Clock | None = None
) -> Profile:
    """Measure, and write the profile folder ``out``; ``progress`` takes (finished, all) points.

    Raises:
        SimkvError: a plan that cannot be carried out, or a folder that exists.
    """
    path = out.with_name(out.name + ".rows.jsonl")
    if out.exists() and not path.exists():
        raise SimkvError(f"{out}: exists already; a profile is never overwritten")
    lengths = _lengths(plan)
    subject = open_subject(plan.model, plan.device, max(lengths), plan.seed)
    lengths = [tokens for tokens in lengths if tokens <= subject.window_tokens]
    if not lengths:
        raise SimkvError(f"model {subject.name}: a window of {subject.window_tokens} tokens; give shorter --tokens")
    settings, compressors = _settings(plan, subject)
    batches = plan.batches or (_QUICK_BATCHES if plan.quick else _BATCHES)
    patience = Patience(plan.seconds or (_QUICK_PATIENCE_S if plan.quick else _PATIENCE_S))
    grid = Grid.of(lengths, batches)
    clock = clock or WallClock(plan.device)
    run = SpeedRun(subject, settings, grid, plan.device, clock, patience, plan.seed, plan.quick)
    machine = facts_of_machine(plan.device)
    identity = _identity(plan, subject, machine, patience)
    makers = {str(setting.variant): maker_of(setting) for setting in settings}
    rows = RowFile(path, identity, makers, SpeedRow)
    if out.exists():
        return rows.finished(out)
    try:
        _measure(run, rows, progress)
        again = _time_again(run, rows, progress)
        facts = _facts(plan, subject, identity, compressors, machine, list(rows.rows.values()), lengths)
        variants = [setting.variant for setting in settings]
        profile = profile_of_speeds(out.name, subject, variants, _kept(run, rows), {**facts, **again})
        save_profile(profile, out)
    finally:
        rows.close()
    rows.remove()
    return profile


def _measure(run: SpeedRun, rows: RowFile[SpeedRow], progress: Callable[[int, int], None] | None) -> None:
    tell = progress or (lambda done, of: None)
    tell(len(rows.rows), max(run.points, len(rows.rows)))
    for row in run.rows(lambda *key: rows.rows.get(key)):
        rows.add(row)
        tell(len(rows.rows), max(run.points, len(rows.rows)))


def _time_again(run: SpeedRun, rows: RowFile[SpeedRow], progress: Callable[[int, int], None] | None) -> dict[str, Any]:
    """What is implausible is not finished, and is so counted."""
    tell = progress or (lambda done, of: None)
    of = max(run.points, len(rows.rows))
    return time_again(run, rows, lambda: _kept(run, rows), lambda left: tell(len(rows.rows) - left, of))


def _kept(run: SpeedRun, rows: RowFile[SpeedRow]) -> list[SpeedRow]:
    """The rows of this plan; those of an earlier one with other lengths are left out."""
    lengths, places = set(run.grid.lengths), {(new, cached, 1) for new, cached in run.grid.prefills}
    steps = {(tokens, 0, batch) for batch, tokens in run.grid.steps}
    names = {str(setting.variant) for setting in run.settings}
    return [
        row
        for row in rows.rows.values()
        if row.what in ("copy", "h2d", "d2h")
        or (row.what == "prefill" and (row.tokens, row.cached, row.batch) in places)
        or (row.what == "step" and (row.tokens, row.cached, row.batch) in steps)
        or (row.variant in names and row.tokens in lengths)
    ]


def _lengths(plan: SpeedPlan) -> list[int]:
    usual = _GPU_LENGTHS if plan.device.startswith("cuda") else _CPU_LENGTHS
    usual = _SMALL_LENGTHS if plan.model.startswith("small") else usual
    quick = usual[::2] if len(usual) > _QUICK_LENGTHS + 1 else usual[:_QUICK_LENGTHS]
    lengths = sorted(set(plan.lengths or (quick if plan.quick else usual)))
    if lengths[0] < 2:
        raise SimkvError(f"--tokens {lengths[0]}: caches of at least 2 tokens can be timed")
    return lengths


def _settings(plan: SpeedPlan, subject: Subject) -> tuple[list[Setting], list[Compressor]]:
    names = list(plan.compressors or default_names())
    for name in names:
        if name.startswith("kvpress:"):
            raise SimkvError(f"compressor {name}: acts inside a model's prefill, so its speed is not measured apart")
    parameters = dict(plan.parameters)
    for name in parts_of(names) & subject.parameters.keys():
        parameters[name] = {**subject.parameters[name], **parameters.get(name, {})}
    one = replace(subject.cache, layers=min(subject.cache.layers, 2))
    compressors = calibrated(built(names, parameters), [_calibration(plan, subject, one)])
    further = further_knobs(names, compressors, subject.rates, plan.rates, plan.quick)
    if _wants_fused(plan):
        compressors = [compressor.fused(plan.device) for compressor in compressors]
    return settings_of(compressors, further, plan.quick), compressors


def _wants_fused(plan: SpeedPlan) -> bool:
    if plan.decoders not in (None, *_DECODERS):
        raise SimkvError(unknown_name("kind of decoders", str(plan.decoders), _DECODERS))
    return plan.decoders == "fused" or (plan.decoders is None and plan.device.startswith("cuda"))


def _calibration(plan: SpeedPlan, subject: Subject, shape: CacheShape) -> Any:
    """A cache other than those that are timed."""
    return random_cache(shape, _CALIBRATION_TOKENS, plan.device, subject.dtype, plan.seed + _CALIBRATION_SEED)[0]


def _identity(plan: SpeedPlan, subject: Subject, machine: Mapping[str, Any], patience: Patience) -> dict[str, Any]:
    """What every row depends on."""
    return {
        "model": subject.name,
        **subject.facts,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "cache_layers": subject.cache.layers,
        "timed_layers": subject.model.shape.layers,
        "seed": plan.seed,
        "seconds_per_point": patience.seconds,
        "device": machine["device"],
        "threads": machine["threads"],
        "code": measuring_identity(),
    }


def _facts(
    plan: SpeedPlan,
    subject: Subject,
    identity: Mapping[str, Any],
    compressors: Sequence[Compressor],
    machine: Mapping[str, Any],
    rows: Sequence[SpeedRow],
    lengths: Sequence[int],
) -> dict[str, Any]:
    """For ``[provenance]``."""
    measured: dict[str, set[int]] = {}
    for row in rows:
        if row.what == "decode":
            measured.setdefault(row.variant, set()).add(row.tokens)
    short = {name: max(found) for name, found in measured.items() if Variant.parse(name) and max(found) < max(lengths)}
    weights = "random weights" if subject.random else "its own weights"
    return {
        "summary": f"measured speeds of {subject.name} ({weights}) on {machine['device']}",
        **{key: value for key, value in identity.items() if key not in ("model", "cache_layers", "timed_layers")},
        "tokens": list(lengths),
        **({"too_slow_beyond_tokens": short} if short else {}),
        "parameters": {compressor.name: repr(compressor) for compressor in compressors},
        **machine,
    }
