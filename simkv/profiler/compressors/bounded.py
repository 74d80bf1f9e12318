"""Error-bounded quantisation with an integer zero point, as kvcomp and packkv use it.

What it is: steps relative to a unit's range, codes, the way back, and the largest error that follows.  A unit is
what ``dims`` reduces: a channel of a token block, or a token.  With step s, code = round(x / s) - zero and zero =
round(min / s), so every multiple of s is a level and the error is at most s / 2, besides the rounding of the result to
the cache's dtype.  What it is not: a codec; nothing is stored here.

Steps are rounded *up* to the dtype they are stored in, so a unit never has more than 1 / rel + 2 levels, and are never
finer than the dtype's own rounding of the unit's largest value, so zero points fit 24 bits.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from simkv.profiler.compressors.base import Compressor
from simkv.profiler.compressors.payload import PayloadError

__all__ = [
    "FINEST",
    "Quantised",
    "largest_error",
    "narrow",
    "quantise",
    "restore",
    "side_rates",
    "step_section",
    "stored_steps",
    "unit_roundoff",
    "whole_blocks",
    "zero_section",
]

FINEST = 0.005
"""Smallest relative step; codes stay within 8 bits."""

_SIDES = re.compile(r"k([0-9.]+)v([0-9.]+)")
_WORDS = {2: torch.int16, 4: torch.int32}
_ZERO_DTYPES = (torch.int8, torch.int16, torch.int32)
_MOST_ZERO = 1 << 25


@dataclass(frozen=True)
class Quantised:
    """A quantised tensor.

    Attributes:
        codes: uint8, of the tensor's shape.
        zeros: int32, one for each unit (reduced dimensions kept as 1).
        steps: like ``zeros``, in the dtype they are stored in; 0 where all values are 0.
    """

    codes: Tensor
    zeros: Tensor
    steps: Tensor


def side_rates(compressor: Compressor, knob: str, low: float, high: float) -> tuple[float, float]:
    """Relative steps of K and V from "0.1" (both) or "k0.1v0.2".  Raises CompressorError."""
    match = _SIDES.fullmatch(knob)
    if match is None:
        both = compressor.number(knob, low, high)
        return both, both
    return compressor.number(match[1], low, high), compressor.number(match[2], low, high)


def whole_blocks(tokens: int, block: int, buffer: int) -> int:
    """Leading tokens to quantise: whole blocks, leaving from ``buffer - block`` up to ``buffer - 1`` recent ones raw.

    The rule of the released caches of both papers: a block is compressed as soon as ``buffer`` raw tokens are full.
    A buffer of at most one block leaves only the incomplete block.
    """
    blocks = tokens // block
    return max(0, min(blocks, blocks + 1 - -(-buffer // block))) * block


def quantise(values: Tensor, dims: tuple[int, ...], rel: float) -> Quantised:
    """Codes of finite ``values`` with steps of ``rel`` times the range over ``dims``."""
    wide = values.float()
    low, high = wide.amin(dims, keepdim=True), wide.amax(dims, keepdim=True)
    reach = torch.maximum(low.abs(), high.abs()).double()
    exact = torch.maximum((high.double() - low.double()) * rel, reach * unit_roundoff(values.dtype))
    steps = stored_steps(exact, values.dtype)
    divisors = steps.float().where(steps > 0, 1.0)
    zeros = torch.round(low / divisors)
    codes = wide.div(divisors).round_().sub_(zeros).to(torch.uint8)
    return Quantised(codes, zeros.to(torch.int32), steps)


def restore(codes: Tensor, zeros: Tensor, steps: Tensor, dtype: torch.dtype) -> Tensor:
    """Values from codes; ``zeros`` and ``steps`` broadcast to them."""
    wide = codes.float().add_(zeros.float()).mul_(steps.float())
    most = torch.finfo(dtype).max
    return wide.clamp_(-most, most).to(dtype)


def largest_error(values: Tensor, dims: tuple[int, ...], rel: float) -> Tensor:
    """Largest absolute error of any element of each unit (float64, reduced dimensions kept as 1).

    Half a step; what float32 arithmetic adds to a quotient of the zero point's size; and half a unit in the last
    place of the largest result, subnormal or not.
    """
    found = quantise(values, dims, rel)
    steps, zeros = found.steps.double(), found.zeros.double().abs()
    reach = values.abs().amax(dims, keepdim=True).double()
    dtype = torch.finfo(values.dtype)
    arithmetic = steps * (zeros + 256) * 2.0**-22
    return steps / 2 + arithmetic + unit_roundoff(values.dtype) * (reach + steps) + dtype.tiny * dtype.eps


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of rounding to a dtype."""
    return torch.finfo(dtype).eps / 2


def stored_steps(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Steps for a cache of ``dtype`` (float64, none negative) in the dtype that stores them, never smaller.

    That is the cache's own; but half precision for a float32 cache too, where all steps are normal numbers of it.
    """
    half = torch.finfo(torch.float16)
    fits = bool(((exact <= half.max) & ((exact == 0) | (exact >= half.tiny))).all())
    return _rounded_up(exact, torch.float16 if dtype == torch.float32 and fits else dtype)


def _rounded_up(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The next number of ``dtype`` that is not smaller, or its largest."""
    bounded = exact.clamp(max=torch.finfo(dtype).max)
    near = bounded.to(dtype)
    below = near.double() < bounded
    return (near.view(_WORDS[dtype.itemsize]) + below.to(_WORDS[dtype.itemsize])).view(dtype)


def narrow(zeros: Tensor) -> Tensor:
    """Zero points in the smallest of int8, int16 and int32 that holds all of them."""
    reach = int(zeros.abs().max()) if zeros.numel() else 0
    return zeros.to(torch.int8 if reach < 1 << 7 else torch.int16 if reach < 1 << 15 else torch.int32)


def zero_section(sections: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """A section that ``narrow`` made.  Raises PayloadError."""
    found = sections.get(name)
    dtype = found.dtype if found is not None and found.dtype in _ZERO_DTYPES else torch.int32
    zeros = Compressor.section(sections, name, shape, dtype)
    if zeros.numel() and not -_MOST_ZERO <= int(zeros.min()) <= int(zeros.max()) <= _MOST_ZERO:
        raise PayloadError(f"section {name!r} holds impossible zero points")
    return zeros


def step_section(sections: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """A section of steps: floats, finite, none negative.  Raises PayloadError."""
    found = sections.get(name)
    dtype = found.dtype if found is not None and found.dtype.is_floating_point else torch.float16
    steps = Compressor.section(sections, name, shape, dtype)
    if steps.numel() and not 0 <= float(steps.amin()) <= float(steps.amax()) < float("inf"):
        raise PayloadError(f"section {name!r} holds impossible steps")
    return steps
