"""What a run says of requests beyond the longest context that its profile measured."""

from typing import Any

import pandas as pd
import pytest

from simkv.profile_speeds import SPEED_COLUMNS
from simkv.profiles import PrefillFit, Profile
from simkv.simulator.measured_range import beyond_measured, extrapolation_warning
from simkv.simulator.metrics import Result
from simkv.simulator.run import simulate
from simkv.simulator.step_times import given_steps, measured_steps
from tests.simulator.helpers import make_profile, make_trace
from tests.simulator.test_step_times import stepping


def prefilling(places: list[tuple[int, int]], **changes: Any) -> Profile:
    """The round-number profile with measured prefills of (new tokens, cached before)."""
    table = [("prefill", "", new, cached, 1, 0, new * 1e-5, new * 1e-5, 5, "reference") for new, cached in places]
    return make_profile(speed_rows=pd.DataFrame(table, columns=list(SPEED_COLUMNS)), **changes)


def served(profile: Profile, prompts: list[int], outputs: list[int] | None = None, **engine: Any) -> Result:
    """Requests without blocks, replayed by a policy that stores nothing."""
    trace = make_trace([[] for _ in prompts], inputs=prompts, outputs=outputs, task=None)
    return simulate(trace, profile, "recompute", **engine)


def test_prompts_beyond_the_longest_prefill_are_told() -> None:
    """Measured to 50 tokens behind 100: two of eight prompts are longer than 150, one line says so."""
    result = served(prefilling([(100, 0), (50, 100)]), [1, 100, 149, 150, 150, 7, 151, 9000])
    assert {"prefill_tokens": 150, "prefill_beyond": 0.25} == result.meta["measured_to"]
    assert [
        "25 % of the requests have prompts beyond 150 tokens, the longest that profile round measured: "
        "times there are extrapolated"
    ] == result.summary["warnings"]


def test_nothing_is_told_within_the_range() -> None:
    """Prompts up to the longest one give a fact and no warning."""
    result = served(prefilling([(100, 0), (50, 100)]), [150, 20])
    assert 0.0 == result.meta["measured_to"]["prefill_beyond"]
    assert [] == result.summary["warnings"]


def test_points_of_a_fit_are_a_range() -> None:
    """Without single measurements, a prefill interpolated between points ends with the last one."""
    fit = PrefillFit(0.0, 1e-5, points=((100, 1e-3), (200, 3e-3)))
    result = served(make_profile(prefill=fit), [200, 201, 202, 10])
    assert {"prefill_tokens": 200, "prefill_beyond": 0.5} == result.meta["measured_to"]


def test_a_published_line_has_no_range() -> None:
    """A line and given step times say nothing of where they end."""
    result = served(make_profile(), [10**6], [100], decode="prefill_first", step_base="1 ms")
    assert "measured_to" not in result.meta
    assert [] == result.summary["warnings"]


@pytest.mark.parametrize("mode", ["prefill_first", "chunked"])
def test_steps_beyond_the_longest_context_are_told(mode: str) -> None:
    """Steps measured to 200 tokens: with 150 of prompt, the last of 52 tokens comes of 200 in the cache, of 53 of 201.

    A single token of output takes no step, however long its prompt.
    """
    profile = stepping([(1, 100, 1.0), (1, 200, 2.0), (4, 100, 1.0), (4, 200, 2.0)])
    result = served(profile, [150, 150, 1000, 201], [52, 53, 1, 2], decode=mode)
    assert {"step_tokens": 200, "step_beyond": 0.5} == result.meta["measured_to"]
    assert [
        "50 % of the requests decode beyond 200 tokens, the longest that profile round measured: "
        "times there are extrapolated"
    ] == result.summary["warnings"]


def test_the_range_of_steps_is_that_of_every_batch_in_use() -> None:
    """A batch of 4 measured to 200 tokens limits runs of 2 sequences and more, not those of one."""
    profile = stepping([(1, 100, 1.0), (1, 400, 2.0), (4, 100, 1.0), (4, 200, 2.0)])
    assert [200, 200, 400] == [measured_steps(profile, most).longest for most in (None, 2, 1)]
    assert given_steps(4, 10**9, 0, 0).longest is None


def test_both_ranges_are_one_line() -> None:
    """A share of one in a thousand is told as such, beside the other one."""
    trace = make_trace([[]] * 1000, inputs=[10] * 999 + [500], outputs=[2] * 500 + [400] * 500, task=None)
    profile = prefilling([(300, 0)])
    steps = measured_steps(stepping([(1, 100, 1.0), (1, 200, 2.0)]), None)
    assert (
        "0.1 % of the requests have prompts beyond 300 tokens and 50 % of the requests decode beyond 200 tokens, "
        "the longest that profile round measured: times there are extrapolated"
    ) == extrapolation_warning("round", beyond_measured(trace, profile, steps))
