"""The profile of a validation, measured before it: what each real step takes, and does to answers.

What it is: sizes, qualities of the very contexts, and seconds of decoding, encoding, prefilling, reading and writing at
the lengths in use, put into a profile that is stored beside the report.  Steps are timed within requests like those
to come, in random order, since a step after another is slower than the same step over and over.  What it is not:
anything about the requests that will be replayed: their contexts and their order are never looked at for times.

Two costs that data sheets do not show are measured because they are there: a raw payload is checked and brought into
the model's precision too, so raw has a decode line; and a prompt that is reused in full still computes its question.
"""

import gc
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from simkv.errors import SimkvError
from simkv.profile_types import Line, Profile, TierSpec
from simkv.profiler.fits import fit_line, interpolated_prefill
from simkv.profiler.measured import profile_of
from simkv.profiler.provenance import facts_of_machine
from simkv.profiler.quality import measured_rows
from simkv.profiler.rows import Row
from simkv.profiler.tasks import Context
from simkv.profiler.timing import timing_of
from simkv.profiler.workloads import calibration_contexts
from simkv.testbed.bench import Bench
from simkv.testbed.payloads import Payloads
from simkv.testbed.plan import Plan
from simkv.testbed.server import Server
from simkv.testbed.serving import OwnClock, serve

__all__ = ["Sizes", "StoredTier", "calibration_bytes", "measured_quality", "with_speeds"]

Sizes = dict[tuple[int, int], int]
"""Bytes of the largest payload by (variant's index, tokens of the context)."""

Progress = Callable[[int, int], None]
_Places = dict[Any, list[float]]

_MORE = 8
_ASIDE = 64  # tokens between a single length in use and the one that is timed beside it
_SLOWEST_BYTES_PER_S = 1e-15


@dataclass(frozen=True)
class StoredTier:
    """A tier as it really is: name, capacity in bytes, payloads."""

    name: str
    capacity: int
    payloads: Payloads


@dataclass(frozen=True)
class _Cell:
    """One kind of hit: a calibration context stored in a variant on a tier, under a key of its own."""

    key: int
    context: int
    tier: int
    variant: int
    size: int


@dataclass
class _Seconds:
    """All timings so far, by place."""

    decode: _Places = field(default_factory=lambda: defaultdict(list))  # (variant, tokens)
    encode: _Places = field(default_factory=lambda: defaultdict(list))
    prefill: _Places = field(default_factory=lambda: defaultdict(list))  # (new, cached)
    read: _Places = field(default_factory=lambda: defaultdict(list))  # (tier, bytes)
    write: _Places = field(default_factory=lambda: defaultdict(list))


def calibration_bytes(bench: Bench, server: Server) -> int:
    """Most bytes that the calibration stores on one tier."""
    return sum(_timed_lengths(bench, server)) * server.model.kv_bytes_per_token * len(server.settings)


def _timed_lengths(bench: Bench, server: Server) -> list[int]:
    """Lengths in use; where they are all alike another one beside it, since lines need two points."""
    lengths = bench.lengths
    if len(lengths) > 1:
        return lengths
    room = server.model.window_tokens - lengths[0] - _ASIDE
    beside = lengths[0] + (_ASIDE if room > _ASIDE else -_ASIDE // 2)
    return sorted([*lengths, beside])


def measured_quality(plan: Plan, bench: Bench, server: Server, progress: Progress) -> tuple[Profile, Sizes]:
    """A profile without speeds, and the sizes of payloads at each length.

    Args:
        plan: whose name and seed are used.
        bench: contexts whose quality is measured.
        server: computes.
        progress: takes (finished, all) contexts' tasks.

    Raises:
        SimkvError: a variant that is never smaller than raw.
    """
    sizes = _sizes(bench, server)
    rows: list[Row] = []
    for done, workload in enumerate(bench.workloads):
        progress(done, len(bench.workloads))
        rows += measured_rows(server.model, workload, server.settings[1:], lambda *_: False)
    progress(len(bench.workloads), len(bench.workloads))
    _enlarge(sizes, rows, bench, server)
    variants = [setting.variant for setting in server.settings[1:]]
    facts = {"summary": "measured by simkv validate", "seed": plan.seed, **facts_of_machine(plan.device)}
    quality = profile_of(plan.name, server.model, variants, rows, facts)
    if left_out := quality.provenance.get("left_out"):
        raise SimkvError(f"variants: {', '.join(left_out)} is never smaller than raw; leave it out")
    return quality, sizes


def with_speeds(
    quality: Profile,
    plan: Plan,
    bench: Bench,
    server: Server,
    tiers: Sequence[StoredTier],
    clock: OwnClock,
    progress: Progress,
) -> Profile:
    """The profile with speeds and tiers as they are now.

    Args:
        quality: of ``measured_quality``.
        plan: whose seed and rounds are used.
        bench: contexts whose lengths are timed.
        server: computes.
        tiers: fast to slow; what is written to them is dropped again.
        clock: tells the time.
        progress: takes (finished, all) rounds.
    """
    return _with_speeds(quality, _timed_rounds(plan, bench, server, tiers, clock, progress), tiers)


def _sizes(bench: Bench, server: Server) -> Sizes:
    """Of one context of each length; raw payloads of a length are all alike."""
    found: Sizes = {}
    for context in bench.contexts:
        if (0, len(context.tokens)) not in found:
            cache, _ = server.model.prefill(context.tokens.tolist())
            for variant in range(len(server.settings)):
                found[variant, len(context.tokens)] = len(server.encoded(cache, variant))
    return found


def _enlarge(sizes: Sizes, rows: Sequence[Row], bench: Bench, server: Server) -> None:
    """Make room in ``sizes`` for the largest payload that the quality's measurement saw."""
    index = {str(setting.variant): number for number, setting in enumerate(server.settings)}
    for row in rows:
        if number := index[row.variant]:
            place = number, bench.tokens_of(row.task, row.sample)
            sizes[place] = max(sizes[place], row.stored_bytes)


def _timed_rounds(
    plan: Plan,
    bench: Bench,
    server: Server,
    tiers: Sequence[StoredTier],
    clock: OwnClock,
    progress: Progress,
) -> _Seconds:
    tasks = itertools.cycle(bench.tasks)
    contexts = [calibration_contexts(next(tasks), 1, tokens, plan.seed)[0] for tokens in _timed_lengths(bench, server)]
    seconds = _Seconds()
    rng = np.random.default_rng([plan.seed, 0xCA11])
    cells = _stored(contexts, server, tiers, clock, seconds)
    gc.collect()
    gc.disable()  # as in a replay
    try:
        for done in range(plan.rounds):
            progress(done, plan.rounds)
            _round(rng.permutation(len(cells) + len(contexts)).tolist(), contexts, cells, server, tiers, clock, seconds)
    finally:
        gc.enable()
    progress(plan.rounds, plan.rounds)
    for cell in cells:
        tiers[cell.tier].payloads.drop(cell.key)
    return seconds


def _round(
    order: Sequence[int],
    contexts: Sequence[Context],
    cells: Sequence[_Cell],
    server: Server,
    tiers: Sequence[StoredTier],
    clock: OwnClock,
    seconds: _Seconds,
) -> None:
    """Every miss and every hit once."""
    for number in order:
        if number < len(contexts):
            _miss(contexts[number], server, clock, seconds)
        else:
            cell = cells[number - len(contexts)]
            _hit(cell, contexts[cell.context], server, tiers, clock, seconds)


def _stored(
    contexts: Sequence[Context], server: Server, tiers: Sequence[StoredTier], clock: OwnClock, seconds: _Seconds
) -> list[_Cell]:
    """Every context in every variant on every tier; encoding and writing are timed on the way."""
    cells: list[_Cell] = []
    for number, context in enumerate(contexts):
        cache, _ = server.model.prefill(context.tokens.tolist())
        for variant in range(len(server.settings)):
            for tier, stored in enumerate(tiers):
                start = clock.seconds()
                payload = server.encoded(cache, variant)
                encoded = clock.seconds()
                stored.payloads.write(len(cells), payload)
                seconds.encode[variant, len(context.tokens)].append(encoded - start)
                seconds.write[tier, len(payload)].append(clock.seconds() - encoded)
                cells.append(_Cell(len(cells), number, tier, variant, len(payload)))
    return cells


def _hit(
    cell: _Cell, context: Context, server: Server, tiers: Sequence[StoredTier], clock: OwnClock, seconds: _Seconds
) -> None:
    tokens, query = context.tokens.tolist(), list(context.questions[0].query)
    payloads = tiers[cell.tier].payloads
    sent = clock.seconds()
    served = serve(server, clock, sent, lambda: payloads.read(cell.key), cell.variant, tokens, query, _MORE)
    seconds.read[cell.tier, cell.size].append(served.load_s)
    seconds.decode[cell.variant, len(tokens)].append(served.decode_s)
    seconds.prefill[len(query), len(tokens)].append(served.prefill_s)
    server.answer(served.started, served.first, _MORE, None)


def _miss(context: Context, server: Server, clock: OwnClock, seconds: _Seconds) -> None:
    tokens, query = context.tokens.tolist(), list(context.questions[0].query)
    served = serve(server, clock, clock.seconds(), None, 0, tokens, query, _MORE)
    seconds.prefill[len(tokens) + len(query), 0].append(served.prefill_s)
    server.answer(served.started, served.first, _MORE, None)


def _medians(places: Mapping[Any, Sequence[float]]) -> dict[Any, float]:
    return {place: timing_of(values).median_s for place, values in places.items()}


def _of(table: Mapping[Any, float], first: int) -> dict[int, float]:
    """The rest of a table's keys whose first part is this."""
    return {place[1]: value for place, value in table.items() if place[0] == first}


def _with_speeds(quality: Profile, seconds: _Seconds, tiers: Sequence[StoredTier]) -> Profile:
    """Lines keep their points, so that lengths in use take what was measured at them."""
    residuals: dict[str, float] = {}

    def lines(what: str, table: Mapping[Any, float]) -> dict[Any, Line]:
        found = {}
        for number, variant in enumerate(quality.variants):
            points = _of(table, number)
            line, residual = fit_line(points)
            found[variant] = replace(line, points=tuple(sorted(points.items())))
            residuals[f"{what} {variant}"] = round(residual, 4)
        return found

    decode, encode = lines("decode", _medians(seconds.decode)), lines("encode", _medians(seconds.encode))
    prefill, off = interpolated_prefill(_medians(seconds.prefill))
    residuals["prefill"] = round(off, 4)
    specs = []
    for number, tier in enumerate(tiers):
        read, off = fit_line(_of(_medians(seconds.read), number))
        write, _ = fit_line(_of(_medians(seconds.write), number))
        residuals[f"read {tier.name}"] = round(off, 4)
        rates = [round(1 / max(line.per_token_s, _SLOWEST_BYTES_PER_S)) for line in (read, write)]
        specs.append(TierSpec(tier.name, tier.capacity, rates[0], rates[1], read.fixed_s))
    numbers = dict(quality.provenance["numbers"])
    source = f"simkv validate, calibration, {quality.provenance['date']}, {quality.provenance['device']}"
    origin = {"status": "measured", "source": source}
    numbers |= dict.fromkeys(("decode_lines", "encode_lines", "prefill", "tiers"), origin)
    facts = {key: fact for key, fact in quality.provenance.items() if key != "numbers"}
    return replace(
        quality,
        decode_lines=decode,
        encode_lines=encode,
        prefill=prefill,
        tiers=tuple(specs),
        provenance={**facts, "residuals": residuals, "numbers": numbers},
    )
