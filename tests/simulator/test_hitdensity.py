"""HitDensity by hand: gains and steps, when a raise pays, what the reuse index learns, and targets.

One block of 100 tokens, alone in its request (seconds; gain = 1 ms of prefill - load - alpha x quality lost):

    DRAM: raw 0.10 ms, kivi:4 0.07 ms, kivi:2 0.105 ms (decompression included; 50 us of it fixed for kivi:2)
    SSD:  raw 0.20 ms, kivi:4 0.12 ms, kivi:2 0.13 ms
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simkv.errors import PolicyError
from simkv.simulator.entries import Entry
from simkv.simulator.policies import make_policy
from simkv.simulator.policies.gains import Gains
from simkv.simulator.policies.parts import Chain, Part
from simkv.simulator.policies.reuse_classes import ReuseClasses
from simkv.simulator.policies.reuse_index import ReuseIndex
from simkv.simulator.policies.target import Target
from tests.simulator.helpers import DRAM, SSD, make_engine, make_trace, rows, run, stored, two_tiers

COPIES = replace(SSD, name="copies")


def placed(requests: list[list[int]], dram: float = 9, ssd: float = 9, **params: Any) -> dict[int, str]:
    """Where blocks are after a run."""
    return stored(run(requests, "hitdensity", params=params, tiers=two_tiers(dram, ssd)))


@pytest.mark.parametrize(
    ("alpha", "where"),
    [(0.0, "dram kivi:4"), (2e-4, "dram kivi:4"), (4e-4, "dram raw"), (3.0, "dram raw")],
)
def test_a_block_enters_where_it_gains_most(alpha: float, where: str) -> None:
    """kivi:4 saves 30 us and loses 0.1 of quality, so raw is better from an alpha of 300 us on."""
    assert {0: where} == placed([[0]], alpha=alpha)


def test_the_smallest_loss_per_byte_leaves() -> None:
    """Room for one raw block and a half: at alpha 0.5 ms, kivi:4 loses less per byte than leaving for SSD.

    kivi:4 frees half a block for 0.1 alpha - 30 us = 20 us (0.4 ns a byte), SSD raw a whole one for 100 us (1 ns).
    """
    assert {0: "dram kivi:4", 1: "dram raw"} == placed([[0], [1]], dram=1.5, alpha=5e-4)


def test_what_is_never_worth_loading_is_not_stored() -> None:
    """A tier that is slower than the GPU holds nothing: reading a block takes 2 ms there and computing it 1 ms."""
    slow = (replace(DRAM, read_bytes_per_s=5 * 10**7), replace(SSD, read_bytes_per_s=10**7))
    assert {} == stored(run([[0], [0]], "hitdensity", params={"methods": []}, tiers=slow))


@pytest.mark.parametrize(
    ("again", "price", "where"), [(0.5, 0.17, "raw"), (0.5, 0.18, "kivi:4"), (1.0, 0.34, "raw"), (1.0, 0.36, "kivi:4")]
)
def test_a_raise_must_pay_for_the_raw_copy_that_it_reads(again: float, price: float, where: str) -> None:
    """From kivi:4 to raw gains 0.1 alpha - 30 us = 70 us at each further hit; its raw copy takes 200 us to read."""
    tiers = (*two_tiers(9, 9), COPIES)
    engine = make_engine([[0]], tiers=tiers, pristine=True)
    view = engine.store.view
    gains = Gains(view, [0, 1, 2], 1e-3, 0.85, price)
    entry = Entry(0, 100, 0, 0, 0)
    entry.placement = view.placement("ssd", "kivi:4")
    table = gains.options(entry, Chain(0.0, 100, 1, 2), 0, 0)
    assert view.placement("dram", where) == gains.raised(entry, table, again)


@pytest.mark.parametrize(("price", "again", "where"), [(0.0, 1.0, 0), (0.5, 1.0, 0), (1.0, 1.0, 1), (0.5, 0.5, 1)])
def test_a_step_counts_what_it_costs_once(price: float, again: float, where: int) -> None:
    """From DRAM kivi:4, to kivi:2 there or as it is to an SSD of 100 MB/s, at alpha 0.1 ms: in ns per byte freed

    (65 us + price x 200 us / again) / 25 KB = 2.6, 6.6, 10.6 and 10.6, against 450 us / 50 KB = 9.
    """
    tiers = (replace(DRAM, capacity_bytes=10**6), replace(SSD, capacity_bytes=10**6, read_bytes_per_s=10**8), COPIES)
    view = make_engine([[0]], tiers=tiers, pristine=True).store.view
    gains = Gains(view, [0, 1, 2], 1e-4, 0.85, price)
    entry = Entry(0, 100, 0, 0, 0)
    entry.placement, entry.size_bytes = view.placement("dram", "kivi:4"), 50_000
    part = Part(Chain(0.0, 100, 1, 2), (), 0, entry.placement, 1)
    wanted = [view.placement("dram", "kivi:2"), view.placement("ssd", "kivi:4")]
    assert wanted[where] == gains.step(part, entry, again)[1]


def test_nothing_ages_before_anything_is_known() -> None:
    """A block that has waited long counts like a young one, until waits have ended."""
    index = ReuseIndex([0], 2.0, 30.0)
    assert index.value(0, 0.0) == pytest.approx(index.value(0, 5_000.0))


def test_reuse_is_learnt_of_what_comes_back_and_not_of_scans() -> None:
    """Two blocks that return every 2 s among one-off blocks stay, where least recently used loses them."""
    requests, fresh = [], 100
    for turn in range(200):
        requests.append([turn % 2])
        for _ in range(2):
            requests.append([fresh, fresh + 1, fresh + 2])
            fresh += 3
    index = {block: place for place, block in enumerate(dict.fromkeys(b for blocks in requests for b in blocks))}
    trace = make_trace([[index[block] for block in blocks] for blocks in requests], gap_us=1_000_000)

    def hits(policy: str, **params: Any) -> int:
        engine = run(trace, policy, params=params, tiers=two_tiers(5, 0.1), check=None)
        return sum(row.hit_blocks for row in rows(engine))

    assert 0 == hits("lru")
    assert hits("hitdensity", methods=[]) > 150


def test_index_is_the_rate_of_memoryless_waits() -> None:
    """Waits with a rate of 0.05 per second: every age has that index, within sampling error; again is certain."""
    index = ReuseIndex([0], 2.0, 5.0)
    rng = np.random.default_rng(1)
    events = sorted(
        event
        for start in rng.uniform(0, 4_000, 4_000)
        for event in ((start, 0, start), (start + rng.exponential(20.0), 1, start))
    )
    for now, closes, since in events:
        if closes:
            index.closed(0, since, now, 1)
        else:
            index.opened(0, now, 1)
        index.request(now)
    for age in (0.0, 5.0, 20.0, 60.0):
        assert 0.05 == pytest.approx(index.value(0, age), rel=0.15)
    assert index.again(0) > 0.99


def test_waits_that_never_end_lower_the_index() -> None:
    """Half of the blocks never return: the chance of a further hit is about a half, and the index falls with age."""
    index = ReuseIndex([0], 2.0, 1.0)
    for turn in range(2_000):
        now = 5.0 * turn
        index.opened(0, now, 2)
        if turn:
            index.closed(0, now - 5.0, now, 1)
        index.request(now)
    assert 0.5 == pytest.approx(index.again(0), abs=0.06)
    assert index.value(0, 0.0) > 20 * index.value(0, 100.0)


def test_classes_tell_counts_new_blocks_and_rest_apart() -> None:
    """A block asked for again is in another class than a new one, and so is one after a long rest."""
    classes = ReuseClasses(2.0, 30.0)
    labels = []
    for now, own in ((0.0, [0, 1]), (1.0, [0, 1]), (900.0, [0, 1]), (901.0, [0, 1, 2, 3, 4])):
        classes.request(own, Chain(now, 1, len(own), 2))
        labels.append(classes.seen[0][1])
    assert 4 == len(set(labels))
    assert 4 == classes.seen[0][2]
    assert [0, 1, 2, 3, 4] == [classes.depth[key] for key in range(5)]


# ---------------------------------------------------------------------- targets


def test_target_steps_by_hand() -> None:
    """0.25 x (0.9 - 0.5) = 0.1 up; 0.1 x (0 - 0.9) = 0.09 down when late, and 0.01 up when in time; on a 10 % grid."""
    floor = Target(1.0, 0.9, None, 0.9)
    floor.answered(1.0, 0.5)
    assert 1.1 == pytest.approx(floor.alpha)
    slo = Target(1.0, None, 2.0, 0.9)
    slo.answered(3.0, 1.0)
    assert 1 / 1.1 == pytest.approx(slo.alpha)
    for _ in range(9):
        slo.answered(1.0, 1.0)
    assert 1.0 == pytest.approx(slo.alpha)
    for _ in range(1000):
        slo.answered(3.0, 1.0)
    assert 1e-6 == pytest.approx(slo.alpha, rel=0.06)


@pytest.mark.parametrize(
    "params",
    [
        {"quality_floor": 0.9, "ttft_slo_s": 1.0},
        {"quality_floor": 1.5},
        {"ttft_slo_s": 0.0},
        {"ttft_slo_s": 1.0, "slo_share": 1.0},
        {"move_price": -1.0},
        {"alpha": math.inf},
        {"sample": 0},
        {"unit_s": 0.0},
    ],
    ids=str,
)
def test_bad_parameters_are_refused(params: dict[str, Any]) -> None:
    """One line that names the policy."""
    with pytest.raises(PolicyError, match="policy hitdensity: ") as caught:
        make_policy("hitdensity", params)
    assert "\n" not in str(caught.value)


def served(**params: Any) -> tuple[np.ndarray, np.ndarray]:
    """(quality, TTFT s) of the second half of 1,500 requests for 40 contexts of 1 to 4 blocks; DRAM holds a tenth."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 5, 40)
    first = np.concatenate([[0], np.cumsum(lengths)])
    asked = rng.integers(0, 40, 1_500)
    trace = make_trace([list(range(first[c], first[c + 1])) for c in asked], gap_us=20_000)
    engine = run(trace, "hitdensity", params=params, tiers=(*two_tiers(10, 40), COPIES), pristine=True, check=None)
    found = rows(engine)[750:]
    tokens = 100 * lengths[asked[750:]]
    return np.array([row.quality for row in found]) / 1e9 / tokens, np.array([row.ttft for row in found]) / 1e9


@pytest.mark.parametrize("floor", [0.75, 0.85])
def test_a_quality_floor_is_kept(floor: float) -> None:
    """Wherever alpha starts, the mean quality of the second half is within 0.02 of the floor."""
    for alpha in (1e-5, 1e-2):
        assert floor == pytest.approx(served(alpha=alpha, quality_floor=floor)[0].mean(), abs=0.02)


def test_a_limit_on_ttft_is_met_by_the_wanted_share() -> None:
    """Of two shares of requests in time, each is met within 0.05, and the higher one costs quality."""
    limit = 4e-4
    strict, loose = (served(alpha=1e-4, ttft_slo_s=limit, slo_share=share) for share in (0.9, 0.7))
    assert 0.9 == pytest.approx((strict[1] <= limit).mean(), abs=0.05)
    assert 0.7 == pytest.approx((loose[1] <= limit).mean(), abs=0.05)
    assert strict[0].mean() < loose[0].mean()
