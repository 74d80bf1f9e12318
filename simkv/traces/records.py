"""Fields of one record, checked, and the columns that records of any format add up to.

What it is: the part that all readers share.  Values from outside pass through ``count``, ``moment_ns``
or ``block_keys`` and then into ``Columns``, which becomes a Trace.  What it is not: knowledge of any format.

Times are exact: JSON fractions are read as decimals, scaled, and rounded once to the nearest ns.
"""

import json
from array import array
from collections.abc import Sequence
from decimal import Decimal
from reprlib import repr as short_repr
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simkv.errors import ConfigError
from simkv.traces.files import Place, Source
from simkv.traces.trace import Trace, build_trace

__all__ = ["Columns", "block_keys", "count", "moment_ns", "option_int", "parse_object", "required"]

MAX_TOKENS = 10**8
MAX_BLOCKS_PER_REQUEST = 10**7
MAX_BLOCKS = 10**9
# Half of int64 (146 years in ns), so that arrival plus any duration of a run still fits.
MAX_NS = 2**62


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_float=Decimal, parse_constant=_refuse_constant)


def parse_object(text: str, place: Place) -> dict[str, Any]:
    """The JSON object in ``text``, fractions as Decimal.  Raises TraceError, also for NaN and Infinity."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise place.error(f"not JSON, or cut short: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise place.error(f"not usable JSON: {type(error).__name__} {str(error)[:80]}") from error
    if not isinstance(value, dict):
        raise place.error(f"a JSON {type(value).__name__}, it must be an object")
    return value


def required(record: dict[str, Any], key: str, place: Place) -> Any:
    """The value of ``key``.  Raises TraceError when it is missing."""
    if key not in record:
        raise place.error(f"key {key!r} is missing; the keys are {short_repr(sorted(record))}")
    return record[key]


def count(record: dict[str, Any], key: str, place: Place) -> int:
    """A number of tokens: an integer from 0 to 10^8.  Raises TraceError."""
    value = required(record, key, place)
    # "type is" and not isinstance: True is an int in Python but not in a trace.
    if type(value) is not int or not 0 <= value <= MAX_TOKENS:
        raise place.bad(key, value, f"a whole number from 0 to {MAX_TOKENS}")
    return value


def moment_ns(record: dict[str, Any], key: str, place: Place, ns_per_unit: int) -> int:
    """A time of ``ns_per_unit``, as nanoseconds, rounded to the nearest.  Raises TraceError."""
    value = required(record, key, place)
    if type(value) not in (int, Decimal) or not 0 <= value <= MAX_NS // ns_per_unit:
        raise place.bad(key, value, f"a number from 0 to {MAX_NS // ns_per_unit}")
    return round(value * ns_per_unit)


def block_keys(record: dict[str, Any], key: str, place: Place, largest: int = 2**63 - 1) -> list[int]:
    """A list of block ids, each an integer from 0 to ``largest``.  Raises TraceError."""
    value = required(record, key, place)
    if type(value) is not list or not set(map(type, value)) <= {int}:
        raise place.bad(key, value, "a list of whole numbers")
    if value and not 0 <= min(value) <= max(value) <= largest:
        raise place.bad(key, min(value) if min(value) < 0 else max(value), f"ids from 0 to {largest}")
    return value


def option_int(name: str, value: Any, least: int = 1, most: int = MAX_TOKENS) -> int:
    """A whole number given as a reader's option.  Raises ConfigError."""
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"trace option {name} is {value!r}, it must be a whole number from {least} to {most}")
    return value


class Columns:
    """Requests as they are read, one call of ``add`` each; then a Trace.

    Args:
        block_size: tokens of a full block; 0 where the format has no blocks, or until a record states it.
        ordered: refuse a request that arrives before the one read before it; otherwise they are sorted by
            arrival, and ``early`` counts them.
    """

    def __init__(self, block_size: int, *, ordered: bool = True) -> None:
        self.block_size = block_size
        self.ordered = ordered
        self.notes: list[str] = []
        self.early = 0
        self._arrival_ns, self._input, self._output = array("q"), array("q"), array("q")
        self._session, self._counts, self._keys = array("q"), array("q"), array("q")

    def __len__(self) -> int:
        """Requests so far."""
        return len(self._arrival_ns)

    def agree_on_block_size(self, record: dict[str, Any], key: str, place: Place) -> None:
        """Take the block size from the first record that states it; raise TraceError if a later one differs."""
        size = count(record, key, place)
        if size == 0 or self.block_size not in (0, size):
            raise place.bad(key, size, f"{self.block_size or 'positive'}, the same throughout")
        self.block_size = size

    def add(
        self,
        place: Place,
        *,
        arrival_ns: int,
        input_tokens: int,
        output_tokens: int,
        keys: Sequence[int] | NDArray[np.int64] = (),
        session: int = -1,
    ) -> None:
        """Append one request; ``keys`` are its block ids (int64) in prefix order.  Raises TraceError."""
        if self._arrival_ns and arrival_ns < self._arrival_ns[-1]:
            self.early += 1
            if self.ordered:
                last = self._arrival_ns[-1]
                raise place.error(f"arrives at {arrival_ns} ns, before the request above it ({last} ns)")
        if arrival_ns > MAX_NS:
            raise place.error(f"arrives at {arrival_ns} ns, at most {MAX_NS} is allowed")
        if len(keys) > MAX_BLOCKS_PER_REQUEST or len(self._keys) + len(keys) > MAX_BLOCKS:
            raise place.error(f"more than {MAX_BLOCKS_PER_REQUEST} blocks in a request, or {MAX_BLOCKS} in all")
        self._arrival_ns.append(arrival_ns)
        self._input.append(input_tokens)
        self._output.append(output_tokens)
        self._session.append(session)
        self._counts.append(len(keys))
        if isinstance(keys, np.ndarray):
            self._keys.frombytes(keys.astype(np.int64, copy=False).tobytes())
        else:
            self._keys.extend(keys)

    def note(self, number: int, what: str) -> None:
        """Say in the notes that ``number`` records are ``what``; nothing when there are none."""
        if number:
            self.notes.append(f"{number} of {len(self)} {what}")

    def trace(self, source: Source, form: str, *, partial_tail: bool = True, epoch: bool = False, **meta: Any) -> Trace:
        """The requests as a Trace.

        Args:
            source: where they came from: gives name, file name and SHA-256.
            form: name of the format.
            partial_tail: the format gives the last, partial block an id (ceil), or not (floor).
            epoch: times are of a calendar clock, so the first arrival becomes 0.
            meta: further facts, see Trace.
        """
        arrival_ns = np.asarray(self._arrival_ns, dtype=np.int64)
        if epoch and len(arrival_ns):
            self.notes.append(f"time 0 is {arrival_ns.min()} ns after the start of 1970")
            arrival_ns = arrival_ns - arrival_ns.min()
        facts = {"name": source.name, "source": source.path.name, "sha256": source.sha256, "format": form}
        tokens = self._occurrence_tokens(partial_tail)
        return build_trace(
            arrival_ns=arrival_ns,
            input_tokens=np.asarray(self._input),
            output_tokens=np.asarray(self._output),
            block_counts=np.asarray(self._counts),
            block_keys=np.asarray(self._keys),
            occurrence_tokens=tokens,
            session=np.asarray(self._session),
            meta={**facts, "block_size": self.block_size, "notes": self.notes, **meta},
        )

    def _occurrence_tokens(self, partial_tail: bool) -> NDArray[np.int64]:
        """Tokens of each requested block: its overlap with the input, at least 1; odd block counts are noted."""
        counts, inputs, size = np.asarray(self._counts), np.asarray(self._input), self.block_size
        if not size:
            return np.zeros(0, dtype=np.int64)
        expected = -(-inputs // size) if partial_tail else inputs // size
        rounding = "ceil" if partial_tail else "floor"
        self.note(
            int((counts != expected).sum()),
            f"requests list another number of blocks than {rounding}(input / {size}); the ids are used as given",
        )
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        begin = (np.arange(len(starts)) - starts) * size
        return np.clip(np.repeat(inputs, counts) - begin, 1, size)
