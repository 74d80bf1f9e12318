"""Measured speeds as they stand in a profile: one CSV row per measured point, and points beside a line.

What it is: the columns of ``speeds.csv`` and their checks.  What it is not: measuring (``simkv.profiler.speed``), or
the lines that the simulator uses, which are fitted to these rows.
"""

import csv
import io
import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from simkv.errors import ProfileError, unknown_name
from simkv.profile_types import Points
from simkv.profile_values import CheckedTable, one_line

__all__ = ["SPEED_COLUMNS", "SPEED_KINDS", "parse_points", "parse_speeds"]

SPEED_KINDS = ("encode", "decode", "prefill", "step", "copy", "h2d", "d2h")
"""What a row is the time of.

encode, decode: of ``tokens`` tokens in ``variant``; ``bytes`` is the payload's length.
prefill: of ``tokens`` new tokens after ``cached`` ones.
step: of generation, one token in each of ``batch`` sequences with ``tokens`` tokens in the cache.
copy: of ``bytes`` within the device's memory.
h2d, d2h: of ``bytes`` to and from the device, ``batch`` copies at once; ``implementation`` is pinned or pageable.
"""

_TEXT = ("what", "variant", "implementation")
_WHOLE = ("tokens", "cached", "batch", "bytes", "repeats")
_SECONDS = ("seconds", "p95_s")
SPEED_COLUMNS = ("what", "variant", "tokens", "cached", "batch", "bytes", *_SECONDS, "repeats", "implementation")
"""``seconds`` is the median of ``repeats`` timings, and ``p95_s`` their 95th percentile."""

_IMPLEMENTATIONS = ("reference", "fused", "pinned", "pageable")
_MOST_WHOLE = 2**53
_MOST_DIGITS = 16
_MOST_POINTS = 1024


def parse_points(table: CheckedTable) -> Points:
    """The key ``points`` of a line or fit, [[tokens, seconds], ...] rising in tokens; none without it.

    Raises:
        ProfileError: points that are not so.
    """
    if "points" not in table.data:
        return ()
    found = table.data["points"]
    pairs = isinstance(found, list) and 0 < len(found) <= _MOST_POINTS and all(_is_pair(item) for item in found)
    if not pairs or any(left[0] >= right[0] for left, right in itertools.pairwise(found)):
        raise table.bad("points", "a list of [tokens, seconds], rising in tokens")
    return tuple((int(tokens), float(seconds)) for tokens, seconds in found)


def _is_pair(item: Any) -> bool:
    if not (isinstance(item, list) and len(item) == 2 and type(item[0]) is int and type(item[1]) in (int, float)):
        return False
    return bool(0 < item[0] < _MOST_WHOLE and 0 <= item[1] < _MOST_WHOLE)


def parse_speeds(path: Path, raw: bytes, variants: Iterable[str]) -> pd.DataFrame:
    """The rows of a ``speeds.csv``, with the columns ``SPEED_COLUMNS``, in file order.

    Raises:
        ProfileError: naming the line, for anything but measured rows of known variants.
    """
    known = {"", *variants}
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    try:
        reader = csv.reader(io.StringIO(raw.decode("utf-8-sig")), strict=True)
        if tuple(next(reader, ())) != SPEED_COLUMNS:
            raise ProfileError(f"{path}: line 1: the header must be {','.join(SPEED_COLUMNS)}")
        for cells in reader:
            place = f"{path}: line {reader.line_num}"
            if len(cells) != len(SPEED_COLUMNS):
                raise ProfileError(f"{place}: {len(cells)} fields; the header has {len(SPEED_COLUMNS)}")
            row = _checked(place, dict(zip(SPEED_COLUMNS, cells, strict=True)), known)
            key = tuple(row[name] for name in SPEED_COLUMNS if name not in ("repeats", *_SECONDS))
            if key in rows:
                raise ProfileError(f"{place}: a second row of the same measurement")
            rows[key] = row
    except (csv.Error, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: not a CSV file in UTF-8: {one_line(error)}") from error
    return pd.DataFrame(list(rows.values()), columns=list(SPEED_COLUMNS))


def _checked(place: str, cells: dict[str, str], variants: set[str]) -> dict[str, Any]:
    for name, allowed in (("what", SPEED_KINDS), ("variant", variants), ("implementation", _IMPLEMENTATIONS)):
        if cells[name] not in allowed:
            raise ProfileError(f"{place}: {unknown_name(name, cells[name][:64], allowed)}")
    row: dict[str, Any] = {name: cells[name] for name in _TEXT}
    for name in _WHOLE:
        digits = cells[name].isascii() and cells[name].isdecimal() and len(cells[name]) <= _MOST_DIGITS
        if not digits or int(cells[name]) >= _MOST_WHOLE:
            raise ProfileError(f"{place}: {name} is {cells[name][:80]!r}; it must be a whole number of at least 0")
        row[name] = int(cells[name])
    for name in _SECONDS:
        row[name] = _seconds(place, name, cells[name])
    return row


def _seconds(place: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < _MOST_WHOLE:
        raise ProfileError(f"{place}: {name} is {text[:80]!r}; it must be a number of at least 0")
    return value
