"""What no policy can beat: a bound on delay at any quality, for one trace, profile, hierarchy and engine setting.

What it is: a Lagrangian bound on the mean of alpha x quality - TTFT (s) over the measured requests, per alpha, and the
delay that it implies at a given quality.  What it is not: attainable, or a policy; ``clairvoyant`` is one, and a
heuristic.  Flow: trace + cost tables -> ``bounds_problem.py`` (relaxations) -> ``bounds_dual.py`` (prices) -> here.

**Statement.** Let requests look up at x_1 <= x_2 <= ..., let mu_k(x) >= 0 be any price of a byte of tier k, and nu_j
the price at which an entry that is found on tier j must have been held: the least of mu_1 .. mu_j.  For an access of a
block by request t, after request s asked for it last, let g(o) be what finding it in placement o = (tier, variant)
gains over recomputing it, and b(o) its bytes.  Then, for whatever a policy does,

    sum of utilities <= sum of utilities when everything is recomputed
                        + sum over accesses of max(0, max over o of g(o) - b(o) x integral from x_s to x_t of nu_j(o))
                        + sum over tiers k of capacity_k x integral of mu_k.

**Proof.** An access either recomputes its block, and gains 0, or finds it in some o.  By assumption A below it has then
held b(o) bytes or more on tier j(o) or a faster one at every moment from x_s to x_t, and these intervals of one block
do not overlap.  So at each x the found entries' b(o), each on a tier k with mu_k(x) >= nu_j(o)(x), fit into the
capacities: the integral of sum b(o) nu_j(o) is at most that of sum mu_k capacity_k.  Adding the difference, which is
not negative, and maximising over o for each access alone only enlarges the sum.  It holds path by path, so also for
randomised and clairvoyant policies, and for any prices: a minimisation that stops early gives a valid bound.

**Assumption A (no anticipation).** Between two accesses of an entry, its bytes do not grow and it does not move to a
faster tier; at its own accesses everything is allowed and free.  All shipped policies satisfy it but ``evicpress``
where it profiles anew (``reprofile_below`` above 0, the default): that may grow an entry back or promote it.
``anticipation = "prefetch"`` gives up the second half (moves up between accesses): nu is the least price of all tiers.
``"raise"`` gives up both: an entry found anywhere has held at least its smallest variant somewhere.
``assumption_breaks`` counts the moves of a finished run that its bound did not allow; a sweep warns of them.

**Utility of a request.** It must be at most a sum over blocks.  Left out, since they only cost more: queues, waits for
bytes on their way, moves, and that a block is of use only if all before it are found.  Kept:

* *Prefill* is max(floor, base + work of the missing tokens, each at its own position).  ``base`` is paid in full where
  some token is new in any case, else each of the n candidates bears 1/n of it; likewise a floor above all work.
* *Candidates* are a request's leading blocks that were asked for before, in an open loop long enough before for a
  first copy to exist (arrival + the least prefill of the request that made it).
* *Fixed parts* of transfers and decompression: positive ones are shared by the n candidates (a group that loads any
  of them pays all), negative ones are granted once per request.  A lone candidate has the exact, clipped line.
* *Loads side by side.* The load takes at least as long as all reads from any one tier, all link transfers (a request
  has one channel of each at a time), and each (tier, variant) group's read and link: the lanes.  A maximum is at
  least every weighted mean of the lanes, with weights per request that are minimised over like prices.  (A plain
  sum over tiers would not be valid, for they load at the same time.)
* *Layerwise overlap* of L layers: TTFT is at least work + load / L and load + work / L: two lanes for each one.
* *Decoding* only adds to queues and work: a batch makes no request's own work shorter, chunks of a prompt take no less
  than the whole, and entries are still stored at the first token.  The bound is on TTFT and quality; of time per token,
  end-to-end time and goodput it says nothing.
* *Quality* is what the engine scores: the context's own row, by the share of the prompt.  A placement never scores
  better than its variant's row; ``pristine`` copies serve no reads in this engine, and their tier holds no entries.
* A tier that is too small for an entry is no option for it; an unlimited tier has price 0.

**Overlapping requests.** The engine stores at the first token, not at arrival, so a block that request s computes need
not be held from x_s on.

* *Closed loop* of n: at each look-up at most n - 1 others are under way, and lack at most their own blocks: the fastest
  tier is granted the n - 1 largest requests' bytes on top.  Nothing is granted for n = 1.
* *Open loop*: x is time.  While request s is under way it may save nu_1 per second on each byte B_s of its blocks that
  are charged for later, but that second is also a second of its TTFT.  As long as nu_1 B_s <= 1 (prices are capped so)
  waiting never pays, and its utility is at most alpha x quality - (1 - nu B_s) x ideal delay, with the highest price
  nu of the time that this delay can span.  A request outside the summary waits for free, so that entries it has
  touched are not charged for (valid, but loose: use ``measure = "all"`` and no warm-up, or a closed loop).

**Delay at given quality.** mean TTFT >= max over alpha of (alpha x quality - U(alpha)), for any finite set of alphas;
U may be replaced by its lower convex hull, since the best attainable utility is convex in alpha.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simkv.config import BoundConfig, EngineConfig, RunConfig, parse_engine
from simkv.errors import ConfigError
from simkv.preparation import prepare_trace, sub_seed
from simkv.profiles import Profile, TierSpec
from simkv.simulator.bounds_dual import LADDER, minimise
from simkv.simulator.bounds_problem import build_problem
from simkv.simulator.metrics import revisits
from simkv.simulator.options import engine_settings
from simkv.simulator.run import choose_tiers, hardware, prepare_profile, tables
from simkv.simulator.summary import measured_rows
from simkv.traces.trace import Trace
from simkv.traces.transform import assign_tasks
from simkv.units import NS_PER_S

__all__ = ["ALPHAS", "Bound", "assumption_breaks", "bound", "bound_config"]

ALPHAS: tuple[float, ...] = BoundConfig.model_fields["alphas"].default


@dataclass(frozen=True)
class Bound:
    """A bound on what any policy gets, for one configuration.

    Attributes:
        alphas: [n] seconds per unit of quality, rising.
        utilities: [n] upper bounds of the mean of alpha x quality - TTFT (s), convex in alpha.
        requests: how many requests count.
        anticipation: what policies may do between accesses; "none" is assumption A.
        best_quality: highest quality that any placement scores (1 for recomputing).
    """

    alphas: NDArray[np.float64]
    utilities: NDArray[np.float64]
    requests: int
    anticipation: str = "none"
    best_quality: float = 1.0

    def delay_at(self, quality: float) -> float:
        """Seconds below which no policy's mean TTFT is at this mean quality."""
        return float((self.alphas * quality - self.utilities).max())

    def corners(self) -> pd.DataFrame:
        """The curve of ``delay_at``, a row per alpha: alpha, ttft_mean_s, quality_mean, utility_s.

        Row k is where the line of its alpha ends and that of the next begins; between rows the curve is straight.
        The last row is at ``best_quality``.  Averaged over seeds, rows of one alpha give the curve of the averages.
        """
        ends = np.append(np.diff(self.utilities) / np.diff(self.alphas), self.best_quality)
        ends = np.minimum(ends, self.best_quality)
        delays = [self.delay_at(quality) for quality in ends.tolist()]
        return pd.DataFrame(
            {"alpha": self.alphas, "ttft_mean_s": delays, "quality_mean": ends, "utility_s": self.utilities}
        )


def bound(
    trace: Trace,
    profile: Profile,
    *,
    tiers: Mapping[str, Any] | Sequence[TierSpec] | None = None,
    host_link: TierSpec | None = None,
    tasks: str | Mapping[str, float] | None = None,
    seed: int = 0,
    alphas: Iterable[float] = ALPHAS,
    anticipation: str = "none",
    added: bool = False,
    ladder: tuple[int, ...] = LADDER,
    **engine: Any,
) -> Bound:
    """The bound for what ``simulate`` with the same arguments replays.

    Args:
        trace, profile, tiers, host_link, tasks, seed, engine: as for ``simulate``.
        alphas: weights of quality in seconds, at least 0; more give a tighter curve.
        anticipation: "none" (assumption A), "prefetch" or "raise".
        added: loads of a request from several tiers add up, instead of running side by side as in the engine: the
            untimed model, whose delays are larger.
        ladder: numbers of price windows, coarse to fine.

    Raises:
        SimkvError: for bad input, and ConfigError for a setting that no bound covers.
    """
    config = parse_engine(engine, "bound")
    if tasks is not None:
        trace = assign_tasks(trace, tasks if isinstance(tasks, str) else dict(tasks), sub_seed(seed, "tasks"))
    specs, link = choose_tiers(profile, tiers), host_link or profile.host_link
    return _bound(trace, profile, specs, link, config, seed, alphas, anticipation, added, ladder)


def bound_config(
    config: RunConfig,
    *,
    alphas: Iterable[float] = ALPHAS,
    anticipation: str = "none",
    trace: Trace | None = None,
    profile: Profile | None = None,
) -> Bound:
    """The bound for a run's configuration, whatever its policy.  Raises SimkvError; see ``bound``."""
    profile = prepare_profile(config) if profile is None else profile
    trace = prepare_trace(config) if trace is None else trace
    specs, link = hardware(config, profile)
    return _bound(trace, profile, specs, link, config.engine, config.seed, alphas, anticipation, False, LADDER)


def _bound(
    trace: Trace,
    profile: Profile,
    tiers: tuple[TierSpec, ...],
    host_link: TierSpec | None,
    config: EngineConfig,
    seed: int,
    alphas: Iterable[float],
    anticipation: str,
    added: bool,
    ladder: tuple[int, ...],
) -> Bound:
    weights = _checked(alphas)
    costs = tables(trace, profile, tiers, host_link, config, seed)
    problem = build_problem(
        trace,
        costs,
        engine_settings(config),
        _measured(trace, config),
        host_link=host_link,
        anticipation=anticipation,
        added=added,
    )
    count = int(problem.measured.sum())
    utilities = np.array([minimise(problem, alpha, ladder)[0] for alpha in weights]) / count
    best = 1.0 + max(0.0, float(problem.quality.max(initial=0.0)))
    return Bound(weights, _lower_hull(weights, utilities), count, anticipation, best)


def _checked(alphas: Iterable[float]) -> NDArray[np.float64]:
    weights = np.unique(np.array(list(alphas), dtype=np.float64))
    if not len(weights) or not np.isfinite(weights).all() or weights[0] < 0:
        raise ConfigError(f"bound: alphas are {list(alphas)}; they must be numbers of seconds, at least 0")
    return weights


def _measured(trace: Trace, config: EngineConfig) -> NDArray[np.bool_]:
    """Which requests count; the same in every run."""
    if config.warmup.duration_ns and config.arrivals == "closed":
        raise ConfigError(
            "bound: engine.warmup is a duration, and in a closed loop the policy decides how many requests that is; "
            "write it as a share, such as '20 %'"
        )
    again = revisits(trace.block_ids, trace.block_offsets)
    return measured_rows(again, trace.arrival_ns / NS_PER_S, config.measure, config.warmup.amount)


def _lower_hull(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lower convex hull of the points, at each x."""
    kept: list[int] = []
    for i in range(len(x)):
        while len(kept) > 1:
            a, b = kept[-2:]
            if (y[b] - y[a]) * (x[i] - x[a]) <= (y[i] - y[a]) * (x[b] - x[a]):
                break
            kept.pop()
        kept.append(i)
    return np.interp(x, x[kept], y[kept])


def assumption_breaks(moves: pd.DataFrame, anticipation: str = "none", trace: Trace | None = None) -> int:
    """How many moves of a finished run its bound does not allow: raised or promoted between accesses.

    Args:
        moves: the run's frame.
        anticipation: of the bound.
        trace: that it replayed; without it only moves in a rebalance count, which belong to no request.
    """
    if anticipation == "raise":
        return 0
    up = moves["kind"] == "promotion"
    moved = up | moves["kind"].isin(["demotion", "recompression"])
    grown = moved & (moves["bytes"] > moves.groupby("block")["bytes"].shift())
    kept = moves[grown if anticipation == "prefetch" else grown | up]
    if trace is None:
        return int((kept["request"] < 0).sum())
    asked = {(int(r), int(b)) for r in set(kept["request"]) if r >= 0 for b in trace.blocks_of(int(r))}
    return sum((int(r), int(b)) not in asked for r, b in zip(kept["request"], kept["block"], strict=True))
