"""A whole measurement of quality, from a plan to a profile folder.

What it is: model, workloads, compressors and rows put together; what ``simkv profile quality`` calls.  What it is not:
the parts.  A killed measurement goes on from ``OUT.rows.jsonl`` when it is called again with the same plan.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from simkv.errors import SimkvError
from simkv.profile_saving import save_profile
from simkv.profile_types import RAW, Profile
from simkv.profiler.compressors.adapters.kvpress import KvpressDropper
from simkv.profiler.compressors.base import Compressor
from simkv.profiler.fitting import Refused, calibrated, calibration_caches, tried
from simkv.profiler.makers import maker_of
from simkv.profiler.measured import profile_of
from simkv.profiler.models import CachedModel
from simkv.profiler.plan import (
    Parameters,
    Rates,
    built,
    default_names,
    further_knobs,
    parts_of,
    settings_of,
)
from simkv.profiler.provenance import device_name, facts_of_machine
from simkv.profiler.quality import Setting, measured_rows
from simkv.profiler.rows import Row, RowFile
from simkv.profiler.sources import Source, open_source
from simkv.profiler.tasks import Task
from simkv.profiler.workloads import Workload, calibration_contexts, generated
from simkv.version import measuring_identity

__all__ = ["QualityPlan", "measure_quality"]

_CALIBRATION = 2
_QUICK_CONTEXTS = 4


@dataclass(frozen=True)
class QualityPlan:
    """What to measure.

    Attributes:
        model: "small", "small-plain" (without key outliers), "small:FOLDER" for one trained like it, a Hugging
            Face name, or a folder.
        device: "cpu" or "cuda".
        tasks: names of generated tasks; empty for all, or for none where there are files.
        files: LongBench-format files, one task each, besides the generated tasks.
        compressors: names as ``make_compressor`` knows them; empty for all that are built in.
        rates: further knobs by compressor name; they come beside those that suit the model.
        parameters: of compressors, by name.
        contexts, questions: per task, and per context (half of them for policies to learn from).
        length: tokens of a context; None for 512 with the small model, and 4096 or what fits with others.
        seed: of the contexts.
        query_aware: compress after the question is known.
        quick: four contexts and two of every compressor's own knobs, besides ``rates``.
    """

    model: str = "small"
    device: str = "cpu"
    tasks: Sequence[str] = ()
    files: Sequence[Path] = ()
    compressors: Sequence[str] = ()
    rates: Rates = field(default_factory=dict)
    parameters: Parameters = field(default_factory=dict)
    contexts: int = 64
    questions: int = 16
    length: int | None = None
    seed: int = 0
    query_aware: bool = False
    quick: bool = False


def measure_quality(plan: QualityPlan, out: Path, progress: Callable[[int, int], None] | None = None) -> Profile:
    """Measure, and write the profile folder ``out``; ``progress`` takes (finished, all) rows.

    Raises:
        SimkvError: a plan that cannot be carried out, or a folder that exists.
    """
    start = perf_counter()
    path = out.with_name(out.name + ".rows.jsonl")
    if out.exists() and not path.exists():
        raise SimkvError(f"{out}: exists already; a profile is never overwritten")
    source = open_source(plan.model, plan.device)
    length = plan.length or source.length
    workloads, hashes = _workloads(plan, source, length)
    settings, refused = _settings(plan, source, workloads, length)
    identity = _identity(plan, source, workloads, length) | ({"files": hashes} if hashes else {})
    rows = RowFile(path, identity, {str(s.variant): maker_of(s) for s in settings}, Row)
    if out.exists():
        return rows.finished(out)
    before = sum(row.seconds for row in rows.rows.values())
    try:
        _measure(source.model, workloads, settings, rows, plan.query_aware, progress)
        variants = [setting.variant for setting in settings]
        wanted = {str(variant) for variant in (RAW, *variants)}
        kept = [row for row in rows.rows.values() if row.variant in wanted]
        facts = _facts(plan, source, identity, settings, refused, before + perf_counter() - start)
        profile = profile_of(out.name, source.model, variants, kept, facts)
        save_profile(profile, out)
    finally:
        rows.close()
    rows.remove()
    return profile


def _measure(
    model: CachedModel,
    workloads: Sequence[Workload],
    settings: Sequence[Setting],
    rows: RowFile[Row],
    query_aware: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    total = sum(workload.count for workload in workloads) * (len(settings) + 1)
    names = [str(RAW), *(str(setting.variant) for setting in settings)]
    finished = sum(
        rows.has(workload.task, sample, name)
        for workload in workloads
        for sample in range(workload.count)
        for name in names
    )
    tell = progress or (lambda done, of: None)
    tell(finished, total)
    for workload in workloads:
        for row in measured_rows(model, workload, settings, rows.has, query_aware):
            rows.add(row)
            finished += 1
            tell(finished, total)


def _workloads(plan: QualityPlan, source: Source, length: int) -> tuple[list[Workload], dict[str, str]]:
    """What to go through, and the hashes of files by task."""
    if plan.questions < 2:
        raise SimkvError(f"{plan.questions} questions per context; at least 2, half for policies and half to score")
    contexts = min(plan.contexts, _QUICK_CONTEXTS) if plan.quick else plan.contexts
    files = [source.of_file(path, contexts, plan.questions, length) for path in plan.files]
    tasks = source.chosen(plan.tasks) if plan.tasks or not files else {}
    made = [
        generated(task, contexts, plan.questions, length, plan.seed, source.stop, source.spare_tokens)
        for task in tasks.values()
    ]
    workloads = [*made, *(workload for workload, _ in files)]
    names = [workload.task for workload in workloads]
    if len(set(names)) < len(names):
        raise SimkvError(f"two tasks of the same name among {', '.join(names)}; rename the file")
    return workloads, {workload.task: sha256 for workload, sha256 in files}


def _settings(
    plan: QualityPlan, source: Source, workloads: Sequence[Workload], length: int
) -> tuple[list[Setting], Refused]:
    """What to measure, every setting tried on the first context, and why built-in compressors are left out."""
    names = plan.compressors or default_names()
    parameters = dict(plan.parameters)
    for name in parts_of(names) & source.parameters.keys():
        parameters[name] = {**source.parameters[name], **parameters.get(name, {})}
    compressors = _attached(built(names, parameters), source.model, plan.query_aware)
    refused: Refused | None = None if plan.compressors else {}
    caches = calibration_caches(source.model, compressors, lambda: _calibration(plan, source, workloads, length))
    compressors = calibrated(compressors, caches, refused)
    further = further_knobs(names, compressors, source.rates, plan.rates, plan.quick)
    settings = settings_of(compressors, further, plan.quick)
    first = workloads[0].context(0).tokens.tolist()
    return tried(source.model, first, settings, refused), refused or {}


def _calibration(plan: QualityPlan, source: Source, workloads: Sequence[Workload], length: int) -> list[Sequence[int]]:
    """Contexts of the tasks, none of which is measured; with files alone the files' first, which are."""
    if plan.tasks or not plan.files:
        tasks: Sequence[Task] = list(source.chosen(plan.tasks).values())
        found = [context for task in tasks for context in calibration_contexts(task, _CALIBRATION, length, plan.seed)]
    else:
        found = [load.context(number) for load in workloads for number in range(min(load.count, _CALIBRATION))]
    return [context.tokens.tolist() for context in found]


def _attached(compressors: Sequence[Compressor], model: CachedModel, query_aware: bool) -> list[Compressor]:
    """Presses of kvpress act inside the model's prefill, so they must know the model."""
    presses = [compressor.name for compressor in compressors if isinstance(compressor, KvpressDropper)]
    if presses and query_aware:
        raise SimkvError(
            f"compressor {presses[0]}: a press cannot be measured query-aware, since it acts while the context alone "
            "is prefilled; measure it without, or leave it out"
        )
    return [c.attached(model) if isinstance(c, KvpressDropper) else c for c in compressors]


def _identity(plan: QualityPlan, source: Source, workloads: Sequence[Workload], length: int) -> dict[str, Any]:
    """What every row depends on."""
    return {
        "model": source.model.name,
        **source.facts,
        "device": device_name(plan.device),
        "dtype": str(source.model.model.dtype).removeprefix("torch."),
        "tasks": [workload.task for workload in workloads],
        "contexts": max(workload.count for workload in workloads),
        "questions": plan.questions,
        "context_tokens": length,
        "seed": plan.seed,
        "query_aware": plan.query_aware,
        "code": measuring_identity(),
    }


def _facts(
    plan: QualityPlan,
    source: Source,
    identity: Mapping[str, Any],
    settings: Sequence[Setting],
    refused: Refused,
    seconds: float,
) -> dict[str, Any]:
    """For ``[provenance]``."""
    compressors = {setting.compressor.name: setting.compressor for setting in settings}.values()
    shared = {compressor.name: compressor.shared_bytes() for compressor in compressors if compressor.shared_bytes()}
    in_sample = plan.files and not plan.tasks and any("calibration" in made.needs for made in compressors)
    return {
        "summary": f"{source.facts['summary']}; contexts of {identity['context_tokens']} tokens",
        **{key: value for key, value in identity.items() if key not in ("model", "summary")},
        "wall_time_s": round(seconds, 1),
        "parameters": {compressor.name: repr(compressor) for compressor in compressors},
        "shared_bytes": shared,
        **({"calibration": "on the files' first contexts, which are measured too"} if in_sample else {}),
        **({"refused": refused} if refused else {}),
        **facts_of_machine(plan.device),
    }
