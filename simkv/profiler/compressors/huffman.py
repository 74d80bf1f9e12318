"""Canonical Huffman coding of small symbols, one shared codebook for a whole stream.

What it is: a codebook fitted to symbol counts, its compact bytes, and coding of uint8 arrays with it.  A codeword
stands for a word of one to six symbols in a row: with few levels a single symbol holds less than two bits, and
words keep the code close to its entropy.  The fit takes the shortest words that come within 1 % of the entropy, or
those that make table and stream smallest.
What it is not: an adaptive coder, nor one with many distributions (``ans.py``).

Bytes of a codebook: levels - 1, word length, then one length of 0 (unused) to 15 bits for each word, two in a byte,
low half first.  Codes follow from the lengths: shorter first, then by word.  Streams are most significant bit first;
the last byte is filled with zeros.  A codebook of a single word codes it in no bits.
"""

import heapq
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from simkv.profiler.compressors.payload import PayloadError

__all__ = ["Codebook"]

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

    def encode(self, symbols: NDArray[np.uint8]) -> bytes:
        """The stream of all symbols in their flat order.  Raises ValueError for a word that has no code."""
        flat = np.ascontiguousarray(symbols).reshape(-1)
        if int(flat.max(initial=0)) >= self.levels:
            raise ValueError(f"symbol {int(flat.max())} in a codebook of {self.levels} levels")
        counts = _histogram(flat, self.levels, self.word, np.zeros(len(self.lengths), np.int64))
        if bool((counts[self.lengths == 0] > 0).any()):
            raise ValueError("a word that the codebook has no code for")
        total = int(counts @ self._bits_of_words)
        out = np.zeros((total + 7) // 8, np.uint8)
        if total:
            _encode(flat, self.levels, self.word, self._codes, self.lengths, out)
        return out.tobytes()

    def decode(self, data: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
        """The ``count`` symbols of a stream.  Raises PayloadError unless the stream holds exactly them."""
        if self._only >= 0:
            if len(data):
                raise PayloadError(f"{len(data)} bytes of a stream that needs none")
            word = [self._only // self.levels**place % self.levels for place in reversed(range(self.word))]
            return np.resize(np.array(word, np.uint8), count)
        words = -(-count // self.word)
        if words > 8 * len(data):
            raise PayloadError(f"{count} symbols cannot be held in {len(data)} bytes")
        symbols = np.zeros(words * self.word, np.uint8)
        bits = _decode(np.ascontiguousarray(data), self.levels, self.word, *self._lookup, symbols)
        spare = 8 * len(data) - bits
        if not 0 <= spare < 8 or (spare and int(data[-1]) & ((1 << spare) - 1)) or symbols[count:].any():
            raise PayloadError("an entropy-coded stream that does not end where its symbols do")
        return symbols[:count]

    @cached_property
    def _only(self) -> int:
        """The word, where the codebook has only one; else -1."""
        used = np.flatnonzero(self.lengths)
        return int(used[0]) if len(used) == 1 else -1

    @cached_property
    def _bits_of_words(self) -> NDArray[np.int64]:
        return np.zeros(len(self.lengths), np.int64) if self._only >= 0 else self.lengths.astype(np.int64)

    @cached_property
    def _codes(self) -> NDArray[np.uint32]:
        """The canonical code of each word."""
        codes = np.zeros(len(self.lengths), np.uint32)
        order = np.lexsort((np.arange(len(self.lengths)), self.lengths))
        code, before = 0, 0
        for word in order[self.lengths[order] > 0]:
            code <<= int(self.lengths[word]) - before
            before = int(self.lengths[word])
            codes[word] = code
            code += 1
        return codes

    @cached_property
    def _lookup(self) -> tuple[int, NDArray[np.uint16], NDArray[np.uint8]]:
        """Longest code, and word and length by the next so many bits."""
        longest = int(self.lengths.max())
        words, lengths = np.zeros(1 << longest, np.uint16), np.zeros(1 << longest, np.uint8)
        for word in np.flatnonzero(self.lengths):
            shift = longest - int(self.lengths[word])
            start = int(self._codes[word]) << shift
            words[start : start + (1 << shift)] = word
            lengths[start : start + (1 << shift)] = self.lengths[word]
        return longest, words, lengths


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
def _encode(symbols: Any, levels: int, word: int, codes: Any, lengths: Any, out: Any) -> None:
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
    if bits:
        out[at] = (pending << np.uint64(8 - bits)) & np.uint64(255)


@njit(cache=True)
def _decode(data: Any, levels: int, word: int, longest: int, words: Any, lengths: Any, symbols: Any) -> int:
    """Bits read; beyond the end of the data zeros are read."""
    pending, bits, at = np.uint64(0), 0, 0
    mask = np.uint64((1 << longest) - 1)
    for first in range(0, len(symbols), word):
        while bits < longest:
            pending = (pending << np.uint64(8)) | (np.uint64(data[at]) if at < len(data) else np.uint64(0))
            at += 1
            bits += 8
        place = (pending >> np.uint64(bits - longest)) & mask
        bits -= lengths[place]
        value = np.int64(words[place])
        for i in range(first + word - 1, first - 1, -1):
            symbols[i] = value % levels
            value //= levels
    return 8 * at - bits
