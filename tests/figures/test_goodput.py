"""goodput: lines are the summary table's numbers, sorted by the measured request rate."""

# matplotlib types what artists hand back as unions of everything.
# mypy: disable-error-code="arg-type, index, misc, union-attr, attr-defined"

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from simkv.errors import SimkvError
from simkv.figures import goodput
from tests.figures.frames import summary_row

RATES = (1.0, 2.0, 0.5, 4.0)


def over_rates(**more: object) -> pd.DataFrame:
    """Two policies at four rates (not in order), two seeds each, and a bound; the objective fails from 2/s on."""
    rows = []
    for rate in RATES:
        for seed in range(2):
            for label, most in (("AdaptCache", 2.0), ("Offload", 1.0)):
                share = min(1.0, most / rate) - 0.02 * seed
                facts = {"slo_share": share, "goodput_per_s": share * rate * 3, "request_rate_per_s": 3 * rate}
                rows.append(summary_row(label, 1.0, 0.9, seed=seed, **facts, **{"trace.rate": rate}, **more))
        rows.append(summary_row("bound", 0.1, 0.9, **{"trace.rate": rate}, **more))
    return pd.DataFrame(rows)


def line(axes: Axes, index: int) -> np.ndarray:
    """Points of a line with markers, [n, 2]."""
    return [found for found in axes.get_lines() if found.get_marker() not in ("", "None")][index].get_xydata()


def test_lines_are_the_means_over_seeds_by_rate() -> None:
    """Two panels: share and goodput at the measured rates, rising; the bound has no line."""
    figure = goodput(over_rates())
    left, right = figure.axes
    expected = np.array([[1.5, 0.99], [3.0, 0.99], [6.0, 0.99], [12.0, 0.49]])
    np.testing.assert_allclose(expected, line(left, 0))
    np.testing.assert_allclose(expected[:, 0] * expected[:, 1], line(right, 0)[:, 1])
    np.testing.assert_allclose([0.99, 0.99, 0.49, 0.24], line(left, 1)[:, 1])
    note = "95 % interval: seeds\nresampled"
    assert ["AdaptCache", "Offload", note] == [text.get_text() for text in figure.legends[0].get_texts()]
    assert "Requests sent per second" == left.get_xlabel() == right.get_xlabel()


def test_other_factors_make_rows() -> None:
    """A second factor has a row of two panels for each value, with its name."""
    table = pd.concat([over_rates(**{"engine.gpus": gpus}) for gpus in (4, 8)])
    figure = goodput(table)
    assert 4 == len(figure.axes)
    assert ["gpus = 4", "gpus = 8"] == [axes.get_title(loc="left") for axes in figure.axes[::2]]


@pytest.mark.parametrize(
    ("table", "part"),
    [
        (over_rates().drop(columns="slo_share"), "missing column slo_share"),
        (over_rates()[over_rates()["trace.rate"] == 1.0], "one request rate only"),
        (over_rates().assign(slo_share=np.nan), "no row has a number in slo_share"),
    ],
)
def test_what_cannot_be_drawn(table: pd.DataFrame, part: str) -> None:
    """Without an objective, or without a sweep over rates, there is one clear error."""
    with pytest.raises(SimkvError, match=part):
        goodput(table)
