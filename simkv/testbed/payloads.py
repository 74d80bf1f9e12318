"""The two tiers' real payloads: byte strings in memory, and files read and written past the page cache.

What it is: write, read and drop by key, with the bytes in use.  A read always moves the bytes: a copy in memory, or a
direct read from the disk.  What it is not: which key is where (the simulator's store), or what the bytes mean.
"""

import errno
import logging
import mmap
import os
import threading
from pathlib import Path
from typing import Protocol

from simkv.errors import SimkvError
from simkv.profiler.direct_io import BLOCK, scratch_file
from simkv.profiler.file_systems import in_memory
from simkv.testbed.folder import PAYLOAD

__all__ = ["DiskPayloads", "DramPayloads", "Payloads"]

_LOG = logging.getLogger(__name__)
_DIRECT = getattr(os, "O_DIRECT", 0)


class Payloads(Protocol):
    """What both tiers answer.  Keys are blocks of the trace."""

    sizes: dict[int, int]

    def write(self, key: int, payload: bytes) -> None:
        """Keep a payload, instead of an older one of the key."""

    def read(self, key: int) -> bytes:
        """A payload, moved from where it is.  Raises SimkvError for a damaged one."""

    def drop(self, key: int) -> None:
        """Forget a payload."""


class DramPayloads:
    """Payloads in memory.

    Attributes:
        sizes: bytes by key.
    """

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self._kept: dict[int, bytearray] = {}

    def write(self, key: int, payload: bytes) -> None:
        """See Payloads."""
        self._kept[key] = bytearray(payload)
        self.sizes[key] = len(payload)

    def read(self, key: int) -> bytes:
        """See Payloads."""
        return bytes(self._kept[key])

    def drop(self, key: int) -> None:
        """See Payloads."""
        del self._kept[key], self.sizes[key]


class DiskPayloads:
    """Payloads as files of a folder, one each, padded to whole blocks.

    Args:
        folder: an existing folder that is ours.

    Attributes:
        sizes: bytes by key, without padding.
        direct: whether a disk is read and written past the page cache; where not, a warning says why.
    """

    def __init__(self, folder: Path) -> None:
        self.sizes: dict[int, int] = {}
        self.folder = folder
        with scratch_file(folder, BLOCK) as probe:
            passes, memory = probe.direct, in_memory(folder)
        self.direct = passes and not memory
        if not self.direct:
            why = "is in memory" if memory else "refuses direct transfers (O_DIRECT)"
            _LOG.warning("%s: its file system %s; the page cache is measured, not a disk", folder, why)
        self._flag = _DIRECT if passes else 0
        self._buffers = threading.local()

    def path(self, key: int) -> Path:
        """The file of a key."""
        return self.folder / f"{key}{PAYLOAD}"

    def write(self, key: int, payload: bytes) -> None:
        """See Payloads.  Raises SimkvError when the disk is full."""
        view = self._buffer(len(payload))
        view[: len(payload)] = payload
        descriptor = os.open(self.path(key), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | self._flag, 0o600)
        try:
            if os.pwritev(descriptor, [view], 0) != len(view):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise SimkvError(f"{self.path(key)}: cannot be written: {error.strerror}") from error
        finally:
            os.close(descriptor)
        self.sizes[key] = len(payload)

    def read(self, key: int) -> bytes:
        """See Payloads."""
        size = self.sizes[key]
        view = self._buffer(size)
        try:
            descriptor = os.open(self.path(key), os.O_RDONLY | self._flag)
            try:
                found = os.preadv(descriptor, [view], 0)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise SimkvError(f"{self.path(key)}: cannot be read: {error.strerror}") from error
        if found < size:
            raise SimkvError(f"{self.path(key)}: holds {found} bytes, {size} were written: it is damaged")
        return bytes(view[:size])

    def drop(self, key: int) -> None:
        """See Payloads."""
        self.path(key).unlink()
        del self.sizes[key]

    def _buffer(self, size: int) -> memoryview:
        """This thread's buffer, which begins on a page, cut to whole blocks."""
        whole = -(-size // BLOCK) * BLOCK
        kept: mmap.mmap | None = getattr(self._buffers, "kept", None)
        if kept is None or len(kept) < whole:
            self._buffers.kept = kept = mmap.mmap(-1, whole)
        return memoryview(kept)[:whole]
