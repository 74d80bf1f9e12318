"""Rules that make one quality of a prompt from the qualities of its entries, and the fit of their exponents.

What it is: formulas over (quality, token share, family) of entries; "mean" is the simulator's.  What it is not:
measuring (``composition.py``) or judging (``composition_report.py``).  Every rule ignores the order of entries, gives 1
where all are raw, and (but for "product") the common quality where all are in the same variant.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from simkv.errors import SimkvError

__all__ = ["RULES", "Entries", "Rule", "fitted"]

_FLOOR = 1e-3  # of a quality whose logarithm is taken
_REACH = 5.0  # exponents from 2^-5 to 2^5


@dataclass(frozen=True)
class Entries:
    """Entries of some prompts, [prompts, most entries].

    Attributes:
        quality: in [0, 1].
        share: of the prompt's tokens; rows sum to 1, places without an entry are 0.
        dropped: True for entries that a token dropper made.

    Raises:
        SimkvError: shapes that differ, a quality outside [0, 1], or shares that do not sum to 1.
    """

    quality: NDArray[np.float64]
    share: NDArray[np.float64]
    dropped: NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Check."""
        if self.quality.ndim != 2 or not self.quality.shape == self.share.shape == self.dropped.shape:
            raise SimkvError(f"entries of shapes {self.quality.shape}, {self.share.shape} and {self.dropped.shape}")
        if not ((self.quality >= 0) & (self.quality <= 1)).all():
            raise SimkvError("entries with a quality outside 0 to 1")
        if (self.share < 0).any() or not np.allclose(self.share.sum(axis=1), 1):
            raise SimkvError("entries whose shares of the prompt's tokens do not sum to 1")

    def of(self, rows: NDArray[np.bool_]) -> "Entries":
        """The entries of some prompts."""
        return Entries(self.quality[rows], self.share[rows], self.dropped[rows])


@dataclass(frozen=True)
class Rule:
    """One rule: ``value(entries, *exponents)`` is the quality of every prompt, [prompts]."""

    value: Callable[..., NDArray[np.float64]]
    exponents: int = 0


def _mean(entries: Entries) -> NDArray[np.float64]:
    return np.sum(entries.share * entries.quality, axis=1)


def _geometric(entries: Entries) -> NDArray[np.float64]:
    return np.exp(np.sum(entries.share * np.log(np.maximum(entries.quality, _FLOOR)), axis=1))


def _product(entries: Entries) -> NDArray[np.float64]:
    return np.prod(1 - entries.share * (1 - entries.quality), axis=1)


def _least(entries: Entries) -> NDArray[np.float64]:
    return np.where(entries.share > 0, entries.quality, 1.0).min(axis=1)


def _power(entries: Entries, exponent: float) -> NDArray[np.float64]:
    return np.sum(entries.share * entries.quality**exponent, axis=1) ** (1 / exponent)


def _loss_power(entries: Entries, exponent: float) -> NDArray[np.float64]:
    return 1 - np.sum(entries.share * (1 - entries.quality) ** exponent, axis=1) ** (1 / exponent)


def _split(entries: Entries) -> NDArray[np.float64]:
    quantised, dropped = _by_family(entries)
    return _geometric(quantised) * _mean(dropped)


def _families(entries: Entries, quantised_exponent: float, dropped_exponent: float) -> NDArray[np.float64]:
    quantised, dropped = _by_family(entries)
    return _power(quantised, quantised_exponent) * _power(dropped, dropped_exponent)


def _by_family(entries: Entries) -> tuple[Entries, Entries]:
    """The same prompts as if only what is quantised, and only what is dropped, had been lost."""
    quantised = np.where(entries.dropped, 1.0, entries.quality)
    dropped = np.where(entries.dropped, entries.quality, 1.0)
    return replace(entries, quality=quantised), replace(entries, quality=dropped)


RULES: dict[str, Rule] = {
    "mean": Rule(_mean),
    "geometric": Rule(_geometric),
    "product": Rule(_product),
    "minimum": Rule(_least),
    "power": Rule(_power, 1),
    "loss_power": Rule(_loss_power, 1),
    "split": Rule(_split),
    "families": Rule(_families, 2),
}
"""By name, with w a token share and q a quality:

mean sum(w q); geometric prod(q^w); product prod(1 - w (1 - q)); minimum min(q); power sum(w q^p)^(1/p); loss_power
1 - sum(w (1 - q)^p)^(1/p); split (geometric over quantised entries, the others at 1) x (mean over dropped entries, the
others at 1); families the same with a power and an exponent for each.
"""


def fitted(rule: Rule, entries: Entries, measured: NDArray[np.float64]) -> tuple[float, ...]:
    """Exponents of least squared error, from 2^-5 to 2^5 each; empty for a rule that has none.

    Args:
        rule: of ``RULES``.
        entries: of some prompts.
        measured: their measured quality, [prompts].

    Raises:
        SimkvError: no prompts to fit to.
    """
    if not rule.exponents:
        return ()
    if not len(measured):
        raise SimkvError("a rule cannot be fitted to no prompts")

    def error(logs: NDArray[np.float64]) -> float:
        return float(np.mean((rule.value(entries, *np.exp2(logs)) - measured) ** 2))

    bounds = [(-_REACH, _REACH)] * rule.exponents
    found = minimize(error, np.full(rule.exponents, 0.3), method="Nelder-Mead", bounds=bounds, options={"xatol": 1e-3})
    return tuple(float(exponent) for exponent in np.exp2(found.x))
