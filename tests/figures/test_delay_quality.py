"""The delay-quality figure: what is drawn is what the table says."""

# matplotlib types what artists hand back as unions of everything.
# mypy: disable-error-code="arg-type, index, misc, union-attr, attr-defined"

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simkv.errors import SimkvError
from simkv.figures import delay_quality
from tests.figures.frames import many_policies, summary_row, sweep


def curve(axes: Axes, label: str) -> list[tuple[float, float]]:
    """The points of the line with that label."""
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return [(float(x), float(y)) for x, y in zip(*line.get_data(orig=True), strict=True)]


def front(axes: Axes) -> set[tuple[float, float]]:
    """The corners of the Pareto front, the only line drawn in steps."""
    (line,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    return {(float(x), float(y)) for x, y in zip(*line.get_data(orig=True), strict=True)}


def notes(figure: Figure) -> list[str]:
    """Texts written beside points."""
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text() != "better"]


def legend(figure: Figure) -> list[str]:
    """Texts of the figure's legend."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def bars(axes: Axes) -> int:
    """Number of interval bars with both ends."""
    return sum(np.isfinite(path.vertices).all() for group in axes.collections for path in group.get_paths())


def brute_force_front(points: np.ndarray) -> set[tuple[float, float]]:
    """Points that no other point beats in delay or quality without losing in the other."""
    return {
        (x, y)
        for x, y in points.tolist()
        if not any(a <= x and b >= y and (a < x or b > y) for a, b in points.tolist())
    }


def test_each_label_is_a_line_through_its_settings_by_delay() -> None:
    """The points of a label are the table's means, ordered by delay."""
    axes = delay_quality(sweep()).axes[0]
    assert [(0.3, 0.60), (0.5, 0.84), (1.2, 0.98)] == curve(axes, "AdaptCache")
    assert [(0.6, 0.50), (0.8, 0.78)] == curve(axes, "KIVI + LRU")
    assert [(1.5, 1.0)] == curve(axes, "Prefill")


def test_axes_and_legend_name_what_they_show() -> None:
    """Both axes carry their unit, the legend each label once, then the front and what the bars are."""
    figure = delay_quality(sweep())
    note = "95 % interval: contexts\nresampled"
    assert ("Mean TTFT (s)", "Quality") == (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel())
    assert ["AdaptCache", "KIVI + LRU", "Prefill", "Pareto front", note] == legend(figure)


def test_intervals_of_single_runs_are_those_they_recorded() -> None:
    """Bars reach from the recorded low to the recorded high end."""
    axes = delay_quality(sweep().iloc[[0]]).axes[0]
    across, up = [path.vertices for group in axes.collections for path in group.get_paths()]
    np.testing.assert_allclose([[1.2 * 0.95, 0.98], [1.2 * 1.05, 0.98]], across)
    np.testing.assert_allclose([[1.2, 0.97], [1.2, 0.99]], up)


def test_seeds_become_one_point_with_seeds_resampled() -> None:
    """Three seeds of one setting: their mean, and from the least to the largest, which is all that three can say."""
    delays = [0.4, 0.5, 0.6]
    table = pd.DataFrame([summary_row("AdaptCache", t, 0.9, seed=seed) for seed, t in enumerate(delays)])
    figure = delay_quality(table)
    axes = figure.axes[0]
    ((mean, quality),) = curve(axes, "AdaptCache")
    assert (0.5, 0.9) == pytest.approx((mean, quality))
    across = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([0.4, 0.6], across[:, 0])
    assert "95 % interval: seeds\nresampled" == legend(figure)[-1]


def test_missing_intervals_draw_no_bars() -> None:
    """NaN ends, or no interval columns at all, leave the points alone."""
    table = sweep().drop(columns=["quality_mean_low", "quality_mean_high"])
    table[["ttft_mean_low_s", "ttft_mean_high_s"]] = np.nan
    axes = delay_quality(table).axes[0]
    assert 0 == bars(axes)
    assert not any("interval" in text for text in legend(delay_quality(table)))
    assert 3 == len(curve(axes, "AdaptCache"))


def test_the_front_is_that_of_all_points() -> None:
    """The step line has exactly the points that brute force finds undominated."""
    table = many_policies(30)
    points = table[["ttft_mean_s", "quality_mean"]].to_numpy()
    assert brute_force_front(points) == front(delay_quality(table).axes[0])


def test_bounds_are_drawn_but_not_part_of_the_front() -> None:
    """A bound beats everything, so it must not hide the front of what can be attained."""
    bound = summary_row("Bound", 0.1, 1.0, policy="bound")
    axes = delay_quality(pd.concat([sweep(), pd.DataFrame([bound])])).axes[0]
    assert [(0.1, 1.0)] == curve(axes, "Bound")
    assert front(delay_quality(sweep()).axes[0]) == front(axes)


def test_knobs_are_written_beside_points_but_not_beside_single_ones() -> None:
    """Only parameters that vary within a label are written; a lone setting has none."""
    written = set(notes(delay_quality(sweep())))
    assert {"\N{GREEK SMALL LETTER ALPHA}=0.1", "\N{GREEK SMALL LETTER ALPHA}=10", "kivi:2"} <= written
    assert not [text for text in written if "sizes" in text]
    assert [] == notes(delay_quality(sweep(), notes=False))


def test_notes_are_few_and_do_not_overlap() -> None:
    """At most twelve texts, none over another, all inside the panel."""
    rng = np.random.default_rng(3)
    rows = [
        summary_row(f"p{n}", 0.5 + rng.random(), rng.random(), params={"window": k}) for n in range(6) for k in range(5)
    ]
    figure = delay_quality(pd.DataFrame(rows))
    texts = [text for text in figure.axes[0].texts if text.get_text() != "better"]
    boxes = [text.get_window_extent() for text in texts]
    assert 4 <= len(boxes) <= 12
    assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if box.overlaps(other)]
    panel = figure.axes[0].get_window_extent().padded(1)
    assert all(panel.contains(*corner) for box in boxes for corner in box.corners())


def test_varying_grid_factors_become_panels() -> None:
    """Two tasks are two panels with their own points; curves never join different systems."""
    table = pd.concat([sweep().assign(tasks="qa"), sweep().assign(tasks="coding", quality_mean=0.5)])
    figure = delay_quality(table)
    assert ["qa", "coding"] == [axes.get_title() for axes in figure.axes]
    assert [(0.3, 0.60), (0.5, 0.84), (1.2, 0.98)] == curve(figure.axes[0], "AdaptCache")
    assert [(0.3, 0.5), (0.5, 0.5), (1.2, 0.5)] == curve(figure.axes[1], "AdaptCache")


def test_too_many_panels_are_refused() -> None:
    """Thirteen capacities do not fit a figure; the message says what made them."""
    table = pd.concat([sweep().assign(**{"tiers.dram.capacity": f"{n} GiB"}) for n in range(13)])
    with pytest.raises(SimkvError, match=r"tiers.dram.capacity make 13 panels"):
        delay_quality(table)


@pytest.mark.parametrize("count", [1, 30])
def test_one_run_and_thirty_runs_render(count: int) -> None:
    """The figure has a line per policy, and grows to page width for many."""
    figure = delay_quality(many_policies(count))
    labels = [line.get_label() for line in figure.axes[0].lines if str(line.get_label()).startswith("policy")]
    assert count == len(set(labels))
    assert (3.4 if count == 1 else 7.0) == figure.get_figwidth()


def test_logarithmic_delay() -> None:
    """The axis is logarithmic on request and refuses delays of zero by name."""
    assert "log" == delay_quality(sweep(), log_x=True).axes[0].get_xscale()
    with pytest.raises(SimkvError, match=r"ttft_mean_s.*positive"):
        delay_quality(pd.DataFrame([summary_row("a", 0.0, 1.0)]), log_x=True)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (sweep().drop(columns="quality_mean"), "missing column quality_mean"),
        (sweep().iloc[:0], "no rows"),
        (sweep().assign(ttft_mean_s=np.nan), "no row has a number in ttft_mean_s"),
        (sweep().assign(params="[1]"), "not a JSON object"),
        (sweep().assign(params="{"), "not a JSON object"),
    ],
)
def test_insufficient_tables_are_refused_in_one_line(table: pd.DataFrame, message: str) -> None:
    """The message says what is missing, on one line."""
    with pytest.raises(SimkvError, match=message) as caught:
        delay_quality(table)
    assert "\n" not in str(caught.value)


def test_something_else_than_a_table_is_refused() -> None:
    """A dict is no summary table."""
    with pytest.raises(SimkvError, match="expected a table, found dict"):
        delay_quality({})
