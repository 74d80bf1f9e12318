"""The time of a decode step as an integer table: what ``costs.py`` is for loads and prefill, for generated tokens.

A step gives every sequence of a batch one token.  Its time depends on the number of sequences and on the tokens in
their caches together, through which each step reads; it is linear in the latter between knots, so that steps in a row,
in which every cache grows by a token, add up in closed form.  Unit: picoseconds, since a cached token costs a few ns.

Two sources: steps that a profile has measured, between which the time is interpolated, or numbers of the user's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from simkv.errors import ConfigError, ProfileError
from simkv.profiles import Profile

__all__ = ["PS_PER_NS", "StepTimes", "given_steps", "measured_steps"]

PS_PER_NS = 1000
_PS_PER_S = 10**12
_END = 2**62

Piece = tuple[int, int, int, int]  # cached tokens from and to, ps at the first of them, ps per token


@dataclass(frozen=True)
class StepTimes:
    """Time of one step, by sequences in the batch and cached tokens of all of them.

    Attributes:
        lines: [sequences]: pieces of a line over cached tokens, from 0 upwards without gaps; entry 0 is empty.
        shared_ps: the part of a step that a chunk of prefill beside it need not pay again (weights are read once);
            no step is shorter.
        source: "measured" or "given".
        longest: tokens in a sequence's cache up to which every batch was measured; None for given times.
    """

    lines: tuple[tuple[Piece, ...], ...]
    shared_ps: int
    source: str
    longest: int | None = None

    def elapsed_ps(self, batch: int, cached: int, steps: int) -> int:
        """Time of so many steps in a row.

        Args:
            batch: sequences, at least 1.
            cached: tokens in their caches together, before the first step; each step adds ``batch``.
            steps: how many, 0 or more.
        """
        total = 0
        for start, end, at_start, slope in self.lines[batch]:
            if cached >= end:
                continue
            count = min(steps, -(-(end - cached) // batch))
            total += count * (at_start + slope * (cached - start)) + slope * batch * (count * (count - 1) // 2)
            cached += count * batch
            steps -= count
            if not steps:
                break
        return total


def given_steps(max_batch: int, base_ps: int, sequence_ps: int, token_ps: int) -> StepTimes:
    """Steps of base + sequences x ``sequence_ps`` + cached tokens x ``token_ps``; the base is what chunks share."""
    lines = (((0, _END, base_ps + batch * sequence_ps, token_ps),) for batch in range(1, max_batch + 1))
    return StepTimes(((), *lines), base_ps, "given")


def measured_steps(profile: Profile, max_batch: int | None) -> StepTimes:
    """Steps interpolated between those that the profile measured; the shortest of them is what chunks share.

    Linear between measured contexts (of each sequence, at the mean) and between measured batches.  Below the smallest
    of either, its time holds; beyond the longest context, the last slope goes on, but never downwards.

    Args:
        profile: with ``decode_steps``.
        max_batch: sequences, None for the largest batch that was measured.

    Raises:
        ConfigError: no measured steps, or a larger batch than was measured.
        ProfileError: a batch measured at a single context, or a step that took no time.
    """
    measured: dict[int, dict[int, float]] = {}
    for batch, context, seconds in profile.decode_steps:
        if batch < 1 or seconds <= 0:
            raise ProfileError(f"profile {profile.name}: a decode step of {batch} sequences in {seconds} s")
        measured.setdefault(batch, {})[context] = seconds
    if not measured:
        raise ConfigError(
            f"engine.decode: profile {profile.name} has no measured decode steps; give engine.step_base (with "
            f"step_per_sequence and step_per_token), or take a profile that `simkv profile speed` has made"
        )
    for batch, times in measured.items():
        if len(times) < 2:
            raise ProfileError(f"profile {profile.name}: decode steps of batch {batch} need two contexts or more")
    largest = max(measured)
    if max_batch is not None and max_batch > largest:
        raise ConfigError(
            f"engine.max_batch: {max_batch}; profile {profile.name} has measured decode steps of at most {largest} "
            f"sequences; measure larger batches, or give engine.step_base"
        )
    most = max_batch or largest
    lines = [_line(measured, batch) for batch in range(1, most + 1)]
    shared = min(piece[2] for line in lines for piece in line)
    used = [times for batch, times in measured.items() if batch <= min(b for b in measured if b >= most)]
    return StepTimes(((), *lines), shared, "measured", min(max(times) for times in used))


def _line(measured: dict[int, dict[int, float]], batch: int) -> tuple[Piece, ...]:
    """Pieces of one batch, between the measured batches beside it."""
    batches = sorted(measured)
    above = next(b for b in batches if b >= batch)
    below = max((b for b in batches if b <= batch), default=above)
    share = (batch - below) / (above - below) if above > below else 0.0
    contexts = sorted({*measured[below], *measured[above]})
    beyond = 2 * contexts[-1]

    def seconds(context: int) -> float:
        return (1 - share) * _at(measured[below], context) + share * _at(measured[above], context)

    knots = [(batch * context, round(seconds(context) * _PS_PER_S)) for context in contexts]
    tail = round((seconds(beyond) - seconds(contexts[-1])) * _PS_PER_S / (batch * (beyond - contexts[-1])))
    return tuple(_pieces(knots, tail))


def _pieces(knots: Sequence[tuple[int, int]], tail: int) -> list[Piece]:
    pieces = [(0, knots[0][0], knots[0][1], 0)] if knots[0][0] else []
    for (start, at_start), (end, at_end) in pairwise(knots):
        slope = -(-(at_end - at_start) // (end - start))  # rounded up, so that no step is below both of its knots
        pieces.append((start, end, at_start, slope))
    return [*pieces, (knots[-1][0], _END, knots[-1][1], tail)]


def _at(times: dict[int, float], context: int) -> float:
    contexts = sorted(times)
    values = [times[c] for c in contexts]
    slope = max(0.0, (values[-1] - values[-2]) / (contexts[-1] - contexts[-2]))
    return float(np.interp(context, contexts, values)) + slope * max(0, context - contexts[-1])
