"""Runs resampled by families: hand-computed cases, common draws, and how often intervals hold the truth."""

import math

import numpy as np
import pandas as pd
import pytest

from simkv.errors import SimkvError
from simkv.resampling import interval, mean_intervals, resample_results, resample_runs

METRICS = ["ttft_mean_s", "ttft_p90_s", "quality_mean"]


def requests(family: list[int], ttft_s: list[float], quality: float = 1.0, tokens: int = 100) -> pd.DataFrame:
    """A requests frame: one quality, every prompt as long as its family's number says."""
    frame = pd.DataFrame({"family": family, "ttft_s": ttft_s, "quality": quality, "measured": True})
    return frame.assign(input_tokens=tokens + frame["family"])


def test_row_zero_is_the_measurement() -> None:
    """Mean, 90th percentile and quality of the requests as they are, as numpy gives them."""
    delays = np.random.default_rng(3).exponential(1.0, 137)
    found = resample_runs({"a": requests((np.arange(137) // 3).tolist(), delays.tolist(), 0.75)}, METRICS)
    firsts = [found.values[metric][0, 0] for metric in METRICS]
    assert [delays.mean(), np.quantile(delays, 0.9), 0.75] == pytest.approx(firsts)


def test_two_families_by_hand() -> None:
    """Families {1 s, 3 s} and {5 s}: drawn twice, once or never, the mean is 2, 3 or 5 s, with odds 1 : 2 : 1.

    The median of 1 1 3 3, 1 3 5 and 5 5 is 2, 3 and 5 s, too.
    """
    found = resample_runs({"a": requests([0, 0, 1], [1.0, 3.0, 5.0])}, ["ttft_mean_s", "ttft_p50_s"]).values
    for metric in found:
        values, counts = np.unique(found[metric][1:, 0], return_counts=True)
        assert [2.0, 3.0, 5.0] == pytest.approx(values)
        assert [250, 500, 250] == pytest.approx(counts, abs=60)


def test_draws_are_common_to_policies() -> None:
    """A run that takes twice as long, request by request, does so in every resample."""
    delays = np.random.default_rng(0).exponential(1.0, 60)
    family = (np.arange(60) % 20).tolist()
    frames = {"a": requests(family, delays.tolist()), "b": requests(family, (2 * delays).tolist())}
    found = resample_runs(frames, METRICS).values
    for metric in METRICS[:2]:
        assert np.allclose(2.0, found[metric][:, 1] / found[metric][:, 0])
    assert found["ttft_mean_s"][1:, 0].std() > 0.05


def test_families_meet_across_seeds_by_their_requests_and_tokens() -> None:
    """Numbered the other way round they are the same families; of other lengths they are others, drawn apart."""
    family, delays = [0, 1, 2, 3, 3], np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    turned = requests([3, 2, 1, 0, 0], delays.tolist()).assign(input_tokens=[100, 101, 102, 103, 103])
    frames = {
        "a": requests(family, delays.tolist()),
        "same": turned,
        "others": requests(family, delays.tolist(), tokens=500),
    }
    values = resample_runs(frames, ["ttft_mean_s"]).values["ttft_mean_s"]
    assert np.allclose(values[:, 0], values[:, 1], equal_nan=True)
    both = values[1:][np.isfinite(values[1:]).all(axis=1)]
    assert abs(np.corrcoef(both[:, 0], both[:, 2])[0, 1]) < 0.1


def test_only_measured_requests_count() -> None:
    """A request of the warm-up is not in the mean."""
    frame = requests([0, 1, 2], [100.0, 1.0, 3.0]).assign(measured=[False, True, True])
    assert 2.0 == resample_runs({"a": frame}, ["ttft_mean_s"]).values["ttft_mean_s"][0, 0]


def test_many_families_are_merged_with_their_neighbours() -> None:
    """50,000 lone requests cost no more than 2,000, and their interval is as wide as it should be."""
    values = np.random.default_rng(1).normal(5.0, 1.0, 50_000)
    ((low, high),) = mean_intervals(values[:, None], np.arange(50_000), 0)
    assert 3.92 / math.sqrt(50_000) == pytest.approx(high - low, rel=0.1)


def test_intervals_cover_the_mean_where_requests_are_dependent() -> None:
    """40 contexts with 1 to 9 requests each of much the same delay: the interval holds the truth in 90 to 97 % of 300
    samples; requests drawn one by one would do so in fewer than 80 %.
    """
    rng = np.random.default_rng(0)
    held = naive = 0
    for seed in range(300):
        family = np.repeat(np.arange(40), rng.integers(1, 10, 40))
        values = rng.exponential(2.0, 40)[family] + rng.normal(0, 0.3, len(family))
        ((low, high),) = mean_intervals(values[:, None], family, seed)
        held += low <= 2.0 <= high
        half = 1.96 * values.std() / math.sqrt(len(values))
        naive += abs(values.mean() - 2.0) <= half
    assert 270 <= held <= 291
    assert naive < 240


def test_intervals_are_seeded_and_narrow_with_the_root_of_n() -> None:
    """The same seed gives the same interval; a hundred times the families a tenth of the width: 3.92 sd / sqrt(n)."""
    values = np.random.default_rng(1).normal(5.0, 1.0, 10_000)[:, None]
    alone = np.arange(10_000)
    assert mean_intervals(values, alone, 7) == mean_intervals(values, alone, 7) != mean_intervals(values, alone, 8)
    for count in (100, 10_000):
        ((low, high),) = mean_intervals(values[:count], alone[:count], 7)
        assert low < values[:count].mean() < high
        assert 3.92 * values[:count].std() / math.sqrt(count) == pytest.approx(high - low, rel=0.1)


def test_one_family_has_no_interval() -> None:
    """Whatever the number of its requests, in a run and in a comparison, and whatever seeds add."""
    assert all(math.isnan(end) for end in mean_intervals(np.ones((9, 1)), np.zeros(9, dtype=int), 0)[0])
    assert all(math.isnan(end) for end in interval([(np.array([1.0, 1.0, 1.0]), 1)]))
    assert all(math.isnan(end) for end in interval([(np.array([1.0, 1.0, 1.0]), 1), (np.array([1.0, 0.9, 1.1]), 3)]))


def test_interval_is_the_hull() -> None:
    """Row 0 does not count; the wider end wins on either side; a missing resample leaves no interval."""
    assert (1.0, 9.0) == interval([(np.array([50.0, 1.0, 3.0]), 9), (np.array([50.0, 2.0, 9.0]), 9)])
    assert all(math.isnan(end) for end in interval([(np.array([1.0]), 9)]))
    assert all(math.isnan(end) for end in interval([(np.array([1.0, 2.0, np.nan]), 9)]))


def test_few_units_have_wider_intervals() -> None:
    """Of the numbers 0 to 1000, 25 to 975 for very many units; for five, t = 2.776 and a share of 0.096 %: 0 to 1000.

    The share is that of a normal distribution beyond sqrt(5 / 4) x 2.776 = 3.10 standard deviations.
    """
    values = np.concatenate([[0.0], np.arange(1001.0)])
    assert (25.0, 975.0) == pytest.approx(interval([(values, 10**9)]), abs=1)
    assert (0.0, 1000.0) == interval([(values, 5)])
    finer = np.concatenate([[0.0], np.arange(100_001.0)])
    assert 97 == pytest.approx(interval([(finer, 5)])[0], abs=2)


def test_what_cannot_be_resampled_is_said(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """An unknown metric, a run without measured requests, one without families, one that is not there."""
    frame = requests([0], [1.0])
    with pytest.raises(SimkvError, match="metric 'ttft_max_s' cannot be resampled; allowed: ttft_mean_s"):
        resample_runs({"a": frame}, ["ttft_max_s"])
    with pytest.raises(SimkvError, match="run a: measured no request"):
        resample_runs({"a": frame.assign(measured=False)}, METRICS)
    with pytest.raises(SimkvError, match="run a: its requests have no column family; compute it again"):
        resample_runs({"a": frame.drop(columns="family")}, METRICS)
    with pytest.raises(SimkvError, match=r"requests.parquet: cannot read the requests of a run"):
        resample_results(tmp_path, ["none"], METRICS)
