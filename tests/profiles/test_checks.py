"""What ``simkv profile check`` and ``show`` say of a measured profile."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simkv import profiles
from simkv.cli import app
from simkv.cli_profile import _head
from simkv.cli_profile_statistics import _tied
from simkv.errors import ProfileError
from simkv.profile_checks import check_sizes
from simkv.profile_statistics import wins_at_size
from simkv.profiles import Profile, Variant, describe, load_profile
from tests.test_profile_statistics import make

SMALL = Path(__file__).parents[2] / "profiles/small-model-cpu"


@pytest.fixture(scope="module")
def small() -> Profile:
    """The committed profile."""
    return load_profile(SMALL)


def test_a_ratio_that_the_rows_contradict_is_found(small: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The committed profile passes; with kivi:2 at 0.9 it does not, and the message has both numbers."""
    check_sizes(small)
    wrong = replace(small, size_ratios={"measured": {**small.size_ratios["measured"], Variant("kivi", "2"): 0.9}})
    with pytest.raises(ProfileError, match="a ratio of 0.9 for kivi:2; the stored bytes of its rows are 0.213395 of"):
        check_sizes(wrong)
    monkeypatch.setattr(profiles, "load_profile", lambda name: wrong)
    assert 2 == CliRunner().invoke(app, ["profile", "check", "p"]).exit_code


def test_show_says_how_it_was_measured(small: Profile) -> None:
    """Seed, contexts, questions, length, whether the question was known, parameters and shared bytes."""
    told = dict(_head(small))
    assert ("0", "64", "16", "512", "no") == tuple(
        told[key] for key in ("seed", "contexts", "questions", "context tokens", "query aware")
    )
    assert "kivi: Kivi(group=32, residual=32)" in told["parameters"]
    assert "kvcomp" in told["shared bytes"]


def test_one_variant_of_two_names_is_starred_once() -> None:
    """int8:g64 and int8:head are the same bytes where a head has 64 channels; another compressor keeps its star."""
    same = {"int8:g64": 0.5, "int8:head": 0.5, "fp8:e4m3": 0.5}
    found = make(same, {"qa": dict.fromkeys(same, 0.9)})
    stars = {row["variant"]: row["pareto"] for row in describe(found)}
    assert {"int8:g64": True, "int8:head": False, "fp8:e4m3": True} == {name: stars[name] for name in same}


def test_a_tie_has_no_winner() -> None:
    """Two compressors of the same size and quality are told as equal."""
    tied = make({"int8:g64": 0.5, "fp8:e4m3": 0.5}, {"qa": {"int8:g64": 0.9, "fp8:e4m3": 0.9}})
    apart = make({"int8:g64": 0.5, "fp8:e4m3": 0.5}, {"qa": {"int8:g64": 0.9, "fp8:e4m3": 0.8}})
    assert [True] == [_tied(win) for win in wins_at_size(tied, [0.5])]
    assert [False] == [_tied(win) for win in wins_at_size(apart, [0.5])]
