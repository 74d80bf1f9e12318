"""Canonical Huffman coding of small symbols, one shared codebook for a whole stream.

What it is: a codebook fitted to symbol counts, its compact bytes, and coding of uint8 arrays with it.  A codeword
stands for a word of one to six symbols in a row: with few levels a single symbol holds less than two bits, and
words keep the code close to its entropy.  The fit takes the shortest words that come within 1 % of the entropy, or
those that make table and stream smallest.
What it is not: an adaptive coder, nor one with many distributions (``ans.py``), nor decoding on a GPU
(``chunks.py``).

Bytes of a codebook: levels - 1, word length, then one length of 0 (unused) to 15 bits for each word, two in a byte,
low half first.  Codes follow from the lengths: shorter first, then by word.  Streams are most significant bit first;
the last byte is filled with zeros.  A codebook of a single word codes it in no bits.

A stream comes with the length in bits of each chunk of 2,048 words (the last one holds the rest), so that chunks can
be decoded side by side.  That takes 16 bits per chunk: at 2 to 8 bits a word, .4 to .1 % of the stream.
"""

import heapq
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from simkv.profiler.compressors.payload import PayloadError

__all__ = ["CHUNK_WORDS", "Codebook"]

CHUNK_WORDS = 2048
"""Words of a chunk; its bits fit 15 bits."""

_LONGEST = 15
_MOST_WORDS = 4096
_LONGEST_WORD = 6
_CLOSE = 1.01  # no longer words once this close to the entropy


@dataclass(frozen=True, eq=False)
class Codebook:
    """Codeword lengths of every word of ``word`` symbols out of ``levels``.

    Attributes:
        levels: symbols are 0 to ``levels - 1``, at most 256.
        word: symbols per codeword.
        lengths: uint8[levels ** word], bits of each word's code, 0 where the word has none.
    """

    levels: int
    word: int
    lengths: NDArray[np.uint8]

    @classmethod
    def fitted(cls, symbols: NDArray[np.uint8], levels: int = 0, unseen: bool = False) -> "Codebook":
        """The codebook that makes this stream and its own table smallest.

        ``levels`` widens the alphabet beyond the largest symbol; ``unseen`` gives codes to words that do not occur,
        as a codebook that other streams share must.
        """
        levels = max(levels, int(symbols.max(initial=0)) + 1)
        best, fewest, enough = None, np.inf, 0.0
        for word in range(1, _LONGEST_WORD + 1):
            if word > 1 and (levels**word > _MOST_WORDS or fewest <= enough):
                break
            counts = _histogram(symbols.reshape(-1), levels, word, np.zeros(levels**word, np.int64))
            book = cls(levels, word, _code_lengths(counts + unseen))
            bits = 8 * len(book.to_bytes()) + int(counts @ book._bits_of_words)
            if word == 1:
                enough = _CLOSE * _entropy_bits(counts)
            if bits >= fewest:
                break
            best, fewest = book, bits
        assert best is not None
        return best

    def to_bytes(self) -> bytes:
        """The codebook's bytes."""
        nibbles = np.zeros(len(self.lengths) + len(self.lengths) % 2, np.uint8)
        nibbles[: len(self.lengths)] = self.lengths
        return bytes([self.levels - 1, self.word]) + (nibbles[::2] | nibbles[1::2] << 4).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Codebook":
        """Raises PayloadError unless the bytes hold a complete prefix code."""
        if len(data) < 3 or not 1 <= data[1] <= _LONGEST_WORD:
            raise PayloadError(f"{len(data)} bytes that are no codebook")
        levels, word = data[0] + 1, data[1]
        words = levels**word
        packed = np.frombuffer(data, np.uint8, offset=2)
        if (word > 1 and words > _MOST_WORDS) or len(packed) != (words + 1) // 2:
            raise PayloadError(f"a codebook of {words} words in {len(packed)} bytes")
        nibbles = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
        book = cls(levels, word, nibbles[:words])
        used = book.lengths[book.lengths > 0].astype(np.int64)
        if nibbles[words:].any() or not (len(used) == 1 or int((1 << (_LONGEST - used)).sum()) == 1 << _LONGEST):
            raise PayloadError("a codebook whose lengths are no complete prefix code")
        return book

    def encode(self, symbols: NDArray[np.uint8]) -> tuple[bytes, NDArray[np.int16]]:
        """The stream of all symbols in their flat order, and the bits of each chunk.

        Raises ValueError for a word that has no code.
        """
        flat = np.ascontiguousarray(symbols).reshape(-1)
        if int(flat.max(initial=0)) >= self.levels:
            raise ValueError(f"symbol {int(flat.max())} in a codebook of {self.levels} levels")
        counts = _histogram(flat, self.levels, self.word, np.zeros(len(self.lengths), np.int64))
        if bool((counts[self.lengths == 0] > 0).any()):
            raise ValueError("a word that the codebook has no code for")
        total = int(counts @ self._bits_of_words)
        out = np.zeros((total + 7) // 8, np.uint8)
        ends = np.zeros(self._chunks(len(flat)), np.int64)
        if total:
            _encode(flat, self.levels, self.word, self._codes, self.lengths, out, ends)
        return out.tobytes(), np.diff(ends, prepend=0).astype(np.int16)

    def decode(self, data: NDArray[np.uint8], bits: NDArray[np.int16], count: int) -> NDArray[np.uint8]:
        """The ``count`` symbols of a stream.  Raises PayloadError unless stream and chunks hold exactly them."""
        words = self.checked_words(len(data), len(bits), count)
        if self.only >= 0:
            return np.resize(self.symbols[self.only], count)
        symbols = np.zeros(words * self.word, np.uint8)
        used = _decode(np.ascontiguousarray(data), self.levels, self.word, *self.lookup, bits, symbols)
        spare = 8 * len(data) - used
        if used < 0 or not 0 <= spare < 8 or (spare and int(data[-1]) & ((1 << spare) - 1)) or symbols[count:].any():
            raise PayloadError("an entropy-coded stream that does not end where its symbols do")
        return symbols[:count]

    def checked_words(self, stored_bytes: int, chunks: int, count: int) -> int:
        """How many words hold ``count`` symbols.  Raises PayloadError for too few bytes, or other chunks."""
        words = -(-count // self.word)
        if chunks != self._chunks(count):
            raise PayloadError(f"{count} symbols in {chunks} chunks; there must be {self._chunks(count)}")
        if self.only >= 0 and stored_bytes:
            raise PayloadError(f"{stored_bytes} bytes of a stream that needs none")
        if self.only < 0 and words > 8 * stored_bytes:
            raise PayloadError(f"{count} symbols cannot be held in {stored_bytes} bytes")
        return words

    def _chunks(self, count: int) -> int:
        return 0 if self.only >= 0 else -(-count // (self.word * CHUNK_WORDS))

    @cached_property
    def symbols(self) -> NDArray[np.uint8]:
        """[words, symbols per word]: the symbols of each word."""
        powers = self.levels ** np.arange(self.word - 1, -1, -1)
        return (np.arange(len(self.lengths))[:, None] // powers % self.levels).astype(np.uint8)

    @cached_property
    def only(self) -> int:
        """The word, where the codebook has only one; else -1."""
        used = np.flatnonzero(self.lengths)
        return int(used[0]) if len(used) == 1 else -1

    @cached_property
    def _bits_of_words(self) -> NDArray[np.int64]:
        return np.zeros(len(self.lengths), np.int64) if self.only >= 0 else self.lengths.astype(np.int64)

    @cached_property
    def _codes(self) -> NDArray[np.uint32]:
        """The canonical code of each word: its first place in the lookup, without the bits that may follow it."""
        longest, order, spans = self._canonical
        codes = np.zeros(len(self.lengths), np.uint32)
        codes[order] = (np.cumsum(spans) - spans) >> (longest - self.lengths[order])
        return codes

    @cached_property
    def lookup(self) -> tuple[int, NDArray[np.int32]]:
        """Longest code, and 16 x word + length by the next so many bits."""
        longest, order, spans = self._canonical
        table = np.repeat((order << 4 | self.lengths[order]).astype(np.int32), spans)
        return longest, np.concatenate([table, np.zeros((1 << longest) - len(table), np.int32)])

    @cached_property
    def _canonical(self) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
        """Longest code, the used words by length and value, and how many of ``1 << longest`` places begin with each."""
        order = np.lexsort((np.arange(len(self.lengths)), self.lengths))
        order = order[self.lengths[order] > 0]
        longest = int(self.lengths.max())
        return longest, order, 1 << (longest - self.lengths[order].astype(np.int64))


def _entropy_bits(counts: NDArray[np.int64]) -> float:
    seen = counts[counts > 0]
    return float(seen @ -np.log2(seen / seen.sum()))


def _code_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Huffman lengths of at most 15 bits: the rarest words are taken for less rare until they fit."""
    used = [int(word) for word in np.flatnonzero(counts)]
    lengths = np.zeros(len(counts), np.uint8)
    if len(used) < 2:
        lengths[used or [0]] = 1
        return lengths
    least = 1
    while True:
        depths = _tree_depths({word: max(int(counts[word]), least) for word in used})
        if max(depths.values()) <= _LONGEST:
            lengths[list(depths)] = list(depths.values())
            return lengths
        least = max(2 * least, int(counts.sum()) >> _LONGEST)


def _tree_depths(weights: dict[int, int]) -> dict[int, int]:
    heap: list[tuple[int, int, Any]] = [(weight, word, word) for word, weight in weights.items()]
    heapq.heapify(heap)
    serial = max(weights) + 1
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (first[0] + second[0], serial, (first[2], second[2])))
        serial += 1
    depths: dict[int, int] = {}
    pending = [(heap[0][2], 0)]
    while pending:
        node, depth = pending.pop()
        if isinstance(node, tuple):
            pending += [(node[0], depth + 1), (node[1], depth + 1)]
        else:
            depths[node] = depth
    return depths


@njit(cache=True)
def _histogram(symbols: Any, levels: int, word: int, counts: Any) -> Any:
    for first in range(0, len(symbols), word):
        value = np.int64(0)
        for i in range(first, first + word):
            value = value * levels + (np.int64(symbols[i]) if i < len(symbols) else np.int64(0))
        counts[value] += 1
    return counts


@njit(cache=True)
def _encode(symbols: Any, levels: int, word: int, codes: Any, lengths: Any, out: Any, ends: Any) -> None:
    pending, bits, at = np.uint64(0), 0, 0
    for first in range(0, len(symbols), word):
        value = np.int64(0)
        for i in range(first, first + word):
            value = value * levels + (np.int64(symbols[i]) if i < len(symbols) else np.int64(0))
        pending = (pending << np.uint64(lengths[value])) | np.uint64(codes[value])
        bits += lengths[value]
        while bits >= 8:
            bits -= 8
            out[at] = (pending >> np.uint64(bits)) & np.uint64(255)
            at += 1
        ends[first // word // CHUNK_WORDS] = 8 * at + bits
    if bits:
        out[at] = (pending << np.uint64(8 - bits)) & np.uint64(255)


@njit(cache=True)
def _decode(data: Any, levels: int, word: int, longest: int, table: Any, chunk_bits: Any, symbols: Any) -> int:
    """Bits read, -1 when a chunk is not as long as it should be; beyond the end of the data zeros are read."""
    pending, bits, at, end = np.uint64(0), 0, 0, 0
    mask = np.uint64((1 << longest) - 1)
    for first in range(0, len(symbols), word):
        while bits < longest:
            pending = (pending << np.uint64(8)) | (np.uint64(data[at]) if at < len(data) else np.uint64(0))
            at += 1
            bits += 8
        found = table[(pending >> np.uint64(bits - longest)) & mask]
        bits -= found & 15
        value = np.int64(found >> 4)
        for i in range(first + word - 1, first - 1, -1):
            symbols[i] = value % levels
            value //= levels
        done = first // word + 1
        if done % CHUNK_WORDS == 0 or first + word >= len(symbols):
            end += chunk_bits[(done - 1) // CHUNK_WORDS]
            if 8 * at - bits != end:
                return -1
    return 8 * at - bits
