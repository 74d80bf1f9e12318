"""The errors that simkv raises for bad input, each a single readable line.

What it is: one base class that the command line turns into one line and exit code 2, and the helper
that names the nearest known name.  What it is not: a wrapper around programming errors, which keep
their traceback.
"""

import difflib
from collections.abc import Iterable

__all__ = ["ConfigError", "PolicyError", "ProfileError", "SimkvError", "TraceError", "unknown_name"]


class SimkvError(Exception):
    """Bad input: the message names the file, line or key, the value, and what is allowed."""


class TraceError(SimkvError):
    """A trace that cannot be read, or cannot be used in the way that was asked."""


class ProfileError(SimkvError):
    """A profile that is missing, malformed, or lacks a number that the run needs."""


class ConfigError(SimkvError):
    """A configuration key or value that is unknown, out of range, or contradicts another."""


class PolicyError(SimkvError):
    """A policy that is unknown, wrongly parametrised, or asks for a move that the store forbids."""


def unknown_name(kind: str, given: str, known: Iterable[str]) -> str:
    """One line: unknown ``kind`` ``given``, the nearest known name if any, and all known names."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {kind} {given!r}{hint}; known: {', '.join(names)}"
