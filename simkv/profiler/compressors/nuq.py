"""The two tools of KVQuant: levels fitted to data, and the rotary embedding undone.

What it is: deterministic 1-D k-means, and rotation by position times frequency, the frequencies being read off the
angles that the model used.  What it is not: a codec (``kvquant.py``).
"""

import math

import torch
from torch import Tensor

from simkv.profiler.compressors.base import CompressorError, Shape

__all__ = ["check_pairs", "fit_levels", "frequencies", "turned"]

_SAMPLE = 1 << 13
_BINS = 256
_ROUNDS = 15
_MOST_ANGLE_ERROR = 0.05  # radians; bf16 angles are off by 0.004
_MOST_LEFT = 0.05  # of the largest key; bf16 keys and angles leave 0.02


def fit_levels(values: Tensor, count: int) -> Tensor:
    """``count`` levels (float32, not falling) of least square error for values in [-1, 1], by Lloyd's iteration.

    Of more than 16,383 values, an evenly spread sample is used.  Without values, the levels are evenly spaced.
    """
    flat = values.reshape(-1)
    if not len(flat):
        return torch.linspace(-1, 1, count, device=values.device)
    # an odd stride meets all channels of a power of two
    ordered = flat[:: (len(flat) // _SAMPLE) | 1].double().sort().values
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    low, high = ordered[0], ordered[-1]
    # start with levels as dense as the cube root of the density, which is best for many levels
    density = torch.histc(ordered, _BINS, float(low), float(high)) ** (1 / 3)
    wanted = (torch.arange(count, device=values.device) + 0.5) / count * density.sum()
    bins = torch.searchsorted(density.cumsum(0), wanted).clamp_max(_BINS - 1)
    levels = low + (high - low) * (bins + 0.5) / _BINS
    for _ in range(_ROUNDS):
        inner = torch.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        edges = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(ordered))])
        members = edges.diff()
        levels = torch.where(members > 0, sums[edges].diff() / members.clamp_min(1), levels)
    return levels.float()


def frequencies(angles: tuple[Tensor, Tensor] | None, shape: Shape) -> Tensor:
    """Radians per token of each pair of rotated channels, float32 [rotated channels / 2], from (cos, sin) [T, D].

    Raises CompressorError without angles, and for angles that do not grow evenly with the position or do not pair
    the two halves of the channels as Llama does.
    """
    if angles is None:
        raise CompressorError("compressor kvquant needs the angles of the rotary embedding (side information pre_rope)")
    cos, sin = angles[0].double(), angles[1].double()
    channels = cos.shape[-1]
    whole = cos.ndim == 2 and cos.shape == sin.shape and len(cos) == shape.tokens
    if not whole or not 0 < channels <= shape.head_dim or channels % 2:
        raise CompressorError(f"compressor kvquant: angles of shape {list(cos.shape)} do not fit the cache {shape}")
    phases = torch.atan2(sin, cos)
    if _off(phases[:, : channels // 2] - phases[:, channels // 2 :]) > _MOST_ANGLE_ERROR:
        raise CompressorError("compressor kvquant: a rotary embedding that does not pair the halves of the channels")
    phases = phases[:, : channels // 2] - phases[0, : channels // 2]
    rates = torch.zeros_like(phases[0])
    far = 1
    while far < shape.tokens:  # each doubling halves the error and leaves no doubt about whole turns
        rates += _wrapped(phases[far] - far * rates) / far
        far = shape.tokens - 1 if far < shape.tokens - 1 < 2 * far else 2 * far
    places = torch.arange(shape.tokens, device=cos.device).unsqueeze(1)
    if _off(phases - places * rates) > _MOST_ANGLE_ERROR:
        raise CompressorError("compressor kvquant: rotary angles that do not grow evenly with the position")
    return rates.float()


def check_pairs(probe: Tensor | None, rates: Tensor) -> None:
    """Whether undoing the rotation makes keys equal that were equal before it, at positions 0 on: probe [H, n, D].

    Models of the same angles differ in which channels they turn together: the two halves, as here, or neighbours.
    Without a probe, the angles are taken at their word.  Raises CompressorError.
    """
    if probe is None:
        return
    exact = probe.float().to(rates.device)
    if exact.shape[-1] < 2 * len(rates):
        raise CompressorError(f"compressor kvquant: {2 * len(rates)} rotated channels in keys of {exact.shape[-1]}")
    back = turned(exact, rates, 0, -1)
    if float((back - back[:, :1]).abs().max()) > _MOST_LEFT * float(exact.abs().max()):
        raise CompressorError(
            "compressor kvquant: this model's rotary embedding does not turn the two halves of the channels together"
        )


def turned(keys: Tensor, rates: Tensor, start: int, direction: int) -> Tensor:
    """Float32 keys [H, T, D] of positions ``start`` on, rotated forward (1) or back (-1) by position x rate."""
    pairs = len(rates)
    places = torch.arange(start, start + keys.shape[1], device=keys.device, dtype=torch.float64).unsqueeze(1)
    angles = places * rates.double() * direction
    cos, sin = angles.cos().float(), angles.sin().float()
    left, right, rest = keys.split([pairs, pairs, keys.shape[2] - 2 * pairs], dim=2)
    return torch.cat([left * cos - right * sin, right * cos + left * sin, rest], dim=2)


def _wrapped(angles: Tensor) -> Tensor:
    return torch.remainder(angles + math.pi, 2 * math.pi) - math.pi


def _off(angles: Tensor) -> float:
    return float(_wrapped(angles).abs().max())
