"""Profiles as files: a folder with ``profile.toml`` and ``quality.csv``, read with every value checked.

What it is: the reader, which treats the files as untrusted (bounded, numbers only, nothing executed)
and complains in one line.  What it is not: the writer (``profile_saving.py``), or the search for a name
(``profiles.py``).  The format is described in ``profiles/README.md``.
"""

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from simkv.errors import ProfileError, unknown_name
from simkv.profile_speeds import parse_points, parse_speeds
from simkv.profile_spread import SPREAD_KEYS, parse_spread, spread_quality
from simkv.profile_types import RAW, UNMEASURED_PREFILL, Line, PrefillFit, Profile, TierSpec, Variant
from simkv.profile_values import (
    CheckedTable,
    bounded_bytes,
    one_line,
    parse_capacity,
    parse_quality,
    parse_tier,
)

__all__ = ["PROFILE_FILE", "read_profile"]

PROFILE_FILE = "profile.toml"

_MAX_TOML_BYTES = 4 << 20
_MAX_CSV_BYTES = 64 << 20
_ACCOUNTINGS = ("measured", "nominal")
_ORIGIN = ("status", "source")
_LINES = ("decode_lines", "encode_lines")
_SPEEDS = ("load_lines", *_LINES, "prefill")
_LINE = ("per_token_s", "fixed_s", "points")
_MODEL = ("name", "layers", "kv_bytes_per_token")
_PREFILL = ("base_s", "per_token_s", "per_token2_s", "floor_s", "points")
_LINK = ("read", "write", "latency", "channels", "discipline")
_SECTIONS = ("model", "sizes", "quality", "spread", *_SPEEDS, "speeds", "tiers", "host_link", "provenance")
_TOP = ("format", "name", "variants", *_SECTIONS, *_ORIGIN)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}")
_TIER_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_CSV_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\.csv")


def read_profile(path: Path, sizes: str | None = None) -> Profile:
    """Read one ``profile.toml`` and the CSV file beside it.

    ``sizes`` chooses the size accounting; None takes "measured" where the profile has it.  Raises
    ProfileError, one line naming file, key or line, the value and what is allowed.
    """
    raw = bounded_bytes(path, _MAX_TOML_BYTES)
    try:
        data = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{path}: not a TOML file: {one_line(error)}") from error
    return _Reader(path, raw, data).profile(sizes)


class _Reader:
    """Turns one parsed ``profile.toml`` into a Profile and notes the origin of every number."""

    def __init__(self, path: Path, raw: bytes, data: dict[str, Any]) -> None:
        self.path = path
        self.digest = hashlib.sha256(raw)
        self.top = CheckedTable(str(path), data, _TOP)
        if self.top.get("format") != 1:
            raise self.top.bad("format", "1, the only format this version knows")
        self.default = self.top.origin()
        self.numbers: dict[str, dict[str, str]] = {}
        self.variants = self._variants()

    def profile(self, sizes: str | None) -> Profile:
        """The whole profile; raises ProfileError at the first mistake."""
        name = self.top.text("name", _NAME)
        model = self._flat("model", _MODEL)
        ratios = self._sizes()
        accounting = self._choose(ratios, sizes)
        has_speeds = any(key in self.top.data for key in _SPEEDS)
        zero = {RAW: Line(0.0, 0.0)} if has_speeds else {}
        tiers = self._tiers()
        profile = Profile(
            name=name,
            model=model.text("name"),
            kv_bytes_per_token=model.whole("kv_bytes_per_token", 2**40),
            layers=model.whole("layers", 100_000),
            variants=self.variants,
            size_accounting=accounting,
            size_ratio={variant: ratios[accounting][variant] for variant in self.variants},
            load_lines=self._load_lines([tier.name for tier in tiers]),
            decode_lines=zero | self._lines("decode_lines"),
            encode_lines=zero | self._lines("encode_lines"),
            prefill=self._prefill(),
            tiers=tiers,
            host_link=self._host_link(),
            quality=self._quality(),
            provenance=self._provenance(),
            speed_rows=self._speed_rows(),
            sha256=self.digest.hexdigest(),
            size_ratios=ratios,
        )
        if has_speeds:
            profile.require_speeds()
        return profile

    def _variants(self) -> tuple[Variant, ...]:
        names = self.top.get("variants")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.top.bad("variants", "a list of texts")
        try:
            variants = tuple(Variant.parse(name) for name in names)
        except ProfileError as error:
            raise self.top.error(f"variants: {error}") from error
        if not variants or variants[0] != RAW or len(set(variants)) != len(variants):
            raise self.top.bad("variants", "a list without repetition that begins with 'raw'")
        return variants

    def _origin(self, table: CheckedTable, place: str, inherited: dict[str, str] | None) -> dict[str, str] | None:
        """Note and return where a table's numbers come from: its own word, else what it inherits."""
        origin = table.origin() or inherited
        if origin:
            self.numbers[place] = origin
        return origin

    def _flat(self, key: str, known: tuple[str, ...]) -> CheckedTable:
        table = CheckedTable(f"{self.path}: [{key}]", self.top.get(key), (*known, *_ORIGIN))
        if not self._origin(table, key, self.default):
            raise table.error("its numbers have no status and source")
        return table

    def _rows(self, key: str, data: Any, known: tuple[str, ...], label: tuple[str, ...]) -> Iterator[CheckedTable]:
        """Rows of the section ``key``, each checked for unknown keys, repetition and an origin."""
        table = CheckedTable(f"{self.path}: [{key}]", data, ("rows", *_ORIGIN))
        inherited = self._origin(table, key, self.default)
        rows = table.get("rows")
        if not isinstance(rows, list):
            raise table.bad("rows", "a list of tables")
        seen = set()
        for number, item in enumerate(rows, start=1):
            row = CheckedTable(f"{self.path}: [{key}] row {number}", item, (*known, *_ORIGIN))
            name = ".".join(row.text(part) for part in label)
            if name in seen:
                raise row.error(f"a second row for {name}")
            seen.add(name)
            own = row.origin()
            if own:
                self.numbers[f"{key}.{name}"] = own
            elif not inherited:
                raise row.error("its numbers have no status and source")
            yield row

    def _variant(self, row: CheckedTable) -> Variant:
        name = row.text("variant")
        known = {str(variant): variant for variant in self.variants}
        if name not in known:
            raise row.error(unknown_name("variant", name[:64], known))
        return known[name]

    def _sizes(self) -> dict[str, dict[Variant, float]]:
        table = CheckedTable(f"{self.path}: [sizes]", self.top.get("sizes"), _ACCOUNTINGS)
        if not table.data:
            raise table.error(f"must hold one of {', '.join(_ACCOUNTINGS)}")
        result = {}
        for accounting, data in table.data.items():
            ratios = {RAW: 1.0}
            for row in self._rows(f"sizes.{accounting}", data, ("variant", "ratio"), ("variant",)):
                variant = self._variant(row)
                ratios[variant] = row.number("ratio", lambda ratio: 0 < ratio <= 1, "above 0 and at most 1")
                if variant == RAW and ratios[variant] != 1:
                    raise row.bad("ratio", "1 for raw")
            result[accounting] = ratios
        return result

    def _choose(self, ratios: dict[str, dict[Variant, float]], sizes: str | None) -> str:
        accounting = sizes or next(name for name in _ACCOUNTINGS if name in ratios)
        if accounting not in ratios:
            raise self.top.error(unknown_name("size accounting", accounting[:64], ratios))
        missing = [str(variant) for variant in self.variants if variant not in ratios[accounting]]
        if missing:
            raise self.top.error(f"[sizes.{accounting}] has no ratio of {', '.join(missing)}")
        return accounting

    def _line(self, row: CheckedTable) -> Line:
        fixed_s = row.number("fixed_s", math.isfinite, "that is finite")
        return Line(row.not_negative("per_token_s"), fixed_s, parse_points(row))

    def _lines(self, key: str) -> dict[Variant, Line]:
        if key not in self.top.data:
            return {}
        rows = self._rows(key, self.top.data[key], ("variant", *_LINE), ("variant",))
        return {self._variant(row): self._line(row) for row in rows}

    def _load_lines(self, tiers: list[str]) -> dict[tuple[str, Variant], Line]:
        lines: dict[tuple[str, Variant], Line] = {}
        if "load_lines" not in self.top.data:
            return lines
        known = ("tier", "variant", *_LINE)
        for row in self._rows("load_lines", self.top.data["load_lines"], known, ("tier", "variant")):
            tier = row.text("tier", _TIER_NAME)
            if tier not in tiers:
                raise row.error(unknown_name("tier", tier, tiers))
            lines[tier, self._variant(row)] = self._line(row)
        return lines

    def _prefill(self) -> PrefillFit:
        if "prefill" not in self.top.data:
            return UNMEASURED_PREFILL
        table = self._flat("prefill", _PREFILL)
        return PrefillFit(
            table.number("base_s", math.isfinite, "that is finite"),
            table.not_negative("per_token_s"),
            table.not_negative("per_token2_s", 0.0),
            table.not_negative("floor_s", 0.0),
            parse_points(table),
        )

    def _tiers(self) -> tuple[TierSpec, ...]:
        if "tiers" not in self.top.data:
            return ()
        known = ("name", "capacity", "endurance", *_LINK)
        rows = list(self._rows("tiers", self.top.data["tiers"], known, ("name",)))
        tiers = tuple(parse_tier(row, row.text("name", _TIER_NAME), parse_capacity(row)) for row in rows)
        for tier, row in list(zip(tiers, rows, strict=True))[:-1]:
            if tier.capacity_bytes is None:
                raise row.error("only the last tier may be unlimited")
        return tiers

    def _host_link(self) -> TierSpec | None:
        if "host_link" not in self.top.data:
            return None
        return parse_tier(self._flat("host_link", _LINK), "host_link", None)

    def _quality(self) -> pd.DataFrame:
        if "quality" not in self.top.data:
            return pd.DataFrame({"task": [], "sample": [], "variant": [], "quality": []})
        path = self.path.parent / self._flat("quality", ("file",)).text("file", _CSV_NAME)
        raw = bounded_bytes(path, _MAX_CSV_BYTES)
        self.digest.update(raw)
        quality = parse_quality(path, raw, map(str, self.variants))
        if "spread" not in self.top.data:
            return quality
        spread = parse_spread(self._flat("spread", SPREAD_KEYS))
        means, made = self.numbers["quality"], self.numbers.pop("spread")  # samples have the origin of both
        self.numbers["quality"] = {**made, "source": f"{means['source']}; spread: {made['source']}"}
        return spread_quality(quality, spread, f"{self.path}: [spread]")

    def _speed_rows(self) -> pd.DataFrame:
        if "speeds" not in self.top.data:
            return pd.DataFrame()
        path = self.path.parent / self._flat("speeds", ("file",)).text("file", _CSV_NAME)
        raw = bounded_bytes(path, _MAX_CSV_BYTES)
        self.digest.update(raw)
        return parse_speeds(path, raw, map(str, self.variants))

    def _provenance(self) -> dict[str, Any]:
        facts = self.top.data.get("provenance", {})
        table = CheckedTable(f"{self.path}: [provenance]", facts, facts if isinstance(facts, dict) else ())
        if "numbers" in facts:
            raise table.error("the key 'numbers' is reserved: status and source stand beside the numbers")
        try:
            json.dumps(facts, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise table.error(f"only text, numbers and lists or tables of them: {one_line(error)}") from error
        return {**facts, "numbers": self.numbers}
