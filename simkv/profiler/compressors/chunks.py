"""Huffman streams decoded chunk by chunk, all chunks at once, on any device.

What it is: what ``Codebook.decode`` does, as plain tensor operations over all chunks of a stream, some words of each
at a time, which torch.compile turns into one kernel with a thread for each chunk.  What it is not: the code, or its
bytes (``huffman.py``).
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from simkv.profiler.compressors.fused import compiled
from simkv.profiler.compressors.huffman import CHUNK_WORDS, Codebook
from simkv.profiler.compressors.payload import PayloadError

__all__ = ["chunk_words", "next_words"]

_MOST_NARROW = 1 << 27
_STRIDE = 32  # words of every chunk in one call; more of them would take a compiler longer


def chunk_words(book: Codebook, data: Tensor, bits: Tensor, count: int) -> Tensor:
    """The words, int16, that hold ``count`` symbols of a stream; the book must have more than one word.

    Args:
        book: that the stream was coded with.
        data: uint8, the stream.
        bits: int16, bits of each chunk.
        count: symbols.

    Raises:
        PayloadError: when ``Codebook.decode`` would.
    """
    words = book.checked_words(len(data), len(bits), count)
    ends = bits.long().cumsum(0)
    spare = 8 * len(data) - int(ends[-1])
    last = int(data[-1])
    if not 0 <= spare < 8 or int(bits.min()) < 0 or last & ((1 << spare) - 1):
        raise PayloadError("an entropy-coded stream that does not end where its chunks do")
    longest, places = book.lookup
    table = torch.from_numpy(places).to(data.device)
    ends = ends.to(torch.int32 if len(data) < _MOST_NARROW else torch.int64)  # narrow ones are faster
    at = pad(ends[:-1], (1, 0))
    step = compiled(next_words)
    found = torch.empty(len(bits), CHUNK_WORDS, dtype=torch.int16, device=data.device)
    left = torch.full_like(at, CHUNK_WORDS, dtype=torch.int32)
    left[-1] = words - CHUNK_WORDS * (len(bits) - 1)
    for first in range(0, min(CHUNK_WORDS, words), _STRIDE):
        found[:, first : first + _STRIDE], at, left = step(data, table, at, left, longest)
    filling = book.levels ** (words * book.word - count)  # the last word is filled up with zeros
    found = found.view(-1)[:words]
    if not torch.equal(at, ends) or int(found[-1]) % filling:
        raise PayloadError("an entropy-coded stream that does not end where its symbols do")
    return found


def next_words(data: Tensor, table: Tensor, at: Tensor, left: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Up to 32 more words of every chunk, int16[chunks, 32], and ``at`` and ``left`` after them.

    Args:
        data: uint8, the stream.
        table: 16 x word + length by the next ``longest`` bits.
        at: bit at which each chunk goes on.
        left: words that each chunk still has; where there are none, words mean nothing.
        longest: bits of the longest code, at most 15.
    """
    end = data.shape[0] - 1
    found = []
    for _ in range(_STRIDE):
        byte = at >> 3
        window = data[byte.clamp(max=end)].to(torch.int32) << 16
        window = window | data[(byte + 1).clamp(max=end)].to(torch.int32) << 8
        window = window | data[(byte + 2).clamp(max=end)].to(torch.int32)
        entry = table[(window >> (24 - longest - (at & 7).to(torch.int32))) & ((1 << longest) - 1)]
        at = at + torch.where(left > 0, entry & 15, 0)
        left = left - 1
        found.append((entry >> 4).to(torch.int16))
    return torch.stack(found, dim=1), at, left
