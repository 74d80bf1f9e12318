"""KIVI: asymmetric quantisation in small groups, keys per channel and values per token, with a raw residual.

Keys have channels far larger than the rest, so a key group runs along the tokens of one channel; values have none,
so a value group runs along the channels of one token.
"""

from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simkv.profiler.compressors.base import Compressor, CompressorError, DecodedCache, KVCache, PrefillContext, Shape
from simkv.profiler.compressors.bits import pack_bits, packed_bytes, unpack_bits
from simkv.profiler.compressors.fused import compiled, compiles, grouped_decode
from simkv.profiler.compressors.parts import (
    HALF_EPS,
    HALF_TINY,
    back_to,
    channel_groups,
    finite_section,
    finite_stacks,
    half,
    join_groups,
    side_bits,
    whole_fact,
)
from simkv.profiler.compressors.payload import Encoded, PayloadError, pack

__all__ = ["FusedKivi", "Kivi"]

_MOST = 1 << 20


@dataclass(frozen=True)
class Kivi(Compressor):
    """KIVI (https://arxiv.org/abs/2402.02750).

    Knob: bits of a code, 1 to 8, for both ("2") or for K and V ("k4v2").  Each group stores its minimum and step in
    fp16.  A head dimension that the group does not divide ends in a short group.

    Attributes:
        group: tokens of a key group, channels of a value group.
        residual: R, a multiple of ``group``: the last T mod R tokens' keys and the last R tokens' values stay raw.
    """

    name: ClassVar[str] = "kivi"
    knobs: ClassVar[tuple[str, ...]] = ("8", "4", "k4v2", "3", "2")

    group: int = 32
    residual: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.group <= self.residual <= _MOST or self.residual % self.group:
            raise CompressorError(f"compressor kivi: residual {self.residual} is no multiple of group {self.group}")

    def encode(self, cache: KVCache, context: PrefillContext, knob: str) -> Encoded:
        """See Compressor."""
        bits = side_bits(self, knob)
        keys, values = finite_stacks(cache)
        key_end, value_end = self._ends(cache.shape.tokens)
        facts = {"key_bits": bits[0], "value_bits": bits[1], "group": self.group, "residual": self.residual}
        sections: dict[str, Tensor | bytes] = {}
        for side, groups, dim, width in (
            ("key", self._key_groups(keys[:, :, :key_end]), -2, bits[0]),
            ("value", self._value_groups(values[:, :, :value_end]), -1, bits[1]),
        ):
            codes, steps, lows = _quantised(groups, dim, width)
            if side == "value":
                codes = join_groups(codes, cache.shape.head_dim)
            sections[f"{side}_codes"] = pack_bits(codes, width)
            sections[f"{side}_steps"], sections[f"{side}_lows"] = steps.squeeze(dim), lows.squeeze(dim)
        sections["key_residual"], sections["value_residual"] = keys[:, :, key_end:], values[:, :, value_end:]
        return pack(self.format, cache.shape.facts() | facts, sections)

    def decode(self, payload: bytes, device: torch.device | str = "cpu") -> DecodedCache:
        """See Compressor."""
        facts, sections, shape = self.opened(payload)
        group, residual = whole_fact(facts, "group", 1, _MOST), whole_fact(facts, "residual", 1, _MOST)
        if residual % group:
            raise PayloadError(f"an encoded cache of residual {residual}, no multiple of its group {group}")
        codec = type(self)(group=group, residual=residual)
        decoded = []
        for side, end in zip(("key", "value"), codec._ends(shape.tokens), strict=True):
            raw_shape = (shape.layers, shape.heads, shape.tokens - end, shape.head_dim)
            raw = finite_section(sections, f"{side}_residual", raw_shape, shape.torch_dtype)
            width = whole_fact(facts, f"{side}_bits", 1, 8)
            decoded.append(codec._side(sections, side, shape, width, raw.to(device)))
        return DecodedCache(list(decoded[0]), list(decoded[1]), shape.tokens)

    def fused(self, device: str) -> Compressor:
        """See Compressor."""
        return FusedKivi(**asdict(self)) if compiles(device) else self

    def error_bound(self, cache: KVCache, knob: str) -> tuple[list[Tensor], list[Tensor]]:
        """Half a step, and the rounding of step, minimum and result; zero in the residual.  Per layer [H, T, D]."""
        bits = side_bits(self, knob)
        keys, values = finite_stacks(cache)
        key_end, value_end = self._ends(cache.shape.tokens)
        key_bound, value_bound = torch.zeros_like(keys.float()), torch.zeros_like(values.float())
        groups = self._key_groups(keys[:, :, :key_end])
        key_bound[:, :, :key_end] = _bound(groups, -2, bits[0], keys.dtype).expand(groups.shape).flatten(2, 3)
        groups = self._value_groups(values[:, :, :value_end])
        spread = _bound(groups, -1, bits[1], values.dtype).expand(groups.shape)
        value_bound[:, :, :value_end] = join_groups(spread, cache.shape.head_dim)
        return list(key_bound), list(value_bound)

    def _ends(self, tokens: int) -> tuple[int, int]:
        """How many leading tokens have quantised keys, and quantised values."""
        return tokens - tokens % self.residual, max(0, tokens - self.residual)

    def _key_groups(self, keys: Tensor) -> Tensor:
        return keys.unflatten(2, (keys.shape[2] // self.group, self.group))  # [L, H, T / g, g, D]

    def _value_groups(self, values: Tensor) -> Tensor:
        return channel_groups(values, min(self.group, values.shape[-1]))  # [L, H, T, ceil(D / g), g]

    def _side(self, sections: dict[str, Tensor], side: str, shape: Shape, width: int, raw: Tensor) -> Tensor:
        end, device = shape.tokens - raw.shape[2], raw.device
        packed, steps, lows = self._parts(sections, side, shape, end, width, device)
        codes = unpack_bits(packed, width, self._count(shape, end)).view(*raw.shape[:2], end, shape.head_dim)
        groups, dim = (self._key_groups(codes), -2) if side == "key" else (self._value_groups(codes), -1)
        whole = groups.float().mul_(steps.float().unsqueeze(dim)).add_(lows.float().unsqueeze(dim))
        restored = back_to(shape.torch_dtype, whole)
        restored = restored.flatten(2, 3) if side == "key" else join_groups(restored, shape.head_dim)
        return torch.cat([restored, raw], dim=2)

    def _parts(
        self, sections: dict[str, Tensor], side: str, shape: Shape, end: int, width: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Packed codes, steps and minima, checked and on the device."""
        packed = self.section(sections, f"{side}_codes", (packed_bytes(self._count(shape, end), width),), torch.uint8)
        rows = (shape.layers, shape.heads)
        channels = -(-shape.head_dim // min(self.group, shape.head_dim))
        grouped = (*rows, end // self.group, shape.head_dim) if side == "key" else (*rows, end, channels)
        steps, lows = (
            finite_section(sections, f"{side}_{name}", grouped, torch.float16).to(device) for name in ("steps", "lows")
        )
        return packed.to(device), steps, lows

    @staticmethod
    def _count(shape: Shape, end: int) -> int:
        return shape.layers * shape.heads * end * shape.head_dim


@dataclass(frozen=True)
class FusedKivi(Kivi):
    """KIVI whose decoder reads the payload once and writes the cache once."""

    implementation: ClassVar[str] = "fused"

    def fused(self, device: str) -> Compressor:
        """Itself."""
        return self

    def _side(self, sections: dict[str, Tensor], side: str, shape: Shape, width: int, raw: Tensor) -> Tensor:
        end = shape.tokens - raw.shape[2]
        if not end:
            return raw
        packed, steps, lows = self._parts(sections, side, shape, end, width, raw.device)
        group = self.group if side == "key" else -min(self.group, shape.head_dim)
        return compiled(grouped_decode)(packed, steps, lows, raw, width, group)


def _quantised(groups: Tensor, dim: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (uint8), and steps and minima (fp16, ``dim`` kept), of groups along ``dim``."""
    most = (1 << width) - 1
    values = groups.float()
    lows, highs = _edges(values, dim)
    steps, lows = half((highs - lows) / most, "group ranges"), half(lows, "values")
    divisors = steps.float().where(steps > 0, 1.0)
    return values.sub_(lows.float()).div_(divisors).clamp_(0, most).round_().to(torch.uint8), steps, lows


def _edges(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    return values.amin(dim, keepdim=True), values.amax(dim, keepdim=True)


def _bound(groups: Tensor, dim: int, width: int, dtype: torch.dtype) -> Tensor:
    most = (1 << width) - 1
    lows, highs = _edges(groups.float(), dim)
    steps = (highs - lows) / most
    rounding = (2 * HALF_EPS + torch.finfo(dtype).eps) * (lows.abs() + highs.abs() + steps)
    return steps / 2 + rounding + (most + 3) * HALF_TINY
