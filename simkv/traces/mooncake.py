"""Readers of the Mooncake family: JSON lines with lengths and block ids, times in milliseconds.

What it is: ``read_mooncake`` for the published traces (every field present, lines in time order) and
``read_aiperf`` for the wider schema of AIPerf and Dynamo, where sessions and delays may replace times.
What it is not: a tokenizer; records that carry prompt text instead of lengths are refused.

Every block holds ``block_size`` tokens; the last one of a request is partial and has an id of its own.
"""

from typing import Any

from simkv.traces.files import Place, Source
from simkv.traces.records import Columns, block_keys, count, moment_ns, option_int, parse_object
from simkv.traces.trace import Trace
from simkv.units import parse_duration_ns

__all__ = ["read_aiperf", "read_mooncake"]

_NS_PER_MS = 1_000_000
_BLOCK_TOKENS = 512
_TEXT_KEYS = ("text_input", "messages", "payload")


def read_mooncake(source: Source, *, block_size: int = _BLOCK_TOKENS) -> Trace:
    """Mooncake JSONL: ``timestamp`` (ms), ``input_length``, ``output_length``, ``hash_ids``.

    Args:
        source: the files.
        block_size: tokens of a full block.

    Raises:
        TraceError: for a record that is not valid, or arrives before the one above it.
        ConfigError: for a bad option.
    """
    columns = Columns(option_int("block_size", block_size))
    for place, text in source.lines():
        record = parse_object(text, place)
        columns.add(
            place,
            arrival_ns=moment_ns(record, "timestamp", place, _NS_PER_MS),
            input_tokens=count(record, "input_length", place),
            output_tokens=count(record, "output_length", place),
            keys=block_keys(record, "hash_ids", place),
        )
    return columns.trace(source, "mooncake")


def read_aiperf(source: Source, *, block_size: int | None = None, gap_s: float | str | None = None) -> Trace:
    """The ``mooncake_trace`` JSONL of AIPerf and Dynamo: as Mooncake, but most fields may be missing.

    ``session_id`` groups the turns of a conversation, in file order.  A turn without ``timestamp`` (ms)
    arrives ``delay`` (ms, 0 if missing) after the turn before it *arrived*: how long that one was served is
    not in the file.  Each line is taken as the whole prompt of its request.  Lines may be in any order of time.

    Args:
        source: the files.
        block_size: tokens of a full block; default: what the records say (``block_size``), else 512.
        gap_s: seconds between conversations that begin without a timestamp, in order of appearance.

    Raises:
        TraceError: for a record that is not valid or has text instead of lengths, and when a conversation
            begins without a timestamp and ``gap_s`` is not given.
        ConfigError: for a bad option.
    """
    clock = _Clock(None if gap_s is None else parse_duration_ns(gap_s))
    columns = Columns(0 if block_size is None else option_int("block_size", block_size), ordered=False)
    no_ids = no_output = 0
    for place, text in source.lines():
        record = {key: value for key, value in parse_object(text, place).items() if value is not None}
        _refuse_text(record, place)
        columns.agree_on_block_size({"block_size": columns.block_size or _BLOCK_TOKENS, **record}, "block_size", place)
        no_ids += "hash_ids" not in record
        no_output += "output_length" not in record
        session, arrival_ns = clock.turn(record, place)
        columns.add(
            place,
            arrival_ns=arrival_ns,
            input_tokens=count(record, "input_length", place),
            output_tokens=count({"output_length": 0, **record}, "output_length", place),
            keys=block_keys({"hash_ids": [], **record}, "hash_ids", place),
            session=session,
        )
    columns.note(no_ids, "records have no hash_ids: nothing of them can be reused")
    columns.note(no_output, "records have no output_length: 0 is used")
    columns.note(clock.chained, "turns have no timestamp: they arrive at their delay after the turn before arrived")
    columns.note(clock.later_turns, "records are later turns of a session: each is taken as a whole prompt")
    return columns.trace(source, "aiperf", reuse=no_ids < len(columns) or not len(columns), clock=clock.rule())


class _Clock:
    """Arrival times where timestamps may be missing."""

    def __init__(self, gap_ns: int | None) -> None:
        self.gap_ns = gap_ns
        self.chained = self.later_turns = self.started = 0
        self._numbers: dict[str, int] = {}
        self._last_ns: dict[int, int] = {}

    def turn(self, record: dict[str, Any], place: Place) -> tuple[int, int]:
        """Session number (-1: none) and arrival of a record."""
        name = record.get("session_id")
        if name is not None and type(name) not in (str, int):
            raise place.bad("session_id", name, "text or a whole number")
        session = -1 if name is None else self._numbers.setdefault(str(name), len(self._numbers))
        self.later_turns += session in self._last_ns
        arrival_ns = self._arrival_ns(record, place, self._last_ns.get(session))
        if session >= 0:
            self._last_ns[session] = arrival_ns
        return session, arrival_ns

    def _arrival_ns(self, record: dict[str, Any], place: Place, last_ns: int | None) -> int:
        if "timestamp" in record:
            return moment_ns(record, "timestamp", place, _NS_PER_MS)
        delay_ns = moment_ns({"delay": 0, **record}, "delay", place, _NS_PER_MS)
        if last_ns is not None:
            self.chained += 1
            return last_ns + delay_ns
        if self.gap_ns is None:
            raise place.error("no timestamp, and no earlier turn of its session: say how far apart with option gap_s")
        self.started += 1
        return (self.started - 1) * self.gap_ns + delay_ns

    def rule(self) -> str:
        """What made the arrival times, for ``meta["clock"]``."""
        rules = []
        if self.started:
            rules.append(f"conversations without a timestamp begin {self.gap_ns} ns apart")
        if self.chained:
            rules.append("turns without a timestamp arrive at their delay after the turn before arrived")
        return "; ".join(rules) or "shared"


def _refuse_text(record: dict[str, Any], place: Place) -> None:
    for key in _TEXT_KEYS:
        if key in record:
            raise place.error(f"{key} holds a prompt, not its length; convert the trace to input_length and hash_ids")
