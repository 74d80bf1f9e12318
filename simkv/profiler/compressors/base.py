"""The compressor interface: a KV cache in, bytes out, and a cache again from those bytes alone.

A compressor is a frozen dataclass whose fields are its fixed parameters; the rate is the ``knob`` given to
``encode``.  Size is ``len(payload)``, measured, never estimated.  The quality evaluator sees nothing but the
decoded cache, so any lossy family fits: quantisers give back every token, droppers fewer, layer-wise droppers a
different number per layer, low rank a reconstruction.

Shapes: H KV heads, T tokens, D head dimension; batch size is always 1 and not a dimension.  Keys are stored
after RoPE, as attention uses them.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from simkv.errors import SimkvError
from simkv.profiler.compressors.payload import Encoded, PayloadError, pack, unpack

__all__ = ["Compressor", "CompressorError", "DecodedCache", "KVCache", "PrefillContext", "Shape", "staged"]

_DTYPE_NAMES = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}
_DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}
_MOST = 1 << 24
_ON_HOST = frozenset({"positions", "key_book", "value_book"})
_STAGED: dict[int, tuple[dict[str, Any], dict[str, Tensor]]] = {}


class CompressorError(SimkvError):
    """A knob that does not exist, a cache that a compressor cannot take, side information that is missing."""


@dataclass(frozen=True)
class Shape:
    """Shape of a cache: layers, KV heads, tokens, head dimension, dtype ("f16", "bf16", "f32")."""

    layers: int
    heads: int
    tokens: int
    head_dim: int
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's."""
        return _DTYPES[self.dtype]

    @property
    def raw_bytes(self) -> int:
        """Bytes of the uncompressed cache."""
        return 2 * self.layers * self.heads * self.tokens * self.head_dim * self.torch_dtype.itemsize

    def facts(self) -> dict[str, Any]:
        """For a payload's header; ``from_facts`` reads it back."""
        return {"shape": [self.layers, self.heads, self.tokens, self.head_dim], "dtype": self.dtype}

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> "Shape":
        """Raises PayloadError when the header does not describe a cache."""
        shape, dtype = facts.get("shape"), facts.get("dtype")
        if not isinstance(shape, list) or len(shape) != 4 or dtype not in list(_DTYPES):
            raise PayloadError("an encoded cache whose header does not describe a cache")
        if any(type(n) is not int or not 0 < n < _MOST for n in shape):
            raise PayloadError(f"an encoded cache of impossible shape {shape}")
        layers, heads, tokens, head_dim = shape
        return cls(layers, heads, tokens, head_dim, str(dtype))


@dataclass
class KVCache:
    """A whole model's cache: ``keys[l]`` and ``values[l]`` are [H, T, D], all layers alike, one dtype and device."""

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def shape(self) -> Shape:
        """Raises CompressorError for a cache that is not uniform."""
        first = self.keys[0]
        if any(t.shape != first.shape or t.dtype != first.dtype for t in (*self.keys, *self.values)):
            raise CompressorError("a cache to be encoded must have equal shapes and dtypes in all layers")
        if first.ndim != 3 or first.dtype not in _DTYPE_NAMES or len(self.keys) != len(self.values):
            raise CompressorError(f"a cache must hold [heads, tokens, head_dim] floats per layer, found {first.shape}")
        heads, tokens, head_dim = first.shape
        return Shape(len(self.keys), heads, tokens, head_dim, _DTYPE_NAMES[first.dtype])

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Keys and values as [layers, H, T, D].  Raises CompressorError for a cache that is not uniform."""
        if not self.shape.tokens:
            raise CompressorError("a cache to be encoded must hold at least one token")
        return torch.stack(self.keys), torch.stack(self.values)


@dataclass
class PrefillContext:
    """Side information of the prefill, captured only for compressors that ask for it in ``needs``.

    Attributes:
        queries: per layer [query heads, W, D], the last W queries after RoPE ("queries").
        scalings: per layer, what the model multiplies queries times keys by before softmax; None: 1 / sqrt(D)
            ("queries").
        later_keys: per layer [H, L, D], keys after RoPE of L tokens behind the cache's, which the queries belong to
            or see: a question that is known already; None: the queries are the cache's last ("queries").
        earlier_keys: the same for tokens before the cache's, where it is part of a prompt; None: there are none
            ("queries").
        attention: per layer [query heads, T], attention mass that each token received, divided by the number of
            queries that could see it ("attention").
        rope_angles: (cos, sin), each [T, D], that made the keys from those before RoPE ("pre_rope").
        rope_probe: [H, n, D], keys after RoPE that were equal before it, at positions 0 to n - 1: they show which
            channels the model turns together ("pre_rope").
    """

    queries: list[Tensor] | None = None
    scalings: list[float] | None = None
    later_keys: list[Tensor] | None = None
    earlier_keys: list[Tensor] | None = None
    attention: list[Tensor] | None = None
    rope_angles: tuple[Tensor, Tensor] | None = None
    rope_probe: Tensor | None = None

    @property
    def later(self) -> int:
        """Tokens behind the cache's that the queries know of."""
        return self.later_keys[0].shape[1] if self.later_keys else 0


@dataclass
class DecodedCache:
    """What the model continues from.

    Attributes:
        keys, values: per layer [H, T_l, D]; T_l may differ between layers.
        next_position: position of the next token: the original length, not the kept one.
        kept: per layer [T_l] or [H, T_l] original positions, or None where all tokens are kept.
    """

    keys: list[Tensor]
    values: list[Tensor]
    next_position: int
    kept: list[Tensor] | None = None


@dataclass(frozen=True)
class Compressor(ABC):
    """Base class.  Subclasses are frozen dataclasses with a paper link and their knob's meaning and range.

    Class attributes:
        name: of the method.
        version: raised whenever the payload's meaning changes.
        knobs: default ladder, from largest to smallest size; at least four rates (identity has one).
        needs: side information: subset of {"queries", "attention", "pre_rope", "calibration"}.
        implementation: of ``decode``: "reference", plain torch written to be read, or "fused", compiled to few passes.
        most_ratio: raw bytes of a cache per byte of its payload; decoding refuses a payload that claims more, before
            memory is given to it.  256 is beyond any code of every element but that of a constant cache.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    knobs: ClassVar[Sequence[str]]
    needs: ClassVar[frozenset[str]] = frozenset()
    implementation: ClassVar[str] = "reference"
    most_ratio: ClassVar[int] = 1 << 8

    @property
    def format(self) -> str:
        """Name of the payload format: method and version."""
        return f"{self.name}/{self.version}"

    @abstractmethod
    def encode(self, cache: KVCache, context: PrefillContext, knob: str) -> Encoded:
        """Bytes of a cache at a rate.  Raises CompressorError for a knob or cache that it cannot take."""

    @abstractmethod
    def decode(self, payload: bytes, device: torch.device | str = "cpu") -> DecodedCache:
        """The cache from its bytes alone.  Raises PayloadError for damaged or foreign bytes, never anything else."""

    def fit(self, caches: Sequence[KVCache]) -> "Compressor":
        """A copy calibrated on sample caches; the default needs none."""
        return self

    def fused(self, device: str) -> "Compressor":
        """The same compressor, payloads included, with the fused ``decode`` if there is one there; itself if not.

        What a fused decoder gives equals the reference's to within one rounding of the cache's dtype.
        """
        return self

    def shared_bytes(self) -> int:
        """Bytes of calibration data that payloads refer to and do not contain; counted once per model."""
        return 0

    def error_bound(self, cache: KVCache, knob: str) -> tuple[list[Tensor], list[Tensor]] | None:
        """Largest absolute error of each key and value element (broadcastable to [H, T, D]); None without a bound."""
        return None

    def number(self, knob: str, low: float, high: float) -> float:
        """The knob as a number within [low, high].  Raises CompressorError."""
        try:
            value = float(knob)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise CompressorError(f"compressor {self.name}: knob {knob!r} is not a number from {low:g} to {high:g}")
        return value

    def opened(self, payload: bytes) -> tuple[dict[str, Any], dict[str, Tensor], Shape]:
        """Facts, sections and shape of a payload of this format, within ``most_ratio``.  Raises PayloadError."""
        facts, sections = _STAGED.get(id(payload)) or unpack(payload, self.format)
        shape = Shape.from_facts(facts)
        if shape.raw_bytes > self.most_ratio * len(payload):
            raise PayloadError(
                f"{len(payload)} bytes of {self.name} claim to hold a cache of {shape.raw_bytes}, more than "
                f"{self.most_ratio} times as much"
            )
        return facts, sections, shape

    def packed(self, shape: Shape, facts: dict[str, Any], sections: dict[str, Tensor | bytes]) -> Encoded:
        """A payload of this format that ``opened`` reads back.  Raises CompressorError for one that it would refuse."""
        encoded = pack(self.format, shape.facts() | facts, sections)
        if shape.raw_bytes > self.most_ratio * encoded.size_bytes:
            raise CompressorError(
                f"compressor {self.name}: a cache of {shape.raw_bytes} bytes in {encoded.size_bytes}; only a constant "
                f"cache becomes {self.most_ratio} times smaller"
            )
        return encoded

    @staticmethod
    def section(sections: dict[str, Tensor], name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """One section, which must have this shape and dtype.  Raises PayloadError."""
        found = sections.get(name)
        if found is None or list(found.shape) != list(shape) or found.dtype != dtype:
            raise PayloadError(f"section {name!r} is missing or is not {dtype} of shape {list(shape)}")
        return found


@contextlib.contextmanager
def staged(compressor: Compressor, payload: bytes, device: torch.device | str) -> Iterator[None]:
    """Within it, decoding this very payload starts from its sections, checked and on the device already.

    So that decoding can be timed without the transfer.  Positions and codebooks stay on the host, where they are
    unpacked whatever the device.  Raises PayloadError as ``opened`` does.
    """
    facts, sections = unpack(payload, compressor.format)
    there = {name: section if name in _ON_HOST else section.to(device) for name, section in sections.items()}
    _STAGED[id(payload)] = facts, there
    try:
        yield
    finally:
        del _STAGED[id(payload)]
