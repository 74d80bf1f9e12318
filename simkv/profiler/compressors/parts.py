"""Parts that several compressors are built of: checks on both sides, knobs for K and V, groups of channels.

What it is: small functions without state.  ``encode`` refuses what it cannot store with a CompressorError; ``decode``
trusts nothing and raises PayloadError.  What it is not: a codec, nor the packing of bits (``bits.py``).
"""

import re
from typing import Any

import torch
from torch import Tensor

from simkv.profiler.compressors.base import Compressor, CompressorError, KVCache
from simkv.profiler.compressors.payload import PayloadError

__all__ = [
    "HALF_EPS",
    "HALF_TINY",
    "back_to",
    "channel_groups",
    "finite_section",
    "finite_stacks",
    "half",
    "join_groups",
    "nearest_level",
    "side_bits",
    "whole_fact",
]

HALF_EPS = 2.0**-11
"""Largest relative error of rounding to fp16 (normal numbers)."""
HALF_TINY = 2.0**-25
"""Largest absolute error of rounding to fp16 near zero (subnormal numbers)."""

_FEW_EDGES = 15
_SIDES = re.compile(r"k([1-8])v([1-8])|([1-8])")


def finite_stacks(cache: KVCache) -> tuple[Tensor, Tensor]:
    """Keys and values as [layers, H, T, D].  Raises CompressorError where one is NaN or infinite."""
    keys, values = cache.stacked()
    for what, stack in (("keys", keys), ("values", values)):
        if not _all_finite(stack):
            raise CompressorError(f"a cache to be encoded must be finite; its {what} hold NaN or infinity")
    return keys, values


def side_bits(compressor: Compressor, knob: str) -> tuple[int, int]:
    """Bits of K and of V from "4" (both) or "k4v2", each 1 to 8.  Raises CompressorError for any other text."""
    match = _SIDES.fullmatch(knob)
    if match is None:
        raise CompressorError(
            f'compressor {compressor.name}: knob {knob!r} is neither bits from 1 to 8 nor of the form "k4v2"'
        )
    key_bits, value_bits, both = match.groups()
    return int(key_bits or both), int(value_bits or both)


def half(values: Tensor, what: str) -> Tensor:
    """Side information rounded to fp16.  Raises CompressorError where it does not fit."""
    rounded = values.to(torch.float16)
    if not _all_finite(rounded):
        raise CompressorError(f"a cache whose {what} of {float(values.abs().max()):g} do not fit fp16")
    return rounded


def channel_groups(values: Tensor, group: int) -> Tensor:
    """[..., D] as [..., ceil(D / group), group]; a short last group is filled with copies of the last channel."""
    missing = -values.shape[-1] % group
    if missing:
        values = torch.cat([values, values[..., -1:].expand(*values.shape[:-1], missing)], dim=-1)
    return values.unflatten(-1, (values.shape[-1] // group, group))


def join_groups(groups: Tensor, channels: int) -> Tensor:
    """The inverse of ``channel_groups``: [..., groups, group] as [..., channels]."""
    return groups.flatten(-2)[..., :channels]


def nearest_level(values: Tensor, levels: Tensor) -> Tensor:
    """The index (uint8) of the level nearest to each value; ``levels`` [2 to 256] must not fall."""
    edges = (levels[1:] + levels[:-1]) / 2
    if len(edges) > _FEW_EDGES:
        return torch.bucketize(values, edges, out_int32=True).to(torch.uint8)
    codes = torch.zeros(values.shape, dtype=torch.uint8, device=values.device)
    for edge in edges:  # a few comparisons in sequence are several times faster than binary search
        codes += values > edge
    return codes


def back_to(dtype: torch.dtype, values: Tensor) -> Tensor:
    """Reconstructed float32 values in a cache's dtype, held within its range (changes ``values``)."""
    return values if dtype == values.dtype else values.clamp_(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)


def finite_section(sections: dict[str, Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """One section of floats, of this shape and dtype and without NaN or infinity.  Raises PayloadError."""
    found = Compressor.section(sections, name, shape, dtype)
    if not _all_finite(found):
        raise PayloadError(f"section {name!r} holds NaN or infinity")
    return found


def whole_fact(facts: dict[str, Any], name: str, low: int, high: int) -> int:
    """A whole number within [low, high] from a payload's header.  Raises PayloadError."""
    found = facts.get(name)
    if type(found) is not int or not low <= found <= high:
        raise PayloadError(f"an encoded cache whose {name!r} is {found!r}, not a whole number from {low} to {high}")
    return found


def _all_finite(values: Tensor) -> bool:
    # aminmax hands NaN and infinity through and needs no memory, unlike isfinite
    return values.numel() == 0 or all(bool(torch.isfinite(edge)) for edge in torch.aminmax(values))
