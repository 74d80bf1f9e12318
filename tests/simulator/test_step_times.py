"""Step times: knots as measured, lines between them, and sums of many steps equal to adding them one by one."""

from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simkv.errors import ConfigError, ProfileError
from simkv.profile_speeds import SPEED_COLUMNS
from simkv.profiles import Profile
from simkv.simulator.step_times import StepTimes, given_steps, measured_steps
from tests.simulator.helpers import make_profile

MS_PS = 10**9


def stepping(rows: list[tuple[int, int, float]]) -> Profile:
    """The round-number profile with measured steps (batch, context, ms)."""
    table = [("step", "", context, 0, batch, 0, ms / 1e3, ms / 1e3, 5, "reference") for batch, context, ms in rows]
    return make_profile(speed_rows=pd.DataFrame(table, columns=list(SPEED_COLUMNS)))


# Batches of 1 and 4; contexts of 100 and 200, and 400 for the larger batch only.
MEASURED = stepping([(1, 100, 1.0), (1, 200, 1.2), (4, 100, 1.6), (4, 200, 2.4), (4, 400, 3.2)])


def one(steps: StepTimes, batch: int, cached: int) -> int:
    """A single step."""
    return steps.elapsed_ps(batch, cached, 1)


def test_given_steps_are_the_formula() -> None:
    """1 ms + 3 x 0.1 ms + 1,000 cached tokens x 50 ns = 1.35 ms; then 1,003 tokens, 150 ns more."""
    steps = given_steps(4, MS_PS, MS_PS // 10, 50_000)
    assert (1_350 * 10**6, MS_PS, "given") == (one(steps, 3, 1000), steps.shared_ps, steps.source)
    assert 2 * 1_350 * 10**6 + 150_000 == steps.elapsed_ps(3, 1000, 2)


@pytest.mark.parametrize(("batch", "context", "ms"), [(1, 100, 1.0), (1, 200, 1.2), (4, 100, 1.6), (4, 400, 3.2)])
def test_measured_points_are_reproduced(batch: int, context: int, ms: float) -> None:
    """At a measured batch and context a step takes the measured time."""
    assert round(ms * MS_PS) == one(measured_steps(MEASURED, None), batch, batch * context)


def test_between_and_beyond_measured_points() -> None:
    """Linear between contexts and batches; flat below both; the last slope beyond the longest context.

    Batch 4 at 300: 2.8 ms.  Batch 1 at 300: 0.2 ms per 100 tokens more, 1.4.  Batch 2 lies a third of the way from 1 to
    4: at 100 it takes 1.2, at 400 (1.6 and 3.2) 2.1333.  Batch 4 beyond 400: 0.4 ms per 100 tokens.
    """
    steps = measured_steps(MEASURED, None)
    assert 4 == len(steps.lines) - 1
    assert 2_800_000_000 == one(steps, 4, 4 * 300)
    assert 1_400_000_000 == one(steps, 1, 300)
    assert 1_200_000_000 == one(steps, 2, 2 * 100)
    assert 2_133_333_333 == one(steps, 2, 2 * 400)
    assert 3_600_000_000 == one(steps, 4, 4 * 500)
    assert 1_600_000_000 == one(steps, 4, 4 * 50) == one(steps, 4, 0)
    assert (1_000_000_000, "measured") == (steps.shared_ps, steps.source)


def test_a_falling_end_is_not_continued() -> None:
    """Where the longest context was measured faster than the one before, its time holds beyond, not the slope."""
    steps = measured_steps(stepping([(1, 100, 1.2), (1, 200, 1.0)]), None)
    assert 1_000_000_000 == one(steps, 1, 10**6)


@given(st.integers(1, 4), st.integers(0, 3000), st.integers(0, 700), st.booleans())
def test_steps_in_a_row_are_their_sum(batch: int, cached: int, count: int, measured: bool) -> None:
    """The closed form over all pieces equals adding single steps, each cache growing by a token."""
    steps = measured_steps(MEASURED, None) if measured else given_steps(4, MS_PS, 17, 3)
    assert sum(one(steps, batch, cached + step * batch) for step in range(count)) == steps.elapsed_ps(
        batch, cached, count
    )


@pytest.mark.parametrize(
    ("rows", "most", "kind", "part"),
    [
        ([], None, ConfigError, "no measured decode steps; give engine.step_base"),
        ([(1, 100, 1.0), (1, 200, 1.0)], 2, ConfigError, "engine.max_batch: 2; profile round .* at most 1"),
        ([(1, 100, 1.0)], None, ProfileError, "batch 1 need two contexts"),
        ([(1, 100, 0.0), (1, 200, 1.0)], None, ProfileError, "in 0.0 s"),
    ],
)
def test_what_is_no_table(rows: Any, most: int | None, kind: type[Exception], part: str) -> None:
    """Missing steps, batches beyond the measured ones, a single context and steps of no time are refused."""
    with pytest.raises(kind, match=part):
        measured_steps(stepping(rows), most)
