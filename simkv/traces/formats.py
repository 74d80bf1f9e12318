"""Every trace format by name, how to recognise it, and ``load_trace``, the one way to read any of them.

What it is: a literal table from name to reader, and a look at the first record.  What it is not: parsing;
each family of formats has a module of its own.  To add a format, write its reader and add it here.
"""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

from simkv.errors import ConfigError, TraceError, unknown_name
from simkv.traces.bailian import read_bailian
from simkv.traces.files import DEFAULT_LIMITS, Limits, Source
from simkv.traces.mooncake import read_aiperf, read_mooncake
from simkv.traces.records import Columns
from simkv.traces.sessions import read_sessions
from simkv.traces.storage import read_trace
from simkv.traces.tables import AZURE_COLUMNS, BURSTGPT_COLUMNS, read_azure, read_burstgpt
from simkv.traces.texts import read_lmcache_agent, read_lookup_hash, read_sharegpt_tokens
from simkv.traces.trace import Trace

__all__ = ["FORMATS", "load_trace", "sniff"]


def _read_parquet(source: Source, *, cache: bool = True) -> Trace:
    return read_trace(source.path, cache=cache)


def _read_empty(source: Source) -> Trace:
    for place, _ in source.lines():
        raise place.error("not empty: name its format, or leave it to be recognised")
    return Columns(0).trace(source, "empty", reuse=False)


FORMATS: dict[str, Callable[..., Trace]] = {
    "mooncake": read_mooncake,
    "aiperf": read_aiperf,
    "bailian": read_bailian,
    "sessions": read_sessions,
    "azure": read_azure,
    "burstgpt": read_burstgpt,
    "lmcache-agent": read_lmcache_agent,
    "sharegpt-tokens": read_sharegpt_tokens,
    "lookup-hash": read_lookup_hash,
    "parquet": _read_parquet,
    "empty": _read_empty,
}

# The first format whose keys are all in the first record.
_JSON_KEYS: dict[str, frozenset[str]] = {
    "sessions": frozenset({"block_size", "requests"}),
    "bailian": frozenset({"chat_id", "parent_chat_id", "hash_ids"}),
    "sharegpt-tokens": frozenset({"input_tok_ids", "arrival_time_ns"}),
    "lookup-hash": frozenset({"timestamp", "chunk_hashes"}),
    "lmcache-agent": frozenset({"timestamp", "input", "output", "session_id"}),
    "mooncake": frozenset({"timestamp", "input_length", "output_length", "hash_ids"}),
}
_PARQUET = b"PAR1"
_AIPERF_INPUTS = frozenset({"input_length", "text_input", "messages", "payload"})
_AIPERF_ONLY = frozenset({"session_id", "delay", "turn", "block_size"})


def load_trace(path: str | Path, format: str = "auto", *, limits: Limits = DEFAULT_LIMITS, **options: Any) -> Trace:
    """Read a trace file, or a folder of them, of any known format.

    Args:
        path: plain, .gz or .zst; a folder's files are read in the order of their names.
        format: a name in FORMATS, or "auto" to tell it from the first record.
        limits: how much the files may unpack to.
        options: those of the format's reader, such as ``block_size`` or ``gap_s``.

    Returns:
        The trace; ``meta["format"]`` names the format and ``meta["notes"]`` says whether it was recognised or
        given ("parquet" keeps the facts it was stored with).

    Raises:
        TraceError: for a path, format or record that is not valid.
        ConfigError: for an option that the format does not have, or a bad value of one.
    """
    if format != "auto" and format not in FORMATS:
        raise TraceError(unknown_name("trace format", str(format), ["auto", *FORMATS]))
    source = Source(Path(path), limits)
    name = _sniff(source) if format == "auto" else format
    reader = FORMATS[name]
    known = [key for key in inspect.signature(reader).parameters if key != "source"]
    for option in options:
        if option not in known:
            raise ConfigError(unknown_name(f"option of trace format {name}", option, known))
    trace = reader(source, **options)
    if name == "parquet":
        return trace
    how = "recognised from the first record" if format == "auto" else "as asked for"
    return trace.with_meta(notes=[f"read as {name}, {how}", *trace.meta["notes"]])


def sniff(path: str | Path, *, limits: Limits = DEFAULT_LIMITS) -> str:
    """Name of the format of a file or folder, from its first record; "empty" when there is none.

    Raises:
        TraceError: when no known format fits.
    """
    return _sniff(Source(Path(path), limits))


def _sniff(source: Source) -> str:
    if source.head(len(_PARQUET)) == _PARQUET:
        return "parquet"
    for place, text in source.lines():
        if text.startswith("{"):
            return _json_format(_first_object(text, source), place.file)
        header = set(text.split(","))
        for name, needed in (("azure", AZURE_COLUMNS), ("burstgpt", BURSTGPT_COLUMNS)):
            if header.issuperset(needed):
                return name
        raise _nothing_fits(place.file, f"it begins with {text[:60]!r}")
    return "empty"


def _first_object(text: str, source: Source) -> frozenset[str]:
    """Keys of the first record, or of the whole first document where that spans lines."""
    try:
        return frozenset(json.loads(text))
    except (ValueError, RecursionError):
        pass
    try:
        return frozenset(json.loads(next(source.documents())[1]))
    except (ValueError, RecursionError):
        return frozenset()


def _json_format(keys: frozenset[str], file: str) -> str:
    for name, needed in _JSON_KEYS.items():
        if keys >= needed and not (name == "mooncake" and keys & _AIPERF_ONLY):
            return name
    if keys & _AIPERF_INPUTS:
        return "aiperf"
    raise _nothing_fits(file, f"its keys are {short_repr(sorted(keys))}" if keys else "it is not JSON")


def _nothing_fits(file: str, first: str) -> TraceError:
    return TraceError(f"{file}: no known trace format fits the first record ({first}); known: {', '.join(FORMATS)}")
