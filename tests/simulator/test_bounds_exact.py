"""The bound against exact optima of tiny instances, against linear programs, and at the edges of its assumptions.

``exact`` is a dynamic programme over all contents of the store and all moves that the assumption allows; ``program``
solves the dual by HiGHS.  Neither knows the code of the bound.
"""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linprog

from simkv.errors import ConfigError
from simkv.profiles import RAW, Line, PrefillFit, TierSpec
from simkv.simulator import bounds_dual
from simkv.simulator.bounds import Bound, assumption_breaks, bound
from simkv.simulator.bounds_dual import Dual, minimise
from simkv.simulator.bounds_problem import BoundProblem, build_problem
from simkv.simulator.costs import CostTables, build_costs
from simkv.simulator.engine import EngineSettings
from simkv.simulator.run import simulate
from simkv.traces.trace import Trace
from tests.simulator.helpers import (
    DRAM,
    KIVI2,
    SIZE,
    Scripted,
    Ticking,
    make_profile,
    make_trace,
    quality_rows,
    run,
    two_tiers,
)
from tests.simulator.test_bounds import utilities

Place = tuple[int, int] | None
CLOSED = EngineSettings(arrivals="closed")
PROFILE = make_profile(
    variants=(RAW, KIVI2),
    size_ratio={RAW: 1.0, KIVI2: 0.4},
    decode_lines={KIVI2: Line(1e-6, 1e-4)},
    encode_lines={KIVI2: Line(0.0)},
    prefill=PrefillFit(0.0002, 8e-6, 4e-9),
    quality=quality_rows({"raw": [1.0, 0.99], "kivi:2": [0.9, 0.6]}),
)


def reward(trace: Trace, costs: CostTables, request: int, state: tuple[Place, ...], alpha: float) -> float:
    """The best alpha x quality - TTFT (s) of a request that finds this store, idle, loading any part of the prefix."""
    blocks, total = trace.blocks_of(request).tolist(), int(trace.input_tokens[request])
    best = alpha - costs.prefill_ns(0, total) / 1e9
    tokens, lost = 0, 0.0
    groups: dict[tuple[int, int], list[int]] = {}
    for block in blocks:
        place = state[block]
        if place is None:
            break
        groups.setdefault(place, []).append(costs.block_class[block])
        size = costs.class_tokens[costs.block_class[block]]
        tokens += size
        lost += size * (1 - costs.quality.score_ppb[costs.quality.block_row[block]][place[1]] / 1e9)
        loads = [0] * len(costs.tiers)
        work = costs.prefill_ns(tokens, total)
        for (tier, variant), classes in groups.items():
            loads[tier] += costs.read_fixed[tier][variant] + sum(costs.read[tier][variant][c] for c in classes)
            work += costs.decode_fixed[tier][variant] + sum(costs.decode[tier][variant][c] for c in classes)
        best = max(best, alpha * (1 - lost / total) - (max(loads) + work) / 1e9)
    return best


def exact(trace: Trace, costs: CostTables, alpha: float, *, ahead: bool = False) -> float:
    """The largest sum of utilities of any policy, with free moves; ``ahead``: moves up between accesses, too."""
    tiers, variants = range(len(costs.tiers)), range(len(costs.variants))
    places: list[Place] = [None, *itertools.product(tiers, variants)]

    def size(block: int, place: Place) -> int:
        return 0 if place is None else costs.size[place[1]][costs.block_class[block]]

    def fits(state: tuple[Place, ...]) -> bool:
        used = [0] * len(costs.tiers)
        for block, place in enumerate(state):
            if place is not None:
                used[place[0]] += size(block, place)
        return all(count <= capacity for count, capacity in zip(used, costs.capacity, strict=True))

    def lower(block: int, place: Place) -> list[Place]:
        if place is None:
            return [None]
        smaller = [p for p in places[1:] if p is not None and size(block, p) <= size(block, place)]
        return [None, *(p for p in smaller if ahead or p[0] >= place[0])]

    @functools.cache
    def steps(state: tuple[Place, ...], asked: frozenset[int]) -> list[tuple[Place, ...]]:
        choices = [places if block in asked else lower(block, place) for block, place in enumerate(state)]
        return [new for new in itertools.product(*choices) if fits(new)]

    values: dict[tuple[Place, ...], float] = {(None,) * trace.n_blocks: 0.0}
    for request in range(len(trace)):
        asked = frozenset(trace.blocks_of(request).tolist())
        after: dict[tuple[Place, ...], float] = {}
        for state, value in values.items():
            gained = value + reward(trace, costs, request, state, alpha)
            for new in steps(state, asked):
                if gained > after.get(new, -np.inf):
                    after[new] = gained
        values = after
    return max(values.values())


def instance(seed: int) -> tuple[Trace, tuple[TierSpec, ...]]:
    """Three blocks, alone or in chains, in a handful of requests, and tiers of one or two blocks."""
    rng = np.random.default_rng(seed)
    kinds = [[0], [1], [2]] if seed % 2 else [[0, 1], [0], [2], [0, 1]]
    asked = [kinds[int(rng.integers(len(kinds)))] for _ in range(6)]
    flat = [block for blocks in asked for block in blocks]
    names = {block: number for number, block in enumerate(dict.fromkeys(flat))}
    tokens = rng.integers(60, 160, len(names)).tolist()
    trace = make_trace([[names[block] for block in blocks] for blocks in asked], tokens=tokens)
    return trace, two_tiers(float(rng.uniform(0.5, 1.8)), float(rng.uniform(0.4, 2.0)))


def found(trace: Trace, tiers: tuple[TierSpec, ...], alpha: float, **options: str) -> Bound:
    """The bound of a closed loop with a price for every gap."""
    return bound(trace, PROFILE, tiers=tiers, alphas=[alpha], ladder=(1, 4, 64), arrivals="closed", **options)


@pytest.mark.parametrize("seed", range(12))
def test_exact_optima_stay_below(seed: int) -> None:
    """The exact optimum is at most the bound, with and without prefetch, and each relaxation adds to it."""
    trace, tiers = instance(seed)
    costs = build_costs(trace, PROFILE, tiers)
    alpha = (0.0, 0.001, 0.01)[seed % 3]
    strict, ahead = exact(trace, costs, alpha), exact(trace, costs, alpha, ahead=True)
    least = sum(reward(trace, costs, r, (None,) * trace.n_blocks, alpha) for r in range(len(trace)))
    limits = [
        found(trace, tiers, alpha, anticipation=a).utilities[0] * len(trace) for a in ("none", "prefetch", "raise")
    ]
    assert least - 1e-12 <= strict <= ahead + 1e-12
    assert strict <= limits[0] + 1e-9
    assert ahead <= limits[1] + 1e-9
    assert limits[0] <= limits[1] + 1e-5 <= limits[2] + 2e-5
    assert limits[0] - least <= 2.5 * (strict - least) + 1e-3


def test_mean_ratio_to_exact_optima() -> None:
    """On these indivisible toys the gain over recomputing is bounded within half of the exact one, on average."""
    gains = []
    for seed in range(6):
        trace, tiers = instance(seed)
        costs = build_costs(trace, PROFILE, tiers)
        least = sum(reward(trace, costs, r, (None,) * trace.n_blocks, 0.003) for r in range(len(trace)))
        limit = found(trace, tiers, 0.003).utilities[0] * len(trace)
        gains.append((limit - least, exact(trace, costs, 0.003) - least))
    limits, reached = np.sum(gains, axis=0)
    assert reached <= limits <= 1.5 * reached


def whole_contexts(seed: int, requests: int = 40) -> tuple[Trace, tuple[TierSpec, ...]]:
    """Single blocks of unequal length, some far more popular than others."""
    rng = np.random.default_rng(seed)
    asked = (rng.zipf(1.3, requests) % 12).tolist()
    names = {block: number for number, block in enumerate(dict.fromkeys(asked))}
    tokens = rng.integers(50, 250, len(names)).tolist()
    return make_trace([[names[block]] for block in asked], tokens=tokens), two_tiers(2.5, 3.5)


def program(problem: BoundProblem, alpha: float, windows: int) -> float:
    """The lowest dual value over prices on these windows, by HiGHS: prices, charged prices, and gains as variables."""
    groups, options = problem.groups, problem.options
    requests, tiers, variants = len(problem.clock), len(problem.capacity), problem.quality.shape[1]
    window = np.arange(requests - 1) * windows // (requests - 1)
    length = np.bincount(window, minlength=windows)
    owner = np.repeat(np.arange(requests), np.diff(groups.starts))
    count = len(groups.klass)
    cost = np.concatenate([np.outer(problem.capacity, length).ravel(), np.zeros(tiers * windows), np.ones(count)])
    above, limit = [], []
    for fast in range(tiers):  # the charged price of a tier is at most the price of each tier that may have held it
        for slow in range(fast, tiers):
            for w in range(windows):
                row = np.zeros(len(cost))
                row[(tiers + slow) * windows + w], row[fast * windows + w] = 1.0, -1.0
                above.append(row)
                limit.append(0.0)
    for g in range(count):
        held = np.bincount(window[groups.previous[g] : owner[g]], minlength=windows)
        for o in range(tiers * variants):
            seconds = options.times[0, groups.klass[g], :, o].sum()
            if not np.isfinite(seconds):
                continue
            gain = alpha * groups.share[g] * problem.quality[groups.row[g], o % variants] - seconds + groups.saved[g]
            row = np.zeros(len(cost))
            start = (tiers + o // variants) * windows
            row[start : start + windows] = -options.charged[groups.klass[g], o] * held
            row[2 * tiers * windows + g] = -1.0
            above.append(row)
            limit.append(-gain)
    scale = np.where(np.arange(len(cost)) < 2 * tiers * windows, 1e-8, 1.0)  # prices of a byte are tiny numbers
    solved = linprog(cost * scale, A_ub=np.array(above) * scale, b_ub=limit, bounds=(0, None), method="highs")
    assert solved.status == 0
    return float(solved.fun + alpha * requests - problem.work.sum())


@pytest.mark.parametrize("windows", [1, 6, 39])
@pytest.mark.parametrize("seed", [1, 2])
def test_prices_are_nearly_the_best(seed: int, windows: int) -> None:
    """The steps end between the optimum of the linear program and half a percent of the gain above it."""
    trace, tiers = whole_contexts(seed)
    costs = build_costs(trace, PROFILE, tiers)
    problem = build_problem(trace, costs, CLOSED, np.ones(len(trace), dtype=bool))
    for alpha in (0.0, 0.003, 0.1):
        best = program(problem, alpha, windows)
        ours = minimise(problem, alpha, tuple(w for w in (1, 6, 39) if w <= windows), 300)[0]
        gain = best - alpha * len(trace) + problem.work.sum()
        assert best - 1e-9 <= ours <= best + 0.005 * gain


def test_every_price_is_a_bound() -> None:
    """Random prices, far from the best, give values that the best prices undercut and no exact optimum exceeds."""
    trace, tiers = instance(4)
    costs = build_costs(trace, PROFILE, tiers)
    problem = build_problem(trace, costs, CLOSED, np.ones(len(trace), dtype=bool))
    optimum, rng = exact(trace, costs, 0.003), np.random.default_rng(0)
    dual = Dual(problem, 0.003, 6)
    for _ in range(50):
        prices = dual.start()
        prices.values[:] = rng.exponential(1e-9, prices.values.shape) * (rng.random(prices.values.shape) < 0.7)
        assert optimum <= dual.value(prices)[0] + 1e-12


def test_loads_side_by_side_beat_a_plain_sum() -> None:
    """Two blocks loaded from two tiers at once get more than the untimed model allows, but not more than the bound."""
    trace = make_trace([[0, 1], [2], [0, 1]])
    tiers = (replace(DRAM, capacity_bytes=SIZE), replace(DRAM, name="second", capacity_bytes=SIZE))
    engine = run(trace, Scripted({0: "dram raw", 1: "second raw"}), tiers=tiers, arrivals="closed")
    got = utilities(engine, (1.0,))[0]
    options = {"tiers": tiers, "alphas": [1.0], "arrivals": "closed"}
    assert got > bound(trace, make_profile(), added=True, **options).utilities[0] + 3e-5
    assert got == pytest.approx(bound(trace, make_profile(), **options).utilities[0], abs=1e-8)


def test_storing_late_beats_holding_from_arrival() -> None:
    """Two blocks whose uses overlap share room for one, since the second is stored only when it has been computed."""
    trace = make_trace([[0], [1], [0], [1]], at_us=[0, 9_800, 10_000, 20_000])
    tiers = two_tiers(1, 0.25)
    plan = {(0, 0): "dram raw", (1, 1): "dram raw"}
    engine = run(trace, Scripted(plan, room=[("dram", 0, None)]), tiers=tiers, gpus=2)
    got = utilities(engine, (1.0,))[0]
    costs = build_costs(trace, make_profile(), tiers)
    problem = build_problem(trace, costs, EngineSettings(), np.ones(4, dtype=bool))
    naive = replace(problem, late_bytes=np.zeros(4))
    assert got > minimise(naive, 1.0)[0] / 4 + 1e-5
    assert got <= minimise(problem, 1.0)[0] / 4


def test_in_flight_requests_of_a_closed_loop() -> None:
    """With n requests in flight, the fastest tier is granted the bytes of the n - 1 largest requests."""
    trace = make_trace([[0], [1, 2], [3, 4, 5]])
    costs = build_costs(trace, make_profile(), two_tiers(1, 1))
    measured = np.ones(3, dtype=bool)
    for concurrency, blocks in ((1, 0), (2, 3), (3, 5)):
        settings = EngineSettings(arrivals="closed", concurrency=concurrency)
        assert blocks * SIZE == build_problem(trace, costs, settings, measured).in_flight_bytes


def test_no_hit_before_a_first_copy_can_exist() -> None:
    """In an open loop, a block asked for again before its first request can be done is no candidate."""
    trace = make_trace([[0], [0], [0]], at_us=[0, 999, 1_000])
    problem = build_problem(
        trace, build_costs(trace, make_profile(), two_tiers()), EngineSettings(), np.ones(3, dtype=bool)
    )
    assert [0, 0, 1] == problem.candidates.tolist()


def test_what_unmeasured_requests_touch_is_free_in_an_open_loop() -> None:
    """A request outside the summary may be as late as it likes: what it touched is never charged for."""
    trace = make_trace([[0], [1], [0], [1]])
    costs = build_costs(trace, make_profile(), two_tiers(1, 1))
    measured = np.array([False, True, True, True])
    timed = build_problem(trace, costs, EngineSettings(), measured)
    assert [2, 1] == timed.groups.previous.tolist()
    assert [0, 1] == build_problem(trace, costs, CLOSED, measured).groups.previous.tolist()


def test_delay_at_quality_is_the_upper_envelope() -> None:
    """Corners lie on the curve and rise in delay and quality; between two of them the curve is straight."""
    trace, tiers = whole_contexts(3)
    curve = bound(trace, PROFILE, tiers=tiers, alphas=[0, 0.0005, 0.002, 0.01, 0.1, 1], arrivals="closed")
    corners = curve.corners()
    delays, qualities = corners["ttft_mean_s"].to_numpy(), corners["quality_mean"].to_numpy()
    assert (np.diff(delays) >= -1e-12).all()
    assert (np.diff(qualities) >= -1e-12).all()
    assert 1.0 == qualities[-1]
    for left, right in itertools.pairwise(range(len(corners))):
        middle = (qualities[left] + qualities[right]) / 2
        assert (delays[left] + delays[right]) / 2 == pytest.approx(curve.delay_at(middle), rel=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anticipation": "prefetc"}, "anticipation 'prefetc'.*prefetch"),
        ({"alphas": []}, "alphas are .*numbers of seconds"),
        ({"alphas": [-1.0]}, "alphas are .*at least 0"),
        ({"arrivals": "closed", "warmup": "3 s"}, "engine.warmup is a duration.*as a share"),
    ],
    ids=str,
)
def test_what_is_not_covered_is_refused_in_one_line(options: dict[str, object], message: str) -> None:
    """Bad weights, unknown assumptions, and a warm-up that depends on the policy."""
    with pytest.raises(ConfigError, match=message) as caught:
        bound(make_trace([[0], [0]]), make_profile(), tiers=two_tiers(1, 1), **options)
    assert "\n" not in str(caught.value)


def test_prefill_that_falls_with_length_is_refused() -> None:
    """A quadratic that bends down cannot be shared out over blocks."""
    falling = make_profile(prefill=PrefillFit(0.0, 1e-5, -1e-7))
    with pytest.raises(ConfigError, match="prefill time falls"):
        bound(make_trace([[0, 1], [0, 1]]), falling, tiers=two_tiers(1, 1))


def test_moves_between_accesses_are_counted() -> None:
    """A promotion between two uses breaks assumption A only, growing back breaks prefetch too, "raise" allows both."""
    trace = make_trace([[0], [1], [0]], at_us=[0, 5_000, 20_000])
    plan = {0: "ssd raw", (2, 0): "dram raw"}
    options = {"tiers": two_tiers(4, 4), "reuse": "always"}
    calm = simulate(trace, make_profile(), Scripted(plan), **options)
    moved = simulate(trace, make_profile(), Ticking(plan, at=[(9_000, 0, "dram raw")]), **options)
    grown = simulate(trace, make_profile(), Ticking({0: "dram kivi:2"}, at=[(9_000, 0, "dram raw")]), **options)
    for result, counts in ((calm, (0, 0, 0)), (moved, (1, 0, 0)), (grown, (1, 1, 0))):
        for known in (trace, None):  # all of these moves are in a rebalance
            found = [assumption_breaks(result.moves, a, known) for a in ("none", "prefetch", "raise")]
            assert list(counts) == found


def test_prefetch_needs_the_prefetch_bound() -> None:
    """A rebalance that moves up before each use beats the bound under assumption A, but not the one with prefetch."""
    asked = [[0], [1], [0], [1]]
    trace = make_trace(asked, at_us=[0, 10_000, 20_000, 30_000])
    tiers = two_tiers(1, 2, read_bytes_per_s=10**8)
    moves = [(15_000, 0, "dram raw"), (25_000, 0, "ssd raw"), (25_100, 1, "dram raw")]
    policy = Ticking({0: "ssd raw", 1: "ssd raw"}, at=moves)
    got = utilities(run(trace, policy, tiers=tiers), (1.0,))[0]
    options = {"tiers": tiers, "alphas": [1.0]}
    assert got <= bound(trace, make_profile(), anticipation="prefetch", **options).utilities[0]
    assert got > bound(trace, make_profile(), **options).utilities[0] + 1e-5


def test_a_sample_of_a_large_problem_gives_nearly_the_same_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prices found on a sixth of the accesses and a few steps on all of them cost at most two percent of the gain."""
    rng = np.random.default_rng(5)
    trace = make_trace([[int(b)] for b in rng.zipf(1.2, 3_000) % 200], tokens=rng.integers(50, 250, 200).tolist())
    costs = build_costs(trace, PROFILE, two_tiers(20, 40))
    for settings in (CLOSED, EngineSettings()):
        problem = build_problem(trace, costs, settings, np.ones(len(trace), dtype=bool))
        full = minimise(problem, 0.003)[0]
        with monkeypatch.context() as patch:
            patch.setattr(bounds_dual, "_LARGE", 1_000)
            sampled = minimise(problem, 0.003)[0]
        gain = full - 0.003 * len(trace) + problem.work.sum()
        assert full - 0.001 * gain <= sampled <= full + 0.02 * gain
