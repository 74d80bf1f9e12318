"""Reader of the Qwen-Bailian usage traces: JSON lines, times in seconds, blocks of 16 tokens.

What it is: ``read_bailian``, which also follows ``parent_chat_id`` to the first turn of a conversation.
What it is not: a model of thinking or search requests; the field ``type`` is not used.

The last block of a request is partial and has an id of its own (a padded block changes its id once
output fills it), so the number of ids is ceil(input / 16).
"""

from typing import Any

from simkv.traces.files import Place, Source
from simkv.traces.records import Columns, block_keys, count, moment_ns, option_int, parse_object, required
from simkv.traces.trace import Trace
from simkv.units import NS_PER_S

__all__ = ["read_bailian"]

_ROOT = -1


def read_bailian(source: Source, *, block_size: int = 16) -> Trace:
    """Bailian JSONL: ``chat_id parent_chat_id timestamp input_length output_length hash_ids``.

    A session is all requests with the same first turn.  A parent that the file does not hold (a cut
    trace) makes its child a first turn; such children are counted in the notes.

    Args:
        source: the files.
        block_size: tokens of a full block.

    Raises:
        TraceError: for a record that is not valid, or arrives before the one above it.
        ConfigError: for a bad option.
    """
    columns = Columns(option_int("block_size", block_size))
    session_of: dict[int, int] = {}
    sessions = orphans = repeated = 0
    for place, text in source.lines():
        record = parse_object(text, place)
        chat, parent = _chat(record, "chat_id", place), _chat(record, "parent_chat_id", place)
        repeated += chat in session_of
        orphans += parent != _ROOT and parent not in session_of
        session = session_of.get(parent, sessions)
        sessions += session == sessions
        session_of[chat] = session
        columns.add(
            place,
            arrival_ns=moment_ns(record, "timestamp", place, NS_PER_S),
            input_tokens=count(record, "input_length", place),
            output_tokens=count(record, "output_length", place),
            keys=block_keys(record, "hash_ids", place),
            session=session,
        )
    columns.note(orphans, "requests name a parent_chat_id that is not above them: taken as first turns")
    columns.note(repeated, "requests repeat a chat_id: later turns follow its last use")
    return columns.trace(source, "bailian")


def _chat(record: dict[str, Any], key: str, place: Place) -> int:
    value = required(record, key, place)
    if type(value) is not int or not _ROOT <= value < 2**63 or (key == "chat_id" and value == _ROOT):
        raise place.bad(key, value, "a whole number from 0, or -1 for a parent that is not there")
    return value
