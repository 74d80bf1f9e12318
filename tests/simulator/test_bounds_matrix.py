"""The bound over the whole matrix: every policy in several variants, seeds, kinds of trace; without and with time.

Without time: requests are so far apart that nothing queues and every move has ended, and the bound is that of a loop
which sends one request at a time.  In CI each world is met by a third of the policies in turn; marked slow, all of them
on larger traces, and a real one.  GPUs are not the bottleneck: where they are, queues hide what a bound is worth.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simkv.profiles import load_profile
from simkv.simulator.bounds import bound
from simkv.simulator.run import simulate
from simkv.traces import Trace, load_trace
from simkv.traces.generate import generate_trace
from simkv.traces.transform import assign_tasks, sample_families, scale_rate, time_window
from tests.simulator.helpers import run, two_tiers
from tests.simulator.test_bounds import ALPHAS, MANY, PROFILES, bound_of, utilities

FAR_APART = 1e-6  # of the rate at which these traces are made: days between requests
TIMINGS: dict[str, dict[str, Any]] = {
    "untimed": {"arrivals": "open"},
    "open": {"arrivals": "open", "gpus": 2, "reuse": "when_faster"},
    "closed": {"arrivals": "closed", "concurrency": 1, "gpus": 2, "overlap": "layerwise"},
    "by the gpu": {"arrivals": "open", "loading": "gpu", "gpus": 2},
}
KINDS: dict[str, dict[str, Any]] = {
    "zipf": {"contexts": 25, "exponent": 0.7, "tokens": 300.0, "sd_tokens": 150.0, "rate_per_s": 10.0},
    "sessions": {"turns": 4.0, "think_s": 2.5, "rate_per_s": 1.2, "block_tokens": 100, "system_tokens": 100},
    "rag": {"documents": 12, "documents_per_request": 2, "tokens": 150.0, "sd_tokens": 80.0, "rate_per_s": 6.0},
}
SMALL, LARGE = 90, 1500


@lru_cache(maxsize=8)
def made(kind: str, seed: int, requests: int) -> Trace:
    """A trace of about so many requests, contexts growing with it."""
    options = dict(KINDS[kind])
    grown = requests / SMALL
    if kind == "sessions":
        options["sessions"] = requests // 4
    else:
        options["requests"] = requests
        options["contexts" if kind == "zipf" else "documents"] *= max(1, round(grown / 3))
    return assign_tasks(generate_trace(kind, seed=seed, **options), "qa", seed)


def never_beaten(kind: str, seed: int, timing: str, requests: int, policies: list[tuple[str, dict[str, Any]]]) -> float:
    """Runs the policies and fails if one of them gets more than the bound at any alpha.

    Returns how close the closest comes at alpha 0, as a share of its mean TTFT.
    """
    trace, profile = made(kind, seed, requests), PROFILES["spread"]
    settings, limit = TIMINGS[timing], dict(TIMINGS[timing])
    if timing == "untimed":
        trace, limit = scale_rate(trace, FAR_APART), {"arrivals": "closed"}
    whole = int(trace.block_tokens.sum())
    tiers = two_tiers(0.05 * whole / 100, 0.2 * whole / 100, channels=1 + seed % 2)
    best = bound_of(trace, profile, tiers, {**limit, "seed": seed})
    closest = np.inf
    for name, params in policies:
        engine = run(trace, name, params=params, tiers=tiers, profile=profile, seed=seed, check=None, **settings)
        got = utilities(engine)
        assert (got <= best.utilities + 1e-9).all(), (name, params)
        closest = min(closest, (best.utilities[0] - got[0]) / -got[0])
    return float(closest)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("timing", list(TIMINGS))
@pytest.mark.parametrize("kind", list(KINDS))
def test_never_beaten(kind: str, timing: str, seed: int) -> None:
    """A third of all policies and variants, in turn; none is so far below that a wrong bound would go unseen."""
    turn = list(KINDS).index(kind) + list(TIMINGS).index(timing) + seed
    assert never_beaten(kind, seed, timing, SMALL, MANY[turn % 3 :: 3]) < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4, 5])
@pytest.mark.parametrize("timing", list(TIMINGS))
@pytest.mark.parametrize("kind", list(KINDS))
def test_never_beaten_at_length(kind: str, timing: str, seed: int) -> None:
    """All policies and variants on 1,500 requests."""
    never_beaten(kind, seed, timing, LARGE, MANY)


@pytest.mark.parametrize("timing", ["untimed", "open"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_more_room_never_lowers_it(kind: str, timing: str) -> None:
    """Every step of more DRAM or SSD gives at least as much at every alpha, with and without time.

    Prices are found to a thousandth of the delay.
    """
    trace = made(kind, 6, SMALL)
    limit = {"arrivals": "closed"} if timing == "untimed" else TIMINGS[timing]
    whole = int(trace.block_tokens.sum()) / 100
    before = None
    for dram, ssd in ((0.02, 0.05), (0.1, 0.05), (0.1, 0.4), (0.5, 0.4), (None, None)):
        tiers = two_tiers(*(share if share is None else share * whole for share in (dram, ssd)))
        found = bound_of(trace, PROFILES["spread"], tiers, limit).utilities
        if before is not None:
            assert (before <= found + 1e-3 * np.abs(found[0])).all()
        before = found


CONTEXTS: list[dict[str, Any]] = [
    {"name": "recompute"},
    {"name": "lru"},
    {"name": "lru", "variant": "keydiff:0.4"},
    *({"name": "evicpress", "alpha": alpha} for alpha in (0.1, 0.35, 2.0)),
    {"name": "evicpress", "alpha": 0.35, "per": "byte"},
    {"name": "adaptcache", "alpha": 1.0, "method": "free"},
    {"name": "impress", "method": "snapkv"},
    {"name": "kvserve", "min_quality": 0.7},
    {"name": "hitdensity", "alpha": 0.35},
]


def test_scored_rows_count_where_policies_see_estimates() -> None:
    """On EvicPress' contexts the bound is that of each context's own scored row, whatever policies see of it.

    With estimates from one training query, or the task's mean, it is the same, and no policy beats it.  Were it
    computed from the means, at a large weight of quality it would be lower: choosing the variant by context is worth
    something.
    """
    trace = generate_trace("evicpress", seed=1, visits=2, first_gap_s=100.0, rate_per_s=0.01, arrivals="uniform")
    trace = sample_families(trace, 0.1, 0)
    profile = load_profile("evicpress-contexts-llama-3.1-8b")
    gib = 2**30
    shared: dict[str, Any] = {
        "tiers": {"dram": 8 * gib, "ssd": 72 * gib},
        "arrivals": "closed",
        "measure": "revisits",
    }
    alphas = np.array([0.0, 0.35, 2.0])
    best = bound(trace, profile, alphas=alphas, quality_view="sampled", quality_queries=1, **shared).utilities
    assert np.array_equal(best, bound(trace, profile, alphas=alphas, **shared).utilities)
    means = load_profile("evicpress-h100-llama-3.1-8b")
    assert bound(trace, means, alphas=alphas, **shared).utilities[1] < best[1]
    for policy in CONTEXTS:
        summary = simulate(trace, profile, policy, quality_view="sampled", quality_queries=5, **shared).summary
        assert (alphas * summary["quality_mean"] - summary["ttft_mean_s"] <= best + 1e-9).all(), policy


@pytest.mark.slow
@pytest.mark.parametrize("rate", [1e-5, 1.0])
def test_never_beaten_on_mooncake(shared_traces: Path, rate: float) -> None:
    """Every policy of the matrix on 2,000 real conversations, a day apart and as recorded."""
    trace = load_trace(shared_traces / "mooncake" / "conversation_trace.jsonl.gz")
    trace = scale_rate(time_window(trace, 0, int(trace.arrival_ns[2_000])), rate)
    profile = load_profile("llama-3.1-8b-a100")
    gib = 2**30
    options: dict[str, Any] = {"tiers": {"dram": 96 * gib, "ssd": 384 * gib}, "gpus": 8, "seed": 2}
    options["tasks"] = dict.fromkeys(profile.tasks, 1.0)
    best = bound(trace, profile, alphas=ALPHAS, **options)
    for name, params in MANY:
        summary = simulate(trace, profile, {"name": name, **params}, **options).summary
        got = np.array(ALPHAS) * summary["quality_mean"] - summary["ttft_mean_s"]
        assert (got <= best.utilities + 1e-9).all(), (name, params)
