"""The store's rules by hand: touch order, room, pins, refusals, cascades, and what only nets out within a step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from simkv.errors import PolicyError
from simkv.simulator.entries import Entry, Move, Placement
from simkv.simulator.metrics import moves_frame
from simkv.simulator.view import StoreView
from tests.simulator.helpers import (
    DRAM,
    MS,
    SIZE,
    SSD,
    US,
    Scripted,
    Ticking,
    make_engine,
    make_trace,
    rows,
    run,
    stored,
    times,
    two_tiers,
)

ONE = (replace(DRAM, capacity_bytes=SIZE),)
ONE_AND_SSD = (*ONE, SSD)


def moves(engine: object, request: int) -> list[tuple[int, str]]:
    """(block, kind) of a request's moves, in order."""
    frame = moves_frame(engine)  # type: ignore[arg-type]
    mine = frame[frame["request"] == request]
    return list(zip(mine["block"].tolist(), mine["kind"].astype(str).tolist(), strict=True))


# --- order and room -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("touch", "kept"), [("reverse", {0, 1}), ("forward", {1, 2})])
def test_touch_order_decides_which_end_of_a_chain_leaves(touch: str, kept: set[int]) -> None:
    """Three blocks into room for two: reverse touch keeps the head, forward touch the tail."""
    engine = run([[0, 1, 2]], tiers=(replace(DRAM, capacity_bytes=2 * SIZE),), touch=touch)
    assert kept == set(stored(engine))


@pytest.mark.parametrize("policy", ["lru", "fifo", "lfu", "s3fifo", "gdsf"])
def test_tail_of_a_chain_leaves_first(policy: str) -> None:
    """Under reverse touch a stranger pushes out the tail of a chain, whatever the classical policy."""
    engine = run([[0, 1, 2], [3]], policy, tiers=(replace(DRAM, capacity_bytes=3 * SIZE),))
    assert {0, 1, 3} == set(stored(engine))


def test_cascade() -> None:
    """Room for one block on each tier: 0 goes to SSD when 1 comes, and out when 2 sends 1 there."""
    engine = run([[0], [1], [2]], tiers=two_tiers(1, 1))
    assert {1: "ssd raw", 2: "dram raw"} == stored(engine)
    assert [(2, "admission"), (1, "demotion"), (0, "eviction")] == moves(engine, 2)


def test_promotion_swaps() -> None:
    """A hit on SSD comes up and sends the least recent DRAM block down, into the room it left."""
    engine = run([[0], [1], [0]], tiers=two_tiers(1, 1))
    assert {0: "dram raw", 1: "ssd raw"} == stored(engine)
    assert [(0, "promotion"), (1, "demotion")] == moves(engine, 2)


def test_without_promotion_a_hit_stays() -> None:
    """With promote off, a block hit on SSD stays there."""
    engine = run([[0], [1], [0]], params={"promote": False}, tiers=two_tiers(1, 1))
    assert {0: "ssd raw", 1: "dram raw"} == stored(engine)


def test_demotion_into_a_tier_too_small_for_it_disturbs_nobody() -> None:
    """A block of 250 tokens that leaves DRAM does not fit an SSD of two small blocks: it is dropped, they stay."""
    trace = make_trace([[0], [1], [2], [3]], tokens=[100, 100, 250, 200])
    engine = run(trace, tiers=(replace(DRAM, capacity_bytes=250_000), replace(SSD, capacity_bytes=200_000)))
    assert {0: "ssd raw", 1: "ssd raw", 3: "dram raw"} == stored(engine)


def test_too_large_for_dram_goes_to_ssd() -> None:
    """A block that no DRAM could hold is admitted to SSD, and not promoted when it is hit."""
    engine = run(make_trace([[0], [0]], tokens=250), tiers=two_tiers(2, 3))
    assert {0: "ssd raw"} == stored(engine)


def test_shrinking_in_place_asks_for_no_room_of_its_own() -> None:
    """Room for block 1 is made in two moves, kivi:4 of block 0 and of block 1 itself: the first alone is not enough."""
    room = [("dram", 0, "dram kivi:4"), ("dram", 1, "dram kivi:4")]
    engine = run([[0], [1]], Scripted({0: "dram raw", 1: "dram raw"}, room=room), tiers=ONE)
    assert {0: "dram kivi:4", 1: "dram kivi:4"} == stored(engine)
    assert 0 == engine.store.counts.refused


# --- refusals -------------------------------------------------------------------------------------------------------


def test_too_large_for_everything_is_left_out() -> None:
    """Blocks larger than every tier are computed each time; they are not offered a place, so none is refused."""
    engine = run(make_trace([[0], [0]], tokens=250), tiers=two_tiers(1, 2))
    assert [(0, 0, 2_500 * US)] * 2 == times(engine)
    assert (0, []) == (engine.store.counts.refused, moves(engine, 0))


def test_newcomer_without_room_is_refused() -> None:
    """A policy that makes no room gets its second block refused, which costs no bytes."""
    engine = run([[0], [1]], Scripted({0: "dram raw", 1: "dram raw"}), tiers=ONE)
    assert {0: "dram raw"} == stored(engine)
    assert (1, [(1, "refusal")]) == (engine.store.counts.refused, moves(engine, 1))
    assert [SIZE] == engine.mover.counts.written


def test_refused_growth_goes_back() -> None:
    """kivi:4 that should become raw where there is no room stays kivi:4."""
    policy = Scripted({0: "dram raw", 1: "dram kivi:4", (2, 1): "dram raw"})
    engine = run([[0], [1], [1]], policy, tiers=(replace(DRAM, capacity_bytes=SIZE * 3 // 2),))
    assert {0: "dram raw", 1: "dram kivi:4"} == stored(engine)
    assert (1, []) == (engine.store.counts.refused, moves(engine, 2))


def test_refused_on_the_way_down_is_left_out() -> None:
    """A victim that finds no room below is dropped, not put back into the faster tier."""
    policy = Scripted({0: "ssd raw", 1: "dram raw", 2: "dram raw"}, room=[("dram", 1, "ssd raw")])
    engine = run([[0], [1], [2]], policy, tiers=two_tiers(1, 1))
    assert {0: "ssd raw", 2: "dram raw"} == stored(engine)
    assert (1, [(2, "admission"), (1, "eviction")]) == (engine.store.counts.refused, moves(engine, 2))


def test_hit_that_finds_no_room_below_is_left_out() -> None:
    """A policy that sends a hit down where there is no room loses the entry: it does not go back to a faster tier."""
    policy = Scripted({0: "dram raw", 1: "ssd raw", (2, 0): "ssd raw"})
    engine = run([[0], [1], [0]], policy, tiers=two_tiers(1, 1))
    assert {1: "ssd raw"} == stored(engine)
    assert (1, [(0, "eviction")]) == (engine.store.counts.refused, moves(engine, 2))


# --- pins -----------------------------------------------------------------------------------------------------------


def test_pinned_entries_do_not_make_room() -> None:
    """While request 1 uses block 0 (10 to 11.1 ms), block 2 of request 2 finds no room at 11.05 ms and is refused.

    At 11.1 ms block 1 is refused as well, since block 0 is released only when its own turn comes, after block 1.
    """
    trace = make_trace([[0], [0, 1], [2]], at_us=[0, 10_000, 10_050])
    engine = run(trace, tiers=ONE, gpus=2)
    assert {0: "dram raw"} == stored(engine)
    assert ([(2, "refusal")], [(1, "refusal")]) == (moves(engine, 2), moves(engine, 1))
    assert 2 == engine.store.counts.refused


def test_promotion_of_what_another_request_uses_is_put_off() -> None:
    """Two requests hit block 0 on SSD at once; the first may not promote it while the second reads, the second may."""
    trace = make_trace([[0], [0], [0]], at_us=[0, 10_000, 10_100])
    policy = Scripted({0: "ssd raw", (1, 0): "dram raw", (2, 0): "dram raw"})
    engine = run(trace, policy)
    assert 1 == engine.store.counts.held_by_pins
    assert ([], [(0, "promotion")]) == (moves(engine, 1), moves(engine, 2))


def test_no_pin_outlives_its_request() -> None:
    """After a run of overlapping requests nothing is pinned."""
    trace = make_trace([[0, 1], [0, 2], [0, 1, 3], [0]], at_us=[0, 2_500, 2_600, 2_600])
    engine = run(trace, tiers=two_tiers(2, 2))
    assert {0} == {entry.pins for entry in engine.store.residents if entry is not None}


# --- within a step --------------------------------------------------------------------------------------------------


def test_concurrent_misses_of_one_block() -> None:
    """Both requests compute the block; the first stores it, the second finds it and counts it as a duplicate."""
    engine = run(make_trace([[0], [0]], at_us=[0, 0]))
    assert [0, 0] == [row.hit_blocks for row in rows(engine)]
    assert (1, [(0, "admission")], []) == (engine.store.counts.duplicate_blocks, moves(engine, 0), moves(engine, 1))


def test_block_behind_a_hole_is_no_hit_but_is_touched() -> None:
    """With block 0 gone, stored block 1 is computed again; the touch makes it more recent than block 2."""
    capacity = (replace(DRAM, capacity_bytes=2 * SIZE),)
    plan = {1: "dram raw", 2: "dram raw"}
    engine = run([[0, 1], [0, 1]], Scripted(plan), tiers=capacity)
    assert (0, 2 * MS) == (rows(engine)[1].hit_blocks, rows(engine)[1].work)
    assert [(1, 1)] == [(e.key, e.hits) for e in engine.store.residents if e is not None]


def test_evicted_and_stored_again_within_a_step() -> None:
    """Forward touch of [0, 1, 2] over {1, 2, 3}: 0 pushes out 1, 1 pushes out 2, 2 pushes out 3.

    What counts is the net: 0 came, 3 went, one block was written, and 1 and 2 were never away.
    """
    tiers = (replace(DRAM, capacity_bytes=3 * SIZE),)
    engine = run([[0, 1, 2], [3], [0, 1, 2]], tiers=tiers, touch="forward")
    assert {0, 1, 2} == set(stored(engine))
    assert [(0, "admission"), (3, "eviction")] == moves(engine, 2)
    assert [5 * SIZE] == engine.mover.counts.written


def test_stored_again_elsewhere_is_written_from_what_was_computed() -> None:
    """Block 1 (kivi:2, 0.6) must leave for block 0 and is then stored raw on SSD: it was computed, so it is exact."""
    policy = Scripted({1: "dram kivi:2", (1, 0): "dram raw", (1, 1): "ssd raw"}, room=[("dram", 1, None)])
    engine = run([[0, 1], [0, 1], [0, 1]], policy, tiers=two_tiers(1.1), touch="forward")
    assert {0: "dram raw", 1: "ssd raw"} == stored(engine)
    assert 200 * 10**9 == rows(engine)[2].quality
    assert ([0, 0], 0) == (engine.mover.counts.background_read, engine.mover.counts.recodings)


# --- forbidden moves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "problem"),
    [
        (("dram", 0, "dram raw"), "the move frees nothing"),
        (("ssd", 2, "dram raw"), "towards slower tiers only"),
    ],
)
def test_moves_that_make_no_room_are_errors(room: tuple[str, int, str], problem: str) -> None:
    """A move in ``make_room`` must free bytes and go down."""
    policy = Scripted({0: "dram raw", 1: "dram raw", 2: "ssd raw", 3: "ssd raw"}, room=[room])
    with pytest.raises(PolicyError, match=problem):
        run([[0], [2], [3], [1]], policy, tiers=two_tiers(1, 1))


@dataclass
class Stubborn(Scripted):
    """Names block 0 whatever its state."""

    def make_room(self, tier: int, need_bytes: int, view: StoreView) -> Iterator[Move]:
        """Block 0, out."""
        entry = view.resident(0)
        assert entry is not None
        yield Move(entry, None)


def test_moving_a_pinned_entry_is_an_error() -> None:
    """A policy that names an entry in use is told so."""
    trace = make_trace([[0], [0, 1], [2]], at_us=[0, 10_000, 10_050])
    with pytest.raises(PolicyError, match="pinned"):
        run(trace, Stubborn({0: "dram raw", 2: "dram raw"}), tiers=ONE, gpus=2)


def test_moving_what_is_elsewhere_is_an_error() -> None:
    """A policy that names an entry of another tier is told so."""
    with pytest.raises(PolicyError, match="not stored on that tier"):
        run([[0], [1], [2]], Stubborn({0: "ssd raw", 1: "dram raw", 2: "dram raw"}), tiers=two_tiers(1))


def test_the_tier_of_pristine_copies_is_not_for_policies() -> None:
    """With pristine copies the last tier is reserved: policies do not even see it."""
    cold = replace(SSD, name="cold")
    engine = make_engine([[0]], tiers=(DRAM, SSD, cold), pristine=True)
    assert ("dram", "ssd") == engine.store.view.tiers
    with pytest.raises(PolicyError, match="unknown tier 'cold'"):
        run([[0]], Scripted({0: "cold raw"}), tiers=(DRAM, SSD, cold), pristine=True)


def test_rebalance_must_not_move_pinned_entries() -> None:
    """A rebalance that moves an entry in use is an error."""
    trace = make_trace([[0], [0, 1]], at_us=[0, 9_900])
    with pytest.raises(PolicyError, match="which is pinned"):
        run(trace, Ticking({0: "dram raw"}, at=[(10_000, 0, "ssd raw")]))


class Hasty(Ticking):
    """Ticking that decides on all moves before the first is carried out."""

    def rebalance(self, view: StoreView) -> list[Move]:
        """All at once."""
        return list(super().rebalance(view))


def test_rebalance_passes_over_what_an_earlier_move_drove_out() -> None:
    """Moving 0 up drives out 1, which the same rebalance moves next: that move comes to nothing."""
    trace = make_trace([[0], [1], [2]], at_us=[0, 0, 20_000])
    moves_at = [(10_000, 0, "dram raw"), (10_000, 1, "ssd raw")]
    policy = Hasty({0: "ssd raw", 1: "dram raw"}, at=moves_at, room=[("dram", 1, None)])
    assert {0: "dram raw"} == stored(run(trace, policy, tiers=ONE_AND_SSD))


def test_rebalance_goes_on_until_the_last_first_token() -> None:
    """A move at 2.5 ms, between two requests, happens; one at 1,002 ms, after the last first token, never does."""
    engine = run([[0, 1], [2]], Ticking({1: "dram raw"}, at=[(2_500, 1, "ssd raw"), (1_002_000, 1, "dram raw")]))
    assert {1: "ssd raw"} == stored(engine)
    assert [(1, "demotion")] == moves(engine, -1)
    assert 1_001 * MS == engine.now_ns


# --- what policies see ----------------------------------------------------------------------------------------------


def test_view() -> None:
    """Chains, occupancy and estimates as documented."""
    engine = run([[0, 1, 2], [0, 3]], Scripted({0: "dram raw", 1: "dram kivi:4", 3: "ssd raw"}), tiers=two_tiers(2))
    view = engine.store.view
    zero, one, three = (view.resident(block) for block in (0, 1, 3))
    assert isinstance(zero, Entry) and isinstance(one, Entry) and isinstance(three, Entry)
    assert ([one, three], []) == (view.children(zero), view.children(one))
    assert (150_000, 50_000, 2 * SIZE, None) == (
        view.used_bytes(0),
        view.free_bytes(0),
        view.capacity_bytes(0),
        view.capacity_bytes(1),
    )
    assert (70e-6, 1e-3, 0.9) == (
        view.load_s(one, view.placement("dram", "kivi:4")),
        view.recompute_s(one),
        view.quality(one, 1),
    )
    assert np.isclose(100 / 250, view.weight(one))


def test_placements_are_interned() -> None:
    """Placements by name and by index are the same objects, so equal ones are cheap to compare."""
    view = make_engine([[0]], Scripted()).store.view
    assert Placement(1, 2) == view.placement("ssd", "kivi:2")
    assert view.placement("ssd", "kivi:2") is view.placement(1, 2)
