"""Folders that a validation may fill and empty: one for payloads, one for the report.

What it is: a marker file that says whose a folder is, a lock that says whether its owner lives, the free space looked
at before anything is written, and the removal of what is ours, also what a killed run left.  A folder without the
marker, or with a file in it that we did not write, is never touched.  What it is not: what the files hold.
"""

import contextlib
import fcntl
import fnmatch
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from simkv.errors import SimkvError
from simkv.units import format_bytes

__all__ = ["PAYLOAD", "payload_folder", "report_folder"]

PAYLOAD = ".kv"
"""Suffix of the files with payloads."""

_NAME = "simkv-testbed"
_MARKER = ".simkv-testbed"
_PART = ".part"
_MOST_OF_FREE = 0.5
_SCRATCH = "data"  # of ``direct_io.scratch_file``, which has unlinked it unless it was killed in between


@contextlib.contextmanager
def payload_folder(parent: Path, need_bytes: int) -> Iterator[Path]:
    """A folder of our own in ``parent``, empty, removed with all that is in it at the end.

    Args:
        parent: an existing folder on the disk to use.
        need_bytes: most that will be written at once.

    Raises:
        SimkvError: no such folder, too little room, a folder of that name that is not ours, or one in use.
    """
    if not parent.is_dir():
        raise SimkvError(f"{parent}: there is no such folder; --ssd names a folder on the disk to use")
    home = parent / _NAME
    with _claimed(home, lambda name: name.endswith(PAYLOAD) or name == _SCRATCH):
        _empty(home)
        free = shutil.disk_usage(home).free
        if need_bytes > _MOST_OF_FREE * free:
            raise SimkvError(
                f"{parent}: {format_bytes(free)} are free; payloads of up to {format_bytes(need_bytes)} would take "
                "more than half of that: give a smaller disk capacity or another --ssd"
            )
        try:
            yield home
        finally:
            _empty(home)


@contextlib.contextmanager
def report_folder(out: Path, names: tuple[str, ...], last: str) -> Iterator[Path]:
    """A folder in ``out`` to write the parts of a report to, which are moved into ``out`` at the end.

    Args:
        out: made if it is not there; may hold an older report, which is replaced at the end.
        names: files and folders that a report may consist of, "*" for any text.
        last: the one of them that is there only when all others are.

    Raises:
        SimkvError: a folder that holds something else, or is in use.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with _claimed(out, lambda name: name == _PART or _is_one(name, names)):
        part = out / _PART
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
            (out / last).unlink(missing_ok=True)
            for path in [path for path in out.iterdir() if _is_one(path.name, names)]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in sorted(part.iterdir(), key=lambda path: path.name == last):
                os.replace(path, out / path.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _is_one(name: str, names: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in names)


@contextlib.contextmanager
def _claimed(home: Path, ours: Callable[[str], bool]) -> Iterator[None]:
    """Hold the lock of a folder that is new, empty, or ours."""
    if home.is_symlink() or (home.exists() and not home.is_dir()):
        raise SimkvError(f"{home}: is there already and is no folder of simkv's; name another place")
    found = sorted(path.name for path in home.iterdir()) if home.is_dir() else []
    foreign = [name for name in found if name != _MARKER and not ours(name)]
    if foreign or (found and _MARKER not in found):
        raise SimkvError(
            f"{home}: holds {', '.join((foreign or found)[:3])}, which validate did not write there; "
            "it only uses folders of its own: name another place, or move that away"
        )
    home.mkdir(exist_ok=True)
    descriptor = os.open(home / _MARKER, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SimkvError(f"{home}: another validation is using it; wait for it or name another place") from None
        try:
            yield
        finally:
            if [path.name for path in home.iterdir()] == [_MARKER]:  # nothing is left, or nothing came of it
                _remove(home)
    finally:
        os.close(descriptor)


def _empty(home: Path) -> None:
    """Remove the files that were looked at before."""
    for path in home.iterdir():
        if path.name != _MARKER:
            path.unlink()


def _remove(home: Path) -> None:
    with contextlib.suppress(OSError):
        (home / _MARKER).unlink()
        home.rmdir()
