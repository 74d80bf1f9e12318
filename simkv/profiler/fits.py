"""Cost lines and the prefill's cost model fitted to measured points, or the points where no line fits them.

What it is: fits whose *largest relative* residual is the smallest possible (linear programming), since a simulation
charges short and long contexts alike.  What it is not: the measured points (``speed.py``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from simkv.profile_types import Line, PrefillFit

__all__ = ["MOST_RESIDUAL", "fit_line", "fit_prefill", "interpolated_prefill", "largest_residual"]

MOST_RESIDUAL = 0.1
"""Largest relative residual at any measured point with which a fit stands for its points."""

_TINY_S = 1e-9


def fit_line(seconds: Mapping[int, float]) -> tuple[Line, float]:
    """The line of {tokens: seconds}, neither part of it negative, and its largest relative residual.

    Where the residual exceeds ``MOST_RESIDUAL`` the line keeps the points, which are then interpolated.
    """
    points = sorted(seconds.items())
    tokens = np.array([count for count, _ in points], dtype=np.float64)
    measured = np.array([max(value, _TINY_S) for _, value in points])
    columns = [np.ones_like(tokens), tokens] if len(points) > 1 else [tokens]
    *fixed, slope = _least_relative(np.stack(columns, axis=1), measured)
    line = Line(slope, fixed[0] if fixed else 0.0)
    found = np.array([line.seconds(count) for count in tokens])
    residual = largest_residual(found, measured)
    return (line if residual <= MOST_RESIDUAL else replace(line, points=tuple(points))), residual


def fit_prefill(seconds: Mapping[tuple[int, int], float]) -> tuple[PrefillFit, float]:
    """The cost model of {(new tokens, cached tokens): seconds}, and its largest relative residual.

    seconds = max(floor, base + a n + b ((c + n)^2 - c^2)); of fewer than six points without b, of fewer than four
    without base.  Where its residual exceeds ``MOST_RESIDUAL``, the work up to every measured position of a prompt is
    fitted by itself and interpolated between them, which is kept when it does better; the residual is what is left
    even so.
    """
    grid = sorted(seconds)
    measured = np.array([max(seconds[point], _TINY_S) for point in grid])
    floors = (0.0, *sorted(set(measured))[: len(grid) // 2])

    def residual(fit: PrefillFit) -> float:
        return _prefill_residual(fit, grid, measured)

    best = min((_polynomial(grid, measured, floor) for floor in floors), key=residual)
    if residual(best) > MOST_RESIDUAL:
        best = min([best, *(_positions(best, grid, measured, floor) for floor in floors)], key=residual)
    return best, residual(best)


def interpolated_prefill(seconds: Mapping[tuple[int, int], float]) -> tuple[PrefillFit, float]:
    """The cost model that takes whole prompts as they were measured, and its largest relative residual.

    For where {(new tokens, cached tokens): seconds} holds the very lengths in use: what every prefill pays is the
    median of what short continuations take beyond their share of a whole prompt.  There must be at least two whole
    prompts and one continuation.
    """
    whole = {new: value for (new, cached), value in sorted(seconds.items()) if not cached}
    lengths, values = list(whole), np.maximum.accumulate(list(whole.values()))
    fixed = [
        value - (np.interp(cached + new, lengths, values) - np.interp(cached, lengths, values))
        for (new, cached), value in seconds.items()
        if cached
    ]
    base = max(0.0, float(np.median(fixed)))
    rise = _TINY_S * np.arange(1, len(lengths) + 1)  # points must rise
    points = tuple(zip(lengths, (np.maximum(values - base, 0.0) + rise).tolist(), strict=True))
    slope = (points[-1][1] - points[-2][1]) / (lengths[-1] - lengths[-2])
    fit = PrefillFit(base, slope, points=points)
    grid = sorted(seconds)
    return fit, _prefill_residual(fit, grid, np.array([max(seconds[point], _TINY_S) for point in grid]))


def largest_residual(found: NDArray[np.float64], measured: NDArray[np.float64]) -> float:
    """Largest |found - measured| / measured."""
    return float((np.abs(found - measured) / measured).max())


def _polynomial(grid: Sequence[tuple[int, int]], measured: NDArray[np.float64], floor: float) -> PrefillFit:
    """With this floor, fitted to the points that lie above it."""
    above = measured > floor * (1 + MOST_RESIDUAL)
    if not above.any():
        return PrefillFit(0.0, 0.0, floor_s=floor)
    new, cached = np.array(grid, dtype=np.float64)[above].T
    columns = np.stack([np.ones_like(new), new, (cached + new) ** 2 - cached**2], axis=1)
    # Not more coefficients than half of the points, or they would fit noise and say so by a residual of 0.
    wanted = [1, 0, 2][: max(1, len(new) // 2)]
    found = dict(zip(wanted, _least_relative(columns[:, wanted], measured[above]), strict=True))
    return PrefillFit(found.get(0, 0.0), found[1], found.get(2, 0.0), floor)


def _positions(
    slope: PrefillFit, grid: Sequence[tuple[int, int]], measured: NDArray[np.float64], floor: float
) -> PrefillFit:
    """With this floor, the work between any two neighbouring positions at which a measurement begins or ends.

    Beyond the last of them it follows ``slope``.
    """
    above = measured > floor * (1 + MOST_RESIDUAL)
    if not above.any():
        return slope
    new, cached = np.array(grid)[above].T
    places = np.unique(np.concatenate([cached, cached + new]))
    places = places[places > cached.min()]
    within = (places > cached[:, None]) & (places <= (cached + new)[:, None])  # [points, places]
    if len(new) > len(places):
        base, *work = _least_relative(np.column_stack([np.ones(len(new)), within]), measured[above])
    else:  # so few points do not tell a base from the work
        base, work = slope.base_s, _least_relative(within.astype(np.float64), measured[above], slope.base_s)
    points = zip((int(place) for place in places), (float(value) for value in np.cumsum(work)), strict=True)
    return replace(slope, base_s=base, floor_s=float(floor), points=tuple(points))


def _prefill_residual(fit: PrefillFit, grid: Sequence[tuple[int, int]], measured: NDArray[np.float64]) -> float:
    return largest_residual(np.array([fit.seconds(new, cached) for new, cached in grid]), measured)


def _least_relative(columns: NDArray[np.float64], measured: NDArray[np.float64], given: float = 0.0) -> list[float]:
    """Coefficients, none negative, whose largest relative residual is the smallest; ``given`` is added to all."""
    relative = columns / measured[:, None]
    scale = relative.max(axis=0)
    scaled = relative / scale
    slack = -np.ones((len(measured), 1))
    limits = np.block([[scaled, slack], [-scaled, slack]])
    target = 1 - given / measured
    found = linprog([*[0.0] * len(scale), 1.0], A_ub=limits, b_ub=np.concatenate([target, -target]), bounds=(0, None))
    return [float(value) for value in found.x[:-1] / scale]
