"""Request traces: read them, generate them, change them, describe them.

Where to look: ``trace.py`` has the Trace itself; ``formats.py`` the known formats and ``load_trace``;
``storage.py`` the project's own file format.  What this is not: a simulator; a Trace is only data.
"""

from simkv.traces.formats import FORMATS, load_trace, sniff
from simkv.traces.storage import open_arrow, read_trace, save_arrow, save_trace
from simkv.traces.trace import Trace, build_trace

__all__ = [
    "FORMATS",
    "Trace",
    "build_trace",
    "load_trace",
    "open_arrow",
    "read_trace",
    "save_arrow",
    "save_trace",
    "sniff",
]
