"""The trace-stats figure: its panels are the numbers of TraceStats."""

# matplotlib types what artists hand back as unions of everything.
# mypy: disable-error-code="arg-type, index, misc, union-attr, attr-defined"

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure

from simkv.errors import SimkvError
from simkv.figures import trace_stats as draw
from simkv.traces.stats import trace_stats
from simkv.traces.trace import Trace
from tests.conftest import make_trace

KV_BYTES = 2**20


@pytest.fixture
def trace() -> Trace:
    """Six requests a minute apart; blocks 0 and 1 come back, 2 to 4 do not."""
    return make_trace([[0, 1], [0, 1, 2], [3], [0, 1], [4], [0]], gap_s=60.0, tokens=1024)


def labels(figure: Figure) -> list[tuple[str, str]]:
    """(x, y) labels of the panels."""
    return [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]


def test_panels_are_named_with_their_units(trace: Trace) -> None:
    """Sizes are GiB when the bytes per token are known, else blocks and tokens."""
    lengths, arrivals = ("Length (tokens)", "Share of requests"), ("Time (s)", "Requests per second")
    sized = [("LRU capacity (GiB)", "Miss ratio by block"), ("Time (s)", "Working set (GiB)")]
    plain = [("LRU capacity (blocks)", "Miss ratio by block"), ("Time (s)", "Working set (tokens)")]
    assert [lengths, arrivals, *sized] == labels(draw(trace_stats(trace, KV_BYTES)))
    assert [lengths, arrivals, *plain] == labels(draw(trace_stats(trace)))


def test_miss_ratio_falls_to_the_first_requests(trace: Trace) -> None:
    """Of ten block requests five are first ones: the curve starts at 1 and ends at 0.5."""
    curve = draw(trace_stats(trace)).axes[2].lines[0]
    assert (1.0, 0.5) == (curve.get_ydata()[0], curve.get_ydata()[-1])
    expected = trace_stats(trace).reuse
    assert expected is not None
    np.testing.assert_allclose(expected.curves[0].miss_ratio, curve.get_ydata()[1:-1])
    np.testing.assert_allclose(expected.curves[0].capacities, curve.get_xdata()[1:-1])


def test_arrivals_are_counts_per_second(trace: Trace) -> None:
    """One request in every minute is 1/60 per second."""
    rate = draw(trace_stats(trace)).axes[1].patches[0].get_data().values
    np.testing.assert_allclose([1 / 60] * 6, rate)


def test_working_sets_are_those_of_the_windows(trace: Trace) -> None:
    """600 s see all five blocks of 1 GiB; each minute those of its own request."""
    long, short = draw(trace_stats(trace, KV_BYTES)).axes[3].patches
    np.testing.assert_allclose([5], long.get_data().values)
    np.testing.assert_allclose([2, 3, 1, 2, 1, 1], short.get_data().values)


def test_windows_without_requests_are_empty() -> None:
    """A pause of two minutes shows as zero, not as the last value."""
    stats = trace_stats(make_trace([[0], [1]], gap_s=180.0, tokens=1024), KV_BYTES)
    short = draw(stats).axes[3].patches[1]
    np.testing.assert_allclose([1, 0, 0, 1], short.get_data().values)


def test_lengths_are_exact_when_given_and_quantiles_otherwise(trace: Trace) -> None:
    """All lengths make a step each; without them the five known quantiles are joined."""
    stats = trace_stats(trace)
    exact = draw(stats, input_tokens=trace.input_tokens, output_tokens=trace.output_tokens).axes[0].lines[0]
    np.testing.assert_allclose([1024, 1024, 1024, 2048, 2048, 3072], exact.get_xdata())
    np.testing.assert_allclose(np.arange(1, 7) / 6, exact.get_ydata())
    known = draw(stats).axes[0].lines[0]
    np.testing.assert_allclose([1024, 1024, 3072, 3072, 3072], known.get_xdata())
    np.testing.assert_allclose([0, 0.5, 0.9, 0.99, 1], known.get_ydata())


def test_trace_without_reuse_has_two_panels(trace: Trace) -> None:
    """Lengths and arrivals remain."""
    assert 2 == len(draw(dataclasses.replace(trace_stats(trace), reuse=None)).axes)


def test_single_request_renders() -> None:
    """One request without output, without duration and without any hit."""
    figure = draw(trace_stats(make_trace([[0]], output=0)))
    figure.draw_without_rendering()
    assert 4 == len(figure.axes)


def test_what_is_no_description_of_a_trace_is_refused(trace: Trace) -> None:
    """A trace itself is not its statistics, and an empty one has nothing to draw."""
    with pytest.raises(SimkvError, match="expected the statistics of a trace, found Trace"):
        draw(trace)
    with pytest.raises(SimkvError, match="hand-made: no requests"):
        draw(dataclasses.replace(trace_stats(trace), requests=0))
