"""What the figures of single runs share: the check of their frames, thinning of long lines, a time axis.

What it is: helpers for figures that take ``{label: frame}``.  What it is not: drawing, or summaries (``tables.py``).
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simkv.errors import SimkvError
from simkv.figures.tables import need_columns

__all__ = ["check_runs", "thinned", "time_unit"]

_MOST_VERTICES = 4000


def check_runs(runs: Mapping[str, pd.DataFrame], columns: list[str], what: str) -> None:
    """Raise SimkvError unless ``runs`` maps at least one label to frames with rows and all ``columns``."""
    if not isinstance(runs, Mapping):
        raise SimkvError(f"{what}: expected {{label: frame}}, found {type(runs).__name__}")
    if not runs:
        raise SimkvError(f"{what}: no runs to draw")
    for label, frame in runs.items():
        need_columns(frame, columns, f"{what} of {label!r}")


def thinned(count: int) -> NDArray[np.int64]:
    """Evenly spread indices of at most 4,000 of ``count`` vertices, first and last included."""
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_VERTICES)).round().astype(np.int64))


def time_unit(longest_s: float) -> tuple[str, float]:
    """Name and length in seconds of the unit that a time axis up to ``longest_s`` reads best in."""
    for name, seconds, least in (("h", 3600.0, 7200.0), ("min", 60.0, 600.0)):
        if longest_s >= least:
            return name, seconds
    return "s", 1.0
