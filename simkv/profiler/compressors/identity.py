"""identity: the cache as it is, bit for bit.  The reference of every quality and the raw variant of every profile."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from simkv.profiler.compressors.base import Compressor, CompressorError, DecodedCache, KVCache, PrefillContext
from simkv.profiler.compressors.payload import Encoded, pack

__all__ = ["Identity"]


@dataclass(frozen=True)
class Identity(Compressor):
    """Stores keys and values in their own dtype.  Its one knob is the empty text."""

    name: ClassVar[str] = "identity"
    knobs: ClassVar[tuple[str, ...]] = ("",)

    def encode(self, cache: KVCache, context: PrefillContext, knob: str) -> Encoded:
        """See Compressor."""
        if knob:
            raise CompressorError(f"compressor identity: knob {knob!r}; it has none")
        keys, values = cache.stacked()
        return pack(self.format, cache.shape.facts(), {"keys": keys, "values": values})

    def decode(self, payload: bytes, device: torch.device | str = "cpu") -> DecodedCache:
        """See Compressor."""
        _, sections, shape = self.opened(payload)
        whole = (shape.layers, shape.heads, shape.tokens, shape.head_dim)
        keys = self.section(sections, "keys", whole, shape.torch_dtype).to(device)
        values = self.section(sections, "values", whole, shape.torch_dtype).to(device)
        return DecodedCache(list(keys), list(values), shape.tokens)
