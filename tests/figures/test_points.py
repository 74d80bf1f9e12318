"""The helpers behind the figures: points of a summary table, knob texts, styles, free places for text."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from simkv.errors import SimkvError
from simkv.figures.placing import add_better_arrow, annotate_points, ends_first, ink_of
from simkv.figures.runs import thinned
from simkv.figures.style import new_figure, panel_grid, series_styles, shade, tier_colours, tint
from simkv.figures.tables import average_seeds, factor_columns, interval_columns, interval_note, knob_texts
from simkv.resampling import Resampled
from tests.figures.frames import summary_row


def table(*rows: dict[str, object]) -> pd.DataFrame:
    """A summary table of label "a" whose rows differ as given."""
    return pd.DataFrame([summary_row("a", 1.0, 0.9, **row) for row in rows])


def test_rows_that_differ_in_the_seed_only_are_one_point() -> None:
    """Parameters group as dict or JSON text, in any order of keys, 1 as 1.0."""
    frame = table({"seed": 0, "params": {"a": 1, "b": 2}}, {"seed": 1, "params": '{"b": 2.0, "a": 1.0}'})
    frame["params"] = [{"a": 1, "b": 2}, '{"b": 2.0, "a": 1.0}']
    assert [2] == average_seeds(frame, ["ttft_mean_s"])["seeds"].tolist()
    frame["params"] = [{"a": 1, "b": 2}, {"a": 1, "b": 3}]
    assert [1, 1] == average_seeds(frame, ["ttft_mean_s"])["seeds"].tolist()


def test_absent_parameters_are_none() -> None:
    """NaN, an empty text and a missing column all mean no parameters."""
    frame = table({}, {}, {})
    frame["params"] = [np.nan, "", None]
    assert [3] == average_seeds(frame, ["ttft_mean_s"])["seeds"].tolist()
    assert [{}] == average_seeds(frame.drop(columns="params"), ["ttft_mean_s"])["params"].tolist()


def test_a_seed_without_a_number_does_not_take_the_others_with_it() -> None:
    """The mean is over the seeds that have one."""
    frame = table({"seed": 0, "ttft_mean_s": 2.0}, {"seed": 1, "ttft_mean_s": np.nan})
    point = average_seeds(frame, ["ttft_mean_s"]).iloc[0]
    assert 2.0 == point["ttft_mean_s"]


def test_intervals_over_seeds_are_of_seeds_and_contexts() -> None:
    """By hand: seeds of 1 and 3 s span [1, 3]; contexts resampled give means of 1 and 4 s; together [1, 4].

    A metric that was not resampled has the seeds' interval alone, and a single seed the one that its run recorded.
    """
    frame = table({"seed": 1, "ttft_mean_s": 1.0, "run": "a"}, {"seed": 2, "ttft_mean_s": 3.0, "run": "b"})
    drawn = Resampled(("b", "a"), {"ttft_mean_s": np.array([[3.0, 1.0], [2.0, 0.0], [6.0, 2.0]])}, 50)
    metrics = ["ttft_mean_s", "token_hit_ratio"]
    point = average_seeds(frame, metrics, drawn).iloc[0]
    assert (1.0, 2.0, 4.0) == tuple(point[["ttft_mean_low_s", "ttft_mean_s", "ttft_mean_high_s"]])
    assert (0.6, 0.6) == pytest.approx(tuple(point[["token_hit_ratio_low", "token_hit_ratio_high"]]))
    point = average_seeds(frame, metrics).iloc[0]
    assert (1.0, 3.0) == tuple(point[["ttft_mean_low_s", "ttft_mean_high_s"]])
    point = average_seeds(frame[:1], metrics, drawn).iloc[0]
    assert (0.95, 1.05) == tuple(point[["ttft_mean_low_s", "ttft_mean_high_s"]])


def test_intervals_say_what_was_resampled() -> None:
    """Contexts for a run, seeds for a table of several, both where the runs' requests are known; nothing for none."""
    frame = table({"seed": 1, "run": "a"}, {"seed": 2, "run": "b"})
    drawn = Resampled(("a", "b"), {"ttft_mean_s": np.ones((3, 2))}, 50)
    notes = [
        interval_note(average_seeds(*arguments))
        for arguments in (
            (frame[:1], ["ttft_mean_s"]),
            (frame, ["ttft_mean_s"]),
            (frame, ["ttft_mean_s"], drawn),
            (frame[:1], ["token_hit_ratio"]),
        )
    ]
    what = ("contexts", "seeds", "contexts and seeds")
    assert [*(f"95 % interval: {units} resampled" for units in what), ""] == notes


def test_only_factors_that_vary_are_factors() -> None:
    """Dotted columns with two values or more, the task and the model; never policy parameters or other columns."""
    frame = table(
        {"trace.rate": 1, "tiers.dram.capacity": "1 GiB", "policy.alpha": 1, "tasks": "qa", "engine": "a"},
        {"trace.rate": 1.0, "tiers.dram.capacity": "2 GiB", "policy.alpha": 2, "tasks": '{"qa": 1}', "engine": "b"},
    )
    assert {"tiers.dram.capacity", "tasks"} == set(factor_columns(frame))


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ([{"variant": "kivi:2"}, {"variant": "kivi:4"}], ["kivi:2", "kivi:4"]),
        (
            [{"variant": "streamingllm:0.37"}, {"variant": "streamingllm:0.49"}, {"variant": "raw"}],
            ["0.37", "0.49", "raw"],
        ),
        ([{"variant": "keydiff:0.1"}, {"variant": "knorm:0.1"}], ["keydiff:0.1", "knorm:0.1"]),
        ([{"k": 1, "window": 0.12345678}, {"k": 1, "window": 2}], ["window=0.1235", "window=2"]),
        ([{"k": True, "m": "x"}, {"k": False, "m": "y"}], ["k=true, m=x", "k=false, m=y"]),
        ([{"k": 1}, {}], ["k=1", ""]),
        ([{"k": 1}], [""]),
    ],
)
def test_knob_texts_say_what_varies(params: list[dict[str, object]], expected: list[str]) -> None:
    """The shortest text that tells the settings of one label apart."""
    frame = pd.DataFrame({"label": ["a"] * len(params), "params": params})
    assert expected == knob_texts(frame)


def test_interval_columns_keep_the_unit_at_the_end() -> None:
    """ttft_mean_s has its unit after low and high, quality_mean has none."""
    assert ("ttft_mean_low_s", "ttft_mean_high_s") == interval_columns("ttft_mean_s")
    assert ("quality_mean_low", "quality_mean_high") == interval_columns("quality_mean")


def test_the_same_policy_with_other_parameters_keeps_its_hue() -> None:
    """Labels with parentheses get brightnesses of one colour, and differ in marker and dashes too."""
    styles = series_styles(["AdaptCache (a=1)", "AdaptCache (a=2)", "other"])
    one, two, other = styles.values()
    assert to_rgb(series_styles(["adaptcache"])["adaptcache"].color) == to_rgb(one.color)
    assert tint(one.color, 0.5) == pytest.approx(two.color)
    assert 3 == len({one.marker, two.marker, other.marker})
    assert one.linestyle != two.linestyle


def test_unknown_labels_never_take_the_colour_of_a_known_one() -> None:
    """Beside AdaptCache, the first eleven unknown policies have eleven other colours."""
    styles = series_styles(["AdaptCache", *(f"mine {n}" for n in range(11))])
    assert 12 == len({to_rgb(style.color) for style in styles.values()})


def test_thirty_policies_are_told_apart() -> None:
    """No two of thirty labels share colour, marker and dashes."""
    styles = series_styles(f"policy {n}" for n in range(30)).values()
    assert 30 == len({(style.color, style.marker, str(style.linestyle)) for style in styles})


def test_tiers_have_distinct_colours_known_or_not() -> None:
    """Four known and three unknown tiers are told apart."""
    assert 7 == len(set(tier_colours(["dram", "ssd", "remote", "recompute", "tape", "drum", "core"]).values()))


def test_neighbouring_tiers_differ_in_greyscale() -> None:
    """In the order of a stack, brightness changes by an eighth or more from tier to tier."""
    colours = tier_colours(["dram", "ssd", "remote", "recompute"])
    greys = [float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114))) for colour in colours.values()]
    assert min(abs(np.diff(greys))) > 0.125


def test_tint_and_shade_mix_with_white_and_black() -> None:
    """Half of white, half of black, and nothing at all."""
    assert (0.5, 0.75, 1.0) == tint((0.0, 0.5, 1.0), 0.5)
    assert (0.0, 0.25, 0.5) == shade((0.0, 0.5, 1.0), 0.5)
    assert (0.2, 0.4, 0.6) == pytest.approx(tint((0.2, 0.4, 0.6), 0.0))


@pytest.mark.parametrize(
    ("count", "grid"), [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3)), (30, (10, 3))]
)
def test_panel_grid(count: int, grid: tuple[int, int]) -> None:
    """Three panels to a row, but four in a square."""
    assert grid == panel_grid(count)


@settings(max_examples=30)
@given(st.integers(1, 40))
def test_ends_first_visits_every_point_once(count: int) -> None:
    """It is a permutation that begins with both ends."""
    order = ends_first(count)
    assert list(range(count)) == sorted(order)
    assert {0, count - 1} == set(order[:2])


def test_ends_first_halves_the_gaps() -> None:
    """Of five points: the ends, the middle, then the quarters."""
    assert [0, 4, 2] == ends_first(5)[:3]


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (10, 10), (4000, 4000), (4001, 4000), (10**6, 4000)])
def test_thinning_keeps_short_lines_whole(count: int, kept: int) -> None:
    """Up to 4,000 vertices stay; of more, 4,000 with both ends."""
    picks = thinned(count)
    assert kept == len(picks)
    assert (0, count - 1) == (picks[0], picks[-1])


def panel() -> Figure:
    """An empty panel with final limits from 0 to 1."""
    figure = new_figure(3.0, 3.0)
    figure.subplots().set(xlim=(0, 1), ylim=(0, 1))
    figure.draw_without_rendering()
    return figure


def test_texts_that_fit_nowhere_are_left_out() -> None:
    """Ink everywhere leaves no place; an empty panel has one."""
    axes = panel().axes[0]
    box = axes.get_window_extent()
    x, y = np.meshgrid(np.arange(box.x0, box.x1, 2), np.arange(box.y0, box.y1, 2))
    everywhere = np.column_stack([x.ravel(), y.ravel()])
    text = (0.5, 0.5, "alpha", "black")
    assert 0 == annotate_points(axes, [text], everywhere, [])
    assert 0 == len(axes.texts)
    assert 1 == annotate_points(axes, [text], np.empty((0, 2)), [])


def test_two_texts_at_one_point_stand_apart() -> None:
    """The second of two equal texts takes another side."""
    axes = panel().axes[0]
    boxes: list = []
    assert 2 == annotate_points(axes, [(0.5, 0.5, "alpha", "black")] * 2, np.empty((0, 2)), boxes)
    assert not boxes[0].overlaps(boxes[1])


def test_the_arrow_avoids_the_curve() -> None:
    """With a line through the upper left corner the arrow goes to another one."""
    axes = panel().axes[0]
    free = add_better_arrow(axes, ink_of(axes))
    assert (axes.bbox.x0, axes.bbox.y1) == pytest.approx((free.x0, free.y1))
    axes.plot([0.0, 0.1], [0.95, 0.95])
    moved = add_better_arrow(axes, ink_of(axes))
    assert (axes.bbox.x1, axes.bbox.y0) == pytest.approx((moved.x1, moved.y0))


def test_ink_stays_inside_the_panel_however_far_a_bar_reaches() -> None:
    """An interval a million times the panel costs no more pixels than the panel has."""
    axes = panel().axes[0]
    axes.errorbar([0.5], [0.5], xerr=[1e6], fmt="none")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    ink = ink_of(axes)
    assert len(ink) < axes.bbox.width
    assert (axes.bbox.x0, axes.bbox.x1) == pytest.approx((ink[:, 0].min(), ink[:, 0].max()))


def test_points_without_any_number_are_an_error() -> None:
    """A table whose metric is text or NaN everywhere has nothing to draw."""
    with pytest.raises(SimkvError, match="no row has a number in ttft_mean_s"):
        average_seeds(table({"ttft_mean_s": "fast"}), ["ttft_mean_s"])
