"""H2O: heavy hitters, the tokens that received most attention, and the most recent tokens."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simkv.profiler.compressors.base import CompressorError, KVCache, PrefillContext
from simkv.profiler.compressors.dropping import Scorer

__all__ = ["H2O"]


@dataclass(frozen=True)
class H2O(Scorer):
    """Heavy-hitter oracle (https://arxiv.org/abs/2306.14048), per KV head: half heavy hitters, half recent tokens.

    Score: attention mass that a token received in the prefill, divided by the number of queries that could see it,
    mean over the query heads of a KV head.  The paper accumulates the sum while it evicts step by step, which favours
    early tokens; here the choice is made once, after the prefill.  ``recent=0`` leaves pure heavy hitters.

    Knob: retention ratio, the fraction of tokens kept.
    """

    name: ClassVar[str] = "h2o"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})

    recent: float = 0.5

    def __post_init__(self) -> None:
        """Raises CompressorError for an impossible share of recent tokens."""
        if not 0 <= self.recent <= 1:
            raise CompressorError(f"compressor h2o: share of recent tokens {self.recent} is not from 0 to 1")

    def score(self, cache: KVCache, context: PrefillContext, layer: int) -> Tensor:
        """Mean attention mass over the query heads of each KV head."""
        heads, tokens, _ = cache.keys[layer].shape
        mass = self.given(context.attention, "attention", cache, layer)
        if mass.ndim != 2 or mass.shape[1] != tokens:
            raise CompressorError(f"compressor h2o: attention {list(mass.shape)} does not fit {tokens} tokens")
        return mass.view(heads, -1, tokens).mean(dim=1)

    def protected(self, tokens: int, count: int, later: int) -> Tensor:
        """The most recent tokens, their share of what is kept."""
        return torch.arange(tokens - int(count * self.recent), tokens)
