"""Token droppers: what all methods that keep a subset of the tokens have in common.

What it is: the base classes.  A method usually gives every token a score (and may protect some); the tokens of
highest score stay, in their original order, with their original positions, in the cache's own dtype.  What it is not:
a method, nor a quantiser of what is kept (``chain.py``).
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simkv.profiler.compressors.base import (
    Compressor,
    CompressorError,
    DecodedCache,
    KVCache,
    PrefillContext,
    Shape,
)
from simkv.profiler.compressors.payload import Encoded, pack
from simkv.profiler.compressors.positions import pack_positions, unpack_positions

__all__ = ["Dropper", "Scorer", "best", "gather", "kept_cache", "kept_tokens"]

_LEAST_RETENTION = 0.001
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Dropper(Compressor):
    """Base of token droppers.  Knob: retention ratio, the fraction of tokens *kept*, from 0.001 to 1."""

    knobs: ClassVar[tuple[str, ...]] = ("0.75", "0.5", "0.25", "0.1")
    most_ratio: ClassVar[int] = 1 << 30  # what is decoded is as large as what is stored, whatever was dropped

    @abstractmethod
    def choose(self, cache: KVCache, context: PrefillContext, knob: str) -> list[Tensor]:
        """Kept positions per layer, ascending: [n] for all heads or [H, n], at least one, in all layers alike.

        Raises CompressorError for a knob out of range, and when side information is missing or does not fit.
        """

    def retention(self, knob: str) -> float:
        """The knob as a number.  Raises CompressorError."""
        return self.number(knob, _LEAST_RETENTION, 1.0)

    def encode(self, cache: KVCache, context: PrefillContext, knob: str) -> Encoded:
        """See Compressor."""
        shape = cache.shape
        kept = self.choose(cache, context, knob)
        facts, positions = pack_positions(kept, shape.tokens)
        keys, values = gather(cache.keys, kept), gather(cache.values, kept)
        sections: dict[str, Tensor | bytes] = {
            "positions": positions,
            "keys": torch.cat([part.flatten(0, 1) for part in keys]),
            "values": torch.cat([part.flatten(0, 1) for part in values]),
        }
        return pack(self.format, {**shape.facts(), **facts}, sections)

    def decode(self, payload: bytes, device: torch.device | str = "cpu") -> DecodedCache:
        """See Compressor.  Keys and values of the kept tokens, bit for bit."""
        facts, sections, shape = self.opened(payload)
        kept = unpack_positions(facts, sections.get("positions"), shape)
        rows = [shape.heads * positions.shape[-1] for positions in kept]
        both = [
            [part.view(shape.heads, -1, shape.head_dim).to(device) for part in section.split(rows)]
            for section in (
                self.section(sections, name, (sum(rows), shape.head_dim), shape.torch_dtype)
                for name in ("keys", "values")
            )
        ]
        return kept_cache(both[0], both[1], kept, shape.tokens)

    def given(self, side: list[Tensor] | None, what: str, cache: KVCache, layer: int) -> Tensor:
        """A layer's side information in float32, its first dimension query heads, a multiple of the KV heads.

        Raises CompressorError when the prefill did not capture it or it does not fit the cache.
        """
        if side is None:
            raise CompressorError(f"compressor {self.name} needs side information that was not captured: {what}")
        heads = cache.shape.heads
        if len(side) != len(cache.keys) or side[layer].shape[0] % heads or not side[layer].numel():
            raise CompressorError(
                f"compressor {self.name}: {what} do not fit {len(cache.keys)} layers of {heads} heads"
            )
        return side[layer].to(cache.keys[layer].device, torch.float32)


@dataclass(frozen=True)
class Scorer(Dropper):
    """Base of droppers that score each layer's tokens by themselves.

    A layer keeps ``max(1, int(tokens * retention))`` tokens unless the method budgets layers differently.
    """

    @abstractmethod
    def score(self, cache: KVCache, context: PrefillContext, layer: int) -> Tensor:
        """Scores of a layer's tokens, higher = keep: [H, T] for a choice per KV head, [T] for one of all heads.

        Raises CompressorError when side information is missing or does not fit the cache.
        """

    def protected(self, tokens: int, count: int, later: int) -> Tensor:
        """Positions kept whatever their score, at most ``count`` of them; the default protects none.

        ``later`` tokens behind the cache's are known.
        """
        return torch.arange(0)

    def counts(self, shape: Shape, retention: float) -> list[int]:
        """Tokens kept per layer."""
        return [kept_tokens(shape.tokens, retention)] * shape.layers

    def choose(self, cache: KVCache, context: PrefillContext, knob: str) -> list[Tensor]:
        """See Dropper.  Of equal scores the earlier token stays."""
        chosen = []
        for layer, count in enumerate(self.counts(cache.shape, self.retention(knob))):
            scores = self.score(cache, context, layer)
            scores = scores if scores.is_floating_point() else scores.float()
            protected = self.protected(scores.shape[-1], count, context.later).to(scores.device)
            chosen.append(best(scores.index_fill(-1, protected, torch.inf), count))
        return chosen


def best(scores: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` highest scores along the last dimension, ascending; of equal ones the earlier."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count].sort(dim=-1).values


def kept_tokens(tokens: int, retention: float) -> int:
    """``max(1, int(tokens * retention))``, unharmed by the last bit of the product."""
    return max(1, int(tokens * retention + _ROUNDING))


def gather(layers: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
    """Per layer [H, n, D]: the kept tokens of [H, T, D]."""
    gathered = []
    for whole, positions in zip(layers, kept, strict=True):
        rows = positions.to(whole.device).expand(whole.shape[0], -1)
        gathered.append(whole.gather(1, rows.unsqueeze(-1).expand(-1, -1, whole.shape[-1])))
    return gathered


def kept_cache(keys: list[Tensor], values: list[Tensor], kept: list[Tensor], tokens: int) -> DecodedCache:
    """The decoded cache of kept tokens; positions are left out where all ``tokens`` were kept."""
    whole = all(positions.shape[-1] == tokens for positions in kept)
    return DecodedCache(keys, values, tokens, None if whole else [p.to(keys[0].device) for p in kept])
