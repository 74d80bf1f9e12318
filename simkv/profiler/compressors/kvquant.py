"""KVQuant, a light version: non-uniform codes with sparse outliers, keys per channel before RoPE, values per token.

RoPE mixes channels differently at each position, which blurs the large channels of keys; so keys are turned back
first, quantised, and turned forward again by the decoder.  Light means that what the paper calibrates offline with
gradients (codebooks, key ranges) is fitted here to each cache without them, and stored with it.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simkv.profiler.compressors.base import Compressor, CompressorError, DecodedCache, KVCache, PrefillContext, Shape
from simkv.profiler.compressors.bits import pack_bits, packed_bytes, unpack_bits
from simkv.profiler.compressors.nuq import check_pairs, fit_levels, frequencies, turned
from simkv.profiler.compressors.parts import (
    back_to,
    finite_section,
    finite_stacks,
    half,
    nearest_level,
    whole_fact,
)
from simkv.profiler.compressors.payload import Encoded, PayloadError, pack

__all__ = ["KVQuant"]

_KNOB = re.compile(r"(?:k([2-8])v([2-8])|([2-8]))(?:-([1-9])%)?")
_MOST_FIRST = 1 << 20


@dataclass(frozen=True)
class KVQuant(Compressor):
    """KVQuant (https://arxiv.org/abs/2401.18079), fitted per cache and without sensitivity weights.

    Knob: bits, 2 to 8, for both ("3") or for K and V ("k4v3"), and the outliers kept apart, 1 to 9 per cent: "3-1%"
    is the paper's nuq3-1%.  An outlier takes 48 bits: int32 position, fp16 value.  Each layer has one codebook for K
    and one for V, shared by vectors scaled to [-1, 1]: a channel of K (over all tokens), a token of V (over all
    heads).  Needs the angles of the rotary embedding and refuses a cache without them.

    Attributes:
        first: leading tokens stored as they are, for attention sinks.
    """

    name: ClassVar[str] = "kvquant"
    knobs: ClassVar[tuple[str, ...]] = ("4-1%", "4", "3-1%", "3", "2-1%", "2")
    needs: ClassVar[frozenset[str]] = frozenset({"pre_rope"})

    first: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.first <= _MOST_FIRST:
            raise CompressorError(f"compressor kvquant: first {self.first} is not from 0 to {_MOST_FIRST}")

    def encode(self, cache: KVCache, context: PrefillContext, knob: str) -> Encoded:
        """See Compressor."""
        key_bits, value_bits, percent = self._rate(knob)
        shape, stacks = cache.shape, finite_stacks(cache)
        if shape.heads * shape.tokens * shape.head_dim >= 1 << 31:
            raise CompressorError("compressor kvquant: a layer of 2^31 or more elements")
        rates = frequencies(context.rope_angles, shape).to(stacks[0].device)
        check_pairs(context.rope_probe, rates)
        first = min(self.first, shape.tokens)
        sections: dict[str, Tensor | bytes] = {"rope": rates}
        for side, stack, width in zip(("key", "value"), stacks, (key_bits, value_bits), strict=True):
            sections[f"{side}_first"] = stack[:, :, :first]
            parts: dict[str, list[Tensor]] = {}
            for layer in stack[:, :, first:]:
                exact = layer.float()
                vectors = _channels(turned(exact, rates, first, -1)) if side == "key" else _tokens(exact)
                for name, part in _quantised(vectors, width, percent).items():
                    parts.setdefault(name, []).append(part)
            sections[f"{side}_codes"] = pack_bits(torch.stack(parts.pop("codes")), width)
            sections.update({f"{side}_{name}": torch.stack(layers) for name, layers in parts.items()})
        facts = {"key_bits": key_bits, "value_bits": value_bits, "percent": percent, "first": first}
        return pack(self.format, shape.facts() | facts, sections)

    def decode(self, payload: bytes, device: torch.device | str = "cpu") -> DecodedCache:
        """See Compressor."""
        facts, sections, shape = self.opened(payload)
        first, percent = whole_fact(facts, "first", 0, shape.tokens), whole_fact(facts, "percent", 0, 9)
        rope = sections.get("rope", torch.empty(0))
        rates = finite_section(sections, "rope", (min(rope.numel(), shape.head_dim // 2),), torch.float32).to(device)
        decoded = []
        for side in ("key", "value"):
            raw_shape = (shape.layers, shape.heads, first, shape.head_dim)
            raw = finite_section(sections, f"{side}_first", raw_shape, shape.torch_dtype).to(device)
            vectors = _restored(sections, side, shape, first, whole_fact(facts, f"{side}_bits", 2, 8), percent)
            layers = []
            for head, layer in zip(raw, vectors.to(device), strict=True):
                if side == "key":
                    tail = turned(layer.view(shape.heads, shape.head_dim, -1).transpose(1, 2), rates, first, 1)
                else:
                    tail = layer.view(-1, shape.heads, shape.head_dim).transpose(0, 1)
                layers.append(torch.cat([head, back_to(shape.torch_dtype, tail.contiguous())], dim=1))
            decoded.append(layers)
        return DecodedCache(decoded[0], decoded[1], shape.tokens)

    def _rate(self, knob: str) -> tuple[int, int, int]:
        """Bits of K, bits of V, per cent of outliers."""
        match = _KNOB.fullmatch(knob)
        if match is None:
            raise CompressorError(f'compressor kvquant: knob {knob!r} is not of the form "3", "3-1%" or "k4v3-1%"')
        key_bits, value_bits, both, percent = match.groups()
        return int(key_bits or both), int(value_bits or both), int(percent or 0)


def _channels(keys: Tensor) -> Tensor:
    return keys.transpose(1, 2).flatten(0, 1).contiguous()  # [H, T, D] as [H * D, T]


def _tokens(values: Tensor) -> Tensor:
    return values.transpose(0, 1).flatten(1, 2).contiguous()  # [H, T, D] as [T, H * D]


def _vectors(side: str, shape: Shape, first: int) -> tuple[int, int]:
    """How many vectors a layer's side has, and how long they are."""
    tokens, channels = shape.tokens - first, shape.heads * shape.head_dim
    return (channels, tokens) if side == "key" else (tokens, channels)


def _quantised(vectors: Tensor, width: int, percent: int) -> dict[str, Tensor]:
    """Codes, ranges, levels and outliers of one layer's vectors [n, length] (which it changes)."""
    count, length = vectors.shape
    outliers = length * percent // 100
    if not length:
        vectors = vectors.new_zeros(count, 1)  # so that every vector has a range
    means = vectors.mean(1, keepdim=True)
    at = (vectors - means).abs().topk(outliers, dim=1).indices
    flat = (at + length * torch.arange(len(at), device=at.device).unsqueeze(1)).flatten().sort().values
    values = half(vectors.flatten()[flat], "outliers") if len(flat) else vectors.new_empty(0, dtype=torch.float16)
    vectors.scatter_(1, at, means.expand(-1, outliers))
    lows, highs = vectors.amin(1, keepdim=True), vectors.amax(1, keepdim=True)
    middles, halves = half((lows + highs) / 2, "values"), half((highs - lows) / 2, "ranges")
    vectors = vectors.sub_(middles.float()).div_(halves.float().where(halves > 0, 1.0)).clamp_(-1, 1)
    levels = fit_levels(vectors, 1 << width).to(torch.float16)
    return {
        "codes": nearest_level(vectors, levels.float())[:, :length],
        "middles": middles.squeeze(1),
        "halves": halves.squeeze(1),
        "levels": levels,
        "outliers_at": flat.to(torch.int32),
        "outliers": values,
    }


def _restored(sections: dict[str, Tensor], side: str, shape: Shape, first: int, width: int, percent: int) -> Tensor:
    """Float32 vectors [layers, n, length].  Raises PayloadError."""
    count, length = _vectors(side, shape, first)
    layers, size, outliers = shape.layers, count * length, count * (length * percent // 100)
    packed = Compressor.section(sections, f"{side}_codes", (packed_bytes(layers * size, width),), torch.uint8)
    middles = finite_section(sections, f"{side}_middles", (layers, count), torch.float16).float().unsqueeze(2)
    halves = finite_section(sections, f"{side}_halves", (layers, count), torch.float16).float().unsqueeze(2)
    levels = finite_section(sections, f"{side}_levels", (layers, 1 << width), torch.float16).float()
    if bool((levels.diff() < 0).any()) or bool((levels.abs() > 1).any()):
        raise PayloadError(f"section '{side}_levels' does not rise within -1 to 1")
    at = Compressor.section(sections, f"{side}_outliers_at", (layers, outliers), torch.int32).long()
    exact = finite_section(sections, f"{side}_outliers", (layers, outliers), torch.float16).float()
    if bool((at < 0).any()) or bool((at >= size).any()) or bool((at.diff() <= 0).any()):
        raise PayloadError(f"section '{side}_outliers_at' does not hold rising positions below {size}")
    codes = unpack_bits(packed, width, layers * size).view(layers, count, length)
    rows = [table[layer.int()] for table, layer in zip(levels, codes, strict=True)]
    vectors = torch.stack(rows).mul_(halves).add_(middles)
    return vectors.view(layers, size).scatter_(1, at, exact).view(layers, count, length)
