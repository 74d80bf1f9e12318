"""Cost lines and the prefill's cost model fitted to measured points, or the points where no line fits them.

What it is: fits whose *largest relative* residual is the smallest possible (linear programming), since a simulation
charges short and long contexts alike.  What it is not: the measured points (``speed.py``).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from simkv.profile_types import Line, PrefillFit

__all__ = ["MOST_RESIDUAL", "fit_line", "fit_prefill", "largest_residual"]

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
    without base.  Where its residual exceeds ``MOST_RESIDUAL`` and whole
    prompts interpolated between their measured points do better, the model is those points; the residual is what is
    left even so.
    """
    grid = sorted(seconds)
    measured = np.array([max(seconds[point], _TINY_S) for point in grid])
    candidates = [_polynomial(grid, measured, floor) for floor in (0.0, *sorted(set(measured))[: len(grid) // 2])]
    best = min(candidates, key=lambda fit: _prefill_residual(fit, grid, measured))
    residual = _prefill_residual(best, grid, measured)
    if residual > MOST_RESIDUAL:
        whole = {new: seconds[new, cached] for new, cached in grid if not cached}
        interpolated = _interpolated(best, whole)
        if interpolated and _prefill_residual(interpolated, grid, measured) < residual:
            return interpolated, _prefill_residual(interpolated, grid, measured)
    return best, residual


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


def _interpolated(fit: PrefillFit, whole: Mapping[int, float]) -> PrefillFit | None:
    """Whole prompts as they were measured, less what every prefill pays; None when that is not rising."""
    points = tuple((tokens, max(0.0, value - fit.base_s)) for tokens, value in sorted(whole.items()))
    rising = all(left[1] < right[1] for left, right in itertools.pairwise(points))
    return replace(fit, points=points) if len(points) > 1 and rising else None


def _prefill_residual(fit: PrefillFit, grid: Sequence[tuple[int, int]], measured: NDArray[np.float64]) -> float:
    return largest_residual(np.array([fit.seconds(new, cached) for new, cached in grid]), measured)


def _least_relative(columns: NDArray[np.float64], measured: NDArray[np.float64]) -> list[float]:
    """Coefficients, none negative, whose largest relative residual is the smallest."""
    relative = columns / measured[:, None]
    scale = relative.max(axis=0)
    scaled = relative / scale
    slack = -np.ones((len(measured), 1))
    limits = np.block([[scaled, slack], [-scaled, slack]])
    ones = np.ones(len(measured))
    found = linprog([*[0.0] * len(scale), 1.0], A_ub=limits, b_ub=np.concatenate([ones, -ones]), bounds=(0, None))
    return [float(value) for value in found.x[:-1] / scale]
