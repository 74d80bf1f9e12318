"""A whole validation: calibrate, predict, replay for real, compare, report; what ``simkv validate`` calls.

What it is: the parts in a row, in folders of their own.  What it is not: any of them.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch

from simkv.config_models import PolicyConfig
from simkv.errors import SimkvError
from simkv.profiler.direct_io import BLOCK
from simkv.profiler.provenance import facts_of_machine
from simkv.profiler.sources import open_source
from simkv.profiles import Profile, load_profile, save_profile
from simkv.simulator.costs import CostTables
from simkv.simulator.policies import Policy, make_policy
from simkv.testbed.asking import Examiner
from simkv.testbed.bench import Bench, Requests, make_bench
from simkv.testbed.calibration import Sizes, StoredTier, calibration_bytes, measured_quality, with_speeds
from simkv.testbed.folder import payload_folder, report_folder
from simkv.testbed.open_loop import open_loop
from simkv.testbed.payloads import DiskPayloads, DramPayloads
from simkv.testbed.plan import Plan
from simkv.testbed.prediction import Prediction, check_policy, exact_costs, predict, spaced
from simkv.testbed.replay import RealStore, Timed, closed_loop
from simkv.testbed.report import NAMES, PROFILES, REPORT, Replay, moves_frame, replay_frame, replay_line, write_report
from simkv.testbed.server import Server
from simkv.testbed.serving import OwnClock
from simkv.testbed.storing import settings_of_plan
from simkv.traces.trace import Trace
from simkv.units import format_bytes

__all__ = ["validate"]

Bars = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""A progress bar by what it counts."""

_LOG = logging.getLogger(__name__)
_PAUSED = 1.0  # requests per second of a closed loop's trace, whose times only give the order


@dataclass(frozen=True)
class _Machine:
    """What all replays share."""

    plan: Plan
    bench: Bench
    server: Server
    tiers: Sequence[StoredTier]
    clock: OwnClock
    sizes: Sizes
    examiner: Examiner


@dataclass(frozen=True)
class _Outcome:
    """One replay beside its prediction: requests, moves, and what they come to."""

    requests: pd.DataFrame
    moves: pd.DataFrame
    line: dict[str, Any]


def validate(plan: Plan, disk: Path, out: Path, bars: Bars) -> dict[str, Any]:
    """Carry out a plan and write its report into ``out``; what ``report.json`` then holds.

    Args:
        plan: what.
        disk: a folder on the disk to use; a folder of our own is made in it, and removed at the end.
        out: folder of the report, made if it is not there; an older report in it is replaced.
        bars: progress.

    Raises:
        SimkvError: a plan that cannot be carried out, a folder that is not ours, too little room on the disk, damaged
            payloads.
    """
    for policy in plan.policies:
        check_policy(_made(policy))
    if plan.device != "cpu" and not (plan.device.startswith("cuda") and torch.cuda.is_available()):
        raise SimkvError(
            f"device {plan.device}: this machine has no such device that torch can use; cpu is always there"
        )
    with _one_thread(), report_folder(out, NAMES, REPORT) as part:
        source = open_source(plan.model, plan.device)
        bench = make_bench(source, plan.workload, plan.contexts, plan.seed)
        server = Server(source.model, settings_of_plan(plan, source))
        dram, stored = plan.capacities
        calibrated = calibration_bytes(bench, server)
        _check_budget(plan, 2 * calibrated)
        need = max(stored, calibrated) + BLOCK * len(bench.contexts)
        with payload_folder(disk, need) as home:
            payloads = DiskPayloads(home)
            tiers = [StoredTier("dram", dram, DramPayloads()), StoredTier("ssd", stored, payloads)]
            clock = OwnClock(plan.device)
            with bars("quality") as progress:
                quality, sizes = measured_quality(plan, bench, server, progress)
            _warn_of_empty(tiers, sizes)
            machine = _Machine(plan, bench, server, tiers, clock, sizes, Examiner(bench, server))
            outcomes = _replays(machine, quality, part / PROFILES, bars)
            facts = _facts(machine, payloads.direct, outcomes)
            write_report(
                part, [outcome.requests for outcome in outcomes], [outcome.moves for outcome in outcomes], facts
            )
    return facts


def _check_budget(plan: Plan, calibrated: int) -> None:
    if calibrated > plan.budget:
        raise SimkvError(
            f"budget: the calibration stores a context of every length in every variant on both tiers, "
            f"{format_bytes(calibrated)}; the budget is {format_bytes(plan.budget)}: give more, or a smaller "
            "workload.longest, a larger workload.step or fewer variants"
        )


def _warn_of_empty(tiers: Sequence[StoredTier], sizes: Sizes) -> None:
    for tier in tiers:
        if tier.capacity < min(sizes.values()):
            _LOG.warning(
                "tier %s: no context fits into %s in any variant, the smallest takes %s; it stays empty",
                tier.name,
                format_bytes(tier.capacity),
                format_bytes(min(sizes.values())),
            )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch computes in one thread, so that a time does not depend on how many processors are free."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _replays(machine: _Machine, quality: Profile, folder: Path, bars: Bars) -> list[_Outcome]:
    """Every repeat begins with a calibration of its own, whose profile is stored and read back before it is used."""
    plan = machine.plan
    outcomes: list[_Outcome] = []
    for repeat in range(plan.repeats):
        place = folder / f"repeat-{repeat + 1}"
        with bars(f"calibration {repeat + 1}") as progress:
            arguments = (plan, machine.bench, machine.server, machine.tiers, machine.clock)
            save_profile(with_speeds(quality, *arguments, progress), place)
        profile = load_profile(place)
        for policy in plan.policies:
            outcomes += _of_policy(machine, profile, policy, repeat, bars)
    return outcomes


def _of_policy(
    machine: _Machine, profile: Profile, policy: PolicyConfig, repeat: int, bars: Bars
) -> Iterator[_Outcome]:
    """The closed loop, and the open one at each load or rate."""
    plan = machine.plan
    seed = plan.seed + repeat
    requests = machine.bench.requests(plan.requests, plan.workload.exponent, _PAUSED, seed)
    costs = exact_costs(machine.bench, requests, profile, machine.sizes)
    trace = spaced(requests.trace, costs)
    alone = predict(trace, costs, _made(policy))
    if "closed" in plan.loops:
        with bars(f"{policy.title}, closed, repeat {repeat + 1}") as progress:
            real = _real(machine, requests, trace, costs, policy)
            rows = _emptied(machine, lambda: closed_loop(real, machine.clock, progress))
            yield _compared(machine, Replay("closed", policy.title, repeat + 1), real, alone, rows)
    if "open" not in plan.loops:
        return
    busy_s = float(alone.requests["compute_s"].mean())
    loads = [(0.0, rate) for rate in plan.rates] or [(load, load / busy_s) for load in plan.loads]
    for load, rate in loads:
        requests = machine.bench.requests(plan.requests, plan.workload.exponent, rate, seed)
        prediction = predict(requests.trace, costs, _made(policy))
        with bars(f"{policy.title}, {rate:.1f}/s, repeat {repeat + 1}") as progress:
            real = _real(machine, requests, requests.trace, costs, policy)
            rows = _emptied(machine, lambda: open_loop(real, plan.budget, progress))  # noqa: B023
            yield _compared(machine, Replay("open", policy.title, repeat + 1, load, rate), real, prediction, rows)


def _real(machine: _Machine, requests: Requests, trace: Trace, costs: CostTables, policy: PolicyConfig) -> RealStore:
    payloads = [tier.payloads for tier in machine.tiers]
    return RealStore(machine.bench, requests, trace, costs, _made(policy), machine.server, payloads)


def _emptied(machine: _Machine, replayed: Callable[[], list[Timed]]) -> list[Timed]:
    """Its rows; no payload is left afterwards."""
    try:
        return replayed()
    finally:
        for tier in machine.tiers:
            for key in list(tier.payloads.sizes):
                tier.payloads.drop(key)


def _compared(
    machine: _Machine, replay: Replay, real: RealStore, prediction: Prediction, rows: Sequence[Timed]
) -> _Outcome:
    bench = machine.bench
    scores = [_scores(machine, real.requests, row) for row in rows]
    frame = replay_frame(replay, bench, real.requests, real.costs, prediction, rows, scores)
    most = {tier.name: size for tier, size in zip(machine.tiers, real.most_bytes, strict=True)}
    predicted, made = prediction.decisions, real.decisions
    line = replay_line(replay, frame, predicted, made, most)
    line["waits_taken_off"] = replay.loop == "closed" and machine.clock.counts_waits
    return _Outcome(frame, moves_frame(replay, real.costs, predicted, made), line)


def _scores(machine: _Machine, requests: Requests, row: Timed) -> tuple[float, float]:
    """Quality of what a request was served from, and of the answer that it was given."""
    context, which = int(requests.context[row.request]), int(requests.question[row.request])
    own = machine.bench.score(machine.server.model, context, which, row.answer)
    if row.payload is None or row.placement is None:
        return own, own
    return fmean(machine.examiner.scores(context, row.placement.variant, row.payload)), own


def _made(policy: PolicyConfig) -> Policy:
    return make_policy(policy.name, dict(policy.params))


def _facts(machine: _Machine, direct: bool, outcomes: Sequence[_Outcome]) -> dict[str, Any]:
    plan, model = machine.plan, machine.server.model
    variants = [str(setting.variant) for setting in machine.server.settings]
    return {
        "plan": plan.model_dump(mode="json"),
        "scale": plan.scale,
        "contexts": len(machine.bench.contexts),
        "working_set_bytes": sum(len(one.tokens) for one in machine.bench.contexts) * model.kv_bytes_per_token,
        "direct_reads": direct,
        "questions": sum(len(machine.bench.asked(number)) for number in range(len(machine.bench.contexts))),
        "sizes_bytes": {
            name: {str(tokens): size for (variant, tokens), size in sorted(machine.sizes.items()) if variant == number}
            for number, name in enumerate(variants)
        },
        "machine": facts_of_machine(plan.device),
        "replays": [outcome.line for outcome in outcomes],
    }
