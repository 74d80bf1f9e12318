"""The same disk seen by fio, where it is installed: a second opinion.

What it is: a few runs of fio in the measurement's own folder and the numbers of its JSON.  What it is not: needed.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["compare_with_fio", "parsed"]

_RUNS = {
    f"{what}_{size}_depth_{depth}": (f"rand{what}", block, depth)
    for what in ("read", "write")
    for size, block, depth in (("4KiB", "4k", "1"), ("1MiB", "1M", "8"))
}
_TIMEOUT_S = 120


def compare_with_fio(folder: Path, size: int, seconds: float) -> dict[str, dict[str, float]]:
    """Bandwidth and median latency of random direct accesses as fio measures them; empty without fio or when it fails.

    Args:
        folder: for its file, which stays there.
        size: bytes of that file.
        seconds: of each run, at least 1.
    """
    program = shutil.which("fio")
    if program is None:
        return {}
    found = {}
    for name, (way, block, depth) in _RUNS.items():
        options = {
            "name": name,
            "filename": str(folder / "fio"),
            "size": str(size),
            "rw": way,
            "bs": block,
            "iodepth": depth,
            "ioengine": "libaio",
            "direct": "1",
            "runtime": str(max(1, round(seconds))),
            "output-format": "json",
        }
        command = [program, "--time_based", *(f"--{key}={value}" for key, value in options.items())]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
            found[name] = parsed(ran.stdout)
        except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError):
            continue
    return found


def parsed(text: str) -> dict[str, float]:
    """Bandwidth and median latency of the one job in fio's JSON.  Raises ValueError, LookupError or TypeError."""
    job: dict[str, Any] = json.loads(text)["jobs"][0]
    way = job["read"] if job["read"]["total_ios"] else job["write"]
    return {
        "bytes_per_s": float(way["bw_bytes"]),
        "latency_s": float(way["clat_ns"]["percentile"]["50.000000"]) / 1e9,
    }
