"""lowrank: every layer's keys and values as a product of two thin matrices."""

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simkv.profiler.compressors.base import Compressor, DecodedCache, KVCache, PrefillContext
from simkv.profiler.compressors.parts import back_to, finite_section, finite_stacks, whole_fact
from simkv.profiler.compressors.payload import Encoded, pack

__all__ = ["LowRank"]

_SIDES = re.compile(r"k([0-9.]+)v([0-9.]+)")
_LEAST_SHARE = 0.001


@dataclass(frozen=True)
class LowRank(Compressor):
    """Truncated singular value decomposition per layer, heads side by side: the per-layer baseline of xKV
    (https://arxiv.org/abs/2503.18893).  Keys are taken after RoPE, which raises their rank.

    A layer of T tokens and C = H x D channels is stored as [T, r] and [r, C] in the cache's dtype.  That is
    smaller only for r (T + C) < T C; a side for which it is not is stored raw.

    Knob: share of the break-even rank T C / (T + C), from 0.001 to 1, hence about the size ratio; for both sides
    ("0.5") or for K and V ("k0.5v0.25").
    """

    name: ClassVar[str] = "lowrank"
    knobs: ClassVar[tuple[str, ...]] = ("0.75", "0.5", "0.25", "0.1")
    most_ratio: ClassVar[int] = 1 << 11  # twice the harshest knob, since ranks are whole

    def encode(self, cache: KVCache, context: PrefillContext, knob: str) -> Encoded:
        """See Compressor."""
        match = _SIDES.fullmatch(knob)
        shares = [self.number(share, _LEAST_SHARE, 1.0) for share in (match.groups() if match else (knob, knob))]
        tokens, channels = cache.shape.tokens, cache.shape.heads * cache.shape.head_dim
        facts = cache.shape.facts()
        sections: dict[str, Tensor | bytes] = {}
        for side, share, stack in zip(("key", "value"), shares, finite_stacks(cache), strict=True):
            rank = max(1, int(share * tokens * channels / (tokens + channels)))
            if rank * (tokens + channels) >= tokens * channels:
                facts[f"{side}_rank"], sections[f"{side}_raw"] = 0, stack
                continue
            facts[f"{side}_rank"] = rank
            parts = [_factors(layer.transpose(0, 1).flatten(1), rank) for layer in stack]
            sections[f"{side}_tokens"] = torch.stack([part[0] for part in parts]).to(stack.dtype)
            sections[f"{side}_channels"] = torch.stack([part[1] for part in parts]).to(stack.dtype)
        return pack(self.format, facts, sections)

    def decode(self, payload: bytes, device: torch.device | str = "cpu") -> DecodedCache:
        """See Compressor."""
        facts, sections, shape = self.opened(payload)
        layers, heads, tokens, head_dim = shape.layers, shape.heads, shape.tokens, shape.head_dim
        channels, dtype = heads * head_dim, shape.torch_dtype
        decoded = []
        for side in ("key", "value"):
            rank = whole_fact(facts, f"{side}_rank", 0, min(tokens, channels))
            if rank == 0:
                raw = self.section(sections, f"{side}_raw", (layers, heads, tokens, head_dim), dtype)
                decoded.append(list(raw.to(device)))
                continue
            left = finite_section(sections, f"{side}_tokens", (layers, tokens, rank), dtype).to(device).float()
            right = finite_section(sections, f"{side}_channels", (layers, rank, channels), dtype).to(device).float()
            whole = back_to(dtype, left @ right).view(layers, tokens, heads, head_dim)
            decoded.append(list(whole.transpose(1, 2).contiguous()))
        return DecodedCache(decoded[0], decoded[1], tokens)


def _factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """[T, rank] and [rank, C] whose product is the best approximation of a [T, C] matrix, of like magnitudes.

    From the eigenvectors of the smaller Gram matrix, in float64: several times faster than a decomposition of the
    matrix itself, and exact enough for factors that are stored in 16 or 32 bits.
    """
    whole = matrix.double()
    tall = whole.shape[0] >= whole.shape[1]
    if not tall:
        whole = whole.T
    _, vectors = torch.linalg.eigh(whole.T @ whole)
    basis = vectors[:, -rank:].flip(-1)
    scores = whole @ basis
    scale = scores.norm(dim=0).sqrt()
    scale = scale.where(scale > 0, 1.0)
    long, short = scores / scale, (basis * scale).T
    return (long, short) if tall else (short.T, long.T)
