"""Reader of recorded agent sessions (kv-cache-tester, "Weka"): one JSON document per session.

What it is: ``read_sessions``, which merges sessions that share no clock by an explicit, recorded rule.
What it is not: a closed-loop replay; the recorded ``api_time`` and ``think_time`` are not used, they are
already part of the recorded times.

Only full blocks have ids: the number of ids is floor(input / block_size) and the tail is never reused.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from simkv.errors import ConfigError
from simkv.traces.files import Place, Source
from simkv.traces.records import Columns, block_keys, count, moment_ns, option_int, parse_object, required
from simkv.traces.trace import Trace
from simkv.units import NS_PER_S, parse_duration_ns

__all__ = ["read_sessions"]

# Ids are local to a session, so a key is (session, id): 23 bits and 40 bits of an int64.
_ID_BITS = 40
_DEEPEST = 8


@dataclass(frozen=True)
class _Request:
    place: Place
    t_ns: int
    input_tokens: int
    output_tokens: int
    depth: int
    record: dict[str, Any]


def read_sessions(
    source: Source,
    *,
    max_input_tokens: int = 131_072,
    include_subagents: bool = False,
    gap_s: float | str = 60,
) -> Trace:
    """Sessions of requests with ``t`` (s), ``in``, ``out`` and ``hash_ids``, merged into one trace.

    The rule: sessions in file-name order, without those that have an input above ``max_input_tokens`` or,
    unless they are included, a subagent.  Session k (from 0, of those kept) starts at k x ``gap_s`` and keeps
    its recorded times; ties go by session, then by request.  A subagent's times count from its marker, and its
    requests belong to the session that started it.

    Args:
        source: one session file or a folder of them.
        max_input_tokens: the model's window; a session that exceeds it is left out whole.
        include_subagents: keep sessions with subagents, and their nested requests.
        gap_s: between the starts of two sessions: seconds, or text like "60 s".

    Raises:
        TraceError: for a document or request that is not valid.
        ConfigError: for a bad option.
    """
    option_int("max_input_tokens", max_input_tokens)
    if type(include_subagents) is not bool:
        raise ConfigError(f"trace option include_subagents is {include_subagents!r}, it must be true or false")
    gap_ns = parse_duration_ns(gap_s)
    columns = Columns(0, ordered=False)
    files = kept = with_subagents = too_long = 0
    for file, text in source.documents():
        files += 1
        if not text.strip():
            continue
        document = _document(text, Place(str(file), 1), columns)
        requests = _requests(required(document, "requests", Place(str(file), 1)), Place(str(file), 0, "request"))
        if not include_subagents and any(request.depth for request in requests):
            with_subagents += 1
        elif any(request.input_tokens > max_input_tokens for request in requests):
            too_long += 1
        else:
            _add(columns, requests, kept, kept * gap_ns, document.get("hash_id_scope") == "global")
            kept += 1
    columns.notes += [
        f"{kept} of {files} session files are used, in the order of their names",
        f"{with_subagents} left out for subagents, {too_long} for an input above {max_input_tokens} tokens "
        f"(reader options include_subagents, max_input_tokens)",
    ]
    rule = f"session k starts at k x {gap_ns / NS_PER_S:g} s, recorded times within a session"
    return columns.trace(source, "sessions", partial_tail=False, clock=rule)


def _document(text: str, place: Place, columns: Columns) -> dict[str, Any]:
    """One session, its head checked; its block size must be that of the sessions before."""
    document = parse_object(text, place)
    columns.agree_on_block_size(document, "block_size", place)
    if document.get("hash_id_scope", "local") not in ("local", "global"):
        raise place.bad("hash_id_scope", document["hash_id_scope"], '"local" or "global"')
    return document


def _requests(entries: Any, place: Place, start_ns: int = 0, depth: int = 0) -> list[_Request]:
    """The requests of a list, those of subagents in the place of their marker.  Raises TraceError."""
    if type(entries) is not list or depth > _DEEPEST:
        raise place.error(f"requests must be a list, at most {_DEEPEST} subagents deep")
    found: list[_Request] = []
    last_ns = 0
    for number, entry in enumerate(entries, start=1):
        here = place._replace(number=number)
        if type(entry) is not dict:
            raise here.bad("the entry", entry, "an object")
        t_ns = moment_ns(entry, "t", here, NS_PER_S)
        if t_ns < last_ns:
            raise here.bad("t", entry["t"], f"at least that of the request before it ({last_ns / NS_PER_S} s)")
        last_ns = t_ns
        if entry.get("type") == "subagent":
            nested = Place(f"{here.file}, request {number}", 0, "subagent request")
            found += _requests(required(entry, "requests", here), nested, start_ns + t_ns, depth + 1)
        else:
            lengths = count(entry, "in", here), count(entry, "out", here)
            found.append(_Request(here, start_ns + t_ns, *lengths, depth, entry))
    return found


def _add(columns: Columns, requests: list[_Request], session: int, start_ns: int, global_ids: bool) -> None:
    offset = 0 if global_ids else (session + 1) << _ID_BITS
    for request in requests:
        ids = block_keys(request.record, "hash_ids", request.place, largest=2**_ID_BITS - 1)
        columns.add(
            request.place,
            arrival_ns=start_ns + request.t_ns,
            input_tokens=request.input_tokens,
            output_tokens=request.output_tokens,
            keys=np.array(ids, dtype=np.int64) + offset,
            session=session,
        )
