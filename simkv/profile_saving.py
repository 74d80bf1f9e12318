"""Profiles written as files, in the format that ``profile_files.py`` reads.

What it is: ``save_profile``, which writes a folder whole or not at all, and never over another.  What it is not: the
format's description (``profiles/README.md``).
"""

import csv
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from simkv.errors import ProfileError
from simkv.experiment_files import remove_stale_in, temporary_folder
from simkv.profile_files import PROFILE_FILE, read_profile
from simkv.profile_types import Line, PrefillFit, Profile, TierSpec
from simkv.profile_values import one_line, toml_keys, toml_value

__all__ = ["fit_row", "save_profile", "tier_row"]

_QUALITY_FILE = "quality.csv"
_SPEEDS_FILE = "speeds.csv"
_LINES = ("decode_lines", "encode_lines")
_MODEL = ("name", "layers", "kv_bytes_per_token")
_LINK = ("read", "write", "latency", "channels", "discipline")
_IMPLIED = ({"variant": "raw", "ratio": 1.0}, {"variant": "raw", "per_token_s": 0.0, "fixed_s": 0.0})


def save_profile(profile: Profile, folder: str | Path) -> None:
    """Write ``profile`` as a new folder that ``load_profile`` reads back exactly.

    Every section needs its origin in ``profile.provenance["numbers"]`` (place -> {status, source}).  The
    folder appears whole or not at all and is never overwritten.  Raises ProfileError when it exists, or
    when the profile would not pass the checks of reading.
    """
    folder = Path(folder)
    if folder.exists():
        raise ProfileError(f"{folder}: exists already; a profile is never overwritten")
    try:
        remove_stale_in(folder.parent)
        with temporary_folder(folder.parent) as room:
            part = room / folder.name
            part.mkdir()
            (part / PROFILE_FILE).write_text(_toml_file(profile), encoding="utf-8")
            if profile.tasks:
                _write_rows(profile.quality, part / _QUALITY_FILE)
            if len(profile.speed_rows):
                _write_rows(profile.speed_rows, part / _SPEEDS_FILE)
            read_profile(part / PROFILE_FILE, profile.size_accounting)
            os.replace(part, folder)
    except OSError as error:
        raise ProfileError(f"{folder}: cannot be written: {one_line(error)}") from error


def _write_rows(rows: pd.DataFrame, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(rows.columns)
        writer.writerows(rows.itertuples(index=False, name=None))


def _toml_file(profile: Profile) -> str:
    numbers = profile.provenance.get("numbers", {})
    facts = {key: fact for key, fact in profile.provenance.items() if key != "numbers"}
    lines = toml_keys({"format": 1, "name": profile.name, "variants": [str(variant) for variant in profile.variants]})

    def flat(key: str, values: dict[str, Any]) -> None:
        lines.extend(["", f"[{key}]", *toml_keys(values | numbers.get(key, {}))])

    def rows(key: str, table: list[dict[str, Any]], label: tuple[str, ...] = ("variant",)) -> None:
        named = [(row, numbers.get(".".join([key, *(row[part] for part in label)]), {})) for row in table]
        kept = [f"  {toml_value({**row, **own})}," for row, own in named if own or row not in _IMPLIED]
        lines.extend(["", f"[{key}]", *toml_keys(numbers.get(key, {})), "rows = [", *kept, "]"])

    flat("model", {key: getattr(profile, "model" if key == "name" else key) for key in _MODEL})
    for accounting, ratios in {**profile.size_ratios, profile.size_accounting: profile.size_ratio}.items():
        rows(f"sizes.{accounting}", [{"variant": str(variant), "ratio": ratio} for variant, ratio in ratios.items()])
    if profile.tasks:
        flat("quality", {"file": _QUALITY_FILE})
    if profile.load_lines:
        loads = [
            {"tier": tier, "variant": str(key), **fit_row(line)} for (tier, key), line in profile.load_lines.items()
        ]
        rows("load_lines", loads, ("tier", "variant"))
    for section in _LINES:
        table = getattr(profile, section)
        if table:
            rows(section, [{"variant": str(variant), **fit_row(line)} for variant, line in table.items()])
    if not math.isnan(profile.prefill.per_token_s):
        flat("prefill", fit_row(profile.prefill))
    if len(profile.speed_rows):
        flat("speeds", {"file": _SPEEDS_FILE})
    if profile.tiers:
        rows("tiers", [tier_row(tier) for tier in profile.tiers], ("name",))
    if profile.host_link:
        link = tier_row(profile.host_link)
        flat("host_link", {key: link[key] for key in _LINK})
    lines.extend(["", "[provenance]", *toml_keys(facts)])
    return "\n".join(lines) + "\n"


def fit_row(fit: Line | PrefillFit) -> dict[str, Any]:
    """The numbers of a line or fit, points only where there are some."""
    return {key: value for key, value in asdict(fit).items() if key != "points" or value}


def tier_row(tier: TierSpec) -> dict[str, Any]:
    """A tier as one row of a file, in base units."""
    row: dict[str, Any] = {
        "name": tier.name,
        "capacity": "unlimited" if tier.capacity_bytes is None else tier.capacity_bytes,
        "read": tier.read_bytes_per_s,
        "write": tier.write_bytes_per_s,
        "latency": tier.latency_s,
        "channels": tier.channels,
        "discipline": tier.discipline,
    }
    return row if tier.endurance_bytes is None else {**row, "endurance": tier.endurance_bytes}
