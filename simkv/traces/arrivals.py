"""Seeded draws that the generators share: arrival times, token lengths, popularity; and option checks.

What it is: small functions of a numpy Generator (PCG64), so that one seed gives one result.  What it
is not: a workload; those are in ``generate.py`` and ``adaptcache.py``.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simkv.errors import ConfigError, unknown_name
from simkv.units import NS_PER_S

__all__ = [
    "ARRIVALS",
    "MAX_BLOCKS",
    "MAX_REQUESTS",
    "MAX_TOKENS",
    "arrival_times_ns",
    "generated_meta",
    "lognormal",
    "number",
    "positions",
    "streams",
    "token_lengths",
    "whole",
    "zipf_shares",
]

ARRIVALS = {
    "poisson": "exponential gaps",
    "bursty": "gamma gaps with coefficient of variation `burstiness`",
    "uniform": "equal gaps",
}
MAX_REQUESTS = 10_000_000
MAX_BLOCKS = 50_000_000
MAX_TOKENS = 10_000_000
_LONGEST_NS = 2**62


def whole(name: str, value: Any, least: int, most: int) -> int:
    """``value`` if it is a whole number in [least, most].  Raises ConfigError naming the option."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ConfigError(f"{name} = {value!r} must be a whole number from {least} to {most}")
    return int(value)


def number(name: str, value: Any, least: float, most: float) -> float:
    """``value`` as a float if it is a finite number in [least, most].  Raises ConfigError naming the option."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ConfigError(f"{name} = {value!r} must be a number from {least:g} to {most:g}")
    if not (math.isfinite(value) and least <= value <= most):
        raise ConfigError(f"{name} = {value!r} must be a number from {least:g} to {most:g}")
    return float(value)


def streams(seed: Any, count: int) -> list[np.random.Generator]:
    """``count`` independent generators of one seed: changing what one draws leaves the others alone."""
    sequence = np.random.SeedSequence(whole("seed", seed, 0, 2**63 - 1))
    return [np.random.Generator(np.random.PCG64(child)) for child in sequence.spawn(count)]


def arrival_times_ns(
    rng: np.random.Generator, count: int, *, rate_per_s: float, arrivals: str, burstiness: float
) -> NDArray[np.int64]:
    """int64[count] arrival times in ns, the first at 0, ``rate_per_s`` on average.

    Args:
        rng: source of the gaps.
        count: number of arrivals.
        rate_per_s: mean arrivals per second.
        arrivals: one of ``ARRIVALS``.
        burstiness: coefficient of variation of the gaps of "bursty"; 1 is Poisson.

    Raises:
        ConfigError: for an unknown process or a number out of range.
    """
    rate = number("rate_per_s", rate_per_s, 1e-6, 1e9)
    spread = number("burstiness", burstiness, 1e-3, 1e3)
    if arrivals not in ARRIVALS:
        raise ConfigError(unknown_name("arrival process", str(arrivals), ARRIVALS))
    if arrivals == "uniform":
        gaps = np.full(max(count - 1, 0), 1.0)
    elif arrivals == "poisson":
        gaps = rng.exponential(1.0, max(count - 1, 0))
    else:
        gaps = rng.gamma(1 / spread**2, spread**2, max(count - 1, 0))
    times = np.concatenate([[0.0], np.cumsum(gaps)])[:count] * (NS_PER_S / rate)
    if count and times[-1] > _LONGEST_NS:
        raise ConfigError(f"rate_per_s = {rate_per_s!r}: {count} arrivals would last longer than 146 years")
    return np.rint(times).astype(np.int64)


def lognormal(rng: np.random.Generator, count: int, mean: float, sd: float) -> NDArray[np.float64]:
    """float64[count] log-normal numbers of the given mean (positive) and standard deviation."""
    variance = math.log1p((sd / mean) ** 2)
    return rng.lognormal(math.log(mean) - variance / 2, math.sqrt(variance), count)


def token_lengths(
    rng: np.random.Generator, count: int, mean: float, sd: float, prefix: str = "", most: int = MAX_TOKENS
) -> NDArray[np.int64]:
    """int64[count] log-normal lengths in tokens, of the given mean and sd before clipping to [1, most].

    Raises ConfigError naming the option ``<prefix>tokens`` or ``<prefix>sd_tokens``.
    """
    mean = number(f"{prefix}tokens", mean, 1, MAX_TOKENS)
    sd = number(f"{prefix}sd_tokens", sd, 0, MAX_TOKENS)
    return np.clip(np.rint(lognormal(rng, count, mean, sd)), 1, most).astype(np.int64)


def zipf_shares(count: int, exponent: float) -> NDArray[np.float64]:
    """float64[count] popularity of ranks 1..count, proportional to rank^-exponent, with sum 1."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def positions(
    counts: NDArray[np.int64], most: int = MAX_BLOCKS, what: str = "requested blocks"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For groups of ``counts`` members laid out flat: the group of each member and its place in the group.

    Raises ConfigError when there are more than ``most`` members of ``what``.
    """
    total = int(counts.sum())
    if total > most:
        raise ConfigError(f"these options make {total} {what}; at most {most} are allowed")
    group = np.repeat(np.arange(len(counts)), counts)
    return group, np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)


def generated_meta(name: str, block_size: int, arrivals: str, rate_per_s: float) -> dict[str, Any]:
    """Facts of a generated trace: see Trace.meta."""
    clock = f"generated: {arrivals}, {rate_per_s:g}/s"
    return {"name": name, "format": "generated", "block_size": block_size, "clock": clock}
