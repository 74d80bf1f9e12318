"""Real replays beside predicted ones: the same decisions, the bytes of the ledgers, and damage that is told."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from simkv.errors import SimkvError
from simkv.profiler.quality import halves
from simkv.simulator.policies import make_policy
from simkv.simulator.policies.base import Policy
from simkv.testbed.asking import Examiner
from simkv.testbed.prediction import Prediction, exact_costs, predict, spaced
from simkv.testbed.replay import RealStore, Timed, closed_loop
from simkv.testbed.report import Replay, quality_half_width, replay_frame, replay_line
from tests.testbed.conftest import Rig

POLICIES: dict[str, dict[str, Any]] = {
    "lru": {},
    "lru kivi": {"variant": "kivi:4"},
    "adaptcache": {"preset": "paper", "alpha": 0.001},
    "clairvoyant": {},
    "recompute": {},
}


def _made(name: str) -> Policy:
    return make_policy(name.split()[0], POLICIES[name])


def _replayed(rig: Rig, name: str, count: int = 24) -> tuple[RealStore, Prediction, list[Timed]]:
    requests = rig.bench.requests(count, 0.5, 1.0, seed=3)
    costs = exact_costs(rig.bench, requests, rig.profile, rig.sizes)
    trace = spaced(requests.trace, costs)
    payloads = [tier.payloads for tier in rig.tiers]
    real = RealStore(rig.bench, requests, trace, costs, _made(name), rig.server, payloads)
    return real, predict(trace, costs, _made(name)), closed_loop(real, rig.clock, lambda done, of: None)


@pytest.mark.parametrize("name", POLICIES)
def test_closed_loop_decides_as_predicted(rig: Rig, name: str) -> None:
    """Every move and every request's source are the simulator's, and the payloads that are left are its residents'."""
    real, prediction, rows = _replayed(rig, name)
    assert prediction.decisions == real.decisions
    tiers = ["dram", "ssd"]
    found = ["recompute" if row.placement is None else tiers[row.placement.tier] for row in rows]
    assert prediction.requests["served_by"].tolist() == found
    real.check()
    kept = {entry.key for entry in real.store.residents if entry is not None}
    assert kept == {key for tier in real.tiers for key in tier.sizes}
    if name == "recompute":
        assert set() == kept
    else:
        assert len(set(found)) > 1, "the case must have hits and misses"


def test_adaptcache_really_recompresses(rig: Rig) -> None:
    """The case above is not trivial: payloads change their variant while they are stored."""
    real, _, rows = _replayed(rig, "adaptcache")
    assert any(old and new and old.variant != new.variant for _, _, old, new in real.decisions)
    assert any(row.placement is not None and row.placement.variant for row in rows)


@pytest.mark.parametrize("name", POLICIES)
def test_bytes_stay_within_the_capacities(rig: Rig, name: str) -> None:
    """Real bytes never exceed a tier's capacity, not even while room is being made."""
    real, _, _ = _replayed(rig, name)
    for most, capacity in zip(real.most_bytes, real.costs.capacity, strict=True):
        assert 0 <= most <= capacity
    assert (0 < max(real.most_bytes)) == (name != "recompute")


def test_prediction_is_the_sum_of_its_tables(rig: Rig) -> None:
    """TTFT is read + decode + prefill of the question on a hit, the prompt's prefill on a miss, and no queue."""
    real, prediction, rows = _replayed(rig, "lru kivi")
    costs, frame = real.costs, prediction.requests
    for row in rows:
        prompt = int(real.trace.input_tokens[row.request])
        block = int(real.trace.block_ids[row.request])
        wanted = costs.prefill_ns(0, prompt)
        if row.placement is not None:
            (tier, variant), size_class = row.placement, costs.block_class[block]
            tokens = costs.class_tokens[size_class]
            wanted = costs.read_fixed[tier][variant] + costs.read[tier][variant][size_class]
            wanted += costs.decode[tier][variant][size_class] + costs.prefill_ns(tokens, prompt)
        assert wanted / 1e9 == pytest.approx(frame["ttft_s"][row.request], abs=2e-9)
        assert 0 == frame["queue_s"][row.request]


def test_quality_is_of_the_very_contexts(rig: Rig) -> None:
    """A block's predicted quality is its own context's row in the profile, from questions that are not asked."""
    requests = rig.bench.requests(24, 0.5, 1.0, seed=3)
    costs = exact_costs(rig.bench, requests, rig.profile, rig.sizes)
    for block, number in zip(requests.trace.block_ids.tolist(), requests.context.tolist(), strict=True):
        task, sample = rig.bench.places[number]
        matrix = rig.profile.quality_matrix(rig.bench.workloads[task].task)
        row = np.array(costs.quality.score_ppb[costs.quality.block_row[block]]) / 1e9
        assert matrix[sample].tolist() == pytest.approx(row.tolist(), abs=1e-9)
        questions = rig.bench.contexts[number].questions
        assert questions[halves(len(questions))[0]] == rig.bench.asked(number)


def test_answers_from_raw_caches_score_one(rig: Rig) -> None:
    """Without compression every answer is the uncompressed cache's."""
    real, _, rows = _replayed(rig, "lru")
    asked = [(int(real.requests.context[row.request]), int(real.requests.question[row.request])) for row in rows]
    scores = [rig.bench.score(rig.source.model, *asked[row.request], row.answer) for row in rows]
    assert [1.0] * len(rows) == scores


def test_a_damaged_payload_is_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flipped bit on the disk ends the replay with the request, the tier, and what is wrong."""
    disk = rig.tiers[1].payloads
    healthy = type(disk).write

    def damaging(self: Any, key: int, payload: bytes) -> None:
        healthy(self, key, payload[:100] + bytes([payload[100] ^ 1]) + payload[101:])

    monkeypatch.setattr(type(disk), "write", damaging)
    with pytest.raises(SimkvError, match=r"request \d+: the payload that it read from ssd is damaged: .*checksum"):
        _replayed(rig, "lru", count=60)


def test_payloads_that_are_not_the_ledgers_are_told(rig: Rig) -> None:
    """A payload that disappears, or is larger than its entry, ends the replay."""
    real, _, _ = _replayed(rig, "lru")
    tier = real.tiers[0]
    key = next(iter(tier.sizes))
    payload = tier.read(key)
    tier.write(key, payload + b"x")
    with pytest.raises(SimkvError, match=f"block {key} has {len(payload) + 1} bytes, {len(payload)} in the ledger"):
        real.check()
    tier.drop(key)
    with pytest.raises(SimkvError, match="tier 0: payloads of"):
        real.check()


def test_policies_by_the_clock_are_refused(rig: Rig) -> None:
    """A policy that rearranges on an idle GPU cannot be replayed, and that is said before anything is done."""
    requests = rig.bench.requests(4, 0.5, 1.0, seed=3)
    costs = exact_costs(rig.bench, requests, rig.profile, rig.sizes)
    with pytest.raises(SimkvError, match="acts between requests"):
        predict(requests.trace, costs, make_policy("evicpress", {}))


def test_questions_are_put_to_what_was_loaded(rig: Rig) -> None:
    """Every answer from a payload that a request loaded is as good as the request's own, for the question it asked."""
    real, _, rows = _replayed(rig, "adaptcache")
    examiner = Examiner(rig.bench, rig.server)
    hits = [row for row in rows if row.placement is not None]
    assert all((row.payload is None) == (row.placement is None) for row in rows)
    for row in hits:
        assert row.placement is not None
        assert row.payload is not None
        number, which = int(real.requests.context[row.request]), int(real.requests.question[row.request])
        scores = examiner.scores(number, row.placement.variant, row.payload)
        assert len(rig.bench.asked(number)) == len(scores)
        assert rig.bench.score(rig.source.model, number, which, row.answer) == scores[which]
    assert any(row.placement and row.placement.variant for row in hits)


def test_differences_are_counted(rig: Rig) -> None:
    """A report line holds errors of known sizes, and counts moves and sources that differ."""
    real, prediction, rows = _replayed(rig, "lru")
    for row, ttft_s in zip(rows, prediction.requests["ttft_s"], strict=True):
        row.ttft_s = ttft_s / 1.25
    replay = Replay("closed", "lru", 1)
    ones = [(1.0, 1.0)] * len(rows)
    frame = replay_frame(replay, rig.bench, real.requests, real.costs, prediction, rows, ones)
    line = replay_line(replay, frame, prediction.decisions, real.decisions[:-1], {})
    assert (1, 0, False) == tuple(
        line[key] for key in ("moves_that_differ", "requests_served_otherwise", "placements_identical")
    )
    sources = line["by_source"]
    assert len(rows) == sum(facts["requests"] for facts in sources.values())
    assert [0.25] * len(sources) == pytest.approx([facts["error_ttft_mean"] for facts in sources.values()])
    assert 0.0 == line["quality_error_half_width"]
    assert [0.25] * 4 == pytest.approx([line[f"error_ttft_{point}"] for point in ("mean", "p50", "p90", "p99")])


def test_qualitys_interval_counts_contexts() -> None:
    """By hand: errors .1, .1 of one context and -.1, -.1 of another have sums of .2 and -.2; the interval is
    1.96 sqrt(2 / 1 x .08) / 4 = .196, and .098 x sqrt(4 / 3) were all four of contexts of their own.
    """
    errors = pd.Series([0.1, 0.1, -0.1, -0.1])
    assert 0.196 == pytest.approx(quality_half_width(errors, pd.Series([7, 7, 3, 3])))
    assert 0.098 * (4 / 3) ** 0.5 == pytest.approx(quality_half_width(errors, pd.Series([1, 2, 3, 4])))
    assert quality_half_width(errors, pd.Series([1, 1, 1, 1])) is None
