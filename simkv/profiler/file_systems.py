"""What a folder is on: the type of its file system, whether that is memory, and facts of its device.

What it is: what the kernel's own lists say.  What it is not: how fast it is (``tiers.py``).
"""

import contextlib
import os
from pathlib import Path

__all__ = ["file_system", "in_memory"]

_MEMORY = ("tmpfs", "ramfs")
_QUEUE = ("rotational", "write_cache", "scheduler", "nr_requests", "logical_block_size")


def in_memory(folder: Path) -> bool:
    """Whether a folder is in the page cache and on no disk, also where direct transfers go through."""
    return file_system(folder)["type"] in _MEMORY


def file_system(folder: Path) -> dict[str, str]:
    """Type of the mount that a folder is on, "unknown" where the system does not tell, and facts of its device.

    No names of devices, which may be those of a server or of a group of disks.
    """
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {"type": "unknown"}
    whole = folder.resolve()
    mounts = [line.split()[:3] for line in lines if len(line.split()) >= 3]
    on = [mount for mount in mounts if whole.is_relative_to(mount[1])]
    _, _, kind = max(on, key=lambda mount: len(mount[1]), default=["", "", "unknown"])
    number = folder.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    queues = (device / "queue", device / ".." / "queue")  # a partition has none, the disk that it is on has
    return {"type": kind} | next(filter(None, map(_queue, queues)), {})


def _queue(folder: Path) -> dict[str, str]:
    """What the kernel says of a block device."""
    found = {}
    for name in _QUEUE:
        with contextlib.suppress(OSError):
            found[name] = (folder / name).read_text(encoding="utf-8", errors="replace").strip()[:64]
    return found
