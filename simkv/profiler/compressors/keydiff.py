"""KeyDiff: tokens whose keys differ most from the average key."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from simkv.profiler.compressors.base import KVCache, PrefillContext
from simkv.profiler.compressors.dropping import Scorer

__all__ = ["KeyDiff"]


@dataclass(frozen=True)
class KeyDiff(Scorer):
    """KeyDiff (https://arxiv.org/abs/2504.15364), per KV head: drop keys similar to the mean normalised key.

    The paper works block by block under a memory limit; here it chooses once, over the whole context.

    Knob: retention ratio, the fraction of tokens kept.
    """

    name: ClassVar[str] = "keydiff"

    def score(self, cache: KVCache, context: PrefillContext, layer: int) -> Tensor:
        """Minus the cosine between each key and the mean of the normalised keys."""
        keys = cache.keys[layer].float()
        anchor = normalize(keys, dim=-1).mean(dim=-2, keepdim=True)
        return -cosine_similarity(keys, anchor, dim=-1)
