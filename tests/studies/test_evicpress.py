"""The EvicPress study in small: a few of its runs, three visits per context, against the published points."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simkv.comparison import quality_at_delay
from simkv.config import StudyConfig, load_config, replace_values
from simkv.experiments import expand
from simkv.simulator.metrics import Result
from simkv.simulator.run import run_config
from tests.studies.evicpress import MODELS
from tests.studies.evicpress_figures import final_places, placements
from tests.studies.results import PUBLISHED, ROOT, between, crossing, published

FILES = sorted(path.name for path in (ROOT / "experiments" / "evicpress").glob("*.toml"))


def study(file: str) -> StudyConfig:
    """A study of the folder."""
    found = load_config(ROOT / "experiments" / "evicpress" / file)
    assert isinstance(found, StudyConfig)
    return found


@cache
def result(file: str, label: str, value: float | str | None = None) -> Result:
    """One of a study's runs, with three visits per context; ``value`` is its alpha or variant."""
    for run in expand(study(file)):
        if run.config.policy.title == label and value in (None, *run.factors.values()):
            return run_config(replace_values(run.config, {"trace.options.visits": 3}))
    raise AssertionError(f"{file} has no run {label} {value}")


def point(*run: Any) -> tuple[float, float]:
    """(mean TTFT in s, mean quality)."""
    summary = result(*run).summary
    return summary["ttft_mean_s"], summary["quality_mean"]


@pytest.mark.parametrize("file", FILES)
def test_configs_are_studies(file: str) -> None:
    """Every configuration expands, to runs of all the policies that its figures compare."""
    labels = {run.config.policy.title for run in expand(study(file))}
    assert "EvicPress" in labels
    assert len(labels) >= 2
    names = {facts[0] for facts in MODELS.values()}
    assert (study(file).base.name in names) == (not file.startswith(("load-", "reprofile")))


def test_llama_baselines() -> None:
    """Prefill within 3 %, eviction only within 8 %, all in DRAM at removed .9 within 1 %; qualities within .01."""
    assert pytest.approx(0.357, rel=0.03) == point("config.toml", "Recompute")[0]
    assert pytest.approx(0.342, rel=0.08) == point("config.toml", "Eviction only")[0]
    ttft, quality = point("config.toml", "KeyDiff + LRU", "keydiff:0.1")
    assert pytest.approx(0.0425, rel=0.01) == ttft
    assert pytest.approx(0.378, abs=0.01) == quality


def test_llama_evicpress() -> None:
    """Quality at three published TTFTs of Figure 7 is within .02, between runs at neighbouring alphas."""
    points = published("fig7")
    points = points[(points["model"] == "Llama-3.1-8B") & (points["system"] == "evicpress")]
    curve = np.array([point("config.toml", "EvicPress", alpha) for alpha in (0.3, 0.35, 0.4, 1.0, 1.4)])
    wanted = points[points["ttft_s"].between(curve[0, 0], curve[-1, 0])]
    assert 3 == len(wanted)
    for row in wanted.itertuples():
        assert pytest.approx(row.quality, abs=0.02) == quality_at_delay(curve, row.ttft_s)  # type: ignore[arg-type]


def test_mistral_placement() -> None:
    """Figure 11: counts per tier, how hard they are compressed and the order of methods are within the tolerances."""
    moves = result("mistral.toml", "EvicPress", 1.0).moves
    rows = list(placements(final_places(moves, 555)))
    assert 6 == len(rows)
    assert [] == [row for row in rows if not row.passed]


def test_one_query_loses_quality_and_profiling_anew_gives_some_back() -> None:
    """Figure 10: with one training query quality falls by .06 to .16 (alpha .5); profiling anew gains some of it."""

    def quality(label: str, queries: int) -> float:
        runs = [run for run in expand(study("reprofile.toml")) if run.config.policy.title == label]
        wanted = {"engine.quality_queries": queries, "policy.alpha": 0.5}
        config = next(run.config for run in runs if run.factors == wanted)
        return float(run_config(replace_values(config, {"trace.options.visits": 3})).summary["quality_mean"])

    never = "EvicPress, never profiled anew"
    assert 0.06 <= quality(never, 50) - quality(never, 1) <= 0.16
    assert quality("EvicPress", 1) > quality(never, 1) + 0.02


def test_places_of_contexts() -> None:
    """The last move of each context counts; one that left, or never came, is nowhere."""
    moves = pd.DataFrame(
        {"block": [0, 1, 0, 2, 1], "to_tier": ["dram", "ssd", "ssd", "dram", ""], "to_variant": ["raw"] * 4 + [""]}
    )
    assert ["ssd", "", "dram", ""] == final_places(moves, 4)["tier"].tolist()


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        (lambda places: places, 0),
        (lambda places: places.assign(variant=places["variant"].replace("raw", "keydiff:0.9")), 1),
        (lambda places: places.assign(tier="dram"), 5),
    ],
)
def test_placements_can_fail(change: Callable[[pd.DataFrame], pd.DataFrame], failing: int) -> None:
    """The published placement passes every row; without raw entries, or all in DRAM, rows say no."""
    drawn = published("fig11")
    drawn = drawn[drawn["by"] == "ratio"]
    rows = [
        (row.tier.replace("cpu", "dram"), "raw" if row.value == "0.0" else f"keydiff:{1 - float(row.value):.1f}")
        for row in drawn.itertuples()
        for _ in range(row.contexts)
    ]
    places = pd.DataFrame([*rows, *[("", "")] * 206], columns=["tier", "variant"])
    assert failing == sum(not row.passed for row in placements(change(places)))


def test_between_and_crossing() -> None:
    """Interpolation by hand: .25 of the way from 1 to 2; 1 s is passed half way from 3 to 4; never; always."""
    assert (0, 1, 0.25) == between(np.array([1.0, 2.0, 3.0]), 1.25)
    assert (1, 2, 1.0) == between(np.array([1.0, 2.0, 3.0]), 9.0)
    assert 3.5 == crossing(np.array([1.0, 3.0, 4.0]), np.array([0.1, 0.5, 1.5]))
    assert [np.inf, 0.0] == [crossing(np.array([1.0, 2.0]), np.array(ttft)) for ttft in ([0.1, 0.2], [2.0, 3.0])]


def test_published_points_say_where_they_come_from() -> None:
    """Every file opens with its figure and reading error."""
    for path in sorted(PUBLISHED.glob("*.csv")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# EvicPress Fig. ")
