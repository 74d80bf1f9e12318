"""The dual function of the bound and its minimisation: any prices give a bound, better prices a lower one.

What it is: prices that are constant on windows of equally many requests, found from coarse to fine by projected
subgradient steps of Adam's kind (Kingma and Ba 2015); lane weights by multiplicative steps beside them.  What it is
not: why the value bounds anything (``bounds.py``).  Every value is exact for its prices, so stopping early is valid.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simkv.simulator.bounds_kernels import evaluate
from simkv.simulator.bounds_problem import BoundProblem

__all__ = ["LADDER", "Dual", "Prices", "minimise"]

LADDER = (1, 16, 128, 1024)
_STEPS = (150, 400)
_SMALL = 5_000
_LARGE = 60_000
_LAST_STEPS = 20
_PER_WINDOW = 30  # requests of a sample, so that its prices fit the others too
_RATE = 0.4
_FLOOR = 0.02
_MOST_BURDEN = 0.999

Floats = NDArray[np.float64]


@dataclass
class Prices:
    """Where a minimisation is: seconds per byte and clock unit [t, w], and lane weights [R, l]."""

    values: Floats
    weights: Floats


class Dual:
    """The dual function of one problem at one alpha, over some number of windows.

    Args:
        problem: see BoundProblem.
        alpha: seconds per unit of quality, at least 0.
        windows: price windows, of equally many requests.
    """

    def __init__(self, problem: BoundProblem, alpha: float, windows: int) -> None:
        self.problem = problem
        self.alpha = alpha
        requests = len(problem.clock)
        gaps = np.diff(problem.clock)
        self.windows = max(1, min(windows, len(gaps)))
        self.window = np.arange(len(gaps)) * self.windows // max(1, len(gaps))
        self.gaps = gaps
        self.lengths = np.bincount(self.window, gaps, self.windows)
        self.limited = np.isfinite(problem.capacity)
        self.capacity = np.where(self.limited, problem.capacity, 0.0)
        self.several = (problem.candidates > 1).astype(np.int8)
        self.held = np.zeros((requests, len(self.capacity)))
        self.late = np.zeros(requests)
        self.measured = int(problem.measured.sum())
        self.base = alpha * self.measured
        ahead = problem.anticipation != "none"
        self.may_hold = [[k for k in range(len(self.capacity)) if ahead or k <= j] for j in range(len(self.capacity))]
        self.cap = _MOST_BURDEN / max(float(problem.late_bytes.max(initial=0.0)), 1e-30)
        self._late = np.flatnonzero(problem.late_bytes > 0)
        self._first = self.window[np.minimum(self._late, len(gaps) - 1)] if len(gaps) else self._late
        self._last = self.window[np.minimum(problem.late_until[self._late], len(gaps) - 1)] if len(gaps) else self._late

    def start(self) -> Prices:
        """Prices of 0 and even weights of each request's lanes."""
        lanes = self.problem.lanes.alone
        weights = np.where(lanes[None, :] == (self.several == 0)[:, None], 1.0, 0.0)
        return Prices(np.zeros((len(self.capacity), self.windows)), weights / weights.sum(axis=1, keepdims=True))

    def value(self, prices: Prices, step: float = 0.0) -> tuple[float, Floats, float]:
        """(bound on the sum of utilities, slope by price [t, w], sum of qualities of the relaxed solution).

        ``step`` > 0 also moves the lane weights, in place, towards a lower value.  Prices of the fastest tier above
        the one at which waiting would pay (``bounds.py``, "Open loop") are brought down to it, in place.
        """
        np.minimum(prices.values[0], self.cap, out=prices.values[0])
        p, g, o = self.problem, self.problem.groups, self.problem.options
        charged, source = self._charged(prices.values)
        sums = np.zeros((len(p.clock), len(charged)))
        np.cumsum((charged[:, self.window] * self.gaps).T, axis=0, out=sums[1:])
        burden, dearest = self._burden(charged[0])
        utilities, lost = evaluate(
            self.alpha, sums, burden, g.starts, g.previous, g.klass, g.row, g.share, g.members, g.saved, g.sums,
            self.several, p.candidates, p.work, p.quality, o.charged, o.times, o.fixed, p.lanes.read, p.lanes.link,
            p.lanes.work, p.lanes.constant, prices.weights, step, self.held, self.late,
        )  # fmt: skip
        room = self.lengths * self.capacity[:, None]
        spare = self.lengths * p.in_flight_bytes
        held = np.cumsum(self.held, axis=0)[:-1].T * self.gaps
        slope = room.copy()
        for j in range(len(charged)):
            np.subtract.at(slope, (source[j], np.arange(self.windows)), np.bincount(self.window, held[j], self.windows))
        extra = spare + np.bincount(dearest, (p.late_bytes * self.late)[self._late], self.windows)
        np.add.at(slope, (source[0], np.arange(self.windows)), extra)
        value = self.base + utilities + float((prices.values * room).sum() + (charged[0] * spare).sum())
        return float(value), slope.astype(np.float64, copy=False), float(self.measured - lost)

    def unit(self, at: Prices) -> Floats:
        """Prices at which all capacity would cost what free capacity would gain [t, 1]."""
        free, _, _ = self.value(Prices(np.zeros_like(at.values), at.weights))
        gain = max(free - self.base + float(self.problem.work.sum()), 1e-12)
        total = np.maximum(self.capacity * self.lengths.sum(), 1e-300)
        return np.where(self.limited, gain / total, 1.0)[:, None]

    def _charged(self, values: Floats) -> tuple[Floats, NDArray[np.int64]]:
        """What holding a byte costs on or above each tier [t, w], and which tier's price that is."""
        source = np.stack([np.array(may)[values[may].argmin(axis=0)] for may in self.may_hold])
        return np.take_along_axis(values, source, axis=0), source

    def _burden(self, charged: Floats) -> tuple[Floats, NDArray[np.int64]]:
        """Share of each request's delay that later storing may give back [R], and the window whose price decides."""
        burden = np.zeros(len(self.problem.clock))
        if not len(self._late):
            return burden, self._late
        dearest = _dearest(charged, self._first, self._last)
        burden[self._late] = self.problem.late_bytes[self._late] * charged[dearest]
        return burden, dearest


def _dearest(charged: Floats, first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """The window of the highest price among first..last, by doubling (a sparse table)."""
    table = [np.arange(len(charged))]
    while 2 ** len(table) <= len(charged):
        half = 2 ** (len(table) - 1)
        left, right = table[-1][:-half], table[-1][half:]
        table.append(np.where(charged[left] >= charged[right], left, right))
    level = np.log2(last - first + 1).astype(np.int64)
    found = np.empty_like(first)
    for k in range(len(table)):
        rows = np.flatnonzero(level == k)
        left, right = table[k][first[rows]], table[k][last[rows] - 2**k + 1]
        found[rows] = np.where(charged[left] >= charged[right], left, right)
    return found


def minimise(
    problem: BoundProblem, alpha: float, ladder: tuple[int, ...] = LADDER, steps: int | None = None
) -> tuple[float, float, Prices]:
    """The lowest bound found: (sum of utilities, quality sum of the relaxed solution, prices on the last windows).

    ``steps`` are taken on each rung of the ladder; None is 400 for small problems and 150 for others.  Of a large
    problem, prices are sought on a sample first, and then for a few steps on all of it.
    """
    steps = steps or _STEPS[len(problem.groups.klass) <= _SMALL]
    if len(problem.groups.klass) > _LARGE:
        sample, kept = _sampled(problem, _LARGE / 2)
        rungs = tuple(windows for windows in ladder if windows * _PER_WINDOW <= len(kept))
        _, _, prices = _climb_down(sample, alpha, rungs or ladder[:1], steps)
        dual = Dual(problem, alpha, prices.values.shape[1])
        weights = dual.start().weights
        weights[kept] = prices.weights
        return _descend(dual, Prices(prices.values, weights), _LAST_STEPS, rate=_RATE / 4)
    return _climb_down(problem, alpha, ladder, steps)


def _climb_down(
    problem: BoundProblem, alpha: float, ladder: tuple[int, ...], steps: int
) -> tuple[float, float, Prices]:
    prices: Prices | None = None
    best = (np.inf, np.nan)
    done = 0
    for windows in ladder:
        dual = Dual(problem, alpha, windows)
        if dual.windows == done:
            break
        at = dual.start()
        if prices is not None:
            centre = (np.arange(dual.windows) * 2 + 1) * prices.values.shape[1] // (2 * dual.windows)
            at = Prices(prices.values[:, centre], prices.weights)
        at.values[dual.limited] += 0.0 if done else 0.5 * dual.unit(at)[dual.limited]
        value, quality, prices = _descend(dual, at, steps)
        best = min(best, (value, quality))
        done = dual.windows
    assert prices is not None
    return *best, prices


def _sampled(problem: BoundProblem, most: float) -> tuple[BoundProblem, NDArray[np.int64]]:
    """A random ``most`` of the groups, with capacities in proportion to the bytes that they need; and its requests."""
    groups = problem.groups
    owner = np.repeat(np.arange(len(problem.clock)), np.diff(groups.starts))
    count = np.diff(groups.members)
    needs = count * problem.options.charged[groups.klass, 0] * (problem.clock[owner] - problem.clock[groups.previous])
    some = np.flatnonzero(np.random.default_rng(0).random(len(count)) < most / len(count))
    requests = np.unique(np.concatenate([owner[some], groups.previous[some]]))
    first = np.repeat(groups.members[some], count[some])
    members = np.concatenate([[0], np.cumsum(count[some])])
    place = first + np.arange(members[-1]) - np.repeat(members[:-1], count[some])
    until = np.searchsorted(requests, problem.late_until[requests], side="right") - 1
    sample = replace(
        problem,
        clock=problem.clock[requests],
        capacity=problem.capacity * (float(needs[some].sum()) / max(float(needs.sum()), 1e-300)),
        late_bytes=problem.late_bytes[requests],
        late_until=until,
        measured=problem.measured[requests],
        work=problem.work[requests],
        candidates=problem.candidates[requests],
        groups=replace(
            groups,
            starts=np.concatenate([[0], np.cumsum(np.bincount(owner[some], minlength=len(problem.clock))[requests])]),
            previous=np.searchsorted(requests, groups.previous[some]).astype(np.int32),
            klass=groups.klass[some],
            row=groups.row[some],
            share=groups.share[some],
            members=members,
            saved=groups.saved[place],
            sums=groups.sums[place],
        ),
    )
    return sample, requests


def _descend(dual: Dual, at: Prices, steps: int, *, rate: float = _RATE) -> tuple[float, float, Prices]:
    value, slope, quality = dual.value(at)
    best, kept = (value, quality), Prices(at.values.copy(), at.weights.copy())
    unit = dual.unit(at)
    now = Prices(at.values / unit, at.weights.copy())
    mean, square = np.zeros_like(now.values), np.zeros_like(now.values)
    room = dual.lengths * dual.capacity[:, None]
    priced = room > 0  # where all requests of a window arrive at once, nothing is held and its price is idle
    for k in range(steps):
        fade = 1.0 / (1.0 + 8.0 * k / steps)
        trial = Prices(now.values * unit, now.weights)
        value, slope, quality = dual.value(trial, step=2.0 * fade)
        if value < best[0]:
            best = (value, quality)
            kept = Prices(trial.values.copy(), now.weights.copy())
        slope = np.where(priced, slope / np.where(priced, room, 1.0), 0.0)
        mean = 0.9 * mean + 0.1 * slope
        square = 0.98 * square + 0.02 * slope * slope
        move = (mean / (1 - 0.9 ** (k + 1))) / (np.sqrt(square / (1 - 0.98 ** (k + 1))) + 1e-9)
        scale = np.maximum(now.values, _FLOOR)
        now.values = np.clip(now.values - rate * fade * scale * move, 0.0, None)
        now.values[0] = np.minimum(now.values[0], dual.cap / unit[0])
    return *best, kept
