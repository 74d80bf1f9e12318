"""Python's cycle collector, called seldom while a run makes millions of small records.

A run leaves no cycles behind, so that counting references frees all that it drops; at the usual setting the collector
nevertheless looks through the young records after every 700 new ones, and that takes a fifth to a quarter of the time.
What it is: that setting.  What it is not: the collector switched off; a policy from outside may make cycles.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["seldom_collected"]

_YOUNG = 50_000  # new records between two looks at them
_MIDDLE = 50  # looks at the young ones between two at the middle-aged ones


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Within it, the collector waits for many more new records; afterwards it has its earlier setting again."""
    young, middle, old = earlier = gc.get_threshold()
    if young:  # 0: somebody has switched it off
        gc.set_threshold(max(young, _YOUNG), max(middle, _MIDDLE), old)
    try:
        yield
    finally:
        gc.set_threshold(*earlier)
