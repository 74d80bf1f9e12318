"""Measured tiers of a machine as one TOML file: ``profiles/tiers/MACHINE.toml``.

What it is: the file's reader, which treats it as untrusted, and its writer.  A profile takes the tiers with
``simkv profile compose QUALITY SPEEDS --tiers FILE``; the rows of ``[tiers]`` have the keys of a run's ``[[tiers]]``.
What it is not: measuring (``simkv.profiler.tiers``).
"""

import hashlib
import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simkv.errors import ProfileError
from simkv.experiment_files import remove_stale_in, temporary_folder
from simkv.profile_saving import tier_row
from simkv.profile_types import TierSpec
from simkv.profile_values import (
    CheckedTable,
    bounded_bytes,
    one_line,
    parse_capacity,
    parse_tier,
    toml_keys,
    toml_value,
)

__all__ = ["MeasuredTiers", "load_tiers", "save_tiers"]

_MAX_TOML_BYTES = 4 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}")
_TIER_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_ORIGIN = ("status", "source")
_LINK = ("read", "write", "latency", "channels", "discipline")
_TOP = ("format", "name", "tiers", "host_link", "measurements", "provenance")


@dataclass(frozen=True)
class MeasuredTiers:
    """The storage of one machine.

    Attributes:
        name: of the machine.
        tiers: fast to slow.
        host_link: between host memory and the GPU, or None.
        measurements: every measured point: tier, what (read, write, copy, h2d, d2h), bytes, depth, bytes_per_s,
            latency_s, p95_s, and direct (False where the page cache was measured).
        origins: place -> {status, source}.
        provenance: free facts.
        sha256: of the file; "" before it is written.
    """

    name: str
    tiers: tuple[TierSpec, ...]
    host_link: TierSpec | None
    measurements: tuple[dict[str, Any], ...]
    origins: dict[str, dict[str, str]]
    provenance: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""


def load_tiers(path: str | Path) -> MeasuredTiers:
    """Read and check a file of measured tiers.

    Raises:
        ProfileError: one line naming the file, the key, the value and what is allowed.
    """
    path = Path(path)
    raw = bounded_bytes(path, _MAX_TOML_BYTES)
    try:
        data = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{path}: not a TOML file: {one_line(error)}") from error
    top = CheckedTable(str(path), data, _TOP)
    if top.get("format") != 1:
        raise top.bad("format", "1, the only format this version knows")
    origins: dict[str, dict[str, str]] = {}
    tiers = tuple(
        parse_tier(row, row.text("name", _TIER_NAME), parse_capacity(row))
        for row in _rows(top, "tiers", ("name", "capacity", "endurance", *_LINK), origins)
    )
    if not tiers or len({tier.name for tier in tiers}) < len(tiers):
        raise top.error("[tiers] must have at least one row, and no two of the same name")
    if any(tier.capacity_bytes is None for tier in tiers[:-1]):
        raise top.error("[tiers]: only the last tier may be unlimited")
    link = None
    if "host_link" in data:
        table = CheckedTable(f"{path}: [host_link]", data["host_link"], (*_LINK, *_ORIGIN))
        origins["host_link"] = _origin(table)
        link = parse_tier(table, "host_link", None)
    measurements = tuple(_measurement(row) for row in _rows(top, "measurements", _Point, origins))
    facts = data.get("provenance", {})
    if not isinstance(facts, dict) or "numbers" in facts:
        raise top.error("[provenance] must be a table without the key 'numbers'")
    name = top.text("name", _NAME)
    return MeasuredTiers(name, tiers, link, measurements, origins, facts, hashlib.sha256(raw).hexdigest())


_Point = ("tier", "what", "bytes", "depth", "bytes_per_s", "latency_s", "p95_s", "direct")


def _measurement(row: CheckedTable) -> dict[str, Any]:
    direct = row.get("direct")
    if not isinstance(direct, bool):
        raise row.bad("direct", "true or false")
    return {
        "tier": row.text("tier", _TIER_NAME),
        "what": row.text("what", _TIER_NAME),
        "bytes": row.whole("bytes", 2**53),
        "depth": row.whole("depth", 2**20),
        **{key: row.not_negative(key) for key in ("bytes_per_s", "latency_s", "p95_s")},
        "direct": direct,
    }


def _rows(
    top: CheckedTable, key: str, known: tuple[str, ...], origins: dict[str, dict[str, str]]
) -> list[CheckedTable]:
    table = CheckedTable(f"{top.place}: [{key}]", top.get(key), ("rows", *_ORIGIN))
    origins[key] = _origin(table)
    rows = table.get("rows")
    if not isinstance(rows, list):
        raise table.bad("rows", "a list of tables")
    return [CheckedTable(f"{table.place} row {number}", row, known) for number, row in enumerate(rows, start=1)]


def _origin(table: CheckedTable) -> dict[str, str]:
    origin = table.origin()
    if origin is None:
        raise table.error("its numbers have no status and source")
    return origin


def save_tiers(measured: MeasuredTiers, path: Path) -> None:
    """Write the file whole or not at all; never over another.

    Raises:
        ProfileError: a file that exists, or cannot be written, or that ``load_tiers`` would refuse.
    """
    if path.exists():
        raise ProfileError(f"{path}: exists already; a measurement is never overwritten")
    try:
        remove_stale_in(path.parent)
        with temporary_folder(path.parent) as room:
            part = room / path.name
            part.write_text(_toml_file(measured), encoding="utf-8")
            load_tiers(part)
            os.replace(part, path)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be written: {one_line(error)}") from error


def _toml_file(measured: MeasuredTiers) -> str:
    lines = toml_keys({"format": 1, "name": measured.name})

    def rows(key: str, table: list[dict[str, Any]]) -> None:
        kept = [f"  {toml_value(row)}," for row in table]
        lines.extend(["", f"[{key}]", *toml_keys(measured.origins[key]), "rows = [", *kept, "]"])

    rows("tiers", [tier_row(tier) for tier in measured.tiers])
    if measured.host_link:
        link = tier_row(measured.host_link)
        lines.extend(["", "[host_link]", *toml_keys({key: link[key] for key in _LINK} | measured.origins["host_link"])])
    rows("measurements", list(measured.measurements))
    lines.extend(["", "[provenance]", *toml_keys(measured.provenance)])
    return "\n".join(lines) + "\n"
