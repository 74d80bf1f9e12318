"""hit-share and capacity-sweep: bars and lines are the summary table's numbers."""

# matplotlib types what artists hand back as unions of everything.
# mypy: disable-error-code="arg-type, index, misc, union-attr, attr-defined"

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from simkv.errors import SimkvError
from simkv.figures import capacity_sweep, hit_share
from tests.figures.frames import many_policies, summary_row, sweep


def widths(figure: Figure) -> list[list[float]]:
    """Widths of the bars: one list per tier in stacking order, one number per run."""
    stacks = [part for part in figure.axes[0].containers if isinstance(part, BarContainer)]
    return [[float(bar.get_width()) for bar in stack] for stack in stacks]


def names(axes: Axes) -> list[str]:
    """Names of the bars from the top."""
    return [tick.get_text() for tick in axes.get_yticklabels()]


def over_capacity() -> pd.DataFrame:
    """Two policies at three DRAM capacities, three seeds each; delays fall with capacity."""
    rows = []
    for index, capacity in enumerate(["256 GiB", "64 GiB", "512 MiB"]):
        for seed in range(3):
            for label, base in (("AdaptCache", 0.4), ("Offload", 1.0)):
                delay = base + 0.1 * index + 0.01 * seed
                rows.append(summary_row(label, delay, 0.9, seed=seed, **{"tiers.dram.capacity": capacity}))
    return pd.DataFrame(rows)


def test_hit_share_stacks_the_tiers_of_each_run() -> None:
    """Bars are the request shares, fast tier first, recompute last."""
    figure = hit_share(sweep())
    np.testing.assert_allclose([[0.5] * 5 + [0.0], [0.2] * 5 + [0.0], [0.3] * 5 + [1.0]], widths(figure))
    assert ["DRAM", "SSD", "recompute"] == [text.get_text() for text in figure.legends[0].get_texts()]
    assert "Share of requests" == figure.axes[0].get_xlabel()


def test_hit_share_names_bars_by_what_sets_them_apart() -> None:
    """Label and knob; a lone setting has its label only."""
    alpha = "\N{GREEK SMALL LETTER ALPHA}"
    expected = [f"AdaptCache ({alpha}={value})" for value in ("0.1", "10", "0.5")]
    assert [*expected, "KIVI + LRU (kivi:2)", "KIVI + LRU (kivi:4)", "Prefill"] == names(hit_share(sweep()).axes[0])


def test_hit_share_of_tokens_counts_the_rest_as_recomputed() -> None:
    """Token shares have no recompute column; what is left of 100 % is recomputed."""
    figure = hit_share(sweep().iloc[[0]], by="tokens")
    np.testing.assert_allclose([[0.4], [0.2], [0.4]], widths(figure))
    assert "Share of tokens" == figure.axes[0].get_xlabel()


def test_hit_share_averages_seeds_and_takes_absent_tiers_as_zero() -> None:
    """Two seeds make one bar; a run without a remote tier has none of it."""
    rows = [summary_row("a", 1.0, 1.0, seed=0, request_share_remote=0.2, request_share_recompute=0.1)]
    rows += [summary_row("a", 1.0, 1.0, seed=1), summary_row("b", 1.0, 1.0)]
    table = pd.DataFrame(rows)
    columns = [f"request_share_{tier}" for tier in ("dram", "ssd", "remote", "recompute")]
    figure = hit_share(table[["label", "params", "seed", *columns]])
    np.testing.assert_allclose([[0.5, 0.5], [0.2, 0.2], [0.1, 0.0], [0.2, 0.3]], widths(figure))


@pytest.mark.parametrize("count", [1, 30])
def test_hit_share_of_one_and_thirty_runs(count: int) -> None:
    """There is a bar per run, and the figure grows with them."""
    figure = hit_share(many_policies(count))
    assert count == len(names(figure.axes[0]))
    assert 0.5 + 0.19 * count <= figure.get_figheight() <= 1.0 + 0.19 * count


@pytest.mark.parametrize(
    ("table", "by", "message"),
    [
        (sweep(), "token", r"unknown share 'token' \(did you mean 'tokens'\?\)"),
        (sweep()[["label"]], "requests", "missing column request_share_<tier>"),
        (sweep().iloc[:0], "requests", "no rows"),
        (sweep().drop(columns="label"), "requests", "missing column label"),
    ],
)
def test_hit_share_refuses_insufficient_tables(table: pd.DataFrame, by: str, message: str) -> None:
    """The message names what is missing or unknown."""
    with pytest.raises(SimkvError, match=message):
        hit_share(table, by=by)


def test_capacity_sweep_reads_sizes_and_averages_seeds() -> None:
    """Capacities become GiB in ascending order, each point the mean of its seeds."""
    figure = capacity_sweep(over_capacity())
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    assert ["AdaptCache", "Offload"] == list(lines)
    np.testing.assert_allclose([0.5, 64, 256], lines["AdaptCache"].get_xdata())
    np.testing.assert_allclose([0.61, 0.51, 0.41], lines["AdaptCache"].get_ydata())
    assert ["0.5", "64", "256"] == [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ("DRAM capacity (GiB)", "Mean TTFT (s)") == (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel())


def test_capacity_sweep_bands_are_the_intervals() -> None:
    """The band of three seeds 0.01 apart reaches from one to the other, and the legend says what it is."""
    figure = capacity_sweep(over_capacity())
    edges = figure.axes[0].collections[0].get_paths()[0].vertices
    assert "95 % interval: seeds\nresampled" == figure.legends[0].get_texts()[-1].get_text()
    np.testing.assert_allclose([0.41 - 0.01, 0.61 + 0.01], [edges[:, 1].min(), edges[:, 1].max()], rtol=1e-6)


def test_capacity_sweep_without_intervals_draws_no_band() -> None:
    """A single seed of a metric without recorded interval is a line alone."""
    table = over_capacity()
    figure = capacity_sweep(table[table["seed"] == 0], metric="token_hit_ratio")
    assert (0, 2) == (len(figure.axes[0].collections), len(figure.axes[0].lines))
    assert 2 == len(figure.legends[0].get_texts())


def test_capacity_sweep_puts_unlimited_last() -> None:
    """An unlimited tier stands one step beyond the largest size."""
    table = pd.concat([over_capacity(), over_capacity().assign(**{"tiers.dram.capacity": "unlimited"})])
    axes = capacity_sweep(table).axes[0]
    assert "no limit" == axes.get_xticklabels()[-1].get_text()
    np.testing.assert_allclose([0.5, 64, 256, 1024], axes.lines[0].get_xdata())


@pytest.mark.parametrize(
    ("factor", "values", "label", "places"),
    [
        ("tiers.ssd.read", ["6 GB/s", "500 MB/s"], "SSD read (GB/s)", [0.5, 6]),
        ("engine.warmup", ["2 min", "30 s"], "engine.warmup (s)", [30, 120]),
        ("trace.rate", [0.5, 2.0], "trace.rate", [0.5, 2]),
    ],
)
def test_capacity_sweep_takes_any_quantity(factor: str, values: list[object], label: str, places: list[float]) -> None:
    """Bandwidths, durations and plain numbers have their own unit on the axis."""
    table = pd.DataFrame([summary_row("a", 1.0, 1.0, **{factor: value}) for value in values])
    axes = capacity_sweep(table, factor=factor).axes[0]
    assert label == axes.get_xlabel()
    np.testing.assert_allclose(places, axes.lines[0].get_xdata())


def test_capacity_sweep_splits_other_factors_into_panels() -> None:
    """A second factor makes panels; parameters make lines of one hue group."""
    table = pd.concat([over_capacity().assign(**{"trace.rate": rate}) for rate in (1, 2)])
    figure = capacity_sweep(table)
    assert ["rate = 1", "rate = 2"] == [axes.get_title() for axes in figure.axes]


def test_capacity_sweep_scales_bytes() -> None:
    """Bytes written are drawn in GB."""
    table = over_capacity().assign(ssd_written_bytes=5e9)
    axes = capacity_sweep(table, metric="ssd_written_bytes").axes[0]
    assert "Written to SSD (GB)" == axes.get_ylabel()
    np.testing.assert_allclose([5, 5, 5], axes.lines[0].get_ydata())


def test_capacity_sweep_of_thirty_policies() -> None:
    """Thirty policies are thirty lines over two sizes."""
    table = pd.concat([many_policies(30).assign(**{"tiers.dram.capacity": size}) for size in ("1 GiB", "2 GiB")])
    assert [2] * 30 == [len(line.get_xdata()) for line in capacity_sweep(table).axes[0].lines]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "ttft_mean"}, r"unknown metric 'ttft_mean' \(did you mean 'ttft_mean_s'\?\)"),
        ({"metric": "makespan_s"}, "missing column makespan_s"),
        ({"factor": "tiers.drm.capacity"}, r"unknown grid factor .*did you mean 'tiers.dram.capacity'"),
        ({"factor": "policy.alpha"}, "policy.alpha: a parameter of a policy"),
        ({"factor": "tiers.dram.discipline"}, "tiers.dram.discipline: 'fifo', 'fair' are not all sizes"),
        ({"factor": "trace.rate"}, "trace.rate: only one value"),
    ],
)
def test_capacity_sweep_refuses_what_it_cannot_draw(options: dict[str, str], message: str) -> None:
    """The message names the factor or metric and what is wrong with it."""
    table = over_capacity()
    table["policy.alpha"] = 1
    table["trace.rate"] = 1
    table["tiers.dram.discipline"] = ["fifo", "fair"] * (len(table) // 2)
    with pytest.raises(SimkvError, match=message):
        capacity_sweep(table, **options)
