"""Where the data files of the top-level ``traces/`` folder are, in a checkout and once installed.

What it is: one function that finds a shipped file by name.  What it is not: a download (``fetch.py``)
or a reader of any file.
"""

import sys
from pathlib import Path

from simkv.errors import TraceError

__all__ = ["shipped_file"]


def shipped_file(name: str) -> Path:
    """Path of a data file that comes with simkv: ``traces/`` of a checkout, else ``share/simkv/traces`` of the prefix.

    Raises TraceError naming both folders when the file is in neither.
    """
    folders = (Path(__file__).resolve().parents[2] / "traces", Path(sys.prefix) / "share" / "simkv" / "traces")
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise TraceError(f"{name}: this file of simkv is missing; looked in {' and '.join(map(str, folders))}")
