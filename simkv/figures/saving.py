"""Writes a figure to a file: whole or not at all, and the same bytes for the same figure.

What it is: the only place where figures meet the disk.  What it is not: a choice of appearance (``style.py``).
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from simkv.errors import SimkvError
from simkv.figures.style import LOOK

__all__ = ["save_figure"]

# Dates and program versions would make equal figures differ.
_METADATA: dict[str, Any] = {
    ".png": {"Software": None},
    ".pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    ".svg": {"Creator": None, "Date": None},
}
_PNG_DPI = 200


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write ``figure`` as PNG (200 dots per inch), PDF or SVG, by the suffix of ``path``; returns the path.

    The file appears whole or not at all, and equal figures give equal bytes.

    Raises:
        SimkvError: another suffix, or a folder that cannot be written.
    """
    target = Path(path)
    kind = target.suffix.lower()
    if kind not in _METADATA:
        raise SimkvError(f"{target}: suffix {kind!r} is not one of {', '.join(_METADATA)}")
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with matplotlib.style.context(["default", LOOK]):
            figure.savefig(partial, format=kind[1:], dpi=_PNG_DPI, metadata=_METADATA[kind])
        os.replace(partial, target)
    except OSError as error:
        raise SimkvError(f"{target}: cannot write the figure: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return target
