"""Saving: suffixes, equal bytes, nothing half-written; and the list of figures."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from matplotlib.figure import Figure

from simkv.errors import SimkvError
from simkv.figures import (
    FIGURE_INPUTS,
    FIGURES,
    capacity_sweep,
    decisions,
    delay_quality,
    find_figure,
    goodput,
    hit_share,
    occupancy,
    save_figure,
    trace_stats,
    ttft_cdf,
)
from simkv.traces.stats import trace_stats as describe
from tests.conftest import make_trace
from tests.figures.frames import many_policies, occupancy_frame, requests_frame, summary_row, sweep
from tests.figures.test_goodput import over_rates
from tests.figures.test_sweeps import over_capacity

INPUTS = {
    "delay-quality": (delay_quality, sweep),
    "hit-share": (hit_share, sweep),
    "capacity-sweep": (capacity_sweep, over_capacity),
    "goodput": (goodput, over_rates),
    "ttft-cdf": (ttft_cdf, lambda: {"a": requests_frame()}),
    "decisions": (decisions, lambda: {"a": requests_frame()}),
    "occupancy": (occupancy, lambda: {"a": occupancy_frame()}),
    "trace-stats": (trace_stats, lambda: describe(make_trace([[0, 1], [0, 1, 2]]))),
}
MAGIC = {".png": b"\x89PNG\r\n\x1a\n", ".pdf": b"%PDF-", ".svg": b"<?xml"}


@pytest.mark.parametrize("suffix", MAGIC)
@pytest.mark.parametrize("name", INPUTS)
def test_same_inputs_give_the_same_bytes(name: str, suffix: str, tmp_path: Path) -> None:
    """Drawing and saving twice gives equal files of the right kind, without a date."""
    draw, make = INPUTS[name]
    first, second = (save_figure(draw(make()), tmp_path / f"{n}{suffix}").read_bytes() for n in "ab")  # type: ignore[operator]
    assert first.startswith(MAGIC[suffix])
    assert first == second
    assert b"CreationDate" not in first
    assert b"dc:date" not in first


def test_the_users_own_settings_change_nothing(tmp_path: Path) -> None:
    """A user's fonts and colours in matplotlib's global settings neither reach the figure nor are they lost."""
    expected = save_figure(delay_quality(sweep()), tmp_path / "a.png").read_bytes()
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "savefig.dpi": 30}):
        assert expected == save_figure(delay_quality(sweep()), tmp_path / "b.png").read_bytes()
        assert 20 == matplotlib.rcParams["font.size"]


def test_png_has_200_dots_per_inch(tmp_path: Path) -> None:
    """A column of 3.4 inches is 680 pixels wide."""
    data = save_figure(delay_quality(sweep()), tmp_path / "a.png").read_bytes()
    assert 680 == int.from_bytes(data[16:20], "big")


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    """The message names the suffix and the three known ones, and nothing is written."""
    with pytest.raises(SimkvError, match=r"suffix '.gif' is not one of .png, .pdf, .svg"):
        save_figure(Figure(), tmp_path / "a.gif")
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["missing/a.png", "file/a.png"])
def test_unwritable_places_are_refused(place: str, tmp_path: Path) -> None:
    """A missing folder, or a file in its place, is one line that names the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SimkvError, match=r"a\.png: cannot write the figure"):
        save_figure(delay_quality(sweep()), tmp_path / place)


def test_a_failed_save_leaves_the_old_file_alone(tmp_path: Path) -> None:
    """When drawing fails halfway, the previous picture stays and no partial file remains."""

    class Broken(Figure):
        def draw(self, renderer: object) -> None:
            raise ValueError("out of ink")

    path = tmp_path / "a.png"
    path.write_text("old")
    with pytest.raises(ValueError, match="out of ink"):
        save_figure(Broken(), path)
    assert "old" == path.read_text()
    assert [path] == list(tmp_path.iterdir())


def test_every_figure_is_listed_with_its_input() -> None:
    """The two tables and this test's own agree on the names."""
    assert set(INPUTS) == set(FIGURES) == set(FIGURE_INPUTS)
    assert all(FIGURES[name] is draw for name, (draw, _) in INPUTS.items())


def test_figures_are_found_by_name() -> None:
    """A known name gives its function, an unknown one the nearest name."""
    found: Callable[..., Figure] = find_figure("hit-share")
    assert hit_share is found
    with pytest.raises(SimkvError, match=r"unknown figure 'delay_quality' \(did you mean 'delay-quality'\?\)"):
        find_figure("delay_quality")


def test_a_policy_keeps_its_colour_in_every_figure() -> None:
    """AdaptCache is drawn in one colour whatever it is compared with, and wherever."""
    among = delay_quality(sweep()).axes[0].lines
    swept = capacity_sweep(over_capacity()).axes[0].lines
    alone = ttft_cdf({"AdaptCache": requests_frame()}).axes[0].lines[0]
    expected = alone.get_color()
    assert [expected] == [line.get_color() for line in among if line.get_label() == "AdaptCache"]
    assert [expected] == [line.get_color() for line in swept if line.get_label() == "AdaptCache"]


def test_a_tier_keeps_its_colour_in_every_figure() -> None:
    """DRAM has one colour in hit-share and occupancy, whatever other tiers there are."""
    bars = hit_share(sweep()).axes[0].patches
    other = hit_share(sweep().drop(columns="request_share_ssd").assign(request_share_remote=0.1)).axes[0].patches
    line = occupancy({"a": occupancy_frame()}).axes[0].lines[0]
    expected = matplotlib.colors.to_rgba(line.get_color())
    assert (expected, expected) == (bars[0].get_facecolor(), other[0].get_facecolor())


def test_long_labels_stay_inside_the_page() -> None:
    """Labels of 150 characters are broken into lines; the legend does not reach over the edge."""
    label = "a policy whose label its author could not bring himself to shorten in any way at all " * 2
    rows = [summary_row(label.strip(), 1.0, 0.9), summary_row("b", 2.0, 1.0)]
    figure = delay_quality(pd.concat([sweep(), pd.DataFrame(rows)]))
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


@pytest.mark.parametrize("label", ["", "_private", "$\\frac$", "a$b$c", "%d {}", "two\nlines", "<b>&amp;"])
def test_labels_are_text_whatever_they_look_like(label: str, tmp_path: Path) -> None:
    """No label is taken for mathematics or markup, or left out of the legend."""
    table = pd.concat([sweep(), pd.DataFrame([summary_row(label, 1.0, 0.9)])])
    figure = delay_quality(table)
    assert label.replace("\n", " ") in [text.get_text() for text in figure.legends[0].get_texts()]
    assert save_figure(figure, tmp_path / "a.svg").stat().st_size


def test_more_runs_than_fit_are_refused() -> None:
    """A thousand bars or panels are an error, before they are drawn."""
    with pytest.raises(SimkvError, match="191 inches tall, more than 100; pass fewer runs"):
        hit_share(many_policies(1000))
    with pytest.raises(SimkvError, match="more than 100; pass fewer runs"):
        decisions({f"run {n}": requests_frame(40) for n in range(1000)})
    with pytest.raises(SimkvError, match="201 labels to tell apart, more than 200; pass fewer runs"):
        delay_quality(many_policies(201))
