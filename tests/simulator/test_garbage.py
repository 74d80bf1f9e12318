"""The cycle collector during a run: seldom called, set back afterwards, and with nothing to find."""

import gc
import threading
from collections.abc import Iterator

import pytest

from simkv.simulator.engine import Engine
from simkv.simulator.garbage import seldom_collected
from simkv.simulator.policies import POLICIES
from tests.simulator.helpers import make_engine, make_trace, two_tiers


@pytest.fixture
def setting() -> Iterator[tuple[int, int, int]]:
    """The collector's usual setting, set back after the test."""
    earlier = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield 700, 10, 10
    gc.set_threshold(*earlier)


def test_seldom_during_a_run_and_as_before_after_it(setting: tuple[int, int, int]) -> None:
    """Every event sees the wider setting; a run leaves the earlier one."""
    seen = []

    def note(_engine: Engine) -> None:
        seen.append(gc.get_threshold())

    make_engine([[0], [1], [0]], check=note).run()
    assert {(50_000, 50, 10)} == set(seen)
    assert setting == gc.get_threshold()


def test_set_back_after_the_last_of_overlapping_runs(setting: tuple[int, int, int]) -> None:
    """A run in another thread that begins within this one and ends after it keeps the wider setting till then."""
    begun, left = threading.Event(), threading.Event()
    seen = []

    def later() -> None:
        with seldom_collected():
            begun.set()
            left.wait(10)
            seen.append(gc.get_threshold())

    with seldom_collected():
        thread = threading.Thread(target=later)
        thread.start()
        assert begun.wait(10)
    left.set()
    thread.join()
    assert [(50_000, 50, 10)] == seen
    assert setting == gc.get_threshold()


def test_set_back_after_an_error(setting: tuple[int, int, int]) -> None:
    """An error on the way does not leave the wider setting."""
    with pytest.raises(KeyError), seldom_collected():
        raise KeyError
    assert setting == gc.get_threshold()


@pytest.mark.parametrize(("given", "during"), [((0, 10, 10), (0, 10, 10)), ((10**6, 99, 5), (10**6, 99, 5))])
def test_what_is_seldom_already_stays(
    setting: tuple[int, int, int], given: tuple[int, int, int], during: tuple[int, int, int]
) -> None:
    """Switched off, or set wider by the user: it stays like that."""
    gc.set_threshold(*given)
    with seldom_collected():
        assert during == gc.get_threshold()
    assert given == gc.get_threshold()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_leaves_no_cycles(policy: str) -> None:
    """While its engine lives, a run under pressure has left nothing that only the collector could free."""
    requests = [[block, block + 1, block + 2] for block in (0, 3, 6, 0, 9, 3, 12, 0, 6, 15, 9)] * 3
    trace = make_trace(requests, gap_us=300)
    engine = make_engine(trace, policy, tiers=two_tiers(5, 9), check=None)
    gc.collect()
    gc.disable()
    try:
        engine.run()
        assert gc.collect() == 0
    finally:
        gc.enable()
