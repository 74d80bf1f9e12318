"""Statistics of a profile's quality rows, against answers computed by hand and against plainer code."""

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from scipy.stats import binom

from simkv.comparison import delay_at_quality, quality_at_delay
from simkv.errors import ProfileError
from simkv.profile_statistics import (
    MEAN,
    compressors,
    context_spread,
    family_of,
    quality_at_size,
    quality_points,
    reduction_factor,
    size_at_quality,
    split_name,
    task_gap,
    task_gaps,
    wins_at_quality,
    wins_at_size,
)
from simkv.profiles import RAW, UNMEASURED_PREFILL, Profile, Variant

SIZES = {"kivi:2": 0.2, "kivi:4": 0.4, "kivi:8": 0.8, "snapkv:0.1": 0.1, "snapkv:0.5": 0.5}
# kivi:8 is beaten by kivi:4, so that kivi ends at 0.4; the two tasks rank the compressors differently.
QA = {"kivi:2": 0.5, "kivi:4": 0.9, "kivi:8": 0.8, "snapkv:0.1": 0.2, "snapkv:0.5": 0.6}
CODE = {"kivi:2": 0.7, "kivi:4": 0.8, "kivi:8": 0.8, "snapkv:0.1": 0.8, "snapkv:0.5": 1.0}


def make(
    sizes: Mapping[str, float],
    tasks: Mapping[str, Mapping[str, ArrayLike]],
    train: Mapping[str, ArrayLike] | None = None,
) -> Profile:
    """A profile of these size ratios and of these qualities, one number or one per context, by task and variant."""
    rows = [
        {"task": task, "sample": sample, "variant": variant, "quality": float(quality)}
        | ({"quality_train": float(np.asarray(train[variant])[sample])} if train else {})
        for task, table in tasks.items()
        for variant, values in table.items()
        for sample, quality in enumerate(np.atleast_1d(np.asarray(values, dtype=float)))
    ]
    ratios = {RAW: 1.0} | {Variant.parse(name): ratio for name, ratio in sizes.items()}
    return Profile(
        name="made",
        model="toy",
        kv_bytes_per_token=1000,
        layers=2,
        variants=tuple(ratios),
        size_accounting="measured",
        size_ratio=ratios,
        load_lines={},
        decode_lines={},
        encode_lines={},
        prefill=UNMEASURED_PREFILL,
        tiers=(),
        host_link=None,
        quality=pd.DataFrame(rows, columns=None if rows else ["task", "sample", "variant", "quality"]),
        provenance={},
        sha256="",
        size_ratios={"measured": ratios},
    )


PLAIN = make(SIZES, {"qa": QA, "code": CODE})


def test_names_and_families() -> None:
    """Chains differ by their parts; droppers and chains are told from what keeps every token."""
    assert ("kivi", "2") == split_name(Variant("kivi", "2"))
    assert ("fp8", "") == split_name(Variant("fp8"))
    assert ("chain:snapkv+kivi", "0.5+4") == split_name(Variant("chain", "snapkv+kivi:0.5+4"))
    assert ["coder", "dropper", "chain", "chain", "coder"] == [
        family_of(name) for name in ("kivi", "snapkv", "chain:snapkv+kivi", "chain", "mine")
    ]


def test_families_are_those_of_the_classes() -> None:
    """The droppers named here are the built-in compressors that derive from Dropper."""
    pytest.importorskip("torch")
    from simkv.profiler.compressors import COMPRESSORS
    from simkv.profiler.compressors.chain import Chain
    from simkv.profiler.compressors.dropping import Dropper

    kinds = {name: "dropper" if issubclass(kind, Dropper) else "coder" for name, kind in COMPRESSORS.items()}
    assert kinds | {Chain.name: "chain"} == {name: family_of(name) for name in COMPRESSORS}


def test_compressors_have_their_variants_by_size() -> None:
    """Variants are grouped by compressor and sorted by size, raw left out."""
    found = compressors(make({"b:9": 0.9, "a": 0.3, "b:1": 0.1}, {"qa": {"a": 1.0, "b:1": 1.0, "b:9": 1.0}}))
    assert {"b": ["b:1", "b:9"], "a": ["a"]} == {name: list(map(str, group)) for name, group in found.items()}


def test_size_at_quality_by_hand() -> None:
    """Linear between knobs, the smallest knob below them, nothing above them, and a beaten knob does not count."""
    for quality, size in ((0.7, 0.3), (0.9, 0.4), (0.5, 0.2), (0.1, 0.2)):
        assert pytest.approx(size) == size_at_quality(PLAIN, "qa", "kivi", quality).value
    assert math.isnan(size_at_quality(PLAIN, "qa", "kivi", 0.91).value)
    # mean of both tasks: kivi 0.6 at 0.2 and 0.85 at 0.4; half way is 0.725
    assert pytest.approx(0.3) == size_at_quality(PLAIN, MEAN, "kivi", 0.725).value
    dip = make({"a:1": 0.2, "a:2": 0.3, "a:3": 0.5}, {"qa": {"a:1": 0.5, "a:2": 0.4, "a:3": 0.9}})
    assert pytest.approx(0.35) == size_at_quality(dip, "qa", "a", 0.7).value


def test_quality_at_size_by_hand() -> None:
    """The same line read the other way; a compressor that is never so small has no quality."""
    for size, quality in ((0.3, 0.7), (0.2, 0.5), (0.6, 0.9), (1.0, 0.9)):
        assert pytest.approx(quality) == quality_at_size(PLAIN, "qa", "kivi", size).value
    assert math.isnan(quality_at_size(PLAIN, "qa", "kivi", 0.19).value)


curves = st.lists(
    st.tuples(st.integers(1, 20), st.integers(0, 10)), min_size=1, max_size=7, unique_by=lambda point: point[0]
)


@given(curves, st.integers(0, 20), st.integers(0, 42))
@settings(max_examples=100)
def test_curves_agree_with_those_of_policies(points: list[tuple[int, int]], quality: int, size: int) -> None:
    """On any ladder, size and quality are what ``simkv.comparison`` reads off the same points."""
    sizes = {f"a:{n}": s / 20 for n, (s, _) in enumerate(points)}
    profile = make(sizes, {"qa": {f"a:{n}": q / 10 for n, (_, q) in enumerate(points)}})
    front = np.array([[s / 20, q / 10] for s, q in points])
    expected = delay_at_quality(front, quality / 20), quality_at_delay(front, size / 40)
    found = size_at_quality(profile, "qa", "a", quality / 20), quality_at_size(profile, "qa", "a", size / 40)
    assert pytest.approx(expected, nan_ok=True) == tuple(estimate.value for estimate in found)


def test_wins_at_quality_by_hand() -> None:
    """Winner, runner-up, and the runner-up's size over the winner's; sizes at the edge are marked."""
    qa, code, mean = wins_at_quality(PLAIN, [0.6])
    assert ("qa", "kivi", "snapkv", ()) == (qa.task, qa.winner, qa.runner_up, qa.at_edge)
    assert {"kivi": pytest.approx(0.25), "snapkv": pytest.approx(0.5)} == qa.values
    assert pytest.approx(2.0) == qa.margin.value
    assert ("code", "snapkv", "kivi", ("kivi", "snapkv")) == (code.task, code.winner, code.runner_up, code.at_edge)
    assert pytest.approx(2.0) == code.margin.value
    # means: kivi 0.6 at 0.2; snapkv 0.5 at 0.1 and 0.8 at 0.5, so 0.6 at 0.1 + 0.4 / 3
    assert (MEAN, "kivi", pytest.approx(0.7 / 3)) == (mean.task, mean.winner, mean.values["snapkv"])
    assert [None] * 3 == [win.significant for win in (qa, code, mean)]


def test_wins_where_few_or_none_reach_the_quality() -> None:
    """A compressor alone wins by an infinite factor; where none reaches the quality there is no winner."""
    alone, nobody = wins_at_quality(PLAIN, [0.8, 0.95])[:2]
    assert ("kivi", None, math.inf) == (alone.winner, alone.runner_up, alone.margin.value)
    assert (None, None, {}) == (nobody.winner, nobody.runner_up, nobody.values)
    assert math.isnan(nobody.margin.value)


def test_wins_at_size_by_hand() -> None:
    """The most quality within a size, and the difference to the next."""
    qa, code = wins_at_size(PLAIN, [0.3])[:2]
    # snapkv half way between 0.2 and 0.6
    assert ("kivi", {"kivi": pytest.approx(0.7), "snapkv": pytest.approx(0.4)}) == (qa.winner, qa.values)
    assert pytest.approx(0.3) == qa.margin.value
    assert ("snapkv", pytest.approx(0.9 - 0.75)) == (code.winner, code.margin.value)


def test_reduction_factor_by_hand() -> None:
    """Raw / stored of one over that of the other at equal quality, and nothing where one does not get there."""
    assert pytest.approx(2.0) == reduction_factor(PLAIN, "qa", "kivi", "snapkv", 0.6).value
    assert pytest.approx(0.5) == reduction_factor(PLAIN, "qa", "snapkv", "kivi", 0.6).value
    assert math.isnan(reduction_factor(PLAIN, "qa", "kivi", "snapkv", 0.7).value)


def test_task_gap_by_hand() -> None:
    """At half size snapkv keeps 0.6 in one task and everything in the other."""
    gap = task_gap(PLAIN, "snapkv")
    assert ("code", "qa", pytest.approx(0.4)) == (gap.best, gap.worst, gap.gap.value)
    assert {"qa": pytest.approx(0.6), "code": pytest.approx(1.0)} == gap.quality
    assert ["kivi", "snapkv"] == [gap.compressor for gap in task_gaps(PLAIN)]
    with pytest.raises(ProfileError, match=r"kivi has a quality at a size ratio of 0\.1 in fewer than two tasks"):
        task_gap(PLAIN, "kivi", 0.1)


def test_intervals_are_those_of_a_resampled_mean() -> None:
    """Half of 64 contexts right: the ends are the quantiles of a binomial share, to within one context."""
    right = [0.0, 1.0] * 32
    found = quality_points(make({"a": 0.5}, {"qa": {"a": right}})).set_index("compressor").loc["a"]
    expected = binom.ppf([0.025, 0.975], 64, 0.5) / 64
    assert 0.5 == found["quality"]
    np.testing.assert_allclose(expected, [found["low"], found["high"]], atol=1 / 64 + 1e-12)


def test_contexts_are_resampled_jointly() -> None:
    """A compressor ahead by the same in every context is ahead by exactly that in every resample."""
    hard = np.linspace(0.1, 0.8, 30)
    profile = make({"a:1": 0.5, "b:1": 0.5}, {"qa": {"a:1": hard + 0.1, "b:1": hard}})
    (win,) = wins_at_size(profile, [0.5])
    assert ("a", True) == (win.winner, win.significant)
    assert pytest.approx((0.1, 0.1, 0.1)) == (win.margin.value, win.margin.low, win.margin.high)
    points = quality_points(profile).set_index("compressor")
    assert points.loc["a", "high"] - points.loc["a", "low"] > 0.1


def test_a_win_by_chance_is_not_significant() -> None:
    """Two compressors that win half of the contexts each: the interval holds both outcomes."""
    coin = np.tile([0.4, 0.6], 20)
    profile = make({"a:1": 0.5, "b:1": 0.5}, {"qa": {"a:1": coin + 0.01, "b:1": 1 - coin}})
    (win,) = wins_at_size(profile, [0.5])
    assert ("a", False) == (win.winner, win.significant)
    assert win.margin.low < 0 < win.margin.high


def test_a_third_compressor_counts_in_the_interval() -> None:
    """One far more variable than the runner-up may beat the winner, though the runner-up never does."""
    steady = np.full(20, 0.5)
    wild = np.tile([0.0, 0.97], 10)
    sizes = {"a:1": 0.5, "b:1": 0.5, "c:1": 0.5}
    (two,) = wins_at_size(make(sizes, {"qa": {"a:1": steady, "b:1": steady - 0.01, "c:1": steady - 0.2}}), [0.5])
    (three,) = wins_at_size(make(sizes, {"qa": {"a:1": steady, "b:1": steady - 0.01, "c:1": wild}}), [0.5])
    assert ("a", "b", True) == (two.winner, two.runner_up, two.significant)
    assert ("a", "b", False) == (three.winner, three.runner_up, three.significant)


def test_a_win_at_quality_is_significant_only_if_the_runner_up_could_have_been_smaller() -> None:
    """The same sizes in every resample; with the runner-up at its edge the question stays open."""
    sizes = {"a:1": 0.1, "a:2": 0.2, "b:1": 0.3, "b:2": 0.4}
    for lowest, significant in ((0.5, True), (0.9, None)):
        values = {"a:1": 0.5, "a:2": 0.9, "b:1": lowest, "b:2": 0.9}
        profile = make(sizes, {"qa": {name: [value] * 6 for name, value in values.items()}})
        (win,) = wins_at_quality(profile, [0.8])
        assert ("a", significant) == (win.winner, win.significant)
        assert win.margin.low == win.margin.value == win.margin.high > 1


def test_resamples_that_miss_the_quality_count() -> None:
    """A compressor that just reaches a quality misses it in many resamples: its size has no upper end."""
    values = [0.9, 0.7] * 10
    profile = make({"a:1": 0.2, "b:1": 0.4}, {"qa": {"a:1": values, "b:1": [1.0] * 20}})
    size = size_at_quality(profile, "qa", "a", 0.8)
    assert (0.2, 0.2, math.inf) == (size.value, size.low, size.high)
    factor = reduction_factor(profile, "qa", "a", "b", 0.8)
    assert pytest.approx((2.0, 0.0, 2.0)) == (factor.value, factor.low, factor.high)


def test_few_contexts_have_no_interval() -> None:
    """Four contexts are too few; a task of four leaves the mean without an interval too."""
    four, five = [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4, 0.5]
    points = quality_points(make({"a": 0.5}, {"qa": {"a": four}, "code": {"a": five}}))
    known = points[points["compressor"] == "a"].set_index("task")["low"].notna()
    assert {"qa": False, "code": True, MEAN: False} == known.to_dict()


def test_equal_profiles_give_equal_numbers() -> None:
    """The seed is fixed, and an interval does not depend on which other compressors are asked about."""
    rng = np.random.default_rng(3)
    tasks = {task: {name: rng.random(12) for name in SIZES} for task in ("qa", "code")}
    first, second = make(SIZES, tasks), make(SIZES, tasks)
    pd.testing.assert_frame_equal(quality_points(first), quality_points(second))
    assert wins_at_quality(first, [0.4]) == wins_at_quality(second, [0.4])
    assert task_gaps(first) == [task_gap(second, name) for name in ("kivi", "snapkv")]


def test_points_leave_out_what_was_not_measured() -> None:
    """A variant without rows in one task is missing there and in the mean; raw counts 1."""
    points = quality_points(make({"a": 0.5, "b": 0.4}, {"qa": {"a": 0.5, "b": 0.6}, "code": {"a": 0.7}}))
    shown = {(row["task"], row["compressor"]): row["quality"] for row in points.to_dict("records")}
    assert {
        ("qa", "raw"): 1.0,
        ("qa", "a"): 0.5,
        ("qa", "b"): 0.6,
        ("code", "raw"): 1.0,
        ("code", "a"): 0.7,
        (MEAN, "raw"): 1.0,
        (MEAN, "a"): pytest.approx(0.6),
    } == shown
    assert wins_at_quality(make({}, {"qa": {"raw": 1.0}}), [0.5]) == []


def test_spread_by_hand() -> None:
    """Standard deviation, coefficient of variation, and what the two halves of the questions share."""
    scored = {"a": [0.2, 0.4, 0.6, 0.8], "b": [0.2, 0.4, 0.6, 0.8], "c": [0.5] * 4}
    train = {"a": [0.1, 0.2, 0.3, 0.4], "b": [0.3, 0.5, 0.5, 0.3], "c": [0.1, 0.2, 0.3, 0.4]}
    found = context_spread(make(dict.fromkeys("abc", 0.5), {"qa": scored}, train)).set_index("variant")
    sd = math.sqrt(0.2 / 3)  # squares 0.09 + 0.01 + 0.01 + 0.09 over n - 1
    assert pytest.approx([sd, sd, 0.0]) == found["sd"].tolist()
    assert pytest.approx([sd / 0.5, sd / 0.5, 0.0]) == found["cv"].tolist()
    assert pytest.approx([1.0, 0.0, math.nan], nan_ok=True) == found["split_half"].tolist()
    # of "a" the halves share a covariance of 0.1 / 3
    assert pytest.approx([math.sqrt(0.1 / 3), 0.0, 0.0]) == found["context_sd"].tolist()
    assert [4, 4, 4] == found["contexts"].tolist()


def test_split_half_tells_contexts_from_query_noise() -> None:
    """Contexts of variance 0.01 and noise of variance 0.01 in each half: the halves correlate by one half."""
    rng = np.random.default_rng(1)
    truth = 0.7 + 0.1 * rng.standard_normal(20_000)
    halves = [truth + 0.1 * rng.standard_normal(len(truth)) for _ in range(2)]
    (row,) = context_spread(make({"a": 0.5}, {"qa": {"a": halves[0]}}, {"a": halves[1]})).to_dict("records")
    assert pytest.approx(0.5, abs=0.02) == row["split_half"]
    assert pytest.approx(0.1, abs=0.002) == row["context_sd"]


def test_spread_without_contexts_or_training_questions() -> None:
    """One context has no spread, and without the second half nothing is known of query noise."""
    (row,) = context_spread(make({"a": 0.5}, {"qa": {"a": 0.5}})).to_dict("records")
    assert (1, 0.5) == (row["contexts"], row["mean"])
    assert all(math.isnan(row[name]) for name in ("sd", "cv", "split_half", "context_sd"))


def test_unknown_names_are_refused() -> None:
    """An unknown task or compressor is named, with the nearest that there is."""
    with pytest.raises(ProfileError, match=r"unknown compressor 'kivy' \(did you mean 'kivi'"):
        size_at_quality(PLAIN, "qa", "kivy", 0.5)
    with pytest.raises(ProfileError, match="unknown task 'qb'"):
        quality_at_size(PLAIN, "qb", "kivi", 0.5)
    with pytest.raises(ProfileError, match="made: there are no quality rows"):
        size_at_quality(make(SIZES, {}), MEAN, "kivi", 0.5)


def test_more_quality_never_takes_fewer_bytes() -> None:
    """Along rising targets sizes rise, and the ends of their intervals too."""
    rng = np.random.default_rng(5)
    profile = make(SIZES, {"qa": {name: rng.random(20) for name in SIZES}})
    found = [size_at_quality(profile, "qa", "kivi", quality) for quality in (0.1, 0.3, 0.4, 0.45)]
    for below, above in pairwise(found):
        assert below.value <= above.value
        assert below.low <= above.low
        assert below.high <= above.high
