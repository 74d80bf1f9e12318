"""Timing and fitting on synthetic clocks and points: what is known must come out."""

import numpy as np
import pytest

from simkv.profile_types import Line, PrefillFit
from simkv.profiler.fits import MOST_RESIDUAL, fit_line, fit_prefill
from simkv.profiler.timing import Patience, timed, timing_of


class FakeClock:
    """A clock that calls move by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def seconds(self) -> float:
        """What the hand shows."""
        return self.now


def test_the_warm_up_is_not_counted() -> None:
    """A first call of a second is left out; the median of the others is theirs."""
    clock, spent = FakeClock(), iter([1.0, 0.2, 0.1, 0.3, 0.1, 0.1])

    def call() -> None:
        clock.now += next(spent)

    found = timed(call, clock, Patience(seconds=0.55, least=3, most=9))
    assert (3, pytest.approx(0.2)) == (found.repeats, found.median_s)


def test_a_slow_call_is_timed_once() -> None:
    """A warm-up longer than the patience leaves one timing."""
    clock = FakeClock()

    def call() -> None:
        clock.now += 2.0

    assert 1 == timed(call, clock, Patience(seconds=1.0)).repeats


def test_a_fast_call_is_timed_at_most_so_often() -> None:
    """A call that takes no time ends all the same."""
    assert 25 == timed(lambda: None, FakeClock(), Patience()).repeats


def test_median_and_95th_percentile() -> None:
    """Of 0 to 100 they are 50 and 95."""
    found = timing_of([float(value) for value in range(101)])
    assert (50.0, 95.0, 101) == (found.median_s, found.p95_s, found.repeats)


def test_a_line_is_found_again() -> None:
    """Points on 0.01 + 2e-6 n give that line, no residual and no points to interpolate."""
    line, residual = fit_line({n: 0.01 + 2e-6 * n for n in (256, 512, 1024, 4096)})
    assert (pytest.approx(2e-6), pytest.approx(0.01), ()) == (line.per_token_s, line.fixed_s, line.points)
    assert residual < 1e-6


def test_the_largest_relative_residual_is_the_smallest_possible() -> None:
    """Of 1, 1 and 3 at 0, 1 and 2 tokens the best line is off by a third everywhere: 2/3, 4/3, 2."""
    line, residual = fit_line({10: 1.0, 20: 1.0, 30: 3.0})
    assert pytest.approx(1 / 3) == residual
    assert [pytest.approx(2 / 3), pytest.approx(4 / 3), pytest.approx(2.0)] == [
        line.fixed_s + line.per_token_s * n for n in (10, 20, 30)
    ]


def test_points_no_line_fits_are_kept_and_interpolated() -> None:
    """A step of caches is no line: what was measured comes back, and halves between."""
    measured = {100: 0.001, 200: 0.002, 400: 0.04}
    line, residual = fit_line(measured)
    assert residual > MOST_RESIDUAL
    assert [pytest.approx(value) for value in measured.values()] == [line.seconds(n) for n in measured]
    assert pytest.approx(0.021) == line.seconds(300)
    assert pytest.approx(0.04 + 100 * line.per_token_s) == line.seconds(500)
    assert 0.0 == line.seconds(0)


def test_one_point_makes_a_line_through_nothing() -> None:
    """Without a second length there is no fixed part to be told."""
    assert (Line(1e-5), 0.0) == fit_line({100: 1e-3})


def _grid(fit: PrefillFit) -> dict[tuple[int, int], float]:
    places = [(n, c) for n in (64, 256, 1024, 4096) for c in (0, 512, 4096)]
    return {(new, cached): fit.seconds(new, cached) for new, cached in places}


def test_the_prefill_model_is_found_again() -> None:
    """Base, slope and square, with the price of attending to what is cached."""
    fit, residual = fit_prefill(_grid(PrefillFit(0.02, 1e-4, 2e-9)))
    assert residual < 1e-6
    assert (pytest.approx(0.02), pytest.approx(1e-4), pytest.approx(2e-9)) == (
        fit.base_s,
        fit.per_token_s,
        fit.per_token2_s,
    )


def test_a_floor_is_found_again() -> None:
    """Short prefills that all take the time of reading the weights."""
    fit, residual = fit_prefill(_grid(PrefillFit(0.0, 1e-4, 0.0, 0.05)))
    assert residual < 1e-6
    assert pytest.approx(0.05) == fit.seconds(64)
    assert pytest.approx(0.4096) == fit.seconds(4096)


def test_few_points_do_not_fit_by_having_many_coefficients() -> None:
    """Three points give a slope alone, and its residual."""
    fit, residual = fit_prefill({(100, 0): 0.1, (200, 0): 0.3, (400, 0): 0.4})
    assert (0.0, 0.0) == (fit.base_s, fit.per_token2_s)
    assert residual > MOST_RESIDUAL or fit.points


def test_a_prefill_that_is_no_polynomial_is_interpolated() -> None:
    """A jump between lengths (another kernel) leaves points, which whole prompts take exactly."""
    whole = {128: 0.01, 256: 0.02, 512: 0.2, 1024: 0.21, 2048: 0.9, 4096: 0.95}
    fit, residual = fit_prefill({(n, 0): value for n, value in whole.items()})
    assert [pytest.approx(value) for value in whole.values()] == [fit.seconds(n) for n in whole]
    assert residual < 1e-6
    assert pytest.approx(whole[1024] - whole[512] + fit.base_s) == fit.seconds(512, 512)


def test_measured_prefills_behind_cached_tokens_count_too() -> None:
    """Work that jumps at 256 tokens, whole and cached: no polynomial fits, positions do, to the last measurement."""
    work = {64: 0.001, 128: 0.002, 256: 0.004, 512: 0.04, 1024: 0.2}
    wholes = {(n, 0): 0.01 + value for n, value in work.items()}
    rests = {(n // 2, n // 2): 0.01 + value - work[n // 2] for n, value in work.items() if n > 64}
    fit, residual = fit_prefill(wholes | rests)
    assert fit.points
    assert residual < 1e-6
    assert [pytest.approx(value) for value in rests.values()] == [fit.seconds(*place) for place in rests]


def test_prefill_points_and_their_table_agree() -> None:
    """The simulator's table of positions and single look-ups are the same function."""
    fit = PrefillFit(0.0, 1e-4, 0.0, points=((100, 0.01), (200, 0.05)))
    table = fit.interpolated(np.arange(301, dtype=np.float64))
    assert [0.0, pytest.approx(0.01), pytest.approx(0.05), pytest.approx(0.06)] == table[[0, 100, 200, 300]].tolist()
    assert [pytest.approx(fit.seconds(n)) for n in (50, 150, 300)] == table[[50, 150, 300]].tolist()
