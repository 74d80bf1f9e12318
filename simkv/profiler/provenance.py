"""Where a measurement comes from: device, driver, versions, commit, date.

What it is: plain facts for ``[provenance]`` of a profile.  What it is not: what was measured.
"""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from simkv.version import code_identity

__all__ = ["device_name", "facts_of_machine"]

_PACKAGES = ("torch", "transformers", "numpy", "safetensors", "kvpress")


def facts_of_machine(device: str) -> dict[str, Any]:
    """Date, device, driver, threads, versions and commit, as text and numbers."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "simkv": code_identity(),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **_versions()},
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.startswith("cuda"):
        facts["driver"] = _driver()
        facts["cuda"] = str(torch.version.cuda)
    return facts


def device_name(device: str) -> str:
    """The GPU's name, or the processor's; never the host's."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _driver() -> str:
    return _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).split("\n")[0] or "unknown"


def _commit() -> str:
    """The commit of the checkout that this code is in, marked when files differ from it; "unknown" without one."""
    package = str(Path(__file__).resolve().parents[1])
    commit = _output(["git", "-C", package, "rev-parse", "HEAD"])
    if not commit:
        return "unknown"
    changed = _output(["git", "-C", package, "status", "--porcelain", "--untracked-files=no", "--", "."])
    return f"{commit} with changes" if changed else commit


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
