"""Python's cycle collector, called seldom while a run makes millions of small records.

A run leaves no cycles behind, so that counting references frees all that it drops; at the usual setting the collector
nevertheless looks through the young records after every 700 new ones, and that takes a fifth to a quarter of the time.
What it is: that setting.  What it is not: the collector switched off; a policy from outside may make cycles.
"""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["seldom_collected"]

_YOUNG = 50_000  # new records between two looks at them
_MIDDLE = 50  # looks at the young ones between two at the middle-aged ones
_LOCK = threading.Lock()
_INSIDE: list[tuple[int, int, int]] = []  # per run under way, in all threads: the setting before the first of them


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Within it, the collector waits for many more new records; after the last run it has its earlier setting again."""
    with _LOCK:
        _INSIDE.append(_INSIDE[0] if _INSIDE else gc.get_threshold())
        young, middle, old = _INSIDE[0]
        if young:  # 0: somebody has switched it off
            gc.set_threshold(max(young, _YOUNG), max(middle, _MIDDLE), old)
    try:
        yield
    finally:
        with _LOCK:
            earlier = _INSIDE.pop()
            if not _INSIDE:
                gc.set_threshold(*earlier)
