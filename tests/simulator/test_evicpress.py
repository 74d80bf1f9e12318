"""EvicPress by hand: next operations, the paper's examples, frequencies, profiling anew; and its IMPRESS baseline.

Utility of an option in ms at alpha = 1 ms: quality - ms to load.  One block of 100 tokens, alone in its request:

    DRAM: raw 1 - 0.10 = 0.90, kivi:4 0.9 - 0.07 = 0.83, kivi:2 0.6 - 0.105 = 0.495    (decompression included)
    SSD:  raw 1 - 0.20 = 0.80, kivi:4 0.9 - 0.12 = 0.78, kivi:2 0.6 - 0.130 = 0.470    recompute: 1 - 1 = 0
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simkv.errors import PolicyError
from simkv.profiles import RAW, Line, PrefillFit, Profile, TierSpec, Variant, load_profile
from simkv.simulator.engine import Engine
from simkv.simulator.policies.impress import Impress, agreement_needed, union_kept
from simkv.simulator.view import StoreView
from simkv.traces.trace import Trace
from tests.simulator.helpers import (
    DRAM,
    MS,
    SIZE,
    SSD,
    US,
    make_engine,
    make_profile,
    make_trace,
    quality_rows,
    rows,
    run,
    stored,
)

ALPHA = 1e-3


def press(
    requests: Sequence[Sequence[int]] | Trace, dram: float = 1, ssd: float = 9, pristine: bool = True, **params: Any
) -> Engine:
    """A run with room for so many raw blocks and, if pristine, copies of everything."""
    copies = (TierSpec("copies", None, 10**9, 10**9),) if pristine else ()
    tiers = (
        replace(DRAM, capacity_bytes=round(dram * SIZE)),
        replace(SSD, capacity_bytes=round(ssd * SIZE)),
        *copies,
    )
    profile = params.pop("profile", None)
    world = {key: params.pop(key) for key in ("gpus",) if key in params}
    params = {"alpha": ALPHA, **params}
    return run(requests, "evicpress", params=params, tiers=tiers, profile=profile, pristine=pristine, **world)


def place(requests: Sequence[Sequence[int]] | Trace, *args: Any, **params: Any) -> dict[int, str]:
    """Where blocks are after a run."""
    return stored(press(requests, *args, **params))


# --- the next operation ---------------------------------------------------------------------------------------------


def test_smallest_drop_compresses() -> None:
    """Half a block too many.  Drops of block 0: kivi:4 in DRAM 0.07, leaving for SSD raw 0.10: it is compressed."""
    assert {0: "dram kivi:4", 1: "dram raw"} == place([[0], [1]], dram=1.5)


def test_per_byte_the_same_drop_counts_less_when_it_frees_more() -> None:
    """Per byte: 0.07 / 50,000 = 1.4e-6 against 0.10 / 100,000 = 1.0e-6: block 0 leaves for SSD, raw."""
    assert {0: "ssd raw", 1: "dram raw"} == place([[0], [1]], dram=1.5, per="byte")


def test_second_operation_starts_from_the_present_option() -> None:
    """A whole block too many: once block 0 is kivi:4, leaving loses 0.83 - 0.80 = 0.03, compressing block 1 0.07.

    It is raw again on SSD, made from its copy.
    """
    assert {0: "ssd raw", 1: "dram raw"} == place([[0], [1]])


def test_without_copies_quality_does_not_come_back() -> None:
    """The same without copies: on SSD block 0 can be kivi:4 at best (0.78, a drop of 0.05), and that is what it is."""
    assert {0: "ssd kivi:4", 1: "dram raw"} == place([[0], [1]], pristine=False)


def test_drop_from_the_best_option() -> None:
    """Measured from 0.90, leaving loses 0.10 whatever block 0 is now, so block 1 is compressed (0.07) before it leaves.

    With a third block all are kivi:4 at first; then the oldest leaves.
    """
    assert {0: "dram kivi:4", 1: "dram kivi:4"} == place([[0], [1]], drop_from="best")
    assert {0: "ssd raw", 1: "dram kivi:4", 2: "dram kivi:4"} == place([[0], [1], [2]], drop_from="best")


def test_a_new_entry_goes_to_its_best_option() -> None:
    """Of 400 tokens: kivi:4 0.9 - 0.28 = 0.62, raw 0.60; with ``insert = "quality"`` it stays raw if there is room."""
    trace = make_trace([[0]], tokens=400)
    assert {0: "dram kivi:4"} == place(trace, dram=9)
    assert {0: "dram raw"} == place(trace, dram=9, insert="quality")


def test_recompute_is_an_option() -> None:
    """Where computing takes 0.05 ms (utility 0.95) nothing is stored, unless recomputing is ruled out."""
    quick = make_profile(prefill=PrefillFit(0.0, 0.5e-6))
    assert {} == place([[0], [1]], profile=quick)
    assert {0: "ssd raw", 1: "dram raw"} == place([[0], [1]], profile=quick, recompute=False)


def test_leaving_for_recompute() -> None:
    """Computing in 0.14 ms (0.86): leaving DRAM loses 0.04, compressing 0.07; so block 0 leaves altogether."""
    assert {1: "dram raw"} == place([[0], [1]], profile=make_profile(prefill=PrefillFit(0.0, 1.4e-6)))


def test_overflow_recurses() -> None:
    """SSD has room for half a block: 0 goes there as kivi:4, then 1 does (each by 0.07 and 0.05), which is too much.

    On SSD kivi:2 loses 0.31 and recomputing 0.78, so both are compressed there.
    """
    assert {0: "ssd kivi:4", 1: "dram raw"} == place([[0], [1]], ssd=0.5)
    assert {0: "ssd kivi:2", 1: "ssd kivi:2", 2: "dram raw"} == place([[0], [1], [2]], ssd=0.5)


def test_three_tiers_down_to_an_unlimited_one() -> None:
    """A third tier of 0.25 ms for half a block (0.63): from SSD that loses 0.15, a second compression there 0.31."""
    remote = TierSpec("remote", None, 2 * 10**8, 2 * 10**8)
    tiers = (replace(DRAM, capacity_bytes=SIZE), replace(SSD, capacity_bytes=SIZE // 2), remote)
    engine = run([[0], [1], [2], [3]], "evicpress", params={"alpha": ALPHA}, tiers=tiers)
    assert {0: "remote kivi:4", 1: "remote kivi:4", 2: "ssd kivi:4", 3: "dram raw"} == stored(engine)


def test_frequency_protects_what_is_used() -> None:
    """Block 0, asked for three times, would lose 3 x 0.07; so newcomers leave.  Without the factor the oldest does."""
    requests = [[0], [0], [0], [1], [2]]
    assert {0: "dram raw", 1: "ssd raw", 2: "ssd raw"} == place(requests)
    assert {0: "ssd raw", 1: "ssd raw", 2: "dram raw"} == place(requests, frequency="none")


def test_methods() -> None:
    """Only named compressors are used; an unknown one is refused when the run starts."""
    assert {0: "dram kivi:4", 1: "dram raw"} == place([[0], [1]], dram=1.5, methods=["kivi"])
    assert {0: "ssd raw", 1: "dram raw"} == place([[0], [1]], dram=1.5, methods=[])
    with pytest.raises(PolicyError, match="method 'snapkv' is not in the profile; it has kivi"):
        make_engine([[0]], "evicpress", params={"methods": ["snapkv"]})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1.0; it must be a number, at least 0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"reprofile_s": math.inf}, "reprofile_s is inf"),
        ({"reprofile_s": 0.0}, "reprofile_s is 0.0; it must be at least 1e-9"),
        ({"reprofile_queries": 0}, "reprofile_queries is 0; it must be at least 1"),
        ({"per": "token"}, "per is 'token'; allowed: step, byte"),
        ({"insert": "dram"}, "insert is 'dram'; allowed: utility, quality"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    """Each is one line that names what is allowed."""
    with pytest.raises(PolicyError, match=f"policy evicpress: {message}"):
        make_engine([[0]], "evicpress", params=params)


# --- the paper's examples -------------------------------------------------------------------------------------------


def paper_profile(**qualities: Mapping[str, float]) -> Profile:
    """Figure 2: fast 20 GB/s, slow 2 GB/s; megabytes here, so that megabytes per second give the same seconds."""
    variants = (RAW, Variant.parse("drop:0.5"), Variant.parse("drop:0.05"))
    frames = [quality_rows({name: [q] for name, q in values.items()}, task) for task, values in qualities.items()]
    free = {variant: Line(0.0) for variant in variants}
    return make_profile(
        variants=variants,
        size_ratio={variants[0]: 1.0, variants[1]: 0.5, variants[2]: 0.05},
        decode_lines=free,
        encode_lines=free,
        prefill=PrefillFit(0.0, 1e-2),
        quality=pd.concat(frames),
    )


FAST, SLOW = TierSpec("fast", 8 * 10**6, 20 * 10**6, 20 * 10**6), TierSpec("slow", None, 2 * 10**6, 2 * 10**6)
EASY = {"raw": 1.0, "drop:0.5": 1.0, "drop:0.05": 1.0}  # C1: 4 GB, lossless at 5 %
HARD = {"raw": 1.0, "drop:0.5": 0.5, "drop:0.05": 0.5}  # C2: 8 GB, any compression halves its quality


def figure_2(policy: str, **params: Any) -> tuple[float, float]:
    """(mean quality, sum of delays in s) of second visits to the two contexts, C2 stored last."""
    trace = make_trace([[0], [1], [0], [1]], tokens=[4_000, 8_000], gap_us=1_000_000_000)
    trace = trace.transformed("tasks", task=np.array([0, 1, 0, 1], dtype=np.int16))
    trace = trace.with_meta(task_names=["easy", "hard"])
    profile = paper_profile(easy=EASY, hard=HARD)
    engine = run(trace, policy, params=params, profile=profile, tiers=(FAST, SLOW))
    seconds = [row.ttft / 1e9 for row in rows(engine)[2:]]
    return sum(row.quality / size for row, size in zip(rows(engine)[2:], (4e12, 8e12), strict=True)) / 2, sum(seconds)


def test_figure_2() -> None:
    """Compress both by half: quality .75 in .3 s; evict only: 1 in 2.4 s; jointly: 1 in .5 s (sums over the two)."""
    assert pytest.approx((0.75, 0.3)) == figure_2("lru", variant="drop:0.5", promote=False)
    assert pytest.approx((1.0, 2.4)) == figure_2("lru", promote=False)
    assert pytest.approx((1.0, 0.5)) == figure_2("evicpress", alpha=1.0, recompute=False)


def test_worked_utilities() -> None:
    """Section 3 at alpha 1: .657 - .050 = .607 and .672 - .051 = .621, as the policy itself computes them."""
    profile = load_profile("evicpress-h100-llama-3.1-8b")
    for task, variant, tokens, utility in (
        ("2wikimqa", "keydiff:0.4", 7_016, 0.607),
        ("narrativeqa", "keydiff:0.1", 26_157, 0.621),
    ):
        trace = make_trace([[0]], tokens=tokens, task=task)
        engine = run(trace, "evicpress", profile=profile, tiers=profile.tiers, check=None)
        entry = engine.store.residents[0]
        assert entry is not None
        column = [*engine.costs.variants].index(variant)
        assert pytest.approx(utility, abs=0.005) == engine.policy._options.utilities(entry)[0, column]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("alpha", "chosen"), [(0.32, "keydiff:0.4"), (0.36, "keydiff:0.6")])
def test_alpha_switch(alpha: float, chosen: str) -> None:
    """Between (.823, .205 s) and (.926, .240 s) the choice turns at alpha = .035 / .103 = .34."""
    variants = (RAW, Variant.parse("keydiff:0.4"), Variant.parse("keydiff:0.6"))
    lines = {
        ("dram", variant): Line(0.0, fixed_s) for variant, fixed_s in zip(variants, (9.0, 0.205, 0.240), strict=True)
    }
    free = {variant: Line(0.0) for variant in variants}
    profile = make_profile(
        variants=variants,
        size_ratio=dict(zip(variants, (1.0, 0.4, 0.6), strict=True)),
        load_lines=lines,
        decode_lines=free,
        encode_lines=free,
        prefill=PrefillFit(9.0, 0.0),
        tiers=(DRAM,),
        quality=quality_rows({"raw": [1.0], "keydiff:0.4": [0.823], "keydiff:0.6": [0.926]}),
    )
    engine = run([[0]], "evicpress", params={"alpha": alpha}, profile=profile, tiers=(DRAM,))
    assert {0: f"dram {chosen}"} == stored(engine)


# --- profiling anew -------------------------------------------------------------------------------------------------


def misjudged() -> Profile:
    """Contexts that differ: the task's mean of kivi:4 is 0.9, but some have 0.8 (and others 1)."""
    return make_profile(quality=quality_rows({"raw": [1.0, 1.0], "kivi:4": [0.8, 1.0], "kivi:2": [0.6, 0.6]}))


def disappointing_seed() -> int:
    """A seed that gives block 0 the bad sample."""
    for seed in range(20):
        engine = make_engine([[0]], "evicpress", profile=misjudged(), seed=seed)
        if engine.costs.quality.score_ppb[engine.costs.quality.block_row[0]][1] == 800_000_000:
            return seed
    raise AssertionError("no such seed")


def reprofiled(
    requests: Sequence[Sequence[int]],
    at_us: Sequence[int],
    dram: float = 1.5,
    tokens: int | Sequence[int] = 100,
    **params: Any,
) -> Engine:
    """After 0 and 1 (which compresses 0 in a DRAM of 1.5 blocks), these; block 0 has quality .8 instead of .9."""
    trace = make_trace([[0], [1], *requests], at_us=[0, 10_000, *at_us], tokens=tokens)
    copies = TierSpec("copies", None, 10**9, 10**9)
    tiers = (replace(DRAM, capacity_bytes=round(SIZE * dram)), SSD, copies)
    params = {"alpha": ALPHA, "reprofile_below": 0.05, "reprofile_queries": 10**6, "reprofile_s": 2e-3, **params}
    seed = disappointing_seed()
    return run(trace, "evicpress", params=params, profile=misjudged(), tiers=tiers, pristine=True, seed=seed)


def test_reprofiling_moves_the_entry() -> None:
    """Found to be 0.8 - 0.07 = 0.73 as it is, block 0 becomes raw again (0.90), and block 1 is compressed instead.

    At kivi:4 block 0 would lose 0.17 now, block 1, which nobody has doubted, 0.07.
    """
    twice = ([[0], [0]], [20_000, 40_000])
    assert {0: "dram kivi:4", 1: "dram raw"} == stored(reprofiled(*twice, reprofile_below=0.0))
    assert {0: "dram kivi:4", 1: "dram raw"} == stored(reprofiled(*twice, reprofile_below=0.11))
    assert {0: "dram raw", 1: "dram kivi:4"} == stored(reprofiled(*twice))


def test_the_second_profile_decides_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block 0, kivi:4 in DRAM, is profiled twice; half a block comes, and 0 is compressed further as the second says.

    First: raw 1, kivi:4 .99, kivi:2 .6, so kivi:4 (.92) stays, and leaving for SSD kivi:4 (.87, a drop of .05) is next.
    Second: .8, .8, .8, so kivi:4 (.73) stays, and kivi:2 in DRAM (.695, a drop of .035) is next, before SSD (.05).
    """
    profiles = {1: [1.0, 0.99, 0.6], 2: [0.8, 0.8, 0.8]}
    monkeypatch.setattr(StoreView, "measure_quality", lambda self, key, queries, turn: profiles[turn])
    engine = reprofiled([[0], [0], [2]], [20_000, 40_000, 60_000], 1.75, [100, 100, 50], frequency="none")
    assert 2 * 2 * MS == engine.profiling_ns
    assert {0: "dram kivi:2", 1: "dram raw", 2: "dram raw"} == stored(engine)


def test_reprofiling_is_charged_on_the_gpu() -> None:
    """The GPU is held for 2 ms from the first token on; a hit within that time waits for the rest of them."""
    free, held = (reprofiled([[0], [0]], [20_000, 20_500], reprofile_below=below) for below in (0.0, 0.05))
    assert (0, 2 * MS) == (free.profiling_ns, held.profiling_ns)
    first, later = rows(held)[2:]
    assert 0 == rows(free)[3].queue
    assert first.arrival + first.ttft + 2 * MS - (later.arrival + later.load) == later.queue


def test_reprofiling_waits_for_an_idle_gpu() -> None:
    """Block 2 is to be computed when the doubtful answer is out (20.07 ms), until 21.07 ms; only then is 0 profiled."""
    engine = reprofiled([[0], [2]], [20_000, 20_060])
    assert 20_000 * US + 70 * US == rows(engine)[2].arrival + rows(engine)[2].ttft
    busy_until = 20_000 * US + 70 * US + MS
    assert busy_until == rows(engine)[3].arrival + rows(engine)[3].ttft
    assert busy_until + 2 * MS == engine.gpus.free_at[0]


def test_measurements_are_new_each_time_and_repeatable() -> None:
    """One query scatters around the sample's quality, a million hit it; turn and block number the draws."""
    engine = make_engine([[0], [1]], "evicpress", profile=misjudged(), seed=disappointing_seed())
    measure = engine.store.view.measure_quality
    assert measure(0, 1, 1) == measure(0, 1, 1)
    assert 3 == len({tuple(measure(key, 1, turn)) for key, turn in ((0, 1), (0, 2), (1, 1))})
    assert pytest.approx([1.0, 0.8, 0.6], abs=0.003) == measure(0, 10**6, 1)


# --- IMPRESS --------------------------------------------------------------------------------------------------------


def test_agreement_of_random_heads_is_the_base() -> None:
    """Removed .8: random sets of .2 meet with Jaccard .04 / .36 = .111; the threshold is that to the power .6, .267."""
    assert pytest.approx(0.2 * 0.2 / (0.4 - 0.04)) == (1 - 0.8) / (1 + 0.8)
    assert pytest.approx(0.2676, abs=1e-4) == agreement_needed(0.8)
    assert 1.0 == agreement_needed(0.0)


def test_union_of_heads() -> None:
    """Heads that agree fully keep what each keeps; that never meet, three times as much; at Jaccard 1/3, in between.

    Kept .2, J = 1/3: two share .1, all three .05, so the union has .6 - .3 + .05 = .35.
    """
    assert pytest.approx(0.2) == union_kept(0.8, 1.0)
    assert pytest.approx(0.6) == union_kept(0.8, 0.0)
    assert pytest.approx(0.35) == union_kept(0.8, 1 / 3)
    assert 0.0 == union_kept(1.0, 0.5)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"removed": 0.8, "agreement": 1.0}, "dram kivi:2"),  # .2 fits a quarter
        ({"removed": 0.8, "agreement": 1 / 3}, "dram kivi:4"),  # .35 fits a half
        ({"removed": 0.8, "agreement": 0.2}, "dram raw"),  # below .267: the heads disagree
        ({"removed": 0.5, "agreement": 1.0}, "dram kivi:4"),  # half exactly
        ({"removed": 0.4, "agreement": 1.0}, "dram raw"),  # .6 fits no variant
        ({"removed": 0.8, "agreement": 1.0, "scatter": 3.0}, "dram kivi:4"),  # 1 - .8^3 = .488
    ],
)
def test_impress_keeps_important_chunks(params: dict[str, Any], expected: str) -> None:
    """The smallest variant that holds the union's chunks, everything where heads disagree."""
    assert {0: expected} == stored(run([[0]], "impress", params={"agreement_sd": 0.0, **params}))


def test_impress_is_lru() -> None:
    """Room for two halves in DRAM: the hit on 0 makes 1 the oldest, which goes to SSD as it is."""
    tiers = (replace(DRAM, capacity_bytes=SIZE), SSD)
    params = {"removed": 0.5, "agreement": 1.0, "agreement_sd": 0.0}
    assert {0: "dram kivi:4", 1: "ssd kivi:4", 2: "dram kivi:4"} == stored(
        run([[0], [1], [0], [2]], "impress", params=params, tiers=tiers)
    )


def test_impress_draws_each_entry_once() -> None:
    """Agreement differs between entries, not between two runs or two visits, and with the seed."""
    requests = [[block] for block in range(40)] * 2
    runs = [stored(run(requests, "impress", params={"agreement": 0.27, "seed": seed})) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert {"dram raw", "dram kivi:4"} <= set(runs[0].values())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"removed": 1.2}, "removed is 1.2; it must be a number from 0 to 1"),
        ({"scatter": 0.5}, "scatter is 0.5; it must be a number from 1 to 10000"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
    ],
)
def test_impress_bad_parameters(params: dict[str, Any], message: str) -> None:
    """Each is one line that names what is allowed."""
    with pytest.raises(PolicyError, match=f"policy impress: {message}"):
        Impress(**params)
