"""Invariants 1 to 7 of SPECIFICATION.md, each with its test, over all policies, loops and disciplines."""

import hashlib
import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simkv.profiles import TierSpec
from simkv.simulator.engine import Engine
from simkv.simulator.invariants import InvariantError, check_engine
from simkv.simulator.metrics import moves_frame, occupancy_frame
from tests.simulator.helpers import (
    EVERY_POLICY,
    SIZE,
    SSD,
    random_trace,
    rows,
    run,
    two_tiers,
)

LOOPS: tuple[dict[str, Any], ...] = ({}, {"arrivals": "closed", "concurrency": 3})
CASES = list(itertools.product(EVERY_POLICY, LOOPS, ("fifo", "fair"), (False, True)))
CAPACITIES = [(1.0, 2.0), (3.0, 5.0), (7.0, 9.0)]  # blocks in DRAM and on SSD


def case_name(case: tuple[Any, ...]) -> str:
    """Readable name of a case."""
    (policy, params), loop, discipline, pristine = case
    return "-".join([policy, *map(str, params.values()), *map(str, loop.values()), discipline, "pristine" * pristine])


def run_case(number: int, **options: Any) -> Engine:
    """Case ``number`` on its own random trace; what is not in CASES varies with the number."""
    (policy, params), loop, discipline, pristine = CASES[number]
    dram, ssd = CAPACITIES[number % 3]
    tiers = two_tiers(dram, ssd, discipline=discipline)
    if pristine:
        tiers = (*tiers, replace(SSD, name="cold", discipline=discipline))
    return run(
        random_trace(number, spread_us=30_000),
        policy,
        params=params,
        tiers=tiers,
        link=TierSpec("link", None, 10**9, 10**9, discipline=discipline) if number % 2 else None,
        pristine=pristine,
        touch=("reverse", "forward")[number // 2 % 2],
        gpus=1 + number // 3 % 2,
        overlap=("none", "layerwise")[number // 5 % 2],
        **{"reuse": ("always", "when_faster")[number // 7 % 2], **loop, **options},
    )


# --- all of them, after every event ---------------------------------------------------------------------------------


def test_all_policies_under_all_rules() -> None:
    """Checked after every event: 1, 2, 3 and 5 hold in every case, no pin is left, and everything rare did happen."""
    seen: Counter[str] = Counter()
    for number in range(len(CASES)):
        engine = run_case(number)
        assert {0} >= {entry.pins for entry in engine.store.residents if entry is not None}, case_name(CASES[number])
        counts, moves = engine.store.counts, moves_frame(engine)
        seen.update(refused=counts.refused, held=counts.held_by_pins, duplicates=counts.duplicate_blocks)
        seen.update(moves["kind"].astype(str).tolist())
        seen.update(cascades=_cascades(moves), pristine=engine.mover.counts.pristine_read_bytes)
    rare = [
        "refused",
        "held",
        "duplicates",
        "refusal",
        "promotion",
        "demotion",
        "recompression",
        "cascades",
        "pristine",
    ]
    assert [] == [name for name in rare if seen[name] < 20]


def _cascades(moves: Any) -> int:
    """Requests whose step both demoted and evicted."""
    steps = moves.astype({"kind": str}).groupby("request")["kind"]
    return sum({"demotion", "eviction"} <= set(kinds) for _, kinds in steps)


SAMPLE = range(0, len(CASES), 7)


def test_invariant_1_every_request_is_recorded_once() -> None:
    """Rows are the trace's requests, each once; finished is their number."""
    for number in SAMPLE:
        engine = run_case(number, check=None)
        assert list(range(len(engine.trace))) == [row.id for row in rows(engine)] and engine.finished == len(
            engine.trace
        )


def test_invariant_2_bytes_in_use() -> None:
    """At every sample each tier holds between 0 and its capacity; at the end, the sum of its entries."""
    for number in SAMPLE:
        engine = run_case(number, check=None)
        occupancy = occupancy_frame(engine)
        assert (occupancy["used_bytes"] >= 0).all()
        assert not (occupancy["used_bytes"] > occupancy["capacity_bytes"]).any()
        held = [0] * len(engine.costs.tiers)
        for entry in engine.store.residents:
            if entry is not None and entry.placement is not None:
                held[entry.placement.tier] += engine.costs.size[entry.placement.variant][entry.size_class]
        assert held == engine.store.used


def test_invariants_3_and_4_times() -> None:
    """Load, queue and compute are never negative, and add up to the time between arrival and first token."""
    for number in SAMPLE:
        engine = make_case_with_clock(number)
        ends = engine.ends  # type: ignore[attr-defined]
        for row in rows(engine):
            assert min(row.load, row.queue, row.work) >= 0
            assert ends[row.id] - row.arrival == row.load + row.queue + row.work


def make_case_with_clock(number: int) -> Engine:
    """A case that notes the clock whenever a request is recorded."""
    ends: dict[int, int] = {}
    clock = 0

    def note(engine: Engine) -> None:
        nonlocal clock
        assert clock <= engine.now_ns
        clock = engine.now_ns
        for row in engine.recorder.rows[len(ends) :]:
            ends[row[0]] = clock

    engine = run_case(number, check=note)
    engine.ends = ends  # type: ignore[attr-defined]
    return engine


def test_invariant_5_moves_add_up_to_what_is_stored() -> None:
    """Bytes of moves into a tier minus bytes of moves out of it are the bytes in use."""
    for number in SAMPLE:
        engine = run_case(number, check=None)
        stored = replay(engine)[-1]
        used = dict.fromkeys((tier.name for tier in engine.costs.tiers), 0)
        for tier, _, size in stored.values():
            used[tier] += size
        assert list(used.values()) == engine.store.used


def replay(engine: Engine) -> list[dict[int, tuple[str, str, int]]]:
    """What is stored when each request arrives, and at the end, from the frame of moves alone."""
    moves = moves_frame(engine)
    times = np.rint(moves["time_s"] * 1e9).astype(np.int64).tolist()
    columns = ["request", "block", "from_tier", "to_tier", "to_variant", "bytes"]
    todo = list(
        zip(times, moves[columns].astype({"from_tier": str, "to_tier": str}).itertuples(index=False), strict=True)
    )
    snapshots = []
    stored: dict[int, tuple[str, str, int]] = {}
    position = 0
    for row in rows(engine):
        while position < len(todo) and (todo[position][0], todo[position][1].request) < (row.arrival, row.id):
            _, move = todo[position]
            apply(move, stored)
            position += 1
        snapshots.append(dict(stored))
    for _, move in todo[position:]:
        apply(move, stored)
    return [*snapshots, stored]


def apply(move: Any, stored: dict[int, tuple[str, str, int]]) -> None:
    """One move on a dict of what is stored; its source must be where the block is."""
    assert move.from_tier == (stored[move.block][0] if move.block in stored else "")
    if move.to_tier:
        stored[move.block] = (move.to_tier, move.to_variant, move.bytes)
    else:
        stored.pop(move.block, None)


def test_invariant_6_same_inputs_same_bytes() -> None:
    """A run repeated here, and in another process with another hash seed, gives the same rows and moves."""
    code = "from tests.simulator.test_invariants import fingerprint; print(fingerprint())"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    assert fingerprint() == fingerprint() == ran.stdout.strip()


def fingerprint() -> str:
    """A hash over rows and moves of some cases."""
    digest = hashlib.sha256()
    for number in range(3, len(CASES), 29):
        engine = run_case(number, check=None)
        digest.update(repr(engine.recorder.rows).encode())
        digest.update(engine.mover.rows.tobytes() if engine.mover.rows is not None else b"")
    return digest.hexdigest()


def test_invariant_7_hits_are_the_stored_prefix() -> None:
    """Rebuilt from the moves alone: each request reuses the longest prefix stored when it arrives, from where it is."""
    hits = 0
    for number in SAMPLE:
        engine = run_case(number, check=None, reuse="always")
        trace, snapshots = engine.trace, replay(engine)
        for row, stored in zip(rows(engine), snapshots, strict=False):
            blocks = trace.blocks_of(row.id).tolist()
            prefix = list(itertools.takewhile(lambda block, stored=stored: block in stored, blocks))  # type: ignore[misc]
            assert len(prefix) == row.hit_blocks
            left = int(trace.input_tokens[row.id])
            tokens = dict.fromkeys((tier.name for tier in engine.costs.tiers), 0)
            for block in prefix:
                tokens[stored[block][0]] += min(left, int(trace.block_tokens[block]))
                left -= min(left, int(trace.block_tokens[block]))
            assert tuple(tokens.values()) == row.per_tier
            hits += row.hit_blocks
    assert hits > 200


def test_partial_reuse_is_a_prefix_too() -> None:
    """With when_faster the reused tokens are those of the first hit_blocks blocks."""
    for number in SAMPLE:
        engine = run_case(number, check=None, reuse="when_faster")
        trace = engine.trace
        for row in rows(engine):
            lengths = trace.block_tokens[trace.blocks_of(row.id)[: row.hit_blocks]]
            assert min(int(lengths.sum()), int(trace.input_tokens[row.id])) == row.hit_tokens == sum(row.per_tier)


# --- the checker itself ---------------------------------------------------------------------------------------------


def _overfull(engine: Engine) -> None:
    engine.store.capacity = (SIZE - 1, 0)


def _ledger(engine: Engine) -> None:
    engine.store.used[0] += 1


def _count(engine: Engine) -> None:
    engine.store.count[0] += 1


def _size(engine: Engine) -> None:
    engine.store.residents[0].size_bytes -= 1  # type: ignore[union-attr]


def _pins(engine: Engine) -> None:
    engine.store.residents[0].pins = -1  # type: ignore[union-attr]


def _row(engine: Engine) -> None:
    engine.recorder.rows.append((0,) * 10)


def _time(engine: Engine) -> None:
    engine.recorder.rows[-1] = (0, 0, -1, 0, 0, 0, 0, 0, 0, 0)


def _future(engine: Engine) -> None:
    engine.recorder.rows[-1] = (0, 0, 0, 0, 10**15, 0, 0, 0, 0, 0)


def _vanished(engine: Engine) -> None:
    engine.store.residents[0] = None
    engine.store.used[0] -= SIZE
    engine.store.count[0] -= 1


@pytest.mark.parametrize(
    ("spoil", "number"),
    [
        (_overfull, 2),
        (_ledger, 2),
        (_count, 2),
        (_size, 2),
        (_pins, 2),
        (_row, 1),
        (_time, 3),
        (_future, 3),
        (_vanished, 5),
    ],
)
def test_the_checker_finds_each_kind_of_damage(spoil: Callable[[Engine], None], number: int) -> None:
    """A sound engine passes; after each kind of damage the checker names the invariant that broke."""
    engine = run([[0]], check=None)
    check_engine(engine)
    spoil(engine)
    with pytest.raises(InvariantError, match=f"invariant {number} at"):
        check_engine(engine)
