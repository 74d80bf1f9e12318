"""Reads and writes of one file past the page cache, several at once.

What it is: O_DIRECT with aligned buffers, or, where the file system refuses it, ordinary reads and writes that say so.
The file has no name: it goes with the process, however that ends.  What it is not: which sizes and depths to measure
(``tiers.py``).  Threads wait for the device outside Python's lock, so a queue is as deep as there are threads.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simkv.errors import SimkvError

__all__ = ["BLOCK", "Burst", "ScratchFile", "scratch_file"]

BLOCK = 4096
"""Sizes and places of direct reads and writes are multiples of this."""

_DIRECT = getattr(os, "O_DIRECT", 0)
_REFUSED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_FILL_BYTES = 8 << 20


@dataclass(frozen=True)
class Burst:
    """What one run of many reads or writes took: seconds of each, and of all from first to last."""

    latencies_s: list[float]
    wall_s: float


@dataclass(frozen=True)
class ScratchFile:
    """An open file to read and write.

    Attributes:
        descriptor: of the file.
        size: bytes.
        direct: whether the page cache is passed by.
    """

    descriptor: int
    size: int
    direct: bool

    def fill(self, seed: int) -> None:
        """Write the whole file once, with bytes that do not compress."""
        noise = np.random.default_rng(seed)
        with _aligned(min(_FILL_BYTES, self.size)) as buffer:
            for place in range(0, self.size, len(buffer)):
                buffer[:] = noise.bytes(len(buffer))
                self._whole(os.pwritev, memoryview(buffer)[: self.size - place], place)
        os.fsync(self.descriptor)

    def burst(self, write: bool, size: int, depth: int, seconds: float, clock: Callable[[], float], seed: int) -> Burst:
        """Reads or writes of ``size`` bytes at random places, ``depth`` at once, for ``seconds``, each at least twice.

        A burst of writes ends when the device says that they are stored; that is part of ``wall_s``.
        """
        places = self.size // size
        start = clock()
        with ThreadPoolExecutor(depth) as pool:
            found = pool.map(
                lambda worker: self._worker(write, size, places, start + seconds, clock, [seed, worker]), range(depth)
            )
            latencies = [latency for one in found for latency in one]
        if write:
            os.fdatasync(self.descriptor)
        return Burst(latencies, clock() - start)

    def _worker(
        self, write: bool, size: int, places: int, until: float, clock: Callable[[], float], seed: list[int]
    ) -> list[float]:
        noise = np.random.default_rng(seed)
        latencies: list[float] = []
        with _aligned(size) as buffer:
            if write:
                buffer[:] = noise.bytes(size)
            call = os.pwritev if write else os.preadv
            before = clock()
            while len(latencies) < 2 or before < until:
                self._whole(call, memoryview(buffer), int(noise.integers(places)) * size)
                after = clock()
                latencies.append(after - before)
                before = after
        return latencies

    def _whole(self, call: Callable[..., int], view: memoryview, place: int) -> None:
        with view:
            done = call(self.descriptor, [view], place)
            if done != len(view):
                raise SimkvError(f"{done} of {len(view)} bytes at {place} were transferred; the disk may be full")


@contextmanager
def scratch_file(folder: Path, size: int) -> Iterator[ScratchFile]:
    """A new file of ``size`` bytes (a multiple of ``BLOCK``) in a folder, not filled yet, gone at the end.

    Raises:
        OSError: when it cannot be made.
    """
    path = folder / "data"
    descriptor, direct = _opened(path)
    try:
        path.unlink()  # so that even a killed process leaves nothing behind but an empty folder
        os.truncate(descriptor, size)
        yield ScratchFile(descriptor, size, direct and _passes(descriptor))
    finally:
        os.close(descriptor)


def _opened(path: Path) -> tuple[int, bool]:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags | _DIRECT, 0o600), bool(_DIRECT)
    except OSError as error:
        if not _DIRECT or error.errno not in _REFUSED:
            raise
    path.unlink(missing_ok=True)  # some systems make the file before they refuse
    return os.open(path, flags, 0o600), False


def _passes(descriptor: int) -> bool:
    """Whether a direct transfer goes through; some file systems take the flag and refuse that, so it is dropped."""
    try:
        with _aligned(BLOCK) as buffer:
            os.pwritev(descriptor, [buffer], 0)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~_DIRECT)
        return False
    return True


@contextmanager
def _aligned(size: int) -> Iterator[mmap.mmap]:
    """A buffer that begins on a page, as direct transfers ask for."""
    with mmap.mmap(-1, size) as buffer:
        yield buffer
