"""Which simkv this is: the version for people, and a hash of the code for the identity of results."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["code_identity", "measuring_identity", "simkv_version"]

_CHANGES_NO_NUMBER = ("figures", "cli")
_MEASURES = ("profiler/", "models.py")


def simkv_version() -> str:
    """Version of the installed package, "0" from a bare source tree."""
    try:
        return version("simkv")
    except PackageNotFoundError:
        return "0"


@lru_cache(maxsize=1)
def code_identity() -> str:
    """Version and hash of all code that can change a result (not figures and command line), as first asked for.

    A result of other code is thus never taken for one of this.
    """
    return _identity(lambda place: not place.startswith(_CHANGES_NO_NUMBER))


@lru_cache(maxsize=1)
def measuring_identity() -> str:
    """Version and hash of all code that can change a measured row: the profiler and the models' shapes.

    Rows of other code are thus never put into one profile, while an edit of the simulator spoils no measurement.
    """
    return _identity(lambda place: place.startswith(_MEASURES))


def _identity(counts: Callable[[str], bool]) -> str:
    package = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).as_posix()
        if counts(place):
            digest.update(f"{place}\0".encode() + path.read_bytes() + b"\0")
    return f"{simkv_version()}+{digest.hexdigest()[:12]}"
