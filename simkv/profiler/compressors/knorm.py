"""Knorm: tokens by the norm of their keys."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from simkv.profiler.compressors.base import KVCache, PrefillContext
from simkv.profiler.compressors.dropping import Scorer

__all__ = ["Knorm"]


@dataclass(frozen=True)
class Knorm(Scorer):
    """L2-norm based dropping (https://arxiv.org/abs/2406.11430), per KV head.

    Large models give tokens that many queries attend to a key of *low* norm, so low norms stay.  Small models
    without attention sinks show the opposite; ``keep="high"`` is for them and is not the published method.

    Knob: retention ratio, the fraction of tokens kept.
    """

    name: ClassVar[str] = "knorm"

    keep: Literal["low", "high"] = "low"

    def score(self, cache: KVCache, context: PrefillContext, layer: int) -> Tensor:
        """The norm of each key, negated where low norms stay."""
        norms = cache.keys[layer].float().norm(dim=-1)
        return -norms if self.keep == "low" else norms
