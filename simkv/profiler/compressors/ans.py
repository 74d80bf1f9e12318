"""Range asymmetric numeral systems: entropy coding of many short rows, each with its own distribution.

What it is: the arithmetic coder of ``cachegen.py``.  Row r of a matrix of symbols is coded with distribution r, all
rows in one stream.  A distribution is stored as one grade of 4 bits per symbol: 0 for a symbol that does not occur,
else 1 to 15, each grade 0.75 octaves more frequent than the one before; this costs less than 1 % in code length and
a tenth of exact tables in bytes.  What it is not: adaptive; the tables are sent before the stream.

A stream is the final state (uint32) and then 16-bit words in the order in which decoding reads them, little endian.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from simkv.profiler.compressors.payload import PayloadError

__all__ = ["decode_rows", "encode_rows", "frequencies", "grades_of"]

_SCALE_BITS = 12
_SCALE = 1 << _SCALE_BITS
_MOST = 1 << 33  # symbols of a stream, 8 GiB
_LOWEST = 1 << 16  # states are from here to 2**32 - 1
_OCTAVES = 0.75
_WEIGHTS = np.array([0, *(round(2 ** (14 - _OCTAVES * (15 - grade))) for grade in range(1, 16))], np.int64)


def grades_of(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Grades [rows, symbols] of the distributions with these counts."""
    most = np.maximum(counts.max(axis=1, keepdims=True, initial=0), 1)
    below = -np.log2(np.maximum(counts, 1) / most) / _OCTAVES
    return np.where(counts > 0, np.clip(15 - np.rint(below), 1, 15), 0).astype(np.uint8)


def frequencies(grades: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Integer frequencies [rows, symbols] that sum to 4096 in each row.

    Raises PayloadError for a row without symbols.
    """
    weights = _WEIGHTS[grades]
    sums = weights.sum(axis=1, keepdims=True)
    if not sums.all():
        raise PayloadError("a table of frequencies without any symbol")
    used = grades > 0
    shares = np.where(used, 1 + weights * (_SCALE - used.sum(axis=1, keepdims=True)) // sums, 0)
    shares[np.arange(len(shares)), weights.argmax(axis=1)] += _SCALE - shares.sum(axis=1)
    return shares.astype(np.uint32)


def encode_rows(symbols: NDArray[np.uint8], frequencies: NDArray[np.uint32]) -> bytes:
    """The stream of symbols [rows, T], row r coded with ``frequencies[r]``.

    Raises ValueError for a symbol of frequency 0.
    """
    words = np.empty(symbols.size, np.uint16)
    state, count = _encode(np.ascontiguousarray(symbols), frequencies, _starts(frequencies), words)
    if count < 0:
        raise ValueError("a symbol that its distribution says never occurs")
    return int(state).to_bytes(4, "little") + words[:count][::-1].astype("<u2").tobytes()


def decode_rows(data: NDArray[np.uint8], frequencies: NDArray[np.uint32], length: int) -> NDArray[np.uint8]:
    """The symbols [rows, length] of a stream.  Raises PayloadError unless the stream holds exactly them."""
    if len(data) < 4 or len(data) % 2:
        raise PayloadError(f"{len(data)} bytes that are no entropy-coded stream")
    if len(frequencies) * length > _MOST:
        raise PayloadError(f"an entropy-coded stream of {len(frequencies)} x {length} symbols")
    raw = data.tobytes()
    symbols = np.zeros((len(frequencies), length), np.uint8)
    state, words = int.from_bytes(raw[:4], "little"), np.frombuffer(raw[4:], "<u2").astype(np.uint16)
    if not _decode(words, state, frequencies, _starts(frequencies), symbols):
        raise PayloadError("an entropy-coded stream that does not end where its symbols do")
    return symbols


def _starts(frequencies: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return (np.cumsum(frequencies, axis=1) - frequencies).astype(np.uint32)


@njit(cache=True)
def _encode(symbols: Any, frequencies: Any, starts: Any, words: Any) -> tuple[Any, int]:
    state, count = np.uint64(_LOWEST), 0
    rows, length = symbols.shape
    for row in range(rows - 1, -1, -1):
        for i in range(length - 1, -1, -1):
            symbol = symbols[row, i]
            if symbol >= frequencies.shape[1] or frequencies[row, symbol] == 0:
                return state, -1
            frequency = np.uint64(frequencies[row, symbol])
            if state >= frequency << np.uint64(32 - _SCALE_BITS):
                words[count] = np.uint16(state & np.uint64(0xFFFF))
                count += 1
                state >>= np.uint64(16)
            short = np.uint32(state)
            divisor = np.uint32(frequency)
            quotient = short // divisor
            state = (np.uint64(quotient) << np.uint64(_SCALE_BITS)) + np.uint64(
                short - quotient * divisor + starts[row, symbol]
            )
    return state, count


@njit(cache=True)
def _decode(words: Any, first: int, frequencies: Any, starts: Any, symbols: Any) -> bool:
    state, at = np.uint64(first), 0
    rows, length = symbols.shape
    symbol_at = np.zeros(_SCALE, np.uint8)
    for row in range(rows):
        for symbol in range(frequencies.shape[1]):
            start = starts[row, symbol]
            symbol_at[start : start + frequencies[row, symbol]] = symbol
        for i in range(length):
            slot = state & np.uint64(_SCALE - 1)
            symbol = symbol_at[slot]
            symbols[row, i] = symbol
            state = np.uint64(frequencies[row, symbol]) * (state >> np.uint64(_SCALE_BITS)) + slot
            state -= np.uint64(starts[row, symbol])
            if state < np.uint64(_LOWEST):
                if at == len(words):
                    return False
                state = (state << np.uint64(16)) | np.uint64(words[at])
                at += 1
    return at == len(words) and state == np.uint64(_LOWEST)
