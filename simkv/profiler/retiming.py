"""Points that other work on the machine seems to have spoilt: found by what machines hardly do, and timed again.

What it is: the rules by which a measured point is implausible, and the rounds that time such points anew.  What it is
not: timing (``timing.py``), or the loops over the whole grid (``speed.py``).

A disturbance only ever adds time.  So of two points that contradict each other the one that takes longer is timed
again, and of two measurements of one point the one of the lower median is kept.
"""

import logging
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from simkv.profiler.rows import Key, RowFile, SpeedRow
from simkv.profiler.speed import SpeedRun

__all__ = ["MOST_AGAIN", "MOST_FALL", "MOST_SPREAD", "implausible", "time_again"]

_LOG = logging.getLogger(__name__)
MOST_FALL = 0.1
"""More work may take so much less, as a share."""
MOST_SPREAD = 1.5
"""A 95th percentile may be so many times the median."""
MOST_AGAIN = 3
"""A point is timed again so often."""
_NAMED = 5
_LINK = ("h2d", "d2h")  # many copies at once differ by nature; their best is taken


def implausible(rows: Sequence[SpeedRow]) -> dict[Key, str]:
    """What is wrong with points, by key: more work in clearly less time, or timings far apart.

    More work is as many tokens or more, ending as late in the cache or later, in as many sequences or more.  Copies
    between host and device are not judged.
    """
    found: dict[Key, str] = {}
    judged = sorted((row for row in rows if row.what not in _LINK), key=lambda row: (row.what, row.variant))
    for _, group in groupby(judged, key=lambda row: (row.what, row.variant)):
        alike = list(group)
        for row in alike:
            if wrong := _wrong(row, alike):
                found[row.key] = f"{_place(row)}: {wrong}"
    return found


def time_again(
    run: SpeedRun, rows: RowFile[SpeedRow], judged: Callable[[], Sequence[SpeedRow]], tell: Callable[[int], None]
) -> dict[str, Any]:
    """Time implausible rows anew, at most ``MOST_AGAIN`` times each; what is left is a warning.

    Args:
        run: what times them.
        rows: where they stand; whatever is timed again is kept there, and counted across kills.
        judged: the rows that go into the profile, as they are now.
        tell: takes how many are still to be timed in this round.

    Returns:
        For ``[provenance]``: "timed_again", how many points were; "implausible", what is wrong with those that stayed
        so.
    """
    lost: set[Key] = set()  # no memory for them any more
    while wrong := {key for key in implausible(judged()) if rows.times[key] <= MOST_AGAIN} - lost:
        tell(len(wrong))
        for row in run.again(frozenset(wrong)):
            rows.add(min(rows.rows[row.key], row, key=lambda one: (one.seconds, one.p95_s)))
            wrong.discard(row.key)
            tell(len(wrong))
        lost |= wrong
    tell(0)
    stayed = list(implausible(judged()).values())
    if stayed:
        more = f" and {len(stayed) - _NAMED} more (all in provenance)" if len(stayed) > _NAMED else ""
        _LOG.warning(
            "still implausible after being timed up to %d times more, be it other work or the code itself: %s%s",
            MOST_AGAIN,
            "; ".join(stayed[:_NAMED]),
            more,
        )
    return {"timed_again": sum(rows.times[row.key] > 1 for row in judged()), "implausible": stayed}


def _wrong(row: SpeedRow, alike: Sequence[SpeedRow]) -> str:
    """What is wrong with a row beside those of its kind and variant; nothing for nothing."""
    faster = min((other for other in alike if _is_more(other, row)), key=lambda one: one.seconds, default=row)
    if faster.seconds < (1 - MOST_FALL) * row.seconds:
        return f"{1e3 * row.seconds:.3g} ms, when {_size(faster)} took {1e3 * faster.seconds:.3g} ms"
    if row.p95_s > MOST_SPREAD * row.seconds:
        return f"median {1e3 * row.seconds:.3g} ms, 95th percentile {1e3 * row.p95_s:.3g} ms"
    return ""


def _is_more(row: SpeedRow, than: SpeedRow) -> bool:
    return (
        row.tokens >= than.tokens
        and row.tokens + row.cached >= than.tokens + than.cached
        and row.batch >= than.batch
        and row.bytes >= (than.bytes if row.what == "copy" else 0)
    )


def _place(row: SpeedRow) -> str:
    return " ".join(part for part in (row.what, row.variant, _size(row)) if part)


def _size(row: SpeedRow) -> str:
    """Of its work, like "8 x 1024 tokens" or "64 tokens after 448"."""
    if row.what == "copy":
        return f"{row.bytes} bytes"
    many = f"{row.batch} x " if row.what == "step" else ""
    return f"{many}{row.tokens} tokens" + (f" after {row.cached}" if row.cached else "")
