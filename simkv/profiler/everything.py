"""Quality, speed and tiers of one machine in one profile; what ``simkv profile all`` calls.

What it is: the three measurements one after the other in ``OUT.parts``, each of which resumes or is taken as it is
when it was finished, and the profile composed of them.  What it is not: any of them.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from simkv.errors import SimkvError
from simkv.experiment_files import remove_stale_in
from simkv.profiler.measurement import QualityPlan, measure_quality
from simkv.profiler.speed_measurement import SpeedPlan, measure_speed
from simkv.profiler.tiers import TierPlan, measure_tiers
from simkv.profiles import Profile, compose, load_profile, load_tiers, save_profile, with_tiers
from simkv.version import measuring_identity

__all__ = ["WholePlan", "measure_all"]

_PLAN = "plan.txt"
_MOST_PLAN_BYTES = 1 << 20

Bars = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""A progress bar by what it counts."""


@dataclass(frozen=True)
class WholePlan:
    """The plans of the three measurements."""

    quality: QualityPlan
    speed: SpeedPlan
    tiers: TierPlan


def measure_all(plan: WholePlan, out: Path, bars: Bars) -> Profile:
    """Measure what is not measured yet, and write the profile folder ``out``, with the tiers' file in it.

    Raises:
        SimkvError: a plan that cannot be carried out, a folder that exists, or parts of another plan.
    """
    parts = out.with_name(f"{out.name}.parts")
    if out.exists() and not parts.exists():
        raise SimkvError(f"{out}: exists already; a profile is never overwritten")
    _claim(parts, f"{measuring_identity()}\n{plan!r}")
    quality, speed, tiers = parts / f"{out.name}-quality", parts / f"{out.name}-speed", parts / "tiers.toml"
    if out.exists():  # killed between writing the profile and removing its parts
        return _finished(tiers, out, parts)
    if not tiers.exists():
        with bars("tiers") as progress:
            measure_tiers(plan.tiers, tiers, progress)
    if not speed.exists():
        with bars("speeds") as progress:
            measure_speed(plan.speed, speed, progress)
    if not quality.exists():
        with bars("quality") as progress:
            measure_quality(plan.quality, quality, progress)
    both = with_tiers(compose(load_profile(quality), load_profile(speed)), load_tiers(tiers))
    profile = replace(both, name=out.name)
    save_profile(profile, out)
    return _finished(tiers, out, parts)


def _finished(tiers: Path, out: Path, parts: Path) -> Profile:
    """Move the tiers' file into the profile's folder, and remove what it was composed of."""
    if tiers.exists():
        os.replace(tiers, out / tiers.name)
    for path in parts.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    remove_stale_in(out.parent)
    shutil.rmtree(parts)  # the plan last, so that what is left by a kill is never taken for another plan's
    return load_profile(out)


def _claim(parts: Path, plan: str) -> None:
    """Make the folder, or check that what is in it belongs to the same plan."""
    path = parts / _PLAN
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            before = file.read(_MOST_PLAN_BYTES)
        if before != plan:
            (code, _, _), (this, _, _) = before.partition("\n"), plan.partition("\n")
            other = (
                f"parts measured by other code ({code}; this is {this})"
                if code != this
                else "parts of another measurement"
            )
            raise SimkvError(f"{parts}: {other}; give another --out, or remove it to begin anew")
        return
    parts.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{_PLAN}.{os.getpid()}")
    part.write_text(plan, encoding="utf-8")
    os.replace(part, path)
