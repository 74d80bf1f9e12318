"""Which simkv this is: the version for people, and a hash of the code for the identity of results."""

import hashlib
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["code_identity", "simkv_version"]

_CHANGES_NO_NUMBER = ("figures", "cli")


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
    package = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).as_posix()
        if not place.startswith(_CHANGES_NO_NUMBER):
            digest.update(f"{place}\0".encode() + path.read_bytes() + b"\0")
    return f"{simkv_version()}+{digest.hexdigest()[:12]}"
