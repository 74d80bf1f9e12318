"""The open loop: every request is served, hits wait for their bytes, and a failure in any thread is told."""

import threading
from typing import Any

import numpy as np
import pytest

from simkv.errors import SimkvError
from simkv.simulator.policies import make_policy
from simkv.testbed.bench import Requests
from simkv.testbed.open_loop import Stay, leave_waits_out, open_loop
from simkv.testbed.prediction import exact_costs
from simkv.testbed.replay import RealStore, Timed
from simkv.traces.trace import Trace
from tests.testbed.conftest import Rig

BUDGET = 1 << 30


def _store(rig: Rig, requests: Requests, params: dict[str, Any]) -> RealStore:
    costs = exact_costs(rig.bench, requests, rig.profile, rig.sizes)
    payloads = [tier.payloads for tier in rig.tiers]
    return RealStore(rig.bench, requests, requests.trace, costs, make_policy("lru", params), rig.server, payloads)


def _replayed(real: RealStore) -> list[Timed]:
    return open_loop(real, BUDGET, lambda done, of: None)


def _at(requests: Requests, arrival_ns: list[int]) -> Requests:
    trace: Trace = requests.trace.transformed("by hand", arrival_ns=np.array(arrival_ns, dtype=np.int64))
    return Requests(trace, requests.context, requests.question)


def test_all_requests_are_served_and_answered(rig: Rig) -> None:
    """At a rate that makes requests overlap, times add up, answers are right, and ledgers and payloads agree."""
    requests = rig.bench.requests(30, 0.5, 100.0, seed=4)
    real = _store(rig, requests, {})
    rows = _replayed(real)
    assert list(range(30)) == [row.request for row in rows]
    for row in rows:
        parts = row.load_s + row.queue_s + row.decode_s + row.prefill_s
        assert row.ttft_s == pytest.approx(parts, abs=1e-9)
        number, which = int(requests.context[row.request]), int(requests.question[row.request])
        assert 1.0 == rig.bench.score(rig.source.model, number, which, row.answer)
        assert 0 <= row.waited_s
        assert 0 < row.unwaited_s
    assert any(row.placement is not None for row in rows)
    assert all(most <= capacity for most, capacity in zip(real.most_bytes, real.costs.capacity, strict=True))
    assert 0 == sum(entry.pins for entry in real.store.residents if entry is not None)


def test_waits_of_earlier_requests_are_left_out_too() -> None:
    """By hand: the second request's queue is what is left of the first one without its waits.

    The first is ready at 1 and served for 2, and the thread is free at 4; the second is sent and ready at 2, begins at
    4 and is served at 7; the third arrives at an idle thread.
    """
    rows = [Timed(number) for number in range(3)]
    leave_waits_out(
        [Stay(rows[0], 0.0, 1.0, 2.0, 3.0), Stay(rows[1], 2.0, 2.0, 3.0, 3.0), Stay(rows[2], 9.0, 9.5, 1.0, 1.0)]
    )
    assert [3.0, 5.0, 1.5] == [row.unwaited_s for row in rows]


def test_a_hit_waits_for_bytes_on_their_way(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second request finds the entry in the ledger while its payload is held back, and reads it only afterwards."""
    drawn = (rig.bench.requests(2, 0.5, 1.0, seed=seed) for seed in range(100))
    requests = next(one for one in drawn if one.context[0] == one.context[1])
    real = _store(rig, _at(requests, [0, 300_000_000]), {})
    happened: list[str] = []
    arrived = threading.Event()
    dram = type(rig.tiers[0].payloads)
    write, read, source = dram.write, dram.read, real.source

    def held_back(self: Any, key: int, payload: bytes) -> None:
        assert arrived.wait(30)
        write(self, key, payload)
        happened.append("written")

    def noted(self: Any, key: int) -> bytes:
        happened.append("read")
        return read(self, key)

    def arriving(request: int) -> Any:
        found = source(request)
        if request:
            happened.append("asked")
            threading.Timer(0.05, arrived.set).start()
        return found

    monkeypatch.setattr(dram, "write", held_back)
    monkeypatch.setattr(dram, "read", noted)
    monkeypatch.setattr(real, "source", arriving)
    rows = _replayed(real)
    assert ["asked", "written", "read"] == happened
    assert rows[1].placement is not None


@pytest.mark.parametrize("what", ["read", "write"])
def test_failures_in_other_threads_are_told(rig: Rig, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A read or a write that fails ends the loop with its error, not with a hang."""

    def failing(self: Any, *_: Any) -> bytes:
        raise SimkvError(f"no {what}")

    monkeypatch.setattr(type(rig.tiers[0].payloads), what, failing)
    with pytest.raises(SimkvError, match=f"no {what}"):
        _replayed(_store(rig, rig.bench.requests(30, 0.5, 200.0, seed=4), {"variant": "kivi:4"}))


def test_more_requests_than_the_budget_holds_are_refused(rig: Rig) -> None:
    """The caches that wait for their answers are counted before anything is sent."""
    real = _store(rig, rig.bench.requests(30, 0.5, 100.0, seed=4), {})
    with pytest.raises(SimkvError, match="an open loop keeps the caches of all 30"):
        open_loop(real, 1_000_000, lambda done, of: None)
