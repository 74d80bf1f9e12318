"""A model to be timed: one prefill after a cached prefix, one step of generation over full caches.

What it is: calls without arguments that do exactly that on a transformers causal LM, which ``timing.py`` times.  The
cache is a buffer of fixed room, so that a step does not copy it, as no serving engine would.  What it is not: answers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from simkv.profiler.attention import IMPLEMENTATION, continuing
from simkv.profiler.model_calls import cache_argument
from simkv.profiler.random_caches import CacheShape

__all__ = ["SpeedModel"]


class _Room(DynamicLayer):
    """A layer's cache whose last places are for the new tokens, written anew by every call."""

    dtype: torch.dtype

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        new = key_states.shape[-2]
        self.keys[..., -new:, :] = key_states
        self.values[..., -new:, :] = value_states
        return self.keys, self.values


class SpeedModel:
    """Times of a causal LM.

    Args:
        model: a transformers causal LM with plain attention; its attention implementation is set to the profiler's.
        shape: of its cache.
        vocabulary: tokens to draw from.
        seed: of tokens and caches.
    """

    def __init__(self, model: Any, shape: CacheShape, vocabulary: int, seed: int = 0) -> None:
        model.set_attn_implementation(IMPLEMENTATION)
        self.shape = shape
        self._model = model.eval()
        self._vocabulary = vocabulary
        self._seed = seed

    def prefill(self, new: int, cached: int = 0) -> Callable[[], Any]:
        """A prefill of ``new`` tokens that follow ``cached`` ones, up to the first token's logits."""
        return self._call(1, new, cached)

    def step(self, batch: int, context: int) -> Callable[[], Any]:
        """One more token in each of ``batch`` sequences that have ``context`` tokens in their caches."""
        return self._call(batch, 1, context)

    def head(self) -> Callable[[], Any]:
        """The head alone, for one token: what does not grow with the number of layers."""
        weights = self._model.lm_head.weight
        hidden = torch.zeros(1, 1, weights.shape[1], device=weights.device, dtype=weights.dtype)
        return lambda: self._model.lm_head(hidden)

    def _call(self, batch: int, new: int, cached: int) -> Callable[[], Any]:
        device, dtype = self._model.device, self._model.dtype
        source = torch.Generator(device).manual_seed(self._seed)
        ids = torch.randint(self._vocabulary, (batch, new), generator=source, device=device)
        positions = torch.arange(cached, cached + new, device=device)[None]
        cache: Any = DynamicCache()
        room = (batch, self.shape.kv_heads, cached + new, self.shape.head_dim)
        for _ in range(self.shape.layers):
            layer = _Room()
            layer.keys, layer.values = (
                torch.empty(room, device=device, dtype=dtype).normal_(generator=source) for _ in "kv"
            )
            layer.dtype, layer.device, layer.is_initialized = dtype, device, True
            cache.layers.append(layer)

        given = cache_argument(self._model, cache)

        @torch.inference_mode()
        def call() -> Any:
            with continuing():
                return self._model(
                    input_ids=ids, position_ids=positions, use_cache=True, logits_to_keep=1, **given
                ).logits

        return call
