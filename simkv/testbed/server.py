"""What computes: payloads to caches, prompts to first tokens, caches to payloads; on the CPU or on a GPU.

What it is: the real work of one request on a model, in steps that can be timed one by one.  The cache a model continues
from is a buffer with room for what follows, so that nothing is copied when tokens are added.  What it is not: when
(``replay.py``), or how long it takes (``calibration.py``).

One thread computes at a time: the profiler's attention is told what to do by a global state.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from simkv.profiler.attention import continuing
from simkv.profiler.compressors.base import DecodedCache, KVCache, PrefillContext
from simkv.profiler.model_calls import cache_argument
from simkv.profiler.models import CachedModel
from simkv.profiler.quality import Setting

__all__ = ["Server", "Started"]


class _Room(DynamicLayer):
    """A layer's cache at the front of a buffer [1, heads, room, head dim]."""

    dtype: torch.dtype

    def __init__(self, keys: Tensor, values: Tensor, used: int) -> None:
        super().__init__()
        self._whole = keys, values
        self.rewind(used)
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def rewind(self, used: int) -> None:
        """Hold the first ``used`` tokens of the buffer."""
        self._used = used
        self.keys, self.values = (whole[..., :used, :] for whole in self._whole)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens behind the others; the whole so far."""
        end = self._used + key_states.shape[-2]
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[..., self._used : end, :] = new
        self.rewind(end)
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values


class Started:
    """A sequence under way: its cache, and the position of its next token."""

    def __init__(self, past: Any, position: int) -> None:
        self.past = past
        self.position = position

    def rewind(self, tokens: int) -> None:
        """Forget what came after the first ``tokens`` tokens, all of which are in the cache."""
        self.position = tokens
        for layer in self.past.layers:
            layer.rewind(tokens)


class Server:
    """A model that serves one request at a time.

    Args:
        model: behind the profiler's wrapper.
        settings: how entries are stored, by the simulator's index of the variant; raw first.

    Attributes:
        half: precision of the caches that are encoded.
    """

    def __init__(self, model: CachedModel, settings: Sequence[Setting]) -> None:
        self.model = model
        self.settings = tuple(settings)
        self.half = torch.bfloat16 if model.model.dtype == torch.bfloat16 else torch.float16
        self._on_gpu = model.device.type == "cuda"

    @torch.inference_mode()
    def decoded(self, payload: bytes, variant: int, room: int) -> Started:
        """The cache of a payload, in the model's own precision, with room for so many tokens more.

        On a GPU this takes the payload across the link.  Raises PayloadError for damaged bytes.
        """
        cache = self.settings[variant].compressor.decode(payload, self.model.device)
        layers = [self._layer(k, v, room) for k, v in zip(cache.keys, cache.values, strict=True)]
        self._wait()
        return self._started(layers, cache.next_position)

    def empty(self, room: int) -> Started:
        """A sequence without tokens yet."""
        nothing = torch.empty(self.model.kv_heads, 0, self.model.head_dim)
        return self._started([self._layer(nothing, nothing, room) for _ in range(self.model.layers)], 0)

    @torch.inference_mode()
    def next_token(self, started: Started, tokens: Sequence[int]) -> int:
        """Prefill further tokens and choose the most likely one to follow; ready when this returns."""
        ids = torch.tensor([list(tokens)], device=self.model.device)
        positions = torch.arange(started.position, started.position + len(tokens), device=self.model.device)[None]
        with continuing():
            logits: Tensor = self.model.model(
                input_ids=ids,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **cache_argument(self.model.model, started.past),
            ).logits
        started.position += len(tokens)
        return int(logits[0, -1].argmax())

    def answer(self, started: Started, first: int, longest: int, stop: int | None) -> list[int]:
        """The greedy answer that begins with ``first``, without its stop token, at most ``longest`` tokens."""
        found = [first]
        while found[-1] != stop and len(found) < longest:
            found.append(self.next_token(started, found[-1:]))
        return found[:-1] if found[-1] == stop else found

    @torch.inference_mode()
    def cache(self, started: Started, tokens: int) -> KVCache:
        """The first ``tokens`` tokens of a sequence that was prefilled whole, in 16 bit, for encoding."""
        layers = started.past.layers
        sides = [
            [side[0, :, :tokens].to(self.half, copy=True) for side in (layer.keys, layer.values)] for layer in layers
        ]
        return KVCache([keys for keys, _ in sides], [values for _, values in sides])

    @torch.inference_mode()
    def encoded(self, cache: KVCache, variant: int) -> bytes:
        """The payload of a cache in a variant."""
        setting = self.settings[variant]
        return setting.compressor.encode(cache, PrefillContext(), setting.knob).payload

    @torch.inference_mode()
    def reencoded(self, payload: bytes, old: int, new: int) -> bytes:
        """The payload of a stored cache in another variant."""
        cache: DecodedCache = self.settings[old].compressor.decode(payload, self.model.device)
        return self.encoded(KVCache(cache.keys, cache.values), new)

    def _layer(self, keys: Tensor, values: Tensor, room: int) -> _Room:
        heads, tokens, size = keys.shape
        keys_buffer, values_buffer = (
            torch.empty(1, heads, tokens + room, size, dtype=self.model.model.dtype, device=self.model.device)
            for _ in "kv"
        )
        keys_buffer[0, :, :tokens] = keys
        values_buffer[0, :, :tokens] = values
        return _Room(keys_buffer, values_buffer, tokens)

    @staticmethod
    def _started(layers: Sequence[_Room], position: int) -> Started:
        past: Any = DynamicCache()
        past.layers.extend(layers)
        return Started(past, position)

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize(self.model.device)
