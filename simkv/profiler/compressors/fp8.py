"""fp8: a cast to 8-bit floating point, as serving engines do it, with a scale per head or per tensor."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simkv.profiler.compressors.base import Compressor, CompressorError, DecodedCache, KVCache, PrefillContext, Shape
from simkv.profiler.compressors.parts import HALF_TINY, back_to, finite_section, finite_stacks
from simkv.profiler.compressors.payload import Encoded, PayloadError, pack

__all__ = ["Fp8"]

_FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
_RAW = "raw"
# per knob: format of K, format of V, one scale per head (else per layer)
_RATES = {
    "k16v8": (_RAW, "e4m3", True),
    "e4m3": ("e4m3", "e4m3", True),
    "e5m2": ("e5m2", "e5m2", True),
    "e4m3-tensor": ("e4m3", "e4m3", False),
    "e5m2-tensor": ("e5m2", "e5m2", False),
}


@dataclass(frozen=True)
class Fp8(Compressor):
    """FP8 formats for deep learning (https://arxiv.org/abs/2209.05433), scaled so that the largest value just fits.

    Knob: "e4m3" (3 mantissa bits) or "e5m2" (2) with one fp32 scale per layer and head; with "-tensor", one per
    layer; "k16v8" leaves K in the cache's own dtype and casts V to e4m3.
    """

    name: ClassVar[str] = "fp8"
    knobs: ClassVar[tuple[str, ...]] = tuple(_RATES)

    def encode(self, cache: KVCache, context: PrefillContext, knob: str) -> Encoded:
        """See Compressor."""
        *formats, per_head = self._rate(knob)
        sections: dict[str, Tensor | bytes] = {}
        for side, stack, kind in zip(("key", "value"), finite_stacks(cache), formats, strict=True):
            if kind == _RAW:
                sections[f"{side}_raw"] = stack
                continue
            scales = _scales(stack.float(), kind, per_head)
            sections[f"{side}_codes"] = (stack.float() / scales).to(_FORMATS[kind]).view(torch.uint8)
            sections[f"{side}_scales"] = scales[..., 0, 0]
        facts = {"key_format": formats[0], "value_format": formats[1]}
        return pack(self.format, cache.shape.facts() | facts, sections)

    def decode(self, payload: bytes, device: torch.device | str = "cpu") -> DecodedCache:
        """See Compressor."""
        facts, sections, shape = self.opened(payload)
        sides = [self._side(sections, s, shape, facts.get(f"{s}_format"), device) for s in ("key", "value")]
        return DecodedCache(list(sides[0]), list(sides[1]), shape.tokens)

    def error_bound(self, cache: KVCache, knob: str) -> tuple[list[Tensor], list[Tensor]]:
        """Half a unit in the last place of the 8-bit format, and the rounding of the result.  Per layer [H, T, D]."""
        *formats, per_head = self._rate(knob)
        bounds = []
        for stack, kind in zip(finite_stacks(cache), formats, strict=True):
            if kind == _RAW:
                bounds.append(torch.zeros_like(stack, dtype=torch.float32))
                continue
            exact, info = stack.float(), torch.finfo(_FORMATS[kind])
            relative = info.eps / 2 + 2 * torch.finfo(stack.dtype).eps
            smallest = _scales(exact, kind, per_head) * info.tiny * info.eps  # of the subnormal numbers
            bounds.append(exact.abs() * relative + smallest + HALF_TINY)
        return list(bounds[0]), list(bounds[1])

    def _rate(self, knob: str) -> tuple[str, str, bool]:
        if knob not in _RATES:
            raise CompressorError(f"compressor fp8: knob {knob!r} is none of {', '.join(_RATES)}")
        return _RATES[knob]

    def _side(
        self, sections: dict[str, Tensor], side: str, shape: Shape, kind: object, device: torch.device | str
    ) -> Tensor:
        whole = (shape.layers, shape.heads, shape.tokens, shape.head_dim)
        if kind == _RAW:
            return finite_section(sections, f"{side}_raw", whole, shape.torch_dtype).to(device)
        if not isinstance(kind, str) or kind not in _FORMATS:
            raise PayloadError(f"an encoded cache of 8-bit format {kind!r}; known: {', '.join(_FORMATS)}")
        codes = self.section(sections, f"{side}_codes", whole, torch.uint8)
        found = sections.get(f"{side}_scales")
        per_head = found is not None and found.ndim == 2 and found.shape[1] == shape.heads
        scale_shape = (shape.layers, shape.heads if per_head else 1)
        scales = finite_section(sections, f"{side}_scales", scale_shape, torch.float32)
        restored = codes.view(_FORMATS[kind]).to(device).float().mul_(scales.to(device)[..., None, None])
        if not bool(torch.isfinite(restored).all()):
            raise PayloadError(f"section '{side}_codes' holds codes that are no finite numbers")
        return back_to(shape.torch_dtype, restored)


def _scales(exact: Tensor, kind: str, per_head: bool) -> Tensor:
    """[L, H or 1, 1, 1] such that the largest value of a head or layer becomes the largest of the format."""
    largest = exact.abs().amax((2, 3) if per_head else (1, 2, 3), keepdim=True)
    return (largest / torch.finfo(_FORMATS[kind]).max).clamp_min(torch.finfo(torch.float32).tiny)
