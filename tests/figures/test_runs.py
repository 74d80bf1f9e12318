"""ttft-cdf, decisions and occupancy: figures of single runs show the rows of their frames."""

# matplotlib types what artists hand back as unions of everything.
# mypy: disable-error-code="arg-type, index, misc, union-attr, attr-defined"

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from simkv.errors import SimkvError
from simkv.figures import decisions, occupancy, ttft_cdf
from tests.figures.frames import occupancy_frame, requests_frame


def titles(figure: Figure) -> list[str]:
    """Texts of the figure's legend."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def stack(axes: Axes) -> dict[str, dict[float, float]]:
    """Name of the fill -> left edge of the bin -> height of its bar."""
    parts = [part for part in axes.containers if isinstance(part, BarContainer) and part.get_label()[0] != "_"]
    return {part.get_label(): {float(bar.get_x()): float(bar.get_height()) for bar in part} for part in parts}


def test_cdf_steps_through_the_measured_delays() -> None:
    """Every measured delay is a step of one n-th; rows that are not measured are left out."""
    frame = requests_frame()
    axes = ttft_cdf({"AdaptCache": frame}).axes[0]
    expected = np.sort(frame.loc[frame["measured"], "ttft_s"])
    curve = axes.lines[0]
    np.testing.assert_allclose(expected, curve.get_xdata()[1:])
    np.testing.assert_allclose(np.arange(1, 181) / 180, curve.get_ydata()[1:])
    assert ("TTFT (s)", "Share of requests", "log") == (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale())


def test_cdf_marks_percentiles_on_the_curve() -> None:
    """Of the delays 1 to 100 s, p50, p90 and p99 are 50, 90 and 99 s."""
    frame = pd.DataFrame({"ttft_s": np.arange(100.0, 0.0, -1.0), "measured": True})
    marks = ttft_cdf({"a": frame}, log_x=False).axes[0].lines[1]
    assert [50.0, 90.0, 99.0] == list(marks.get_xdata())
    assert [0.5, 0.9, 0.99] == list(marks.get_ydata())


def test_cdf_thins_long_runs_but_keeps_both_ends() -> None:
    """100,000 rows become at most 4,001 vertices from the smallest to the largest delay."""
    frame = pd.DataFrame({"ttft_s": np.arange(1, 100_001) / 1000, "measured": True})
    curve = ttft_cdf({"a": frame}).axes[0].lines[0]
    assert 4001 == len(curve.get_xdata())
    assert (0.001, 100.0, 1.0) == (curve.get_xdata()[0], curve.get_xdata()[-1], curve.get_ydata()[-1])


def test_cdf_draws_zero_delays_at_the_smallest_positive_one() -> None:
    """A logarithmic axis has no zero, a linear one does."""
    frame = pd.DataFrame({"ttft_s": [0.0, 0.5, 1.0], "measured": True})
    assert 0.5 == ttft_cdf({"a": frame}).axes[0].lines[0].get_xdata()[0]
    assert 0.0 == ttft_cdf({"a": frame}, log_x=False).axes[0].lines[0].get_xdata()[0]


def test_decisions_shares_are_the_frames() -> None:
    """In every bin the bars are the shares of its revisits, counted by hand."""
    frame = requests_frame()
    shares = stack(decisions({"AdaptCache": frame}).axes[0])
    assert ["DRAM kivi:4", "SSD kivi:2", "recompute"] == list(shares)
    rows = frame[frame["revisit"] & frame["measured"]]
    edges = np.linspace(0, 16.0 * 1.005, 25)
    for low, high in itertools.pairwise(edges):
        inside = rows[(rows["input_tokens"] / 1000 >= low) & (rows["input_tokens"] / 1000 < high)]
        expected = inside["served_by"].value_counts(normalize=True)
        drawn = {name: heights.get(low, 0.0) for name, heights in shares.items()}
        for name, tier in (("DRAM kivi:4", "dram"), ("SSD kivi:2", "ssd"), ("recompute", "recompute")):
            assert pytest.approx(expected.get(tier, 0.0)) == drawn[name]


def test_decisions_strip_shows_bands_below_the_stack() -> None:
    """The strip lies below zero and changes colour where the served tier changes."""
    axes = decisions({"a": requests_frame()}).axes[0]
    cells = sorted(
        (bar.get_x(), bar.get_facecolor()) for bar in axes.patches if bar.get_y() < 0 and bar.get_width() > 0
    )
    colours = [colour for _, colour in cells]
    changes = [cells[n + 1][0] for n in range(len(cells) - 1) if colours[n] != colours[n + 1]]
    np.testing.assert_allclose([4.0, 9.0], changes, atol=0.25)


def test_decisions_have_a_panel_per_run_and_one_legend() -> None:
    """Runs keep their order and share the axes."""
    figure = decisions({"one": requests_frame(), "two": requests_frame(100)})
    assert ["one", "two"] == [axes.get_title() for axes in figure.axes]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert ("Input length (thousand tokens)", "Share of revisits") == (
        figure.axes[1].get_xlabel(),
        figure.axes[0].get_ylabel(),
    )


def test_decisions_group_many_settings_by_compressor() -> None:
    """Six settings of two compressors on one tier are drawn as the two compressors, raw stays raw."""
    frame = requests_frame(1200)
    ssd = frame["served_by"] == "ssd"
    settings = ["raw", "keydiff:0.1", "keydiff:0.2", "keydiff:0.4", "knorm:0.1", "knorm:0.2"]
    frame.loc[ssd, "variant"] = np.resize(settings, int(ssd.sum()))
    assert ["DRAM kivi:4", "SSD raw", "SSD keydiff", "SSD knorm", "recompute"] == titles(decisions({"a": frame}))


def test_decisions_join_the_rarest_settings_of_one_compressor() -> None:
    """Seven settings of one compressor on one tier: the four commonest by name, the rest as "other"."""
    frame = requests_frame(1200)
    ssd = frame["served_by"] == "ssd"
    bits = np.repeat(["8", "7", "6", "5", "4", "3", "2"], [18, 16, 14, 12, 3, 2, 1])
    frame.loc[ssd, "variant"] = [f"kivi:{bit}" for bit in np.resize(bits, int(ssd.sum()))]
    names = titles(decisions({"a": frame}))
    assert ["SSD kivi:8", "SSD kivi:7", "SSD kivi:6", "SSD kivi:5", "SSD other"] == [n for n in names if n[0] == "S"]


def test_decisions_choose_a_logarithmic_axis_for_wide_spreads() -> None:
    """Lengths over three decades are logarithmic unless asked otherwise."""
    frame = requests_frame()
    frame["input_tokens"] = np.geomspace(100, 100_000, len(frame)).astype(int)
    assert "log" == decisions({"a": frame}).axes[0].get_xscale()
    assert "linear" == decisions({"a": frame}, log_x=False).axes[0].get_xscale()
    assert "linear" == decisions({"a": requests_frame()}).axes[0].get_xscale()


def test_occupancy_draws_gib_per_tier_with_its_capacity() -> None:
    """A panel per tier in the frame's order; the unlimited one has no capacity line."""
    figure = occupancy({"AdaptCache": occupancy_frame()})
    dram, remote = figure.axes
    assert ("DRAM (GiB)", "remote (GiB)", "Time (s)") == (dram.get_ylabel(), remote.get_ylabel(), remote.get_xlabel())
    np.testing.assert_allclose(np.minimum(np.linspace(0, 100, 50), 8), dram.lines[0].get_ydata())
    np.testing.assert_allclose([10, 10], dram.lines[1].get_ydata())
    assert 1 == len(remote.lines)
    assert ["10"] == [text.get_text() for text in dram.texts]


def test_occupancy_of_several_runs_is_a_line_each() -> None:
    """Runs share the panels, are named in the legend and need not have the same tiers."""
    frame = occupancy_frame()
    figure = occupancy({"one": frame, "two": frame[frame["tier"] == "dram"]})
    assert ["one", "two"] == titles(figure)
    assert [3, 1] == [len(axes.lines) for axes in figure.axes]


@pytest.mark.parametrize(("longest_s", "label"), [(599.0, "Time (s)"), (7199.0, "Time (min)"), (7200.0, "Time (h)")])
def test_occupancy_time_unit_follows_the_length_of_the_run(longest_s: float, label: str) -> None:
    """Minutes from ten minutes, hours from two hours."""
    frame = occupancy_frame()
    frame["time_s"] *= longest_s / 100
    assert label == occupancy({"a": frame}).axes[-1].get_xlabel()


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize(
    ("draw", "frame"), [(ttft_cdf, requests_frame()), (decisions, requests_frame()), (occupancy, occupancy_frame())]
)
def test_one_and_thirty_runs_render(draw: Callable[..., Figure], frame: pd.DataFrame, count: int) -> None:
    """Thirty runs fit, at page width."""
    figure = draw({f"run {n}": frame for n in range(count)})
    figure.draw_without_rendering()
    assert (3.4 if count == 1 else 7.0) == figure.get_figwidth()


@pytest.mark.parametrize(
    ("draw", "runs", "message"),
    [
        (ttft_cdf, {}, "requests: no runs"),
        (ttft_cdf, requests_frame(), r"expected \{label: frame\}, found DataFrame"),
        (ttft_cdf, {"a": requests_frame().drop(columns="ttft_s")}, "requests of 'a': missing column ttft_s"),
        (ttft_cdf, {"a": requests_frame().assign(measured=False)}, "requests of 'a': no measured request"),
        (ttft_cdf, {"a": requests_frame().assign(ttft_s=0.0)}, "ttft_s: a logarithmic axis"),
        (ttft_cdf, {"a": requests_frame().assign(ttft_s=np.nan)}, "ttft_s is not finite"),
        (decisions, {"a": requests_frame().assign(revisit=False)}, "requests of 'a': no measured revisit"),
        (decisions, {"a": requests_frame().iloc[:0]}, "requests of 'a': no rows"),
        (decisions, {"a": requests_frame()[["variant"]]}, "missing column input_tokens, served_by, revisit, measured"),
        (occupancy, {"a": occupancy_frame().drop(columns="tier")}, "occupancy of 'a': missing column tier"),
        (occupancy, {"a": None}, "occupancy of 'a': expected a table, found NoneType"),
    ],
)
def test_insufficient_frames_are_refused(draw: Callable[..., Figure], runs: object, message: str) -> None:
    """The message names the run and what it lacks."""
    with pytest.raises(SimkvError, match=message):
        draw(runs)


def test_decisions_on_a_logarithmic_axis_need_positive_lengths() -> None:
    """An empty prompt has no place on a logarithmic axis."""
    with pytest.raises(SimkvError, match="input_tokens: a logarithmic axis"):
        decisions({"a": requests_frame().assign(input_tokens=0)}, log_x=True)
