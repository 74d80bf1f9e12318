"""int8: symmetric 8-bit quantisation of each token's vector, the plain baseline."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simkv.profiler.compressors.base import Compressor, CompressorError, DecodedCache, KVCache, PrefillContext, Shape
from simkv.profiler.compressors.parts import (
    HALF_EPS,
    HALF_TINY,
    back_to,
    channel_groups,
    finite_section,
    finite_stacks,
    half,
    join_groups,
    whole_fact,
)
from simkv.profiler.compressors.payload import Encoded, PayloadError, pack

__all__ = ["Int8"]

_MOST = 127
_RAW = 0  # in the header, in place of a group: this side is stored as it is


@dataclass(frozen=True)
class Int8(Compressor):
    """Symmetric int8 with fp16 scales, by absolute maximum (as in LLM.int8(), https://arxiv.org/abs/2208.07339).

    Knob: channels that share a scale, "g1" to "g4096", or "head" for the whole vector of one token and head;
    "k16v8" leaves K in the cache's own dtype and gives V one scale per token and head.
    """

    name: ClassVar[str] = "int8"
    knobs: ClassVar[tuple[str, ...]] = ("k16v8", "g16", "g32", "g64", "head")

    def encode(self, cache: KVCache, context: PrefillContext, knob: str) -> Encoded:
        """See Compressor."""
        groups = self._groups(knob, cache.shape.head_dim)
        facts = {"key_group": groups[0], "value_group": groups[1]}
        sections: dict[str, Tensor | bytes] = {}
        for side, stack, group in zip(("key", "value"), finite_stacks(cache), groups, strict=True):
            if group == _RAW:
                sections[f"{side}_raw"] = stack
                continue
            grouped = channel_groups(stack.float(), group)
            scales = half(_largest(grouped) / _MOST, "scales")
            codes = grouped.div_(scales.float().where(scales > 0, 1.0)).round_().clamp_(-_MOST, _MOST).to(torch.int8)
            sections[f"{side}_codes"] = join_groups(codes, cache.shape.head_dim)
            sections[f"{side}_scales"] = scales.squeeze(-1)
        return pack(self.format, cache.shape.facts() | facts, sections)

    def decode(self, payload: bytes, device: torch.device | str = "cpu") -> DecodedCache:
        """See Compressor."""
        facts, sections, shape = self.opened(payload)
        decoded = []
        for side in ("key", "value"):
            group = whole_fact(facts, f"{side}_group", _RAW, shape.head_dim)
            decoded.append(self._side(sections, side, shape, group, torch.device(device)))
        return DecodedCache(list(decoded[0]), list(decoded[1]), shape.tokens)

    def error_bound(self, cache: KVCache, knob: str) -> tuple[list[Tensor], list[Tensor]]:
        """Half a scale, and the rounding of scale and result; zero for a raw side.  Per layer [H, T, D]."""
        bounds = []
        for stack, group in zip(finite_stacks(cache), self._groups(knob, cache.shape.head_dim), strict=True):
            if group == _RAW:
                bounds.append(torch.zeros_like(stack, dtype=torch.float32))
                continue
            grouped = channel_groups(stack.float(), group)
            largest = _largest(grouped)
            rounding = (2 * HALF_EPS + torch.finfo(stack.dtype).eps) * largest + (_MOST + 2) * HALF_TINY
            bounds.append(join_groups((largest / (2 * _MOST) + rounding).expand_as(grouped), stack.shape[-1]))
        return list(bounds[0]), list(bounds[1])

    def _groups(self, knob: str, head_dim: int) -> tuple[int, int]:
        """Group of K and of V."""
        if knob == "k16v8":
            return _RAW, head_dim
        if knob == "head":
            return head_dim, head_dim
        number = knob.removeprefix("g")
        if knob == number or not number.isdecimal() or not 1 <= int(number) <= 4096:
            raise CompressorError(f"compressor int8: knob {knob!r} is none of g1 to g4096, head and k16v8")
        group = min(int(number), head_dim)
        return group, group

    def _side(self, sections: dict[str, Tensor], side: str, shape: Shape, group: int, device: torch.device) -> Tensor:
        whole = (shape.layers, shape.heads, shape.tokens, shape.head_dim)
        if group == _RAW:
            return finite_section(sections, f"{side}_raw", whole, shape.torch_dtype).to(device)
        codes = self.section(sections, f"{side}_codes", whole, torch.int8).to(device)
        if bool((codes < -_MOST).any()):
            raise PayloadError(f"section '{side}_codes' holds codes below {-_MOST}")
        scale_shape = (*whole[:3], -(-shape.head_dim // group))
        scales = finite_section(sections, f"{side}_scales", scale_shape, torch.float16).to(device)
        restored = channel_groups(codes, group).float().mul_(scales.float().unsqueeze(-1))
        return back_to(shape.torch_dtype, join_groups(restored, shape.head_dim))


def _largest(groups: Tensor) -> Tensor:
    return groups.abs().amax(-1, keepdim=True)
