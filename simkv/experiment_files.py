"""Files of a sweep that appear whole or not at all, and what is left of sweeps that died.

What it is: temporary folders beside the target whose name says which process owns them, moved into
place at the end.  What it is not: what is in them (``experiments.py``).
"""

import contextlib
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["discard", "remove_stale", "remove_stale_in", "staged", "temporary_folder"]

_STALE_S = 86_400.0
_TEMPORARY = ".tmp-"


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A path to write to, in a temporary folder beside ``target``; what is there moves to ``target`` at the end."""
    with temporary_folder(target.parent) as folder:
        path = folder / target.name
        yield path
        try:
            os.replace(path, target)
        except OSError:
            # A folder is not replaced: another sweep has just finished the same run, and its result is as good.
            if not target.is_dir():
                raise


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent`` whose name says which process owns it; removed at the end."""
    folder = parent / f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{socket.gethostname()}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove a folder, if it is there, so that it is never seen half-removed."""
    if folder.is_dir():
        with temporary_folder(folder.parent) as rubbish:
            os.replace(folder, rubbish / folder.name)


def remove_stale(results: Path) -> None:
    """Remove what sweeps that died have left half-written."""
    for parent in (results, results / "runs", results / "bounds", results / "traces"):
        remove_stale_in(parent)


def remove_stale_in(parent: Path) -> None:
    """Remove the temporary folders directly in ``parent`` whose processes are dead."""
    for folder in parent.glob(f"{_TEMPORARY}*"):
        if _is_stale(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_stale(folder: Path) -> bool:
    pid, _, host = ([*folder.name.removeprefix(_TEMPORARY).split("-", 2), "", ""])[:3]
    if not pid.isdigit():  # not one of ours
        return False
    if host == socket.gethostname() and os.name == "posix":
        return not _is_alive(int(pid))
    return time.time() - folder.stat().st_mtime > _STALE_S


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
