"""Values from and to profile files, which are untrusted: bounded sizes, plain data, one-line complaints.

What it is: reading a bounded file, one TOML table with typed look-ups, tiers, the quality CSV, and plain
data as TOML.  What it is not: the sections of a profile (``profile_files.py``, its only user).
"""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable
from itertools import product
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pandas as pd

from simkv.errors import ConfigError, ProfileError, unknown_name
from simkv.profile_types import TierSpec
from simkv.units import NS_PER_S, parse_bytes, parse_duration_ns, parse_rate

__all__ = [
    "CheckedTable",
    "bounded_bytes",
    "one_line",
    "parse_capacity",
    "parse_quality",
    "parse_tier",
    "toml_keys",
    "toml_value",
]

_ORIGIN = ("status", "source")
_STATUSES = ("published", "notes", "authors-code", "digitised", "inferred", "fitted", "assumed", "measured")
_MAX_QUALITY = 1.5
_SAME_FRACTION = 1e-6
_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_KEYS = ("task", "sample", "variant", "quality")
_EXTRAS = {"truth": _MAX_QUALITY, "nll": math.inf, "kl": math.inf, "top1": 1.0, "stored_bytes": 2.0**53}
_COLUMNS = (*_KEYS, "quality_train", *_EXTRAS, "removed")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def bounded_bytes(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes.  Raises ProfileError."""
    try:
        if not path.is_file():
            raise ProfileError(f"{path}: there is no such file")
        with path.open("rb") as handle:
            raw = handle.read(limit + 1)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {one_line(error)}") from error
    if len(raw) > limit:
        raise ProfileError(f"{path}: larger than {limit} bytes, the most that is read")
    return raw


def one_line(error: Exception) -> str:
    """The message of ``error`` without line breaks, shortened."""
    return " ".join(str(error).split())[:200]


class CheckedTable:
    """One TOML table and its place, so that every complaint names file and key."""

    def __init__(self, place: str, data: Any, known: Iterable[str]) -> None:
        self.place = place
        if not isinstance(data, dict):
            raise self.error(f"must be a table, found {type(data).__name__}")
        self.data: dict[str, Any] = data
        for key in data:
            if key not in known:
                raise self.error(unknown_name("key", key[:64], known))

    def error(self, message: str) -> ProfileError:
        """The error to raise about this table."""
        return ProfileError(f"{self.place}: {message}")

    def bad(self, key: str, allowed: str) -> ProfileError:
        """The error to raise about the value of ``key``."""
        return self.error(f"{key} is {repr(self.data[key])[:80]}; it must be {allowed}")

    def get(self, key: str) -> Any:
        """The value of ``key``, which must be there."""
        if key not in self.data:
            raise self.error(f"the key {key!r} is missing")
        return self.data[key]

    def text(self, key: str, pattern: re.Pattern[str] | None = None) -> str:
        """A text that is not empty and matches ``pattern``."""
        value = self.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.bad(key, "text that is not empty")
        if pattern and not pattern.fullmatch(value):
            raise self.bad(key, f"a name like {pattern.pattern}")
        return value

    def number(self, key: str, fits: Callable[[float], bool], allowed: str, default: float | None = None) -> float:
        """A number within int64 that ``fits``; ``allowed`` says what that is."""
        if default is not None and key not in self.data:
            return default
        value = self.get(key)
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not numeric or not -(2**63) < value < 2**63 or not fits(value):
            raise self.bad(key, f"a number {allowed}")
        return float(value)

    def not_negative(self, key: str, default: float | None = None) -> float:
        """A number of at least 0."""
        return self.number(key, lambda value: value >= 0, "of at least 0", default)

    def whole(self, key: str, most: int, default: int | None = None) -> int:
        """A whole number from 1 to ``most``."""
        value = default if default is not None and key not in self.data else self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.bad(key, f"a whole number from 1 to {most}")
        return value

    def quantity(self, key: str, parse: Callable[[Any], int]) -> int:
        """A value that ``parse`` of ``simkv.units`` understands."""
        try:
            return parse(self.get(key))
        except ConfigError as error:
            raise self.error(f"{key}: {one_line(error)}") from error

    def origin(self) -> dict[str, str] | None:
        """The table's own status and source, None when it says neither."""
        own = {key: self.text(key) for key in _ORIGIN if key in self.data}
        if len(own) == 1:
            raise self.error("status and source go together: give both or neither")
        if own and own["status"] not in _STATUSES:
            raise self.error(unknown_name("status", own["status"][:64], _STATUSES))
        return own or None


def parse_tier(row: CheckedTable, name: str, capacity_bytes: int | None) -> TierSpec:
    """The tier (or link) of one table, quantities as text with units or as plain numbers.  Raises ProfileError."""
    discipline = row.text("discipline") if "discipline" in row.data else "fifo"
    if discipline not in ("fifo", "fair"):
        raise row.bad("discipline", "'fifo' or 'fair'")
    return TierSpec(
        name=name,
        capacity_bytes=capacity_bytes,
        read_bytes_per_s=row.quantity("read", parse_rate),
        write_bytes_per_s=row.quantity("write", parse_rate),
        latency_s=_latency_s(row),
        channels=row.whole("channels", 1024, 1),
        discipline=discipline,
        endurance_bytes=_positive_bytes(row, "endurance") if "endurance" in row.data else None,
    )


def _latency_s(row: CheckedTable) -> float:
    if isinstance(row.data.get("latency"), str):
        return row.quantity("latency", parse_duration_ns) / NS_PER_S
    return row.not_negative("latency", 0.0)


def parse_capacity(row: CheckedTable) -> int | None:
    """Bytes of the key ``capacity``, None for "unlimited".  Raises ProfileError."""
    return None if row.get("capacity") == "unlimited" else _positive_bytes(row, "capacity")


def _positive_bytes(row: CheckedTable, key: str) -> int:
    value = row.quantity(key, parse_bytes)
    if value == 0:
        raise row.bad(key, "positive")
    return value


def parse_quality(path: Path, raw: bytes, variants: Iterable[str]) -> pd.DataFrame:
    """Quality rows (task, sample, variant, quality[, quality_train]) of a CSV file, in file order.

    Every (task, sample) must have a row for every variant that its task has.  Measured profiles add ``truth`` (score
    against the right answer), ``nll`` (of the right answer, nats per token), ``kl`` (to the uncompressed cache's
    predictions, nats per token), ``top1`` (share of tokens that both predict) and ``stored_bytes``.  An optional
    column ``removed`` (fraction of tokens removed) is checked against the knob and left out.  Raises ProfileError
    naming the line.
    """
    reader = csv.reader(io.StringIO(_decoded(path, raw)), strict=True)
    rows: dict[tuple[str, int, str], list[float]] = {}
    known = set(variants)
    try:
        header = next(reader, [])
        _check_header(path, header)
        kept = [name for name in ("quality", "quality_train", *_EXTRAS) if name in header]
        for cells in reader:
            place = f"{path}: line {reader.line_num}"
            if len(cells) != len(header):
                raise ProfileError(f"{place}: {len(cells)} fields; the header has {len(header)}")
            row = dict(zip(header, cells, strict=True))
            key = _row_key(place, row, known)
            if key in rows:
                raise ProfileError(f"{place}: a second row for task {key[0]}, sample {key[1]}, variant {key[2]}")
            rows[key] = [_measured(place, name, row[name]) for name in kept]
            _check_removed(place, row.get("removed", ""), key[2])
    except csv.Error as error:
        raise ProfileError(f"{path}: line {reader.line_num}: not a CSV file: {one_line(error)}") from error
    if not rows:
        raise ProfileError(f"{path}: there are no quality rows")
    _check_joint(path, rows)
    frame = pd.DataFrame(list(rows), columns=["task", "sample", "variant"])
    for position, name in enumerate(kept):
        frame[name] = [values[position] for values in rows.values()]
    if "stored_bytes" in frame:
        frame["stored_bytes"] = frame["stored_bytes"].astype("int64")
    return frame


def _decoded(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path}: not a text file in UTF-8: {one_line(error)}") from error


def _check_header(path: Path, header: list[str]) -> None:
    for name in header:
        if name not in _COLUMNS:
            raise ProfileError(f"{path}: line 1: {unknown_name('column', name[:64], _COLUMNS)}")
    missing = [name for name in _KEYS if name not in header]
    if missing or len(set(header)) != len(header):
        raise ProfileError(f"{path}: line 1: the header must name each of {', '.join(_KEYS)} once")


def _row_key(place: str, row: dict[str, str], known: set[str]) -> tuple[str, int, str]:
    task, sample, variant = row["task"], row["sample"], row["variant"]
    if not _TASK.fullmatch(task):
        raise ProfileError(f"{place}: task is {task[:80]!r}; it must be a name of letters, digits and _ . + -")
    if not (sample.isascii() and sample.isdecimal() and len(sample) <= 9):
        raise ProfileError(f"{place}: sample is {sample[:80]!r}; it must be a whole number from 0 to 999999999")
    if variant not in known:
        raise ProfileError(f"{place}: {unknown_name('variant', variant[:64], known)}")
    return task, int(sample), variant


def _measured(place: str, name: str, text: str) -> float:
    if name not in _EXTRAS:
        return _quality(place, name, text)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    most = _EXTRAS[name]
    if not (0 <= value <= most and math.isfinite(value)):
        allowed = "a number of at least 0" if math.isinf(most) else f"a number from 0 to {most:g}"
        raise ProfileError(f"{place}: {name} is {text[:80]!r}; it must be {allowed}")
    return value


def _quality(place: str, name: str, text: str) -> float:
    """Quality is relative to the answer with raw KV; beyond 1.5 it is not noise but another scale."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= _MAX_QUALITY:
        allowed = f"a number from 0 to {_MAX_QUALITY}, since quality is relative to raw (1.0; not percent)"
        raise ProfileError(f"{place}: {name} is {text[:80]!r}; it must be {allowed}")
    return value


def _check_removed(place: str, text: str, variant: str) -> None:
    """The column is there to catch knobs written as the fraction removed instead of the one kept."""
    if not text:
        return
    knob = variant.partition(":")[2] or "1"
    try:
        difference = abs(float(text) + float(knob) - 1)
    except ValueError:
        difference = math.nan
    if not difference <= _SAME_FRACTION:
        raise ProfileError(
            f"{place}: removed is {text[:80]!r} for {variant}; it must be 1 - knob (knob = fraction kept)"
        )


def _check_joint(path: Path, rows: dict[tuple[str, int, str], list[float]]) -> None:
    """Samples are contexts measured with every variant; a hole would bias the joint spread."""
    tasks: dict[str, tuple[dict[int, None], dict[str, None]]] = {}
    for task, sample, variant in rows:
        samples, variants = tasks.setdefault(task, ({}, {}))
        samples[sample] = variants[variant] = None
    if sum(len(samples) * len(variants) for samples, variants in tasks.values()) == len(rows):
        return
    for task, (samples, variants) in tasks.items():
        for sample, variant in product(samples, variants):
            if (task, sample, variant) not in rows:
                raise ProfileError(f"{path}: task {task}, sample {sample} has no row for variant {variant}")


def toml_keys(values: dict[str, Any]) -> list[str]:
    """One line of TOML per key.  Raises ProfileError for values that are not plain data."""
    return [
        f"{key if _BARE_KEY.fullmatch(key) else toml_value(key)} = {toml_value(value)}" for key, value in values.items()
    ]


def toml_value(value: Any) -> str:
    """``value`` as TOML; floats in the shortest form that reads back exactly.  Raises ProfileError."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{ " + ", ".join(toml_keys(value)) + " }" if value else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Integral):
        return repr(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    raise ProfileError(f"{repr(value)[:80]} cannot be written to a profile: only text, numbers, lists and tables")
