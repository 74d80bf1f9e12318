"""Decoding compiled: packed codes in, a cache out, and little or nothing written in between.

What it is: the arithmetic of decoders that matter, each as one function of plain tensor operations without loops,
which torch.compile turns into kernels (Triton on a GPU).  Every element of the cache computes the place of its own
code, so that bits are unpacked in registers.  What it is not: the checks of a payload, which stay with compressors
(``kivi.py``, ``turboquant.py``, ``kvcomp.py``); nor a need: where nothing can be compiled, they stay what they are.
"""

import logging
from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

__all__ = ["codes_at", "compiled", "compiles", "grouped_decode", "rotated_decode", "stepped_decode"]

_LOG = logging.getLogger(__name__)
_MOST_NARROW = 1 << 31


def codes_at(packed: Tensor, width: int, shape: tuple[int, ...], first: int = 0) -> Tensor:
    """Codes of ``width`` bits, at most 8, as int32[shape] from bytes that ``bits.pack_bits`` made.

    ``first`` is how many codes precede them.
    """
    bit = (torch.arange(prod(shape), device=packed.device).view(shape) + first) * width
    byte = bit >> 3
    after = (byte + 1).clamp(max=packed.shape[0] - 1)  # a code touches two bytes at most
    pair = packed[byte].to(torch.int32) | (packed[after].to(torch.int32) << 8)
    return (pair >> (bit & 7).to(torch.int32)) & ((1 << width) - 1)


def grouped_decode(packed: Tensor, steps: Tensor, lows: Tensor, raw: Tensor, width: int, group: int) -> Tensor:
    """KIVI: codes times their group's step plus its minimum, followed by the raw tokens; [L, H, T, D] in their dtype.

    Args:
        packed: codes of [L, H, T - R, D].
        steps: [L, H, (T - R) / group, D] for groups along tokens, [L, H, T - R, ceil(D / group)] along channels.
        lows: like ``steps``.
        raw: [L, H, R, D].
        width: bits of a code.
        group: tokens per group, or minus the channels per group.
    """
    layers, heads, _, channels = raw.shape
    end = steps.shape[2] * group if group > 0 else steps.shape[2]
    places = [torch.arange(size, device=packed.device) for size in (layers, heads, end, channels)]
    layer, head, token, channel = (
        place.view([-1 if i == n else 1 for i in range(4)]) for n, place in enumerate(places)
    )
    at = (layer, head, token // group, channel) if group > 0 else (layer, head, token, channel // -group)
    codes = codes_at(packed, width, (layers, heads, end, channels)).float()
    most = torch.finfo(raw.dtype).max
    restored = (codes * steps[at].float() + lows[at].float()).clamp(-most, most).to(raw.dtype)
    return torch.cat([restored, raw], dim=2)


def rotated_decode(
    packed: Tensor, table: Tensor, turn: Tensor, norms: Tensor, width: int, first: int, dtype: torch.dtype
) -> Tensor:
    """TurboQuant: codes looked up, turned back, and scaled; [H, T, D] in ``dtype``.

    Args:
        packed: codes of whole layers.
        table: fp32 levels.
        turn: fp32 [D, D].
        norms: [H, T].
        width: bits of a code.
        first: codes before this layer's.
        dtype: of the cache.
    """
    codes = codes_at(packed, width, (*norms.shape, turn.shape[0]), first)
    most = torch.finfo(dtype).max
    return ((table[codes] @ turn) * norms.float().unsqueeze(-1)).clamp(-most, most).to(dtype)


def stepped_decode(words: Tensor, symbols: Tensor, zeros: Tensor, steps: Tensor, raw: Tensor, block: int) -> Tensor:
    """KVComp: symbols of words plus their unit's zero, times its step, followed by the raw tokens; [L, H, T, D].

    Args:
        words: int16, in the cache's order.
        symbols: uint8[..., symbols per word], of each word.
        zeros: [L, H or 1, blocks, 1, D or 1], of each unit.
        steps: like ``zeros``.
        raw: [L, H, R, D].
        block: tokens of a unit.
    """
    layers, heads, _, channels = raw.shape
    shape = (layers, heads, steps.shape[2], block, channels)
    narrow = torch.int32 if prod(shape) < _MOST_NARROW else torch.int64  # narrow ones divide faster
    place = torch.arange(prod(shape), device=words.device, dtype=narrow).view(shape)
    per_word = symbols.shape[1]
    word = place // per_word
    codes = symbols.view(-1)[words[word].to(torch.int32) * per_word + (place - word * per_word)]
    most = torch.finfo(raw.dtype).max
    restored = ((codes.float() + zeros.float()) * steps.float()).clamp(-most, most).to(raw.dtype)
    return torch.cat([restored.flatten(2, 3), raw], dim=2)


@lru_cache(maxsize=16)
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as kernels, for all lengths; compiled at its first call."""
    made: Callable[..., Any] = torch.compile(function, dynamic=True)
    return made


@lru_cache(maxsize=4)
def compiles(device: str) -> bool:
    """Whether torch.compile works on a device, tried once on a few bytes; says why when it does not."""
    try:
        packed = torch.arange(8, dtype=torch.uint8, device=device)
        sides, raw = (torch.ones(1, 1, tokens, 4, dtype=torch.float16, device=device) for tokens in (1, 2))
        found = compiled(grouped_decode)(packed, sides, sides, raw, 4, 4)
        return torch.equal(found.cpu(), grouped_decode(packed, sides, sides, raw, 4, 4).cpu())
    except Exception as error:  # compilers fail in many ways, none of which should end a measurement
        reason = " ".join(str(error).split())[:200]
        _LOG.warning("no fused decoders: torch.compile does not work on %s: %s", device, reason)
        return False
