"""PyramidInfer: fewer tokens from layer to layer, each layer's among those of the layer before."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simkv.profiler.compressors.base import CompressorError, KVCache, PrefillContext, Shape
from simkv.profiler.compressors.dropping import Dropper, best
from simkv.profiler.compressors.snapkv import last_queries, recent_attention

__all__ = ["PyramidInfer"]

_HALVINGS = 60
_ROUNDING = 1e-9


@dataclass(frozen=True)
class PyramidInfer(Dropper):
    """PyramidInfer (https://arxiv.org/abs/2405.12532), one choice for all heads of a layer: an emulation.

    The method drops hidden states *during* the prefill, so that deeper layers never compute the dropped tokens, and
    saves prefill time too.  A compressor sees the finished cache, whose deeper layers were computed from all tokens: it
    keeps what the method would keep, and saves nothing before that.

    As published: the recent fifth of the context stays; the rest is ranked by the attention of the recent queries, mean
    over all heads, later queries weighted up to 1.2; layer l passes on a share d + (1 - d) (1 + cos(pi l / L)) / 2
    of it, d = 0.9, so the kept sets are nested; sinks stay; dropped tokens receive no attention further on.
    Changed here: the published schedule is one point (mean retention 0.77 over 32 layers), so the whole pyramid,
    recent fifth included, is scaled to the wanted mean; its curve over ``depth`` layers is stretched over the
    model's; at most ``window`` queries rank; a short context is compressed like a long one.

    Knob: retention ratio, the fraction of tokens kept, mean over layers.
    """

    name: ClassVar[str] = "pyramidinfer"
    needs: ClassVar[frozenset[str]] = frozenset({"queries"})

    recent: float = 0.2
    decay: float = 0.9
    depth: int = 32
    sinks: int = 4
    distance_weight: float = 1.2
    window: int = 64

    def __post_init__(self) -> None:
        """Raises CompressorError for shares outside 0 to 1, or counts below their least."""
        if not (0 <= self.recent <= 1 and 0 <= self.decay <= 1):
            raise CompressorError(
                f"compressor pyramidinfer: recent {self.recent}, decay {self.decay} are not from 0 to 1"
            )
        if self.depth < 2 or self.sinks < 0 or self.window < 1:
            raise CompressorError(
                f"compressor pyramidinfer: depth {self.depth}, window {self.window}, sinks {self.sinks}"
            )

    def choose(self, cache: KVCache, context: PrefillContext, knob: str) -> list[Tensor]:
        """See Dropper.  One set per layer, each within that of the layer before."""
        shape = cache.shape
        counts = self.counts(shape, self.retention(knob))
        recent = max(1, int(self.recent * counts[0]))
        dropped = torch.zeros(shape.tokens, dtype=torch.bool, device=cache.keys[0].device)
        chosen = []
        for layer, count in enumerate(counts):
            queries = last_queries(self, cache, context, layer, min(self.window, recent))
            weights = recent_attention(queries, cache, context, layer, dropped).mean(dim=0)  # [W, T]
            ramp = torch.linspace(1.0, self.distance_weight, len(weights), device=weights.device)
            scores = (weights * ramp.unsqueeze(-1)).mean(dim=0).masked_fill(dropped, -torch.inf)
            scores[: self.sinks] = torch.finfo(scores.dtype).max
            scores[-recent:] = torch.inf
            chosen.append(best(scores, count))
            dropped = torch.ones_like(dropped).index_fill(0, chosen[-1], 0)
        return chosen

    def counts(self, shape: Shape, retention: float) -> list[int]:
        """Tokens kept per layer, never more than in the layer before; their mean share is ``retention``."""
        curve = self._curve(shape.layers)
        low, high = 0.0, 1 / curve[-1]
        for _ in range(_HALVINGS):
            scale = (low + high) / 2
            if sum(min(1.0, scale * share) for share in curve) < retention * shape.layers:
                low = scale
            else:
                high = scale
        return [max(1, int(shape.tokens * min(1.0, high * share) + _ROUNDING)) for share in curve]

    def _curve(self, layers: int) -> list[float]:
        """The published share of tokens at each of ``layers`` layers, from 1 downwards."""
        context, published = 1.0, []
        for layer in range(self.depth):
            published.append(self.recent + (1 - self.recent) * context)
            context *= self.decay + (1 - self.decay) * (1 + math.cos(math.pi * layer / self.depth)) / 2
        return [published[round(layer * (self.depth - 1) / max(1, layers - 1))] for layer in range(layers)]
