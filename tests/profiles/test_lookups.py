"""Variants, lines, prefill, quality look-ups, composition, Pareto fronts and the description."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simkv.errors import ProfileError
from simkv.profiles import (
    RAW,
    UNMEASURED_PREFILL,
    Line,
    PrefillFit,
    Profile,
    Variant,
    compose,
    describe,
    load_profile,
    pareto_front,
)

KIVI2 = Variant("kivi", "2")
KEYDIFF = Variant("keydiff", "0.4")


@pytest.fixture
def profile(tiny: Path) -> Profile:
    """The hand-made profile, loaded."""
    return load_profile(tiny)


@pytest.mark.parametrize("text", ["raw", "kivi:2", "keydiff:0.1", "fp8", "chain:streamingllm=0.5+kivi=2", "quant:k8v4"])
def test_variants_are_their_text(text: str) -> None:
    """A variant and its text are the same thing."""
    assert text == str(Variant.parse(text))


@pytest.mark.parametrize(
    "text", ["", ":2", "kivi:", "KIVI:2", "kivi: 2", "kivi:2\n", "raw:1", "a b", "kivi:../x", "x" * 40]
)
def test_ill_formed_variants(text: str) -> None:
    """Anything that is not a plain name with a plain knob is refused in one line."""
    with pytest.raises(ProfileError, match="is not a variant") as caught:
        Variant.parse(text)
    assert "\n" not in str(caught.value)


def test_lines_never_go_below_zero() -> None:
    """A negative constant is clamped, not carried into the total."""
    line = Line(per_token_s=1e-4, fixed_s=-0.5)
    assert 0 == line.seconds(1_000)
    assert pytest.approx(0.5) == line.seconds(10_000)


@given(
    base=st.floats(-1, 0),
    slope=st.floats(0, 1e-3),
    curve=st.floats(0, 1e-8),
    first=st.integers(0, 50_000),
    rest=st.integers(0, 50_000),
)
@settings(max_examples=200)
def test_prefill_in_two_parts_costs_as_much_as_in_one(
    base: float, slope: float, curve: float, first: int, rest: int
) -> None:
    """With a constant of at most 0 and no floor, a cached prefix saves exactly its own prefill."""
    fit = PrefillFit(base, slope, curve)
    parts_s = fit.seconds(first) + fit.seconds(rest, cached_tokens=first)
    assert pytest.approx(fit.seconds(first + rest), rel=1e-9, abs=1e-12) == parts_s


def test_prefill_constant_and_floor() -> None:
    """A positive constant is paid by each prefill, the floor holds for each, and no tokens cost nothing."""
    assert pytest.approx(0.3 + 0.2) == PrefillFit(0.3, 2e-4).seconds(1_000, cached_tokens=5_000)
    assert 0.02 == PrefillFit(-0.1, 1e-4, floor_s=0.02).seconds(10, cached_tokens=100)
    assert 0 == PrefillFit(0.3, 2e-4, floor_s=0.02).seconds(0, cached_tokens=100)


def test_prefill_grows_with_position() -> None:
    """The quadratic part makes the same tokens dearer behind a longer prefix: c * (n^2 - m^2)."""
    fit = PrefillFit(0.0, 0.0, 1e-9)
    assert pytest.approx(1e-9 * (3_000**2 - 2_000**2)) == fit.seconds(1_000, cached_tokens=2_000)


def test_quality_lookups(profile: Profile) -> None:
    """Matrices are samples by variants, RAW's own rows are kept, and means are over samples."""
    assert (("qa", "sum"), 2) == (profile.tasks, profile.samples("qa"))
    np.testing.assert_array_equal([[0.9, 0.7, 0.5], [1.0, 0.6, 0.3]], profile.quality_matrix("qa"))
    np.testing.assert_array_equal([[0.8, 0.6, 0.4], [1.0, 0.5, 0.2]], profile.quality_matrix("qa", train=True))
    assert pytest.approx(0.65) == profile.mean_quality("qa", KIVI2)
    assert 1.0 == profile.mean_quality("sum", RAW)


def test_quality_that_is_missing(profile: Profile) -> None:
    """A missing variant, task or column is named; a missing RAW counts 1."""
    with pytest.raises(ProfileError, match=r"task sum has no quality of keydiff:0\.4"):
        profile.quality_matrix("sum")
    with pytest.raises(ProfileError, match=r"task sum has no quality of keydiff:0\.4"):
        profile.mean_quality("sum", KEYDIFF)
    with pytest.raises(ProfileError, match=r"unknown task 'qb' \(did you mean 'qa'"):
        profile.samples("qb")
    without = replace(profile, quality=profile.quality.drop(columns="quality_train"))
    with pytest.raises(ProfileError, match="no column quality_train"):
        without.quality_matrix("qa", train=True)
    only = replace(profile, variants=(RAW, KIVI2))
    np.testing.assert_array_equal([[1.0, 0.25]], only.quality_matrix("sum"))


def test_require_speeds_names_what_is_missing(profile: Profile) -> None:
    """Prefill, decode, encode and load lines are each named; a complete profile passes."""
    profile.require_speeds()
    lines = {key: line for key, line in profile.load_lines.items() if key[1] != KIVI2}
    for changes, missing in (
        ({"prefill": UNMEASURED_PREFILL}, "missing prefill"),
        ({"decode_lines": {}}, "decode line of kivi:2, decode line of keydiff:0.4"),
        ({"encode_lines": {RAW: Line(0.0)}}, "encode line of kivi:2"),
        ({"load_lines": lines}, "load line of kivi:2 on dram"),
    ):
        with pytest.raises(ProfileError, match=missing):
            replace(profile, **changes).require_speeds()


def test_compose_takes_quality_and_sizes_of_one_and_the_rest_of_the_other(profile: Profile) -> None:
    """Variants without speeds fall away; provenance says what was put together."""
    speeds = load_profile("adaptcache-a100-1gbps")
    both = compose(profile, speeds)
    assert (RAW, KIVI2) == both.variants
    assert {RAW: 1.0, KIVI2: 0.19} == both.size_ratio
    assert ({"raw", "kivi:2"}, ("qa", "sum")) == (set(both.quality["variant"]), both.tasks)
    assert (131_072, "llama-3.1-8b", speeds.tiers, speeds.prefill) == (
        both.kv_bytes_per_token,
        both.model,
        both.tiers,
        both.prefill,
    )
    assert {RAW, KIVI2} == {variant for _, variant in both.load_lines} == set(both.decode_lines)
    assert "quality of tiny with speeds of adaptcache-a100-1gbps" == both.provenance["summary"]
    assert "evaluation" == both.provenance["numbers"]["quality"]["source"]
    assert "authors-code" == both.provenance["numbers"]["prefill"]["status"]
    assert both.sha256 not in (profile.sha256, speeds.sha256, compose(speeds, speeds).sha256)
    both.require_speeds()


def test_compose_names_variants_whose_load_lines_belong_to_other_sizes(profile: Profile) -> None:
    """A line holds the time of its own profile's bytes; within one per cent nothing is said, nor of bandwidths."""
    speeds = load_profile("adaptcache-a100-1gbps")
    warning = compose(profile, speeds).provenance["warning"]
    assert warning.endswith("than tiny stores: kivi:2 at 0.190 of raw (loads as at 0.188)")
    like = replace(profile, size_ratio={**profile.size_ratio, KIVI2: 0.1875 * 1.0099})
    assert "warning" not in compose(like, speeds).provenance
    assert "warning" not in compose(profile, load_profile("llama-3.1-8b-a100")).provenance


def test_compose_refuses_what_cannot_be_simulated(profile: Profile) -> None:
    """Nothing in common but raw, no quality, or no speeds are errors that name both sides."""
    evicpress = load_profile("evicpress-h100-llama-3.1-8b")
    with pytest.raises(ProfileError, match=r"tiny and evicpress-h100-llama-3\.1-8b have only raw in common"):
        compose(replace(profile, variants=(RAW, KIVI2)), evicpress)
    with pytest.raises(ProfileError, match="no quality rows"):
        compose(replace(profile, quality=profile.quality.iloc[:0]), profile)
    with pytest.raises(ProfileError, match="missing prefill"):
        compose(profile, replace(profile, prefill=UNMEASURED_PREFILL))


points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=14)


@given(points)
@settings(max_examples=300)
def test_pareto_front_is_what_nothing_beats(pairs: list[tuple[int, int]]) -> None:
    """Against the definition, on small integer grids so that ties are common."""
    expected = [
        index
        for index, (cost, quality) in enumerate(pairs)
        if not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in pairs)
    ]
    expected.sort(key=lambda index: (pairs[index][0], index))
    assert expected == pareto_front(np.array(pairs, dtype=float).reshape(-1, 2)).tolist()


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((2, 3)), np.array([[0.0, np.nan]])])
def test_pareto_front_refuses_other_shapes(bad: np.ndarray) -> None:
    """Costs and qualities come in pairs of numbers."""
    with pytest.raises(ValueError, match="without NaN"):
        pareto_front(bad)


def test_description(profile: Profile) -> None:
    """One row per variant; an unknown mean is None and never on the front."""
    raw, kivi, keydiff = describe(profile)
    assert {
        "variant": "kivi:2",
        "size_ratio": 0.19,
        "quality": {"qa": 0.65, "sum": 0.25},
        "mean_quality": 0.45,
        "pareto": True,
    } == {
        **kivi,
        "mean_quality": round(kivi["mean_quality"], 12),
        "quality": {task: round(value, 12) for task, value in kivi["quality"].items()},
    }
    assert (True, None, None, False) == (
        raw["pareto"],
        keydiff["quality"]["sum"],
        keydiff["mean_quality"],
        keydiff["pareto"],
    )
    assert [None] * 3 == [row["mean_quality"] for row in describe(replace(profile, quality=profile.quality.iloc[:0]))]


def test_tasks_by_further_names() -> None:
    """A trace's task is scored by one of the profile's; a name it has already, or an unknown task, is refused."""
    plain = load_profile("adaptcache-a100-1gbps")
    named = plain.with_tasks({"mine": "lcc"})
    assert (named.quality_matrix("mine") == plain.quality_matrix("lcc")).all()
    assert (*plain.tasks, "mine") == named.tasks
    assert plain.sha256 != named.sha256
    assert plain is plain.with_tasks({})
    with pytest.raises(ProfileError, match="lcc is a task of its own"):
        plain.with_tasks({"lcc": "qmsum"})
    with pytest.raises(ProfileError, match="unknown task 'code'"):
        plain.with_tasks({"mine": "code"})
