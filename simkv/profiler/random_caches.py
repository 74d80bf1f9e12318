"""Caches of any model shape with random but realistic values, for what does not need a trained model.

What it is: keys with a few channels far larger than the rest and offsets that hold for all tokens, values without
them, neighbouring tokens alike, from a seed; with the side information that compressors ask for.  Encode and decode
times and payload sizes follow from these (entropy coders' sizes only roughly).  What it is not: quality.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from simkv.profiler.compressors.base import KVCache, PrefillContext

__all__ = ["CacheShape", "random_cache"]

_OUTLIERS = 16  # one channel in so many is an outlier
_OUTLIER_SCALE = 8.0
_OFFSET = 1.0
_LIKENESS = 0.7
_WINDOW = 64
_ROPE_BASE = 10_000.0


@dataclass(frozen=True)
class CacheShape:
    """Layers, KV heads, query heads and head dimension."""

    layers: int
    kv_heads: int
    query_heads: int
    head_dim: int

    @property
    def bytes_per_token(self) -> int:
        """Raw KV bytes of a token in 16-bit elements."""
        return 4 * self.layers * self.kv_heads * self.head_dim


def random_cache(
    shape: CacheShape, tokens: int, device: str, dtype: torch.dtype, seed: int
) -> tuple[KVCache, PrefillContext]:
    """A cache [kv heads, tokens, head dim] per layer, and queries, attention mass and rotation angles for it.

    The last channels of the key heads are the outliers, as rotary embeddings leave low frequencies there.
    """
    source = torch.Generator(device).manual_seed(seed)
    keys, values, queries, attention = [], [], [], []
    scale = torch.ones(shape.head_dim, device=device)
    scale[-max(1, shape.head_dim // _OUTLIERS) :] = _OUTLIER_SCALE
    for _ in range(shape.layers):
        whole = (shape.kv_heads, tokens, shape.head_dim)
        offset = _OFFSET * torch.randn(shape.kv_heads, 1, shape.head_dim, generator=source, device=device)
        keys.append(((_alike(whole, source) + offset) * scale).to(dtype))
        values.append(_alike(whole, source).to(dtype))
        window = (shape.query_heads, min(_WINDOW, tokens), shape.head_dim)
        queries.append(torch.randn(window, generator=source, device=device).to(dtype))
        attention.append(torch.rand((shape.query_heads, tokens), generator=source, device=device) ** 4)
    context = PrefillContext(queries=queries, attention=attention, rope_angles=_angles(shape.head_dim, tokens, device))
    return KVCache(keys, values), context


def _alike(shape: tuple[int, int, int], source: torch.Generator) -> Tensor:
    """Standard normal values [H, T, D] in which a token resembles the one before it."""
    fresh = torch.randn(shape, generator=source, device=source.device)
    mixed = fresh.clone()
    mixed[:, 1:] = (1 - _LIKENESS**2) ** 0.5 * fresh[:, 1:] + _LIKENESS * fresh[:, :-1]
    return mixed


def _angles(head_dim: int, tokens: int, device: str) -> tuple[Tensor, Tensor]:
    rates = _ROPE_BASE ** (-torch.arange(0, head_dim, 2, device=device) / head_dim)
    angles = torch.arange(tokens, device=device)[:, None] * torch.cat([rates, rates])
    return angles.cos(), angles.sin()
