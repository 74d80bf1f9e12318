"""Profiles: what a model, its compressors and its tiers were measured (or published) to do.

The module to import from.  What it is: profiles by name, two profiles put together, Pareto fronts,
and the types of ``profile_types.py``.  What it is not: the file format (``profile_files.py``) or
measuring (``simkv.profiler``).  Flow: ``profiles/`` -> here -> ``simkv.simulator``.
"""

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simkv.errors import ProfileError, unknown_name
from simkv.profile_files import PROFILE_FILE, read_profile
from simkv.profile_saving import save_profile
from simkv.profile_tiers import MeasuredTiers, load_tiers
from simkv.profile_types import RAW, UNMEASURED_PREFILL, Line, PrefillFit, Profile, TierSpec, Variant

__all__ = [
    "RAW",
    "UNMEASURED_PREFILL",
    "Line",
    "MeasuredTiers",
    "PrefillFit",
    "Profile",
    "TierSpec",
    "Variant",
    "compose",
    "describe",
    "list_profiles",
    "load_profile",
    "load_tiers",
    "pareto_front",
    "save_profile",
    "with_tiers",
]

_SAME_SIZE = 0.01  # relative


def load_profile(name_or_path: str | Path, sizes: str | None = None) -> Profile:
    """Read and check a profile: a folder, a ``.toml`` file, or a name.

    A name is looked up in ``./profiles``, then beside the package, then in ``share/simkv/profiles`` of
    the Python installation.  ``sizes`` chooses the size accounting ("measured" or "nominal"); None
    takes "measured" where the profile has it.  Raises ProfileError.
    """
    text = str(name_or_path)
    for folder in [Path(), *_search_folders()] if text else []:
        candidate = folder / text
        for path in (candidate / PROFILE_FILE, candidate):
            if path.suffix == ".toml" and os.path.isfile(path):
                return read_profile(path, sizes)
    looked = ", ".join(str(folder) for folder in _search_folders())
    raise ProfileError(
        f"{unknown_name('profile', text[:200], list_profiles())}; also looked for it as a path and in {looked}"
    )


def list_profiles() -> list[str]:
    """Names of all profiles that ``load_profile`` finds by name, sorted."""
    return sorted({path.parent.name for folder in _search_folders() for path in folder.glob(f"*/{PROFILE_FILE}")})


def _search_folders() -> list[Path]:
    beside = Path(__file__).resolve().parents[1] / "profiles"
    return [Path("profiles"), beside, Path(sys.prefix) / "share" / "simkv" / "profiles"]


def compose(quality_of: Profile, speeds_of: Profile) -> Profile:
    """Quality and sizes of the first profile with model, KV bytes, speeds and tiers of the second.

    Variants are those of the first that the second has speeds for, matched by name.  Load lines contain the time that
    the second's bytes take; where the first stores other sizes, ``provenance["warning"]`` names the variants.  Raises
    ProfileError when the first has no quality, the second no complete speeds, or only raw is common.
    """
    speeds_of.require_speeds()
    if not quality_of.tasks:
        raise ProfileError(f"profile {quality_of.name}: no quality rows to compose with the speeds of {speeds_of.name}")
    kept = tuple(variant for variant in quality_of.variants if variant in speeds_of.variants)
    if kept == (RAW,):
        ours, theirs = (", ".join(map(str, profile.variants[1:])) or "none" for profile in (quality_of, speeds_of))
        names = f"{quality_of.name} and {speeds_of.name}"
        raise ProfileError(f"profiles {names} have only raw in common: quality of {ours}; speeds of {theirs}")
    quality = quality_of.quality
    quality = quality[quality["variant"].isin([str(variant) for variant in kept])].reset_index(drop=True)
    chosen = set(kept)
    return replace(
        speeds_of,
        name=f"{quality_of.name}+{speeds_of.name}",
        variants=kept,
        size_accounting=quality_of.size_accounting,
        size_ratio=_only(quality_of.size_ratio, chosen),
        size_ratios={name: _only(ratios, chosen) for name, ratios in quality_of.size_ratios.items()},
        load_lines={key: line for key, line in speeds_of.load_lines.items() if key[1] in chosen},
        decode_lines=_only(speeds_of.decode_lines, chosen),
        encode_lines=_only(speeds_of.encode_lines, chosen),
        quality=quality,
        speed_rows=_speed_rows(speeds_of, chosen),
        provenance=_composed_provenance(quality_of, speeds_of, kept),
        sha256=hashlib.sha256(f"compose {quality_of.sha256} {speeds_of.sha256}".encode()).hexdigest(),
    )


def _speed_rows(profile: Profile, chosen: set[Variant]) -> pd.DataFrame:
    rows = profile.speed_rows
    if rows.empty:
        return rows
    return rows[rows["variant"].isin(["", *map(str, chosen)])].reset_index(drop=True)


def with_tiers(profile: Profile, measured: MeasuredTiers) -> Profile:
    """The profile with measured tiers instead of its own, and with the measured host link where there is one.

    Raises:
        ProfileError: a profile with load lines, whose tiers are part of those lines.
    """
    if profile.load_lines:
        raise ProfileError(f"profile {profile.name}: its load lines belong to its own tiers; others have no meaning")
    numbers = {
        place: origin
        for place, origin in profile.provenance.get("numbers", {}).items()
        if place.split(".")[0] != "tiers" and not (place == "host_link" and measured.host_link)
    }
    numbers |= {place: origin for place, origin in measured.origins.items() if place != "measurements"}
    facts = {key: fact for key, fact in profile.provenance.items() if key != "numbers"}
    facts["tiers_of"] = {**measured.provenance, "file": measured.name, "sha256": measured.sha256}
    return replace(
        profile,
        tiers=measured.tiers,
        host_link=measured.host_link or profile.host_link,
        provenance={**facts, "numbers": numbers},
        sha256=hashlib.sha256(f"tiers {profile.sha256} {measured.sha256}".encode()).hexdigest(),
    )


def _only(table: dict[Variant, Any], chosen: set[Variant]) -> dict[Variant, Any]:
    return {variant: value for variant, value in table.items() if variant in chosen}


def _composed_provenance(quality_of: Profile, speeds_of: Profile, kept: tuple[Variant, ...]) -> dict[str, Any]:
    """Facts of both sides, what was left out of each, and of every number the origin on the side it was taken from."""
    facts: dict[str, Any] = {"summary": f"quality of {quality_of.name} with speeds of {speeds_of.name}"}
    if warning := _other_sizes(quality_of, speeds_of, kept):
        facts["warning"] = warning
    numbers: dict[str, Any] = {}
    for key, side in (("quality_of", quality_of), ("speeds_of", speeds_of)):
        known = dict(side.provenance)
        origins = known.pop("numbers", {})
        identity = {name: getattr(side, name) for name in ("name", "model", "kv_bytes_per_token", "sha256")}
        left_out = [str(variant) for variant in side.variants if variant not in kept]
        facts[key] = {**known, "profile": identity, **({"left_out": left_out} if left_out else {})}
        sections = [*(f"sizes.{name}" for name in side.size_ratios), "decode_lines", "encode_lines"]
        sections += [f"load_lines.{tier.name}" for tier in side.tiers]
        gone = {f"{section}.{variant}" for section in sections for variant in left_out}
        for place, origin in origins.items():
            of_quality = place.split(".")[0] in ("quality", "sizes")
            if of_quality == (key == "quality_of") and place not in gone:
                numbers[place] = origin
    return {**facts, "numbers": numbers}


def _other_sizes(quality_of: Profile, speeds_of: Profile, kept: tuple[Variant, ...]) -> str:
    """Which variants are stored at another size than load lines were made with; empty without any."""
    stored, timed = quality_of.size_ratio, speeds_of.size_ratio
    lines = {variant for _, variant in speeds_of.load_lines}
    other = [v for v in kept if v in lines and abs(stored[v] / timed[v] - 1) > _SAME_SIZE]
    sizes = ", ".join(f"{v} at {stored[v]:.3f} of raw (loads as at {timed[v]:.3f})" for v in other)
    return (
        f"load times of {speeds_of.name} belong to other sizes than {quality_of.name} stores: {sizes}" if other else ""
    )


def pareto_front(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of the points that no other point beats, sorted by cost, then by index.

    ``points`` is float[n, 2] of (cost, quality); lower cost and higher quality are better.  A point is
    beaten by one at least as good in both and better in one, so equal points stay together.  Raises
    ValueError for other shapes and for NaN.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or np.isnan(points).any():
        raise ValueError("points must be an array [n, 2] of (cost, quality) without NaN")
    front: list[int] = []
    best = (np.inf, -np.inf)
    for index in np.lexsort((-points[:, 1], points[:, 0])):
        cost, quality = points[index]
        if quality > best[1] or (cost, quality) == best:
            best = (cost, quality)
            front.append(int(index))
    return np.array(front, dtype=np.int64)


def describe(profile: Profile) -> list[dict[str, Any]]:
    """One row per variant: variant, size_ratio, quality {task: mean or None}, mean_quality, pareto.

    ``mean_quality`` averages the tasks' means (None unless all are known); ``pareto`` marks the front
    of (size ratio, mean quality), of a compressor's knobs with the same point the first.
    """
    rows = []
    tasks = profile.tasks
    means = profile.quality.groupby(["task", "variant"])["quality"].mean().to_dict()
    for variant in profile.variants:
        raw = 1.0 if variant == RAW else None
        quality = {task: means.get((task, str(variant)), raw) for task in tasks}
        known = [value for value in quality.values() if value is not None]
        mean = float(np.mean(known)) if known and len(known) == len(quality) else None
        row = {"variant": str(variant), "size_ratio": profile.size_ratio[variant], "quality": quality}
        rows.append({**row, "mean_quality": mean, "pareto": False})
    complete = [row for row in rows if row["mean_quality"] is not None]
    if complete:
        points = np.array([[row["size_ratio"], row["mean_quality"]] for row in complete])
        seen = set()  # two knobs may make the same variant, like int8:g64 and int8:head of a head of 64
        for index in pareto_front(points):
            point = (complete[index]["variant"].partition(":")[0], *points[index])
            complete[index]["pareto"] = point not in seen
            seen.add(point)
    return rows
