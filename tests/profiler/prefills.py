"""Random prefills for tests: a cache and the side information that belongs to it, from a seed."""

import math

import torch
from torch import Tensor

from simkv.profiler.compressors.base import KVCache, PrefillContext

__all__ = ["prefill"]


def prefill(
    tokens: int,
    *,
    layers: int = 3,
    heads: int = 2,
    group: int = 2,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[KVCache, PrefillContext]:
    """A cache of Gaussian keys and values, all queries, and the attention mass per visible query that follows."""
    torch.set_num_threads(1)
    source = torch.Generator().manual_seed(seed)

    def random(count: int) -> list[Tensor]:
        return [torch.randn(count, tokens, head_dim, generator=source) for _ in range(layers)]

    keys, values, queries = random(heads), random(heads), random(heads * group)
    visible = torch.arange(tokens, 0, -1)
    attention = []
    for layer in range(layers):
        logits = queries[layer] @ keys[layer].repeat_interleave(group, dim=0).transpose(-1, -2) / math.sqrt(head_dim)
        future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        attention.append(logits.masked_fill(future, -torch.inf).softmax(dim=-1).sum(dim=1) / visible)
    cache = KVCache([key.to(dtype) for key in keys], [value.to(dtype) for value in values])
    return cache, PrefillContext(queries=queries, attention=attention)
