"""Readers of the CSV traces, which have arrivals and lengths but no block ids: Azure and BurstGPT.

What it is: ``read_azure`` and ``read_burstgpt``.  What it is not: a model of reuse; the traces say
``reuse: False`` and have no blocks, so hit ratios need a reuse model that the user picks.
"""

import csv
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from simkv.errors import ConfigError
from simkv.traces.files import Place, Source
from simkv.traces.records import Columns, count, moment_ns
from simkv.traces.trace import Trace
from simkv.units import NS_PER_S

__all__ = ["AZURE_COLUMNS", "BURSTGPT_COLUMNS", "read_azure", "read_burstgpt"]

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT_COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")

# Fractions have 7 digits in 2023 and 6 or none in 2024, where a UTC offset follows.
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INTEGER = re.compile(r"[0-9]{1,18}")
_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?")


def read_azure(source: Source) -> Trace:
    """Azure LLM inference CSV of 2023 and 2024: ``TIMESTAMP,ContextTokens,GeneratedTokens``.

    Raises:
        TraceError: for a row that is not valid, or arrives before the one above it.
    """
    columns = Columns(0)
    for place, row in _rows(source, AZURE_COLUMNS):
        columns.add(
            place,
            arrival_ns=_calendar_ns(row["TIMESTAMP"], place),
            input_tokens=count(_numbers(row, "ContextTokens"), "ContextTokens", place),
            output_tokens=count(_numbers(row, "GeneratedTokens"), "GeneratedTokens", place),
        )
    return columns.trace(source, "azure", epoch=True, reuse=False)


def read_burstgpt(source: Source, *, failed: str = "keep") -> Trace:
    """BurstGPT CSV, with or without the columns ``Session ID`` and ``Elapsed time``; times in seconds.

    Args:
        source: the files.
        failed: what to do with failed requests, whose response has 0 tokens: "keep" or "drop".

    Raises:
        TraceError: for a row that is not valid, or arrives before the one above it.
        ConfigError: for a bad option.
    """
    if failed not in ("keep", "drop"):
        raise ConfigError(f"trace option failed is {failed!r}, it must be 'keep' or 'drop'")
    columns = Columns(0)
    sessions: dict[str, int] = {}
    failures = wrong_totals = 0
    for place, row in _rows(source, BURSTGPT_COLUMNS):
        asked = count(_numbers(row, "Request tokens"), "Request tokens", place)
        answered = count(_numbers(row, "Response tokens"), "Response tokens", place)
        total = count(_numbers(row, "Total tokens"), "Total tokens", place)
        failures += answered == 0
        wrong_totals += total != asked + answered
        if answered == 0 and failed == "drop":
            continue
        name = row.get("Session ID", "")
        columns.add(
            place,
            arrival_ns=moment_ns(_numbers(row, "Timestamp"), "Timestamp", place, NS_PER_S),
            input_tokens=asked,
            output_tokens=answered,
            session=sessions.setdefault(name, len(sessions)) if name else -1,
        )
    if failures:
        columns.notes.append(
            f"{failures} failed requests (response of 0 tokens): {'kept' if failed == 'keep' else 'dropped'}"
        )
    if wrong_totals:
        columns.notes.append(f"{wrong_totals} rows have another total than request + response; the total is not used")
    return columns.trace(source, "burstgpt", reuse=False)


def _rows(source: Source, needed: tuple[str, ...]) -> Iterator[tuple[Place, dict[str, str]]]:
    """Rows by column name; every file of the source begins with its own header.  Raises TraceError."""
    header: list[str] = []
    file = ""
    for place, text in source.lines():
        fields = _fields(text, place)
        if place.file != file:
            file, header = place.file, fields
            if missing := [name for name in needed if name not in header]:
                raise place.error(f"the header lacks the column {missing[0]!r}; it has {text[:120]!r}")
        elif len(fields) != len(header):
            raise place.error(f"{len(fields)} fields, the header has {len(header)}: {text[:80]!r}")
        else:
            yield place, dict(zip(header, fields, strict=True))


def _fields(text: str, place: Place) -> list[str]:
    if '"' not in text:
        return text.split(",")
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise place.error(f"not a CSV row: {error}") from error


def _numbers(row: dict[str, str], key: str) -> dict[str, Any]:
    """The field as a number where its text is one, else as it stands, for the checks to refuse."""
    text = row[key]
    if _INTEGER.fullmatch(text):
        return {key: int(text)}
    return {key: Decimal(text) if _NUMBER.fullmatch(text) else text}


def _calendar_ns(text: str, place: Place) -> int:
    """Nanoseconds since 1970 of a time in UTC or with an offset.  Raises TraceError."""
    match = _STAMP.fullmatch(text)
    allowed = "like 2023-11-16 18:15:46.6805900, from 1970 on"
    if not match:
        raise place.bad("TIMESTAMP", text, allowed)
    moment, fraction, sign, hours, minutes = match.groups()
    try:
        since = datetime.fromisoformat(moment).replace(tzinfo=UTC) - _EPOCH
    except ValueError as error:
        raise place.bad("TIMESTAMP", text, allowed) from error
    if sign:
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        since = since - offset if sign == "+" else since + offset
    if since < timedelta(0) or since.days > 100 * 365:
        raise place.bad("TIMESTAMP", text, allowed)
    return (since.days * 86_400 + since.seconds) * NS_PER_S + int((fraction or "0").ljust(9, "0"))
