"""TOVA: tokens that the last query of the context attends to."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simkv.profiler.compressors.base import KVCache, PrefillContext
from simkv.profiler.compressors.dropping import Scorer
from simkv.profiler.compressors.snapkv import last_queries, recent_attention

__all__ = ["TOVA"]


@dataclass(frozen=True)
class TOVA(Scorer):
    """Token omission via attention (https://arxiv.org/abs/2401.06104), one choice for all heads of a layer.

    Score: attention of the last query, mean over all query heads.  The last token itself always stays, where it is
    the cache's and not that of a question known already.  The paper
    drops a token at every step once a budget is full; here the choice is made once, after the prefill.

    Knob: retention ratio, the fraction of tokens kept.
    """

    name: ClassVar[str] = "tova"
    needs: ClassVar[frozenset[str]] = frozenset({"queries"})

    def score(self, cache: KVCache, context: PrefillContext, layer: int) -> Tensor:
        """Attention weights [T] of the last query."""
        query = last_queries(self, cache, context, layer, 1)
        return recent_attention(query, cache, context, layer).mean(dim=0)[0]

    def protected(self, tokens: int, count: int, later: int) -> Tensor:
        """The last token."""
        return torch.arange(tokens - (not later), tokens)
