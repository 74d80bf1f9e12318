"""AdaptCache by hand: next steps, methods, frequencies; and that a decision costs O(log n).

Utility of an option = quality - alpha x seconds.  One block of 100 tokens, alone or in its request:

    DRAM: raw 1 - 0.10 ms, kivi:4 0.9 - 0.07 ms, kivi:2 0.6 - 0.105 ms     (decompression 0.02 and 0.08 ms included)
    SSD:  raw 1 - 0.20 ms, kivi:4 0.9 - 0.12 ms, kivi:2 0.6 - 0.13 ms      discard: 1 - 1 ms
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simkv.errors import PolicyError
from simkv.profiles import RAW, Line, PrefillFit, Profile, Variant
from simkv.simulator.engine import Engine
from simkv.simulator.entries import Entry, Placement
from simkv.simulator.metrics import moves_frame
from simkv.simulator.policies.adaptcache import AdaptCache
from simkv.traces.trace import Trace
from tests.simulator.helpers import (
    DRAM,
    SIZE,
    SSD,
    make_engine,
    make_profile,
    make_trace,
    quality_rows,
    rows,
    run,
    stored,
)

FASTER = 3_000.0  # alpha at which kivi:4 is hardly worse than raw


def place(
    requests: Sequence[Sequence[int]] | Trace,
    dram: float = 1,
    ssd: float = 9,
    latency_s: float = 0.0,
    profile: Profile | None = None,
    **params: Any,
) -> dict[int, str]:
    """Where blocks are after a run with room for so many raw blocks."""
    return stored(adapt(requests, dram, ssd, latency_s, profile, **params))


def adapt(
    requests: Sequence[Sequence[int]] | Trace,
    dram: float,
    ssd: float,
    latency_s: float = 0.0,
    profile: Profile | None = None,
    **params: Any,
) -> Any:
    """The run itself."""
    tiers = (
        replace(DRAM, capacity_bytes=round(dram * SIZE)),
        replace(SSD, capacity_bytes=round(ssd * SIZE), latency_s=latency_s),
    )
    return run(requests, "adaptcache", params=params, tiers=tiers, profile=profile)


# --- the next step --------------------------------------------------------------------------------------------------


def test_first_step_leaves_for_ssd_when_speed_hardly_counts() -> None:
    """alpha = 1,000.  Loss per byte of kivi:4 in DRAM: (0.90 - 0.83) / 50,000 = 1.4e-6; of kivi:2 5.4e-6;

    of leaving, for SSD raw (the best there, 0.80): (0.90 - 0.80) / 100,000 = 1.0e-6.  So block 0 goes to SSD, raw.
    """
    assert {0: "ssd raw", 1: "dram raw"} == place([[0], [1]], alpha=1_000)


def test_first_step_compresses_when_speed_counts() -> None:
    """alpha = 3,000.  kivi:4 in DRAM: (0.70 - 0.69) / 50,000 = 2e-7; leaving, for SSD kivi:4: 0.16 / 100,000 = 1.6e-6.

    Both blocks are compressed, one after the other, and fit.
    """
    assert {0: "dram kivi:4", 1: "dram kivi:4"} == place([[0], [1]], alpha=FASTER)


def test_second_step() -> None:
    """Now all are kivi:4: kivi:2 would lose 0.405 / 25,000 = 1.6e-5, leaving (0.69 - 0.54) / 50,000 = 3e-6.

    Equal losses: the oldest, block 0, leaves, in its present variant.
    """
    assert {0: "ssd kivi:4", 1: "dram kivi:4", 2: "dram kivi:4"} == place([[0], [1], [2]], alpha=FASTER)


def test_newcomer_itself_may_be_moved() -> None:
    """alpha = 1,000.  A newcomer of 200 tokens: raw 0.80, kivi:4 0.9 - 0.14 = 0.76, a loss of 0.04 / 100,000 = 4e-7.

    That is less than block 0's 1.0e-6: the newcomer is compressed, and both fit.
    """
    trace = make_trace([[0], [1]], tokens=[100, 200])
    assert {0: "dram raw", 1: "dram kivi:4"} == place(trace, dram=2.5, alpha=1_000)


def test_discard_when_computing_is_quicker() -> None:
    """Where computing takes 0.11 ms, discarding (0.89) is a better way out than SSD (0.80), unless it is ruled out."""
    quick = make_profile(prefill=PrefillFit(0.0, 1.1e-6))
    assert {1: "dram raw"} == place([[0], [1]], alpha=1_000, profile=quick)
    assert {0: "ssd raw", 1: "dram raw"} == place([[0], [1]], alpha=1_000, profile=quick, recompute=False)


def test_ssd_is_lru() -> None:
    """Room for two on SSD: the hit on 0 there makes 1 the oldest, so 1 is dropped; nothing is promoted."""
    requests = [[0], [1], [2], [0], [3]]
    assert {0: "ssd raw", 2: "ssd raw", 3: "dram raw"} == place(requests, ssd=2, alpha=1_000)


def test_ssd_too_small_for_an_entry_is_no_option() -> None:
    """Where SSD cannot hold the raw block, the best that fits is taken: kivi:4 there, (0.90 - 0.78) / 100,000.

    Where it holds no variant at all, discarding is what is left (alpha = 100): (0.99 - 0.90) / 100,000.
    """
    assert {0: "ssd kivi:4", 1: "dram raw"} == place([[0], [1]], ssd=0.6, alpha=1_000)
    assert {1: "dram raw"} == place([[0], [1]], ssd=0.2, alpha=100)


def test_per_step_instead_of_per_byte() -> None:
    """Compared per step, kivi:4 (0.07) beats leaving (0.10), whatever the bytes freed.

    Then block 0, now 0.83, leaves for SSD kivi:4 (0.78) with 0.05, which is less than block 1's 0.07.
    """
    assert {0: "ssd kivi:4", 1: "dram raw"} == place([[0], [1]], alpha=1_000, per="step")


def test_alpha_on_quality() -> None:
    """The paper's sense: alpha x quality - seconds.  alpha = 1/1,000 and 1/3,000 give the same choices as above."""
    assert {0: "ssd raw", 1: "dram raw"} == place([[0], [1]], alpha=1e-3, alpha_on="quality")
    assert {0: "dram kivi:4", 1: "dram kivi:4"} == place([[0], [1]], alpha=1 / 3_000, alpha_on="quality")


def test_transfer_delay_ignores_decompression() -> None:
    """By bytes / bandwidth alone kivi:4 in DRAM takes 0.05 ms: at alpha = 1,000 it loses 0.05, 1.0e-6 per byte.

    kivi:2 (0.025 ms) loses 0.325 / 75,000.  Leaving loses 1.0e-6 too and is tried first: it stays the choice.
    At alpha = 1,100 the loss is (1 - 0.11) - (0.9 - 0.055) = 0.045, or 9.0e-7 per byte, against 1.1e-6: compressed.
    """
    assert {0: "ssd raw", 1: "dram raw"} == place([[0], [1]], alpha=999, delay="transfer")
    assert {0: "dram kivi:4", 1: "dram kivi:4"} == place([[0], [1]], alpha=1_100, delay="transfer")
    assert {0: "ssd raw", 1: "dram raw"} == place([[0], [1]], alpha=1_100, delay="profiled")


def test_blocks_weigh_by_their_share_of_a_prompt() -> None:
    """In prompts of two blocks quality counts half: kivi:4 loses 0.05 - 0.03 (alpha 1,000) = 0.02, 4e-7 per byte.

    Leaving loses 0.10, 1.0e-6 per byte: blocks are compressed where whole contexts left (first test).
    """
    assert dict.fromkeys(range(4), "dram kivi:4") == place([[0, 1], [2, 3]], dram=2, alpha=1_000)


# --- frequency ------------------------------------------------------------------------------------------------------


def test_counted_frequency_keeps_what_is_used() -> None:
    """alpha = 1,000 with room for two: block 0, used twice, loses 2 x 1.0e-6 per byte, block 1 half of that."""
    assert {0: "dram raw", 1: "ssd raw", 2: "dram raw"} == place(
        [[0], [1], [0], [2]], dram=2, alpha=1_000, frequency="count"
    )
    assert {0: "dram raw", 1: "ssd raw", 2: "dram raw"} == place([[0], [1], [0], [2]], dram=2, alpha=1_000)
    assert {0: "dram raw", 1: "ssd raw", 2: "dram raw"} == place(
        [[0], [0], [1], [2]], dram=2, alpha=1_000, frequency="count"
    )
    assert {0: "ssd raw", 1: "dram raw", 2: "dram raw"} == place([[0], [0], [1], [2]], dram=2, alpha=1_000)


def test_decayed_frequency_forgets() -> None:
    """Block 0, used three times an hour ago, has cooled below block 1, used once just now; a plain count keeps it."""
    trace = make_trace([[0], [0], [0], [1], [2]], at_us=[0, 10_000, 20_000, 3_600_000_000, 3_600_010_000])
    options: dict[str, Any] = {"dram": 2, "alpha": 1_000, "window_s": 600}
    assert {0: "ssd raw", 1: "dram raw", 2: "dram raw"} == place(trace, frequency="decayed", **options)
    assert {0: "dram raw", 1: "ssd raw", 2: "dram raw"} == place(trace, frequency="count", **options)


uses_of = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4_000)), min_size=1, max_size=60)


@settings(max_examples=150)
@given(uses_of)
def test_decayed_frequency_across_rescaling(uses: list[tuple[int, int]]) -> None:
    """Victims leave in the order of sum 4^(-age / window), computed apart; over 400 windows scores are rescaled.

    Window 10 s, uses up to 4,000 s apart, each counted at its first token.  Six newcomers then push out what is cold.
    """
    uses = sorted(uses, key=lambda use: use[1])
    window, end = 10, uses[-1][1]
    requests = [[block] for block, _ in uses] + [[10 + block] for block in range(6)]
    at = [second * 10**6 for _, second in uses] + [(end + 1) * 10**6 + block for block in range(6)]
    trace = make_trace(requests, at_us=at)
    blocks = len({block for block, _ in uses})
    engine = adapt(trace, blocks, 20, alpha=1_000, frequency="decayed", window_s=window)
    heat: dict[int, float] = {}
    for row in rows(engine)[: len(uses)]:
        block = int(trace.blocks_of(row.id)[0])
        age_s = end - (row.arrival + row.ttft) / 1e9
        heat[block] = heat.get(block, 0.0) + 4.0 ** (-age_s / window)
    moves = moves_frame(engine)
    gone = [int(block) for block in moves.loc[moves["kind"] == "demotion", "block"]]
    left = [heat[block] for block in gone if block in heat]
    assert {block for block, warmth in heat.items() if warmth < 0.5} <= set(gone)
    assert all(earlier <= later * (1 + 1e-6) for earlier, later in itertools.pairwise(left))


def test_drop_after_uses() -> None:
    """With 2, as in the authors' code, what was used twice leaves for free and before anything else is touched."""
    assert {1: "dram raw", 2: "dram raw"} == place([[0], [1], [0], [2]], dram=2, alpha=1_000, drop_after_uses=2)


# --- methods --------------------------------------------------------------------------------------------------------

GENTLE, HARSH, HARSHEST = Variant.parse("gentle:1"), Variant.parse("harsh:1"), Variant.parse("harsh:2")
METHODS = (GENTLE, HARSH, HARSHEST)


def two_methods() -> Profile:
    """gentle:1 half the bytes at 0.95; harsh:1 half at 0.90, harsh:2 a tenth at 0.85.  No coding times."""
    return make_profile(
        variants=(RAW, *METHODS),
        size_ratio={RAW: 1.0, GENTLE: 0.5, HARSH: 0.5, HARSHEST: 0.1},
        decode_lines={variant: Line(0.0) for variant in METHODS},
        encode_lines={variant: Line(0.0) for variant in METHODS},
        quality=quality_rows({"raw": [1.0], "gentle:1": [0.95], "harsh:1": [0.90], "harsh:2": [0.85]}),
    )


def test_frozen_method() -> None:
    """Loss per byte: gentle:1 0.05 / 50,000 = 1.0e-6, harsh:2 0.15 / 90,000 = 1.7e-6: gentle is kept for life.

    When two gentle blocks and a third do not fit, leaving is all that is left (SSD is slow and costs utility).
    """
    options: dict[str, Any] = {"alpha": 1.0, "latency_s": 10.0, "recompute": False, "profile": two_methods()}
    assert {0: "ssd gentle:1", 1: "dram gentle:1", 2: "dram gentle:1"} == place([[0], [1], [2]], **options)


def test_free_method() -> None:
    """Free to change, blocks 0 and 1 go on from gentle:1 to harsh:2 (0.10 / 40,000) when 2 comes and is compressed."""
    options: dict[str, Any] = {"alpha": 1.0, "latency_s": 10.0, "recompute": False, "profile": two_methods()}
    found = place([[0], [1], [2]], method="free", **options)
    assert {0: "dram harsh:2", 1: "dram harsh:2", 2: "dram gentle:1"} == found


def test_chosen_methods_only() -> None:
    """With methods = ["harsh"] gentle is not an option; an unknown method is an error that lists the known ones."""
    options: dict[str, Any] = {"alpha": 1.0, "latency_s": 10.0, "recompute": False, "profile": two_methods()}
    assert {0: "dram harsh:2", 1: "dram raw"} == place([[0], [1]], dram=1.1, methods=["harsh"], **options)
    with pytest.raises(PolicyError, match="method 'gentel' is not in the profile; it has gentle, harsh, harsh"):
        place([[0]], methods=["gentel"], **options)


def test_needs_two_tiers() -> None:
    """One tier, or one besides that of pristine copies, is refused."""
    with pytest.raises(PolicyError, match="needs two tiers"):
        run([[0]], "adaptcache", tiers=(DRAM,))
    with pytest.raises(PolicyError, match="needs two tiers"):
        run([[0]], "adaptcache", tiers=(DRAM, SSD), pristine=True)


# --- cost of a decision -----------------------------------------------------------------------------------------------


class Counted(float):
    """A float that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: float) -> bool:
        """Counts."""
        Counted.compared += 1
        return float(self) < float(other)

    def __eq__(self, other: object) -> bool:
        """Does not count: tuples ask for it before every __lt__."""
        return float(self) == other

    __hash__ = float.__hash__


@dataclass
class Counting(AdaptCache):
    """AdaptCache that counts how often options are weighed up and scores are compared."""

    def start(self, view: Any) -> None:
        """Counters at zero."""
        super().start(view)
        self._weighed = self._scored = 0

    def _next_step(self, entry: Entry, variants: list[int]) -> tuple[float, Placement | None]:
        self._weighed += 1
        return super()._next_step(entry, variants)

    def _loss_rate(self, entry: Entry) -> float:
        self._scored += 1
        return Counted(super()._loss_rate(entry))


def cost_of_decisions(residents: int, decisions: int = 300) -> tuple[float, float, int]:
    """Comparisons and scores per decision in a full DRAM of so many entries, and options weighed up in all."""
    rng = np.random.default_rng(1)
    requests = [[block] for block in range(residents + decisions)]
    tokens = rng.integers(50, 400, residents + decisions).tolist()
    tiers = (replace(DRAM, capacity_bytes=1000 * sum(tokens[:residents])), SSD)
    policy = Counting(alpha=FASTER, frequency="count")
    before = [0, 0]

    def note(engine: Engine) -> None:
        if engine.finished <= residents:
            before[:] = [Counted.compared, policy._scored]

    engine = make_engine(make_trace(requests, tokens=tokens), policy, tiers=tiers, check=note)
    engine.run()
    made = len(moves_frame(engine)) - residents
    return (Counted.compared - before[0]) / made, (policy._scored - before[1]) / made, policy._weighed


@pytest.mark.parametrize("residents", [200, 12_800])
def test_a_decision_costs_log_n(residents: int) -> None:
    """A move compares scores at most 2 log2(n) times and computes a few; from 200 to 12,800 residents nothing grows.

    Options are weighed up once per length of block and step, not once per decision.
    """
    compared, scored, weighed = cost_of_decisions(residents)
    assert 1 < compared < 2 * math.log2(residents)
    assert 1 <= scored < 3
    assert weighed <= 2 * 350
