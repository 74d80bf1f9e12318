"""SnapKV: tokens that the last queries of the context attend to."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from simkv.profiler.compressors.base import CompressorError, KVCache, PrefillContext
from simkv.profiler.compressors.dropping import Dropper, Scorer

__all__ = ["SnapKV", "last_queries", "recent_attention"]


def recent_attention(
    queries: Tensor, cache: KVCache, context: PrefillContext, layer: int, dropped: Tensor | None = None
) -> Tensor:
    """Causal attention weights, [query heads, W, T], of the last W queries over a layer's T keys.

    As the model computes them, with its own scaling; weights of keys before and behind the cache's are not among them.

    Arguments: queries [query heads, W, D], float32 and after RoPE; query heads are a multiple of the KV heads, in
    groups of neighbours; ``dropped`` [T], True for keys that may not be seen.  Raises CompressorError for other keys
    that do not fit the cache.
    """
    keys = cache.keys[layer].float()
    before = _others(context.earlier_keys, cache, layer)
    own = slice(before.shape[1], before.shape[1] + keys.shape[1])
    keys = torch.cat([before, keys, _others(context.later_keys, cache, layer)], dim=1)
    heads, tokens, head_dim = keys.shape
    query_heads, window = queries.shape[:2]
    scaling = 1 / math.sqrt(head_dim) if context.scalings is None else context.scalings[layer]
    scaled = (queries * scaling).view(heads, -1, head_dim)  # [H, group x W, D]: keys need no copies
    logits = (scaled @ keys.transpose(-1, -2)).view(query_heads, window, tokens)
    future = torch.ones(window, window, dtype=torch.bool, device=keys.device).triu(1)
    logits[..., tokens - window :].masked_fill_(future, -torch.inf)
    if dropped is not None:
        logits[..., own].masked_fill_(dropped, -torch.inf)
    return logits.softmax(dim=-1)[..., own]


def _others(others: list[Tensor] | None, cache: KVCache, layer: int) -> Tensor:
    """Keys of a layer, [H, L, D] in float32, that are not the cache's; L is 0 where there are none."""
    keys = cache.keys[layer]
    if others is None:
        return keys[:, :0].float()
    if len(others) != len(cache.keys) or others[layer].shape != (keys.shape[0], others[0].shape[1], keys.shape[2]):
        raise CompressorError(f"keys of other tokens that do not fit a cache of {cache.shape}")
    return others[layer].to(keys.device, torch.float32)


def last_queries(dropper: Dropper, cache: KVCache, context: PrefillContext, layer: int, window: int) -> Tensor:
    """The last ``window`` captured queries of a layer, [query heads, window, D].

    Raises CompressorError when fewer were captured, or none, or they do not fit the cache.
    """
    queries = dropper.given(context.queries, "queries", cache, layer)
    if queries.ndim != 3 or queries.shape[1] < window or queries.shape[2] != cache.shape.head_dim:
        found = list(queries.shape)
        raise CompressorError(
            f"compressor {dropper.name}: queries {found}; the last {window} of the prefill are needed"
        )
    return queries[:, -window:]


@dataclass(frozen=True)
class SnapKV(Scorer):
    """SnapKV (https://arxiv.org/abs/2404.14469), per KV head.

    Score: attention of the last ``window`` queries, mean over them, average-pooled along the tokens, mean over the
    query heads of a KV head.  The window itself is kept; when the budget does not exceed it, the most recent tokens are
    all that is kept.  The window ends at the end of the context: a question that comes later is not seen.  If it is
    known (later keys), the window ends with the question, and what is left of it in the context is kept.

    Knob: retention ratio, the fraction of tokens kept, the window included.
    """

    name: ClassVar[str] = "snapkv"
    needs: ClassVar[frozenset[str]] = frozenset({"queries"})

    window: int = 64
    kernel: int = 5

    def __post_init__(self) -> None:
        """Raises CompressorError for an empty window or a kernel without a centre."""
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise CompressorError(
                f"compressor {self.name}: window {self.window} must be at least 1, kernel {self.kernel} odd"
            )

    def score(self, cache: KVCache, context: PrefillContext, layer: int) -> Tensor:
        """Pooled attention from the window; the tokens of the window itself score 0."""
        heads, tokens, _ = cache.keys[layer].shape
        window = min(self.window, tokens + context.later)
        queries = last_queries(self, cache, context, layer, window)
        earlier = min(tokens, tokens + context.later - window)
        scores = torch.zeros(heads, tokens, device=queries.device)
        if earlier:
            weights = recent_attention(queries, cache, context, layer)[..., :earlier].mean(dim=-2)
            pooled = avg_pool1d(weights, self.kernel, stride=1, padding=self.kernel // 2)
            scores[:, :earlier] = pooled.view(heads, -1, earlier).mean(dim=1)
        return scores

    def protected(self, tokens: int, count: int, later: int) -> Tensor:
        """The window, or the most recent part of it."""
        return torch.arange(tokens - min(max(0, self.window - later), count), tokens)
