"""Implausible points: which they are, that they are timed again, and that what stays so is said."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from simkv.profile_types import Profile
from simkv.profiler.compressors.kivi import Kivi
from simkv.profiler.retiming import MOST_AGAIN, implausible
from simkv.profiler.rows import SpeedRow
from simkv.profiler.speed_measurement import SpeedPlan, measure_speed
from simkv.profiler.speed_model import SpeedModel

PLAN = SpeedPlan(compressors=("kivi",), lengths=(64, 96, 128), batches=(1, 2), seconds=0.002, quick=True)


class HandClock:
    """A clock on which every look takes a millisecond, and calls what they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def seconds(self) -> float:
        """A millisecond after the last look, and whatever calls added."""
        self.now += 0.001
        return self.now


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _row(what: str, tokens: int, cached: int, batch: int, ms: float, p95_ms: float | None = None) -> SpeedRow:
    return SpeedRow(what, "", tokens, cached, batch, 0, ms / 1e3, (p95_ms or ms) / 1e3, 9)


def _slowed(
    clock: HandClock, monkeypatch: pytest.MonkeyPatch, added_ms: Mapping[tuple[int, int], Callable[[int], float]]
) -> Counter[tuple[int, int]]:
    """Steps of (batch, tokens) take so much longer at their nth measurement; how often each was measured."""
    measured: Counter[tuple[int, int]] = Counter()

    def step(_: Any, batch: int, context: int) -> Callable[[], None]:
        place = batch, context
        added = added_ms.get(place, lambda nth: 0.0)(measured[place]) / 1e3
        measured[place] += 1

        def call() -> None:
            clock.now += added

        return call

    monkeypatch.setattr(SpeedModel, "step", step)
    return measured


def _step_ms(profile: Profile, batch: int, tokens: int) -> float:
    (found,) = (seconds for steps, context, seconds in profile.decode_steps if (steps, context) == (batch, tokens))
    return 1e3 * found


def test_a_step_that_takes_longer_than_a_larger_one_is_implausible() -> None:
    """The published table's outlier is found by the batch above it; the other points are in order."""
    rows = [_row("step", 512, 0, 8, 2.48), _row("step", 1024, 0, 8, 8.33), _row("step", 1024, 0, 16, 5.28)]
    assert {rows[1].key: "step 8 x 1024 tokens: 8.33 ms, when 16 x 1024 tokens took 5.28 ms"} == implausible(rows)


def test_less_than_a_tenth_is_noise() -> None:
    """Nine tenths of the time for more work pass, a little less does not."""
    small = _row("step", 64, 0, 1, 10.0)
    assert not implausible([small, _row("step", 128, 0, 1, 9.001)])
    assert {small.key} == implausible([small, _row("step", 128, 0, 1, 8.999)]).keys()


def test_prefills_are_compared_where_one_is_more_work() -> None:
    """64 tokens after 64 are part of the prompt of 128; after 448 they attend to more, and may take longer."""
    part, whole, far = (
        _row("prefill", 64, 64, 1, 5.0),
        _row("prefill", 128, 0, 1, 4.0),
        _row("prefill", 64, 448, 1, 9.0),
    )
    assert {part.key: "prefill 64 tokens after 64: 5 ms, when 128 tokens took 4 ms"} == implausible([part, whole, far])


def test_timings_far_apart_are_implausible() -> None:
    """A 95th percentile of more than 1.5 medians is, whatever was timed; kinds are not compared with one another."""
    rows = [
        _row("step", 64, 0, 1, 4.0, 6.0),
        _row("prefill", 64, 0, 1, 2.0, 3.1),
        SpeedRow("decode", "kivi:4", 64, 0, 1, 10, 1e-3, 1.6e-3, 9),
        SpeedRow("decode", "kivi:2", 96, 0, 1, 10, 1e-4, 1.1e-4, 9),
        SpeedRow("h2d", "", 0, 0, 4, 1 << 20, 1e-3, 9e-3, 9, "pinned"),
    ]
    assert {
        rows[1].key: "prefill 64 tokens: median 2 ms, 95th percentile 3.1 ms",
        rows[2].key: "decode kivi:4 64 tokens: median 1 ms, 95th percentile 1.6 ms",
    } == implausible(rows)


def test_a_disturbed_step_is_timed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Four milliseconds of other work at the first measurement are gone from the profile, which says that once."""
    clock = HandClock()
    measured = _slowed(clock, monkeypatch, {(1, 96): lambda nth: 0.0 if nth else 4.0})
    with caplog.at_level(logging.WARNING):
        profile = measure_speed(PLAN, tmp_path / "mine", clock=clock)
    assert pytest.approx(1.0) == _step_ms(profile, 1, 96)
    assert 2 == measured.pop((1, 96))
    assert {1} == set(measured.values())
    assert (1, []) == (profile.provenance["timed_again"], profile.provenance["implausible"])
    assert "implausible" not in caplog.text


def test_what_stays_implausible_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 5, 4, 7 and 6 milliseconds the least is kept, and after three more timings it is left at that."""
    clock = HandClock()
    measured = _slowed(clock, monkeypatch, {(1, 96): lambda nth: (4.0, 3.0, 6.0, 5.0)[nth]})
    told: list[int] = []
    with caplog.at_level(logging.WARNING):
        profile = measure_speed(PLAN, tmp_path / "mine", lambda done, of: told.append(done), clock)
    assert 1 + MOST_AGAIN == measured[1, 96]
    assert pytest.approx(4.0) == _step_ms(profile, 1, 96)
    said = "step 1 x 96 tokens: 4 ms, when 1 x 128 tokens took 1 ms"
    assert (1, [said]) == (profile.provenance["timed_again"], profile.provenance["implausible"])
    assert said in caplog.text
    assert len(profile.speed_rows) == told[-1]
    assert MOST_AGAIN == told.count(told[-1] - 1) - 1


def test_a_decode_with_scattered_timings_is_timed_again_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One timing of nine milliseconds among three: that decode is measured once more, and no encode is."""
    clock, calls = HandClock(), 0
    plain = Kivi.decode

    def decode(self: Kivi, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        clock.now += 0.009 if calls == 3 else 0.0
        return plain(self, *arguments, **options)

    monkeypatch.setattr(Kivi, "decode", decode)
    profile = measure_speed(PLAN, tmp_path / "mine", clock=clock)
    assert (1, []) == (profile.provenance["timed_again"], profile.provenance["implausible"])
    assert profile.speed_rows["p95_s"].max() < 1.5e-3


def test_a_kill_does_not_begin_the_count_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the second of three more timings, it goes on with the third and no further."""
    clock = HandClock()
    measured = _slowed(clock, monkeypatch, {(1, 96): lambda nth: 4.0})
    fallen = 0

    def killer(done: int, of: int) -> None:
        nonlocal fallen
        fallen += done == of and measured[1, 96] == 3
        if fallen:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_speed(PLAN, tmp_path / "mine", killer, clock)
    assert 3 == measured[1, 96]
    profile = measure_speed(PLAN, tmp_path / "mine", clock=clock)
    assert 1 + MOST_AGAIN == measured[1, 96]
    assert 1 == profile.provenance["timed_again"]
