"""KVComp: error-bounded quantisation of token blocks and Huffman coding with a shared codebook.

Keys are quantised per channel of a block, values per token over all heads; the codes of all layers go through one
codebook for K and one for V, stored with the object or calibrated once per model with ``fit``.  The coded stream has
the length of every chunk beside it, so that a GPU decodes chunks side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simkv.profiler.compressors.base import Compressor, CompressorError, DecodedCache, KVCache, PrefillContext, Shape
from simkv.profiler.compressors.bounded import (
    FINEST,
    largest_error,
    narrow,
    quantise,
    restore,
    side_rates,
    step_section,
    whole_blocks,
    zero_section,
)
from simkv.profiler.compressors.chunks import chunk_words
from simkv.profiler.compressors.fused import compiled, compiles, stepped_decode
from simkv.profiler.compressors.huffman import Codebook
from simkv.profiler.compressors.parts import finite_section, finite_stacks, whole_fact
from simkv.profiler.compressors.payload import Encoded, PayloadError

__all__ = ["KVComp"]

_SIDES = ("key", "value")
_MOST = 1 << 12


@dataclass(frozen=True)
class KVComp(Compressor):
    """KVComp (https://arxiv.org/abs/2509.00579).

    Knob: step relative to the range of its unit, 0.005 to 1, for both ("0.1") or for K and V ("k0.1v0.2"); the error
    is at most half a step.  A unit stores its step in half precision and, as the released code does, an integer zero
    point, of 8 bits (more where needed).

    Attributes:
        block: tokens of a block.
        buffer: recent tokens that stay raw: from ``buffer - block`` to ``buffer - 1`` of them (the released K buffer
            is 128); ``block`` leaves only an incomplete block raw.
        books: codebooks of a model, from ``fit``, by side and rate; an object whose rate has none stores its own.
    """

    name: ClassVar[str] = "kvcomp"
    version: ClassVar[int] = 2
    knobs: ClassVar[tuple[str, ...]] = ("0.02", "0.05", "0.1", "0.2", "0.4", "0.8")
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})

    block: int = 64
    buffer: int = 128
    books: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not (0 < self.block <= _MOST and 0 <= self.buffer <= _MOST):
            raise CompressorError(f"compressor kvcomp: block {self.block} and buffer {self.buffer} are not possible")

    def encode(self, cache: KVCache, context: PrefillContext, knob: str) -> Encoded:
        """See Compressor."""
        rates, stacks = side_rates(self, knob, FINEST, 1), finite_stacks(cache)
        coded = whole_blocks(cache.shape.tokens, self.block, self.buffer)
        facts: dict[str, Any] = {"block": self.block, "coded": coded}
        sections: dict[str, Tensor | bytes] = {}
        for side, stack, rate in zip(_SIDES, stacks, rates, strict=True):
            units, dims = _units(side, stack[:, :, :coded], self.block)
            found = quantise(units, dims, rate)
            codes = found.codes.cpu().numpy()
            book = self._fitted(side, rate, int(codes.max(initial=0)))
            if book is None:
                book = Codebook.fitted(codes)
                sections[f"{side}_book"] = book.to_bytes()
            else:
                facts |= {f"{side}_book": _book_name(side, rate), "books": self._books_id()}
            sections[f"{side}_codes"], bits = book.encode(codes)
            sections[f"{side}_bits"] = torch.from_numpy(bits)
            sections[f"{side}_zeros"], sections[f"{side}_steps"] = narrow(found.zeros), found.steps
            sections[f"{side}_raw"] = stack[:, :, coded:]
        return self.packed(cache.shape, facts, sections)

    def decode(self, payload: bytes, device: torch.device | str = "cpu") -> DecodedCache:
        """See Compressor."""
        facts, sections, shape = self.opened(payload)
        block, coded = whole_fact(facts, "block", 1, _MOST), whole_fact(facts, "coded", 0, shape.tokens)
        if coded % block:
            raise PayloadError(f"an encoded cache of {coded} tokens in blocks of {block}")
        decoded = []
        for side in _SIDES:
            raw_shape = (shape.layers, shape.heads, shape.tokens - coded, shape.head_dim)
            raw = finite_section(sections, f"{side}_raw", raw_shape, shape.torch_dtype).to(device)
            units = _unit_shape(side, shape, block, coded)
            zeros = zero_section(sections, f"{side}_zeros", units).to(device)
            steps = step_section(sections, f"{side}_steps", units).to(device)
            book, stream = self._book(side, facts, sections), _stream(sections, side)
            if side == "value":  # a unit is a token
                zeros, steps = zeros.unsqueeze(-1), steps.unsqueeze(-1)
            decoded.append(self._restored(book, *stream, zeros, steps, raw, 1 if side == "value" else block))
        return DecodedCache(list(decoded[0]), list(decoded[1]), shape.tokens)

    def fused(self, device: str) -> Compressor:
        """See Compressor."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        return FusedKVComp(**own) if compiles(device) else self

    def fit(self, caches: Sequence[KVCache]) -> "KVComp":
        """A copy with codebooks for every rate of ``knobs``, in which every code that can occur has a codeword.

        Raises CompressorError when no cache has a whole block.
        """
        books: dict[str, bytes] = {}
        for knob in self.knobs:
            rates = side_rates(self, knob, FINEST, 1)
            symbols: dict[str, list[NDArray[np.uint8]]] = {side: [] for side in _SIDES}
            for cache in caches:
                coded = whole_blocks(cache.shape.tokens, self.block, self.buffer)
                for side, stack, rate in zip(_SIDES, finite_stacks(cache), rates, strict=True):
                    units, dims = _units(side, stack[:, :, :coded], self.block)
                    symbols[side].append(quantise(units, dims, rate).codes.cpu().numpy().reshape(-1))
            for side, rate in zip(_SIDES, rates, strict=True):
                seen = np.concatenate([np.empty(0, np.uint8), *symbols[side]])
                if not len(seen):
                    raise CompressorError("compressor kvcomp: no cache to fit codebooks to has a whole block")
                book = Codebook.fitted(seen, levels=int(1 / rate) + 3, unseen=True)
                books[_book_name(side, rate)] = book.to_bytes()
        return replace(self, books=tuple(books.items()))

    def shared_bytes(self) -> int:
        """Bytes of all codebooks from ``fit``."""
        return sum(len(book) for _, book in self.books)

    def error_bound(self, cache: KVCache, knob: str) -> tuple[list[Tensor], list[Tensor]]:
        """Half a step and the rounding of the result; zero for raw tokens.  Per layer [H, T, D], float64."""
        coded = whole_blocks(cache.shape.tokens, self.block, self.buffer)
        bounds = []
        for side, stack, rate in zip(_SIDES, finite_stacks(cache), side_rates(self, knob, FINEST, 1), strict=True):
            bound = torch.zeros(stack.shape, dtype=torch.float64)
            units, dims = _units(side, stack[:, :, :coded], self.block)
            whole = stack[:, :, :coded].shape
            bound[:, :, :coded] = largest_error(units, dims, rate).expand(units.shape).reshape(whole)
            bounds.append(list(bound))
        return bounds[0], bounds[1]

    def _fitted(self, side: str, rate: float, most: int) -> Codebook | None:
        """The model's codebook of this rate, if it has one for codes up to ``most``."""
        data = dict(self.books).get(_book_name(side, rate))
        book = None if data is None else Codebook.from_bytes(data)
        return book if book is not None and most < book.levels else None

    def _book(self, side: str, facts: dict[str, Any], sections: dict[str, Tensor]) -> Codebook:
        own = sections.get(f"{side}_book")
        if own is not None:
            return Codebook.from_bytes(own.reshape(-1).view(torch.uint8).numpy().tobytes())
        name, known = facts.get(f"{side}_book"), dict(self.books)
        if facts.get("books") != self._books_id() or not isinstance(name, str) or name not in known:
            raise PayloadError(f"an encoded cache whose {side} codebook {name!r} this compressor was not fitted with")
        return Codebook.from_bytes(known[name])

    def _books_id(self) -> str:
        return sha256(repr(self.books).encode()).hexdigest()[:16]

    def _restored(
        self, book: Codebook, data: Tensor, bits: Tensor, zeros: Tensor, steps: Tensor, raw: Tensor, block: int
    ) -> Tensor:
        """The cache [L, H, T, D] from a stream, its raw tokens, and [L, H or 1, blocks, 1, D or 1] zeros and steps."""
        whole = torch.Size((*raw.shape[:2], steps.shape[2], block, raw.shape[3]))
        symbols = torch.from_numpy(book.decode(data.numpy(), bits.numpy(), whole.numel()))
        restored = restore(symbols.view(whole).to(raw.device), zeros, steps, raw.dtype)
        return torch.cat([restored.flatten(2, 3), raw], dim=2)


@dataclass(frozen=True)
class FusedKVComp(KVComp):
    """KVComp whose decoder reads all chunks of a stream side by side, and writes the cache once."""

    implementation: ClassVar[str] = "fused"

    def fused(self, device: str) -> Compressor:
        """Itself."""
        return self

    def _restored(
        self, book: Codebook, data: Tensor, bits: Tensor, zeros: Tensor, steps: Tensor, raw: Tensor, block: int
    ) -> Tensor:
        if book.only >= 0 or not steps.shape[2]:
            return super()._restored(book, data.cpu(), bits.cpu(), zeros, steps, raw, block)
        count = raw.shape[0] * raw.shape[1] * steps.shape[2] * block * raw.shape[3]
        words = chunk_words(book, data.to(raw.device), bits.to(raw.device), count)
        symbols = torch.from_numpy(book.symbols).to(raw.device)
        return compiled(stepped_decode)(words, symbols, zeros, steps, raw, block)


def _book_name(side: str, rate: float) -> str:
    return f"{side} {rate:g}"


def _units(side: str, stack: Tensor, block: int) -> tuple[Tensor, tuple[int, ...]]:
    """A view of [L, H, T, D] and its dimensions that make a unit."""
    if side == "value":
        return stack, (1, 3)
    return stack.unflatten(2, (stack.shape[2] // block, block)), (3,)  # [L, H, T / B, B, D]


def _unit_shape(side: str, shape: Shape, block: int, coded: int) -> tuple[int, ...]:
    """Of stored zeros and steps."""
    if side == "value":
        return shape.layers, 1, coded, 1
    return shape.layers, shape.heads, coded // block, 1, shape.head_dim


def _stream(sections: dict[str, Tensor], side: str) -> tuple[Tensor, Tensor]:
    """The coded stream, and the bits of its chunks.  Raises PayloadError."""
    found = []
    for name, dtype in ((f"{side}_codes", torch.uint8), (f"{side}_bits", torch.int16)):
        section = sections.get(name)
        if section is None or section.dtype != dtype:
            raise PayloadError(f"section {name!r} is missing or is not {dtype}")
        found.append(section.reshape(-1))
    return found[0], found[1]
