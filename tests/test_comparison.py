"""Operating curves compared: hand-computed interpolation and its limits."""

import numpy as np
import pandas as pd
import pytest

from simkv.comparison import compare_curves, delay_at_quality, quality_at_delay
from simkv.errors import SimkvError

# Fast and bad, middling, slow and good; the last point is beaten by the second and must not count.
CURVE = np.array([[1.0, 0.5], [2.0, 0.9], [4.0, 1.0], [3.0, 0.8]])


def test_delay_at_quality_interpolates_along_the_front() -> None:
    """Half way from quality 0.5 to 0.9 is half way from 1 s to 2 s."""
    assert 1.5 == pytest.approx(delay_at_quality(CURVE, 0.7))
    assert 3.0 == pytest.approx(delay_at_quality(CURVE, 0.95))


def test_delay_at_quality_beyond_the_curve() -> None:
    """Below the front the fastest point serves; above it there is no answer."""
    assert 1.0 == delay_at_quality(CURVE, 0.2)
    assert np.isnan(delay_at_quality(CURVE, 1.1))


def test_quality_at_delay_is_the_inverse() -> None:
    """At 1.5 s the curve reaches 0.7; faster than its first point it reaches nothing; slower, its best."""
    assert 0.7 == pytest.approx(quality_at_delay(CURVE, 1.5))
    assert np.isnan(quality_at_delay(CURVE, 0.5))
    assert 1.0 == quality_at_delay(CURVE, 9.0)


def _table() -> pd.DataFrame:
    rows = [("ours", "a", x, y, 1) for x, y in CURVE] + [("static", "b", 3.0, 0.7, 1), ("static", "b", 3.0, 0.7, 2)]
    return pd.DataFrame(rows, columns=["label", "params", "ttft_mean_s", "quality_mean", "size"])


def test_compare_curves_states_both_ratios() -> None:
    """A baseline of 3 s at 0.7: ours needs 1.5 s (2x), and reaches 0.95 in 3 s (+35.7 %)."""
    row = compare_curves(_table(), "ours").iloc[0]
    assert 2.0 == pytest.approx(row["delay_ratio"])
    assert 0.95 / 0.7 - 1 == pytest.approx(row["quality_gain"])


def test_compare_curves_keeps_groups_apart() -> None:
    """With ``by``, a baseline is compared only where the curve has points; the other group is left out."""
    compared = compare_curves(_table(), "ours", by=["size"])
    assert [1] == compared["size"].tolist()


def test_compare_curves_names_what_is_missing() -> None:
    """An unknown label and a missing column are one-line errors."""
    with pytest.raises(SimkvError, match="no run has the label 'theirs'; labels: ours, static"):
        compare_curves(_table(), "theirs")
    with pytest.raises(SimkvError, match="no column quality_mean"):
        compare_curves(_table().drop(columns="quality_mean"), "ours")
