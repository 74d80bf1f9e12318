"""Serializers written for LMCache (https://github.com/LMCache/LMCache) as compressors.

What it is: an adapter.  A serializer turns one contiguous tensor, [2, layers, T, H x D] with keys first, into bytes,
and a deserializer turns the bytes back; the adapter makes a payload of them, with the cache's shape in its header.
What it is not: LMCache; nothing of it is imported, and its memory objects and threads are the user's to unwrap.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from simkv.errors import unknown_name
from simkv.profiler.compressors.adapters import one_line
from simkv.profiler.compressors.base import (
    Compressor,
    CompressorError,
    DecodedCache,
    KVCache,
    PrefillContext,
    Shape,
)
from simkv.profiler.compressors.payload import Encoded, PayloadError

__all__ = ["SerializerCompressor", "serializer_compressor"]


@dataclass(frozen=True)
class SerializerCompressor(Compressor):
    """Base of serializers.  A subclass names itself, and its knobs if it has any, and writes both directions.

    The first cache of each shape and knob is serialized and deserialized twice, so that a serializer that does not
    repeat, or whose shapes do not fit, is refused before anything is measured; its timing means nothing.

    Knob: one of ``knobs``; by default the empty text is the only one.
    """

    knobs: ClassVar[Sequence[str]] = ("",)
    most_ratio: ClassVar[int] = 1 << 11  # it may drop tokens

    _tried: set[tuple[Shape, str]] = field(default_factory=set, init=False, repr=False, compare=False)

    @abstractmethod
    def serialize(self, tensor: Tensor, knob: str) -> bytes:
        """Bytes of a contiguous [2, layers, T, H x D] tensor, a copy that may be written over; keys come first."""

    @abstractmethod
    def deserialize(self, data: bytes, like: Tensor, knob: str) -> Tensor:
        """The tensor from its bytes, of the shape and dtype of ``like``, which has no memory (device "meta").

        Any exception means that the bytes cannot be read.
        """

    def encode(self, cache: KVCache, context: PrefillContext, knob: str) -> Encoded:
        """See Compressor.  Raises CompressorError also for what the serializer raises or does wrong."""
        if knob not in self.knobs:
            raise CompressorError(unknown_name(f"knob of compressor {self.name}", knob, self.knobs))
        data = self._serialized(cache, knob)
        if (cache.shape, knob) not in self._tried:
            self._try(cache, knob, data)
            self._tried.add((cache.shape, knob))
        return self.packed(cache.shape, {"knob": knob}, {"data": data})

    def decode(self, payload: bytes, device: torch.device | str = "cpu") -> DecodedCache:
        """See Compressor."""
        facts, sections, shape = self.opened(payload)
        knob, data = facts.get("knob"), sections.get("data")
        if not isinstance(knob, str) or knob not in self.knobs:
            raise PayloadError(f"an encoded cache of compressor {self.name} at an unknown knob")
        if data is None or data.dtype != torch.uint8 or data.ndim != 1:
            raise PayloadError(f"an encoded cache of compressor {self.name} without its bytes")
        whole = self._deserialized(data.numpy().tobytes(), shape, knob).to(device)
        apart = whole.reshape(2, shape.layers, shape.tokens, shape.heads, shape.head_dim).transpose(2, 3).contiguous()
        return DecodedCache(list(apart[0]), list(apart[1]), shape.tokens)

    def _serialized(self, cache: KVCache, knob: str) -> bytes:
        tensor = torch.stack(cache.stacked()).transpose(2, 3).flatten(3).contiguous()
        try:
            data = self.serialize(tensor, knob)
        except Exception as error:  # the user's code may fail in any way
            raise CompressorError(f"compressor {self.name}: serialize failed: {one_line(error)}") from error
        if not isinstance(data, bytes | bytearray | memoryview):
            raise CompressorError(f"compressor {self.name}: serialize gave {type(data).__name__}, not bytes")
        return bytes(data)

    def _deserialized(self, data: bytes, shape: Shape, knob: str) -> Tensor:
        size = (2, shape.layers, shape.tokens, shape.heads * shape.head_dim)
        like = torch.empty(size, dtype=shape.torch_dtype, device="meta")
        try:
            found: Any = self.deserialize(data, like, knob)
        except Exception as error:  # the user's code may fail in any way
            raise PayloadError(f"compressor {self.name}: deserialize failed: {one_line(error)}") from error
        if not isinstance(found, Tensor) or found.is_meta:
            raise PayloadError(f"compressor {self.name}: deserialize gave {type(found).__name__} without values")
        if found.shape != like.shape or found.dtype != like.dtype:
            raise PayloadError(
                f"compressor {self.name}: deserialize gave {found.dtype} {list(found.shape)}, "
                f"not {like.dtype} {list(like.shape)}"
            )
        return found

    def _try(self, cache: KVCache, knob: str, data: bytes) -> None:
        if self._serialized(cache, knob) != data:
            raise CompressorError(f"compressor {self.name}: serialize gave other bytes for the same cache")
        try:
            one, two = (self._deserialized(data, cache.shape, knob) for _ in range(2))
        except PayloadError as error:
            raise CompressorError(str(error)) from error
        if not torch.equal(one.contiguous().view(torch.uint8), two.contiguous().view(torch.uint8)):
            raise CompressorError(f"compressor {self.name}: deserialize gave another tensor for the same bytes")


def serializer_compressor(
    name: str, serialize: Callable[[Tensor], bytes], deserialize: Callable[[bytes, Tensor], Tensor]
) -> type[SerializerCompressor]:
    """A compressor class of two functions, at one rate.

    Args:
        name: as profiles name it; that of no other compressor.
        serialize: see ``SerializerCompressor.serialize``.
        deserialize: see ``SerializerCompressor.deserialize``; the second argument is ``like``.
    """

    class Functions(SerializerCompressor):
        """Two functions of the user's."""

        def serialize(self, tensor: Tensor, knob: str) -> bytes:
            """See SerializerCompressor."""
            return serialize(tensor)

        def deserialize(self, data: bytes, like: Tensor, knob: str) -> Tensor:
            """See SerializerCompressor."""
            return deserialize(data, like)

    Functions.name = name
    return Functions
