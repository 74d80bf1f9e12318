"""Orders of the tokens inside a block, chosen so that neighbours have like codes.

What it is: the two permutations of PackKV, for every block of a cache at once.  What it is not: what makes them pay,
the packing (``packkv.py``).
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

__all__ = ["greedy_order", "median_order"]


def median_order(codes: Tensor) -> Tensor:
    """Tokens of each block by falling median code: [N, B, C] to [N, B] int64, ties as they came."""
    return codes.median(dim=2).values.sort(dim=1, descending=True, stable=True).indices


def greedy_order(codes: Tensor, pack: int) -> Tensor:
    """Tokens of each block pack by pack: uint8 [N, B, C] to [N, B] int64.

    A pack of ``pack`` tokens begins with the free token most like the mean of the free ones, by cosine, and goes on
    with the one that adds least to the sum over channels of the bits of (max - min).  Ties go to the first token.
    """
    places = np.empty(codes.shape[:2], np.int64)
    bit_lengths = np.array([code.bit_length() for code in range(256)], np.int64)
    _greedy(codes.cpu().contiguous().numpy(), pack, bit_lengths, places)
    return torch.from_numpy(places).to(codes.device)


@njit(cache=True)
def _greedy(codes: Any, tokens: int, bit_lengths: Any, places: Any) -> None:
    blocks, block, channels = codes.shape
    for b in range(blocks):
        free = np.ones(block, np.bool_)
        for first in range(0, block, tokens):
            chosen = _most_typical(codes[b], free)
            low, high = codes[b, chosen].copy(), codes[b, chosen].copy()
            for at in range(first, first + tokens):
                if at > first:
                    chosen = _least_widening(codes[b], free, low, high, bit_lengths)
                    for c in range(channels):
                        low[c], high[c] = min(low[c], codes[b, chosen, c]), max(high[c], codes[b, chosen, c])
                places[b, at] = chosen
                free[chosen] = False


@njit(cache=True)
def _most_typical(codes: Any, free: Any) -> Any:
    """The free token whose codes have the largest cosine with the rounded mean of the free ones."""
    mean = np.zeros(codes.shape[1])
    for t in np.flatnonzero(free):
        mean += codes[t]
    mean = np.rint(mean / free.sum())
    best, most = np.int64(-1), -1.0
    for t in np.flatnonzero(free):
        dot = norm = 0.0
        for c in range(codes.shape[1]):
            dot += mean[c] * codes[t, c]
            norm += float(codes[t, c]) * codes[t, c]
        cosine = dot / np.sqrt(norm) if norm > 0 else 0.0
        if cosine > most:
            best, most = t, cosine
    return best


@njit(cache=True)
def _least_widening(codes: Any, free: Any, low: Any, high: Any, bit_lengths: Any) -> Any:
    """The free token with which the pack's widths sum to least."""
    best, fewest = np.int64(-1), np.int64(2**62)
    for t in np.flatnonzero(free):
        width = np.int64(0)
        for c in range(codes.shape[1]):
            width += bit_lengths[max(high[c], codes[t, c]) - min(low[c], codes[t, c])]
        if width < fewest:
            best, fewest = t, width
    return best
