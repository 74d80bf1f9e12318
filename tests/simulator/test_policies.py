"""Every policy obeys the laws; each classical one is told by a small story with known victims."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from simkv.errors import PolicyError
from simkv.profiles import PrefillFit, Profile
from simkv.simulator.metrics import moves_frame
from simkv.simulator.policies import POLICIES, Policy, find_policy, make_policy
from simkv.simulator.policies.clairvoyant import Clairvoyant
from simkv.simulator.policies.heap import HeapOrder
from simkv.traces.trace import Trace
from tests.simulator.helpers import (
    DRAM,
    EVERY_POLICY,
    MS,
    SIZE,
    TWO,
    make_profile,
    make_trace,
    random_trace,
    rows,
    run,
    stored,
    two_tiers,
)
from tests.simulator.policy_laws import PolicyLaws


@pytest.mark.parametrize(("policy", "params"), EVERY_POLICY, ids=lambda value: str(value) if value else "default")
class TestEveryPolicy(PolicyLaws):
    """The laws, over every policy and the parameters that change its course."""


def victims(
    policy: Policy | str,
    requests: Sequence[Sequence[int]] | Trace,
    blocks: float,
    profile: Profile | None = None,
    **params: Any,
) -> list[int]:
    """Blocks evicted or refused, in order, from a DRAM with room for so many blocks of 100 tokens."""
    tiers = (replace(DRAM, capacity_bytes=round(blocks * SIZE)),)
    moves = moves_frame(run(requests, policy, params=params, tiers=tiers, profile=profile))
    gone = moves["kind"].isin(["eviction", "refusal"])
    return [int(block) for block in moves.loc[gone, "block"]]


def singles(blocks: str) -> list[list[int]]:
    """One request per digit."""
    return [[int(block)] for block in blocks]


# --- stories --------------------------------------------------------------------------------------------------------


def test_lru_story() -> None:
    """Room for two: the hit on 0 makes 1 the oldest, so 2 replaces 1, and 1 then replaces 0."""
    assert [1, 0] == victims("lru", singles("01021"), 2)


def test_fifo_story() -> None:
    """The same requests: hits do not refresh, so 2 replaces 0; then 1 is still there."""
    assert [0] == victims("fifo", singles("01021"), 2)


def test_lfu_story() -> None:
    """0 has two hits, 1 one, 2 none: 3 replaces 2, and so on; among equals the least recent goes."""
    assert [2, 3, 4] == victims("lfu", singles("000112345"), 3)
    assert [0, 1] == victims("lfu", singles("0123"), 2)


def test_lfu_counts_while_resident_only() -> None:
    """0 leaves for 3 with four hits, where 1 has five and 2 six.  It comes back for 3, is hit once, and leaves for 4:

    its count began anew.  Had it been kept, 0 would have six hits or more and 1 would leave.
    """
    assert [0, 3, 0] == victims("lfu", singles("00000" + "111111" + "2222222" + "3" + "00" + "4"), 3)


def test_s3fifo_story() -> None:
    """Room for ten, one of them small.  0 has two hits and moves to main; 1, with one, is evicted; then 2, ...

    1 comes back within the memory of the ghosts and enters main; one-hit wonders then pass it by.
    """
    start = singles("0001123456789")
    late = [[block] for block in (10, 1, 11, 12, 13)]
    assert [1, 2, 3, 4, 5] == victims("s3fifo", start + late, 10)
    everything = start + late + [[block] for block in range(14, 40)]
    assert {0, 1}.isdisjoint(victims("s3fifo", everything, 10)[1:])


def test_s3fifo_needs_two_hits() -> None:
    """One hit does not save an entry from a full small queue, two do ("freq > 1" in the paper)."""
    assert [0] == victims("s3fifo", singles("0012"), 2, small_share=0.4)
    assert [1] == victims("s3fifo", singles("00012"), 2, small_share=0.4)


def test_s3fifo_main_gives_second_chances() -> None:
    """0 and 1 move to main, 2 and 3 are evicted, then 4, when ghost 3 returns and enters main, which is now too long.

    So 5 replaces the oldest of main, 0; but if 0 was hit in main, it goes to the back of the queue and 1 leaves.
    """
    assert [2, 3, 4, 0] == victims("s3fifo", singles("00011123435"), 3, small_share=0.3)
    assert [2, 3, 4, 1] == victims("s3fifo", singles("000111234305"), 3, small_share=0.3)


def test_gdsf_prefers_small_blocks() -> None:
    """Equally often used, 300 tokens leave before 100, although the small block is older."""
    trace = make_trace([[0], [1], [2]], tokens=[100, 300, 100])
    assert [1] == victims("gdsf", trace, 4)


def test_gdsf_clock() -> None:
    """Block 0, four uses, has priority 4 (in 1 / size).  Each victim raises the clock from which newcomers count:

    1 (1) leaves for 2 (1 + 1); 2 for 3 (2 + 1); 3 for 4 (3 + 1); then 0, as old as 4's 4 is new, leaves for 5.
    """
    assert [1, 2, 3, 0] == victims("gdsf", singles("000012345"), 2)


def test_gdsf_cost_of_recomputing() -> None:
    """With quadratic prefill block 1, second in its chain, costs three times as much as block 0 and stays.

    By unit cost the two are alike and the tail, touched first, leaves.
    """
    profile = make_profile(prefill=PrefillFit(0.0, 0.0, 1e-9))
    assert [0] == victims("gdsf", [[0, 1], [2]], 2, profile, cost="recompute")
    assert [1] == victims("gdsf", [[0, 1], [2]], 2, profile)


@dataclass
class Demanding(Clairvoyant):
    """Clairvoyant without bypass, as in textbooks: every miss is stored."""

    newcomer_stays: ClassVar[bool] = True


TEXTBOOK = "70120304230321201701"


def test_clairvoyant_is_belady() -> None:
    """The textbook string with three frames: nine misses when every miss is stored, fewer when it need not be."""
    counts = []
    for policy in (Demanding(), Clairvoyant()):
        trace = make_trace(singles(TEXTBOOK))
        engine = run(trace, policy, tiers=(replace(DRAM, capacity_bytes=3 * SIZE),))
        counts.append(sum(row.hit_blocks == 0 for row in rows(engine)))
    assert [9, 8] == counts


def test_clairvoyant_leaves_out_what_is_never_used_again() -> None:
    """A block that never comes back is not stored where something that does is."""
    assert [1] == victims("clairvoyant", singles("010"), 1)


def test_clairvoyant_drops_instead_of_demoting_what_is_done() -> None:
    """In two tiers, what is never used again is dropped, what is used later goes down."""
    engine = run(singles("0120"), "clairvoyant", tiers=two_tiers(1, 9))
    assert [] == [kind for kind in moves_frame(engine)["kind"] if kind == "demotion"]
    assert {0: "dram raw"} == stored(engine)


def test_clairvoyant_when_requests_overtake() -> None:
    """Requests 1 and 2 ask for block 0; 2 finishes first.  Finishing later, 1 must not say that 0 is used by 2.

    From then on block 0 is used never again, block 3 is: when room is needed at the end, 0 leaves.
    """
    asked = [[0], [0, 1], [0], [2], [3], [2]]
    trace = make_trace(asked, at_us=[0, 10_000, 10_001, 20_000, 30_000, 40_000])
    engine = run(trace, "clairvoyant", tiers=(replace(DRAM, capacity_bytes=SIZE),), gpus=2)
    entry_of = {row.id: row.hit_blocks for row in rows(engine)}
    assert 1 == entry_of[5]


# --- orders and names -----------------------------------------------------------------------------------------------


def test_heap_order_stays_small() -> None:
    """Touching the same few entries again and again does not pile up rows."""
    engine = run(random_trace(3), "lfu", tiers=TWO, check=None)
    entries = [entry for entry in engine.store.residents if entry is not None]
    order = HeapOrder(lambda entry: float(entry.hits))
    for entry in entries:
        order.insert(entry)
    for _ in range(200):
        for entry in entries:
            order.touch(entry)
    assert len(entries) == len(order)
    assert len(order._heap) <= 2 * len(entries) + 65


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("lruu", {}, "unknown policy 'lruu' .did you mean 'lru'"),
        ("nowhere:Policy", {}, "cannot be imported: No module named 'nowhere'"),
        ("simkv.simulator.store:Stor", {}, "has no attribute 'Stor'"),
        ("simkv.simulator.store:Store", {}, "is not a subclass"),
        ("lru", {"varient": "raw"}, "unknown parameter of policy lru: 'varient' .did you mean 'variant'"),
        ("recompute", {"variant": "raw"}, "unknown parameter of policy recompute: 'variant'; known: .none."),
        ("gdsf", {"cost": "token"}, "cost is 'token'; allowed: unit, recompute"),
        ("s3fifo", {"small_share": 0}, "small_share is 0"),
        ("s3fifo", {"small_share": "much"}, "small_share"),
        ("adaptcache", {"alpha": -1}, "alpha is -1"),
        ("adaptcache", {"alpha": "big"}, "alpha is 'big'"),
        ("adaptcache", {"alpha": float("nan")}, "alpha is nan"),
        ("adaptcache", {"window_s": 0}, "window_s is 0"),
        ("adaptcache", {"window_s": "1 s"}, "window_s"),
        ("adaptcache", {"methods": "kivi"}, "methods is 'kivi'; it must be a valid list"),
        ("adaptcache", {"frequency": "often"}, "frequency is 'often'; allowed: none, count, decayed"),
        ("adaptcache", {"preset": "thesis"}, "preset is 'thesis'; allowed: code, paper"),
        ("adaptcache", {"drop_after_uses": -1}, "drop_after_uses is -1"),
        ("adaptcache", {"drop_after_uses": 1.5}, "drop_after_uses is 1.5"),
        ("adaptcache", {"recompute": "no"}, "recompute is 'no'"),
        ("lru", {"promote": "false"}, "promote is 'false'"),
    ],
)
def test_wrong_names_and_values(name: str, params: dict[str, Any], message: str) -> None:
    """Unknown policies, parameters and values are one-line errors that say what is allowed."""
    with pytest.raises(PolicyError, match=message) as caught:
        make_policy(name, params)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("policy", [name for name in POLICIES if name not in ("recompute", "adaptcache", "hitdensity")])
def test_unknown_variant(policy: str) -> None:
    """A variant that the profile does not have is an error when the run starts."""
    with pytest.raises(PolicyError, match="unknown variant 'kivi:3' .did you mean 'kivi:.'"):
        run([[0]], policy, params={"variant": "kivi:3"})


def test_outside_policies() -> None:
    """A class is found by "module:Class" and runs like the built-in ones."""
    assert find_policy("tests.simulator.test_policies:Demanding") is not None
    assert {0: "dram raw"} == stored(run(singles("00"), "tests.simulator.test_policies:Demanding"))


def test_clairvoyant_is_not_beaten_by_others_of_one_tier() -> None:
    """On random strings with equal blocks and one tier no policy has more hits than the one that knows the future."""
    rng = np.random.default_rng(0)
    trace = make_trace([[int(block)] for block in rng.zipf(1.3, 400) % 30], gap_us=10 * MS // 1000)
    tiers = (replace(DRAM, capacity_bytes=6 * SIZE),)
    hits = {
        name: sum(row.hit_blocks for row in rows(run(trace, name, tiers=tiers, arrivals="closed", check=None)))
        for name in POLICIES
        if name not in ("recompute", "adaptcache")
    }
    assert max(hits, key=lambda name: hits[name]) == "clairvoyant"
    assert 0 < min(hits.values()) < hits["clairvoyant"]
