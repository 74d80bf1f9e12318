"""From a trace and its cost tables to the arrays of the bound: what a hit could gain, where and for how many bytes.

What it is: for each engine option the relaxation that keeps a bound valid (the reasons are in ``bounds.py``).
What it is not: the bound itself.  Everything here is in seconds and bytes, as floats, and knows no policy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simkv.errors import ConfigError, unknown_name
from simkv.profiles import TierSpec
from simkv.simulator.bounds_kernels import flight_bytes, form_groups, scan
from simkv.simulator.costs import UNLIMITED, CostTables
from simkv.simulator.engine import EngineSettings
from simkv.traces.trace import Trace
from simkv.units import NS_PER_S

__all__ = ["ANTICIPATIONS", "BoundProblem", "Groups", "Lanes", "Options", "build_problem"]

ANTICIPATIONS = ("none", "prefetch", "raise")
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """Placements that a hit may find, option o = tier x V + variant; c is a size class.

    Attributes:
        charged: [c][o] bytes that must have been held for it.
        times: [k][c][3][o] seconds on the read channel, on the host link and of decompression per block; k = 1 for
            one of several candidates of a request, without the fixed part of its transfer, k = 0 for a lone
            candidate, with it.  Infinite on a tier that is too small.
        fixed: [3][o] positive fixed parts of the same, for a request's candidates to share.
    """

    charged: Floats
    times: Floats
    fixed: Floats


@dataclass(frozen=True)
class Lanes:
    """Lower bounds of a request's delay, each linear in the placements; so is every weighted mean of them.

    Attributes:
        read, link: [l][o] share of an option's time on the read channel and the link that counts.
        work: [l] share of decompression and prefill that counts.
        constant: [l] seconds that negative fixed parts may save.
        alone: [l] whether the lane is for requests with a lone candidate, or for the others.
    """

    read: Floats
    link: Floats
    work: Floats
    constant: Floats
    alone: NDArray[np.bool_]


@dataclass(frozen=True)
class Groups:
    """Accesses that gain alike: G runs of candidates of one request, by request.

    Attributes:
        starts: [R + 1] groups of each request; ``previous``: [G] request since which a hit is charged for.
        klass, row: [G] size class and quality row; ``share``: [G] share of the prompt.
        members: [G + 1]; ``saved``: seconds of prefill that each member saves, the largest first; ``sums``: running.
    """

    starts: Ints
    previous: NDArray[np.int32]
    klass: NDArray[np.int32]
    row: NDArray[np.int32]
    share: Floats
    members: Ints
    saved: Floats
    sums: Floats


@dataclass(frozen=True)
class BoundProblem:
    """All that the dual function needs to know of a run.

    Attributes:
        clock: [R] where each request looks up: seconds in an open loop, its number in a closed one.
        capacity: [t] bytes of the tiers that entries may use, infinite for unlimited.
        in_flight_bytes: what requests under way in a closed loop may not have stored yet.
        late_bytes: [R] what each request may store later than at its arrival (open loop); ``late_until``: [R] the last
            request that may arrive before it is done.
        measured: [R]; ``work``: [R] seconds of its full prefill, 0 unless measured.
        candidates: [R]; ``quality``: [row][v] relative to 1; ``anticipation``: one of ANTICIPATIONS.
        options, lanes, groups: see there.
    """

    clock: Floats
    capacity: Floats
    in_flight_bytes: float
    late_bytes: Floats
    late_until: Ints
    measured: NDArray[np.bool_]
    work: Floats
    candidates: Ints
    quality: Floats
    anticipation: str
    options: Options
    lanes: Lanes
    groups: Groups


def build_problem(
    trace: Trace,
    costs: CostTables,
    settings: EngineSettings,
    measured: NDArray[np.bool_],
    *,
    host_link: TierSpec | None = None,
    anticipation: str = "none",
    added: bool = False,
) -> BoundProblem:
    """The arrays for one trace under one configuration.

    Args:
        trace, costs, settings, host_link: as for the engine.
        measured: bool[R], which requests count.
        anticipation: what policies may do between two accesses of an entry; see ``bounds.py``.
        added: loads of a request add up over its tiers (the untimed model) instead of running side by
            side.

    Raises:
        ConfigError: for what is not covered: an unknown anticipation, prefill or load times that fall with length.
    """
    if anticipation not in ANTICIPATIONS:
        raise ConfigError(unknown_name("anticipation", anticipation, ANTICIPATIONS))
    _check_rising(costs)
    usable = len(costs.tiers) - settings.pristine
    options = _options(costs, usable, host_link is not None, anticipation)
    lanes = _lanes(costs, usable, host_link is not None, settings, added)
    timed = settings.arrivals == "open"
    clock = trace.arrival_ns if timed else np.arange(len(trace), dtype=np.int64)
    groups, work, candidates, previous = _groups(trace, costs, clock, timed, measured)
    largest = options.charged.max(axis=1)[np.array(costs.block_class, dtype=np.int32)]
    late = flight_bytes(trace.block_offsets, trace.block_ids, largest, candidates, previous, measured)
    seconds = clock / NS_PER_S if timed else clock.astype(np.float64)
    longest = work + candidates * _slowest(options)
    request_bytes = _request_bytes(trace, largest)
    return BoundProblem(
        clock=seconds,
        capacity=np.array([np.inf if c == UNLIMITED else float(c) for c in costs.capacity[:usable]]),
        in_flight_bytes=0.0 if timed else float(np.sort(request_bytes)[::-1][: settings.concurrency - 1].sum()),
        late_bytes=late if timed else np.zeros(len(trace)),
        late_until=np.searchsorted(seconds, seconds + longest, side="right").astype(np.int64) - 1,
        measured=measured,
        work=work,
        candidates=candidates,
        quality=np.array(costs.quality.score_ppb, dtype=np.float64).reshape(-1, len(costs.variants)) / 1e9 - 1.0,
        anticipation=anticipation,
        options=options,
        lanes=lanes,
        groups=groups,
    )


def _groups(
    trace: Trace, costs: CostTables, clock: Ints, timed: bool, measured: NDArray[np.bool_]
) -> tuple[Groups, Floats, Ints, NDArray[np.int32]]:
    """(groups, seconds of each request's full prefill, its candidates, since when each access is charged for)."""
    prefill = np.array(costs.prefill, dtype=np.int64)
    inputs = trace.input_tokens.astype(np.int64)
    tokens = trace.block_tokens.astype(np.int64)
    columns = (trace.block_offsets, trace.block_ids, tokens, inputs, prefill)
    candidates, covered, previous = scan(clock, *columns, costs.prefill_base, costs.prefill_floor, timed, measured)
    work_ns, shared, flat = _recomputing(costs, prefill, inputs, candidates, covered)
    classes, rows = np.array(costs.block_class, dtype=np.int32), np.array(costs.quality.block_row, dtype=np.int32)
    starts, since, klass, row, counted, members, saved, sums = form_groups(
        *columns, shared, flat, classes, rows, candidates, previous, measured
    )
    owner = np.repeat(np.arange(len(trace)), np.diff(starts))
    groups = Groups(starts, since, klass, row, counted / np.maximum(inputs[owner], 1), members, saved, sums)
    return groups, np.where(measured, work_ns / NS_PER_S, 0.0), candidates, previous


def _check_rising(costs: CostTables) -> None:
    if len(costs.prefill) > 1 and int(np.diff(costs.prefill).min()) < 0:
        raise ConfigError("bound: the profile's prefill time falls with the length of the prompt, which is not covered")
    per_block = [*(v for tier in costs.read for v in tier), *(v for tier in costs.decode for v in tier)]
    if any(min(times, default=0) < 0 for times in per_block):
        raise ConfigError("bound: a load or decode line of the profile falls with the length, which is not covered")


def _request_bytes(trace: Trace, largest: Floats) -> Floats:
    """float64[R]: bytes of each request's blocks, repeated ones counted again."""
    sums = np.concatenate([[0.0], np.cumsum(largest[trace.block_ids])])
    return sums[trace.block_offsets[1:]] - sums[trace.block_offsets[:-1]]


def _recomputing(
    costs: CostTables, prefill: Ints, inputs: Ints, candidates: Ints, covered: Ints
) -> tuple[Ints, Floats, NDArray[np.bool_]]:
    """Prefill as a sum over what is missing: (full prefill ns, ns that each candidate bears of its fixed part, flat).

    Prefill is max(floor, base + work) and 0 when nothing is missing.  With tokens that are missing in any case, base
    is paid in any case; without, each of n candidates bears 1/n of it.  Where the floor exceeds the whole work, the
    floor takes the place of base + work (flat).  A lone candidate has its exact difference.
    """
    full = np.maximum(costs.prefill_floor, costs.prefill_base + prefill[inputs] - prefill[0])
    full = np.where(inputs > 0, full, 0)
    rest = np.where(
        inputs > covered,
        np.maximum(costs.prefill_floor, costs.prefill_base + prefill[inputs] - prefill[covered]),
        0,
    )
    alone = candidates == 1
    flat = alone | (costs.prefill_floor >= costs.prefill_base + prefill[inputs] - prefill[0])
    fixed = np.where(flat, full, costs.prefill_base)
    shared = np.where(inputs > covered, 0.0, fixed / np.maximum(candidates, 1))
    return full, np.where(alone, full - rest, shared), flat


def _options(costs: CostTables, usable: int, linked: bool, anticipation: str) -> Options:
    tiers, variants = range(usable), range(len(costs.variants))
    pairs = [(t, v) for t in tiers for v in variants]
    size = np.array(costs.size, dtype=np.float64).T.reshape(-1, len(variants))  # [c, v]
    held = np.broadcast_to(size.min(axis=1, keepdims=True), size.shape) if anticipation == "raise" else size
    capacity = [costs.capacity[t] for t, _ in pairs]

    def table(of: list[list[list[int]]]) -> Floats:
        return np.array([of[t][v] for t, v in pairs], dtype=np.float64).T.reshape(-1, len(pairs)) / NS_PER_S

    link_fixed = costs.link_fixed if linked else 0
    per_block = np.stack([table(costs.read), table([costs.link] * usable), table(costs.decode)], axis=1)  # [c, 3, o]
    fixed = np.array([[costs.read_fixed[t][v], link_fixed, costs.decode_fixed[t][v]] for t, v in pairs]).T / NS_PER_S
    times = np.stack([np.maximum(0.0, per_block + fixed), per_block])
    times[:, :, 0][:, np.tile(size, usable) > capacity] = np.inf
    return Options(np.tile(held, usable), times, np.maximum(fixed, 0.0))


def _slowest(options: Options) -> float:
    """Seconds of the slowest block on the slowest option."""
    sums = options.times.sum(axis=2)
    return float(sums[np.isfinite(sums)].max(initial=0.0))


def _lanes(costs: CostTables, usable: int, linked: bool, settings: EngineSettings, added: bool) -> Lanes:
    """All lower bounds of the delay that the engine's rules give; see ``bounds.py``, "Loads side by side"."""
    variants = len(costs.variants)
    every = np.ones(usable * variants)
    loads: list[tuple[Floats, Floats, bool]] = [(every, every, True)]
    if added:
        loads.append((every, every, False))
    for t in () if added else range(usable):
        on_tier = np.zeros(usable * variants)
        on_tier[t * variants : (t + 1) * variants] = 1.0
        loads.append((on_tier, 0.0 * every, False))
        if linked:
            for o in np.flatnonzero(on_tier):
                loads.append((np.eye(len(every))[o], np.eye(len(every))[o], False))
    if linked and not added:
        loads.append((0.0 * every, every, False))
    read_below = np.array([min(0, f) for row in costs.read_fixed[:usable] for f in row]) / -NS_PER_S
    decode_below = np.array([min(0, f) for row in costs.decode_fixed[:usable] for f in row]) / -NS_PER_S
    layers = costs.layers if settings.overlap == "layerwise" else 1
    lanes = []
    for read, link, alone in loads:
        below = (0.0, 0.0) if alone else (float(read @ read_below), float(decode_below.sum()))
        for load, work in ((1.0, 1.0),) if layers == 1 else ((1.0 / layers, 1.0), (1.0, 1.0 / layers)):
            lanes.append((load * read, load * link, work, load * below[0] + work * below[1], alone))
    return Lanes(
        read=np.array([lane[0] for lane in lanes]),
        link=np.array([lane[1] for lane in lanes]),
        work=np.array([lane[2] for lane in lanes]),
        constant=np.array([lane[3] for lane in lanes]),
        alone=np.array([lane[4] for lane in lanes]),
    )
