"""Other projects' compressors behind simkv's interface, one file per project.

What it is: adapters for kvpress presses (``kvpress.py``) and for LMCache-style serializers (``lmcache.py``).  What it
is not: a copy of either project; nothing is imported from them until one of their compressors is asked for.
"""

__all__ = ["one_line"]


def one_line(error: Exception) -> str:
    """What went wrong in somebody else's code, in one line that is not too long."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
