"""Bandwidth and latency of this machine's memory and of a disk, against size and depth, as a file of tiers.

What it is: DRAM copies by several threads, direct reads and writes of one bounded file, and the two tiers that follow;
what ``simkv profile tiers`` calls.  What it is not: the file's format (``simkv.profile_tiers``), or the link to a GPU,
which ``simkv profile speed --device cuda`` measures.
"""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from simkv.errors import SimkvError
from simkv.experiment_files import remove_stale_in, temporary_folder
from simkv.profile_tiers import MeasuredTiers, load_tiers, save_tiers
from simkv.profile_types import TierSpec
from simkv.profiler.direct_io import BLOCK, scratch_file
from simkv.profiler.file_systems import file_system, in_memory
from simkv.profiler.fio import compare_with_fio
from simkv.profiler.provenance import device_name, facts_of_machine
from simkv.profiler.timing import timing_of
from simkv.units import format_bytes

__all__ = ["TierPlan", "machine_name", "measure_tiers"]

_LOG = logging.getLogger(__name__)

_DISK_SIZES = (BLOCK, 1 << 16, 1 << 20, 8 << 20)
_DEPTHS = (1, 2, 4, 8, 16, 32)
_QUICK_DISK_SIZES = (BLOCK, 1 << 20)
_QUICK_DEPTHS = (1, 8)
_COPY_SIZES = (1 << 20, 1 << 24, 1 << 28)
_QUICK_COPY_SIZES = (1 << 20, 1 << 26)
_SECONDS = 0.5
_QUICK_SECONDS = 0.1
_MOST_OF_FREE = 0.5
_LEAST_BLOCKS = 16
_FOLDER = "simkv-tiers"

Clock = Callable[[], float]
Point = dict[str, Any]


@dataclass(frozen=True)
class TierPlan:
    """What to measure.

    Attributes:
        disk: a folder on the disk; None for DRAM alone.
        size: bytes of the one file that is written there.
        seconds: about how long one point takes; None for 0.5 s, or 0.1 s when quick.
        seed: of places and bytes.
        quick: fewer sizes and depths.
    """

    disk: Path | None = None
    size: int = 1 << 30
    seconds: float | None = None
    seed: int = 0
    quick: bool = False

    @property
    def point_s(self) -> float:
        """Seconds of one point."""
        return self.seconds or (_QUICK_SECONDS if self.quick else _SECONDS)

    @property
    def copies(self) -> list[tuple[int, int]]:
        """(bytes, threads) of every DRAM point."""
        sizes = _QUICK_COPY_SIZES if self.quick else _COPY_SIZES
        threads = sorted({1, 2, os.cpu_count() or 1}) if not self.quick else sorted({1, min(2, os.cpu_count() or 1)})
        return [(size, count) for size in sizes for count in threads]

    @property
    def accesses(self) -> list[tuple[bool, int, int]]:
        """(write, bytes, depth) of every disk point."""
        if self.disk is None:
            return []
        sizes = [size for size in (_QUICK_DISK_SIZES if self.quick else _DISK_SIZES) if size <= self.size // 2]
        depths = _QUICK_DEPTHS if self.quick else _DEPTHS
        return [(write, size, depth) for write in (True, False) for size in sizes for depth in depths]


def measure_tiers(
    plan: TierPlan,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    clock: Clock = perf_counter,
) -> MeasuredTiers:
    """Measure, and write the TOML file ``out``; ``progress`` takes (finished, all) points.

    Raises:
        SimkvError: a file that exists, a disk without room, or a folder that cannot be written to.
    """
    remove_stale_in(out.parent)
    if out.exists():
        raise SimkvError(f"{out}: exists already; a measurement is never overwritten")
    _check(plan)
    tell = progress or (lambda done, of: None)
    total, points = len(plan.copies) + len(plan.accesses), []
    tell(0, total)
    facts: dict[str, Any] = {"summary": f"measured storage of {machine_name()}", **facts_of_machine("cpu")}
    for point in _copies(plan, clock):
        points.append(point)
        tell(len(points), total)
    if plan.disk is not None:
        facts |= {"file_bytes": plan.size, "file_system": file_system(plan.disk)}
        with _own_folder(plan.disk, plan.size) as folder:
            for point in _disk(plan, folder, clock):
                points.append(point)
                tell(len(points), total)
            if fio := compare_with_fio(folder, plan.size, plan.point_s):
                facts["fio"] = fio
    direct = all(point["direct"] for point in points)
    if plan.disk is not None:
        facts["direct"] = (
            "the file system passes O_DIRECT" if direct else "no O_DIRECT here: the page cache was measured"
        )
    cached = "" if direct else "; ssd: the page cache, not a disk"
    origin = {"status": "measured", "source": f"simkv profile tiers, {facts['date']}, {facts['device']}{cached}"}
    places = {"tiers": origin, "measurements": origin}
    tiers = tuple(_tiers(points, plan))
    save_tiers(MeasuredTiers(out.stem, tiers, None, tuple(points), places, facts), out)
    return load_tiers(out)


def _check(plan: TierPlan) -> None:
    if plan.disk is not None and not plan.disk.is_dir():
        raise SimkvError(f"{plan.disk}: there is no such folder; --ssd names a folder on the disk to measure")
    if plan.size % BLOCK or plan.size < _LEAST_BLOCKS * BLOCK:
        allowed = f"a multiple of {BLOCK} bytes, at least {_LEAST_BLOCKS} of them"
        raise SimkvError(f"--size {plan.size}: it must be {allowed}")


def machine_name() -> str:
    """Processor and cores as a file may be called, for ``profiles/tiers/NAME.toml``; never the host's name."""
    plain = re.sub(r"\(r\)|\(tm\)|\bcpu\b|@.*", " ", device_name("cpu").lower())
    name = re.sub(r"[^a-z0-9_.+]+", "-", plain).strip("-.")[:64] or "machine"
    return f"{name}-{os.cpu_count() or 1}-cores"


def _copies(plan: TierPlan, clock: Clock) -> Iterator[Point]:
    for size, threads in plan.copies:
        noise = np.random.default_rng(plan.seed).integers(0, 256, size, dtype=np.uint8)
        pairs = [(np.empty_like(noise), noise.copy()) for _ in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda pair: np.copyto(*pair), pairs))  # touches every page
            start = clock()
            found = list(pool.map(lambda pair: _copying(pair, start + plan.point_s, clock), pairs))  # noqa: B023
            wall = clock() - start
        yield _point("dram", "copy", size, threads, [one for worker in found for one in worker], wall, True)


def _copying(pair: tuple[Any, Any], until: float, clock: Clock) -> list[float]:
    spent: list[float] = []
    before = clock()
    while len(spent) < 2 or before < until:
        np.copyto(*pair)
        after = clock()
        spent.append(after - before)
        before = after
    return spent


def _disk(plan: TierPlan, folder: Path, clock: Clock) -> Iterator[Point]:
    with scratch_file(folder, plan.size) as file:
        cached = in_memory(folder)
        if not file.direct or cached:
            why = "is in memory" if cached else "refuses direct transfers (O_DIRECT)"
            _LOG.warning("%s: its file system %s; what is measured is the page cache, not a disk", plan.disk, why)
        file.fill(plan.seed)
        for write, size, depth in plan.accesses:
            burst = file.burst(write, size, depth, plan.point_s, clock, plan.seed)
            what = "write" if write else "read"
            yield _point("ssd", what, size, depth, burst.latencies_s, burst.wall_s, file.direct and not cached)


def _point(
    tier: str, what: str, size: int, depth: int, latencies: Sequence[float], wall_s: float, direct: bool
) -> Point:
    took = timing_of(latencies)
    rate = size * len(latencies) / max(wall_s, 1e-9)
    return {
        "tier": tier,
        "what": what,
        "bytes": size,
        "depth": depth,
        "bytes_per_s": round(rate),
        "latency_s": took.median_s,
        "p95_s": took.p95_s,
        "direct": direct,
    }


def _tiers(points: Sequence[Point], plan: TierPlan) -> Iterator[TierSpec]:
    """Bandwidths are the best over depth, and over size on the disk; latency is that of the smallest access alone.

    DRAM counts at its largest size, since smaller buffers stay in the processor's caches.
    """
    largest = max(size for size, _ in plan.copies)
    copy = max(point["bytes_per_s"] for point in points if point["tier"] == "dram" and point["bytes"] == largest)
    yield TierSpec("dram", _memory_bytes(), copy, copy, 0.0, discipline="fair")
    if plan.disk is None:
        return
    best = {
        what: max(point["bytes_per_s"] for point in points if point["tier"] == "ssd" and point["what"] == what)
        for what in ("read", "write")
    }
    alone = min(
        (point for point in points if point["what"] == "read" and point["depth"] == 1), key=lambda point: point["bytes"]
    )
    capacity = shutil.disk_usage(plan.disk).total
    yield TierSpec("ssd", capacity, best["read"], best["write"], alone["latency_s"], discipline="fair")


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextlib.contextmanager
def _own_folder(disk: Path, size: int) -> Iterator[Path]:
    """A folder of our own on the disk, removed at the end; those of dead processes are removed first."""
    home = disk / _FOLDER
    remove_stale_in(home)
    free = shutil.disk_usage(disk).free
    if size > _MOST_OF_FREE * free:
        raise SimkvError(
            f"{disk}: {format_bytes(free)} are free; a file of {format_bytes(size)} would take more than half of that: "
            "give a smaller --size"
        )
    try:
        with temporary_folder(home) as folder:
            yield folder
    finally:
        with contextlib.suppress(OSError):  # another measurement may be under way in it
            home.rmdir()
