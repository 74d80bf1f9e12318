"""StreamingLLM: the first few tokens and the most recent ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simkv.profiler.compressors.base import CompressorError, KVCache, PrefillContext
from simkv.profiler.compressors.dropping import Scorer

__all__ = ["StreamingLLM"]

_MOST = 1 << 20


@dataclass(frozen=True)
class StreamingLLM(Scorer):
    """StreamingLLM (https://arxiv.org/abs/2309.17453): attention sinks and a recent window, the same in all layers.

    The paper moves kept tokens to consecutive positions; here, as in all droppers, they keep their own.

    Knob: retention ratio, the fraction of tokens kept.

    Attributes:
        sinks: first tokens that are kept whatever the knob, as far as it allows for them.
    """

    name: ClassVar[str] = "streamingllm"

    sinks: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.sinks <= _MOST:
            raise CompressorError(f"compressor streamingllm: {self.sinks} sinks; it must be 0 to {_MOST}")

    def score(self, cache: KVCache, context: PrefillContext, layer: int) -> Tensor:
        """The position: the most recent token is the best."""
        return torch.arange(cache.shape.tokens, dtype=torch.float32)

    def protected(self, tokens: int, count: int, later: int) -> Tensor:
        """The sinks."""
        return torch.arange(min(self.sinks, count))
