"""TurboQuant: rotate each vector at random, then quantise every coordinate with the codebook of its known law.

A coordinate of a uniformly random unit vector in d dimensions has density proportional to (1 - x^2)^((d - 3) / 2),
nearly Gaussian of variance 1 / d, whatever the data.  So the codebook needs no data and is not stored.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from scipy.linalg import hadamard
from scipy.special import betainc, betaincinv, betaln
from torch import Tensor

from simkv.profiler.compressors.base import Compressor, CompressorError, DecodedCache, KVCache, PrefillContext, Shape
from simkv.profiler.compressors.bits import pack_bits, packed_bytes, unpack_bits
from simkv.profiler.compressors.fused import compiled, compiles, rotated_decode
from simkv.profiler.compressors.parts import (
    back_to,
    finite_section,
    finite_stacks,
    half,
    nearest_level,
    side_bits,
    whole_fact,
)
from simkv.profiler.compressors.payload import Encoded, PayloadError, pack

__all__ = ["FusedTurboQuant", "TurboQuant", "codebook", "rotation"]

_MOST_CHANNELS = 1024
_MOST_SEED = (1 << 32) - 1
_ROUNDS = 300


@dataclass(frozen=True)
class TurboQuant(Compressor):
    """TurboQuant for the least square error (https://arxiv.org/abs/2504.19874): fp16 norm, rotation, Lloyd-Max codes.

    Knob: bits of a coordinate, 1 to 8, for both ("4") or for K and V ("k8v4").  As in the implementations in use, the
    paper's second stage, one bit of the residual for unbiased inner products, is left out, as is one bit more for the
    largest channels (its 2.5 and 3.5 bits), and the rotation is a signed Hadamard transform, not one uniformly at
    random.  So the paper's bound of the error holds for vectors spread over many channels (0.116 of the squared norm
    at 2 bits, the bound is 0.170), and not for one of a single channel (0.255).

    Attributes:
        seed: of the random signs; 0 to 2^32 - 1; payloads name it.
    """

    name: ClassVar[str] = "turboquant"
    knobs: ClassVar[tuple[str, ...]] = ("8", "k8v4", "4", "3", "2")

    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= _MOST_SEED:
            raise CompressorError(f"compressor turboquant: seed {self.seed} is not from 0 to {_MOST_SEED}")

    def encode(self, cache: KVCache, context: PrefillContext, knob: str) -> Encoded:
        """See Compressor."""
        bits, channels = side_bits(self, knob), cache.shape.head_dim
        if not 2 <= channels <= _MOST_CHANNELS:
            raise CompressorError(f"compressor turboquant: head dimension {channels} is not 2 to {_MOST_CHANNELS}")
        sections: dict[str, Tensor | bytes] = {}
        for side, stack, width in zip(("key", "value"), finite_stacks(cache), bits, strict=True):
            turn = rotation(channels, self.seed).to(stack.device)
            table = codebook(channels, width).to(stack.device)
            norms, codes = [], []
            for layer in stack:
                exact = layer.float()
                norm = exact.norm(dim=-1, keepdim=True)
                codes.append(nearest_level((exact / norm.where(norm > 0, 1.0)) @ turn.T, table))
                norms.append(half(norm.squeeze(-1), "norms"))
            sections[f"{side}_codes"] = pack_bits(torch.stack(codes), width)
            sections[f"{side}_norms"] = torch.stack(norms)
        facts = {"key_bits": bits[0], "value_bits": bits[1], "seed": self.seed}
        return pack(self.format, cache.shape.facts() | facts, sections)

    def decode(self, payload: bytes, device: torch.device | str = "cpu") -> DecodedCache:
        """See Compressor."""
        facts, sections, shape = self.opened(payload)
        if not 2 <= shape.head_dim <= _MOST_CHANNELS:
            raise PayloadError(f"an encoded cache of impossible head dimension {shape.head_dim}")
        turn = rotation(shape.head_dim, whole_fact(facts, "seed", 0, _MOST_SEED)).to(device)
        decoded = []
        for side in ("key", "value"):
            width = whole_fact(facts, f"{side}_bits", 1, 8)
            decoded.append(self._side(sections, side, shape, width, turn))
        return DecodedCache(decoded[0], decoded[1], shape.tokens)

    def fused(self, device: str) -> Compressor:
        """See Compressor."""
        return FusedTurboQuant(**asdict(self)) if compiles(device) else self

    def _side(self, sections: dict[str, Tensor], side: str, shape: Shape, width: int, turn: Tensor) -> list[Tensor]:
        packed, norms, table = self._parts(sections, side, shape, width, turn.device)
        whole = (*norms.shape, shape.head_dim)
        codes = unpack_bits(packed, width, int(np.prod(whole, dtype=object))).view(whole)
        lengths = norms.float().unsqueeze(-1)
        restored = [(table[layer.int()] @ turn).mul_(length) for layer, length in zip(codes, lengths, strict=True)]
        return [back_to(shape.torch_dtype, layer) for layer in restored]

    def _parts(
        self, sections: dict[str, Tensor], side: str, shape: Shape, width: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Packed codes, norms [L, H, T] and levels, checked and on the device."""
        whole = (shape.layers, shape.heads, shape.tokens, shape.head_dim)
        size = packed_bytes(int(np.prod(whole, dtype=object)), width)
        packed = self.section(sections, f"{side}_codes", (size,), torch.uint8).to(device)
        norms = finite_section(sections, f"{side}_norms", whole[:3], torch.float16).to(device)
        return packed, norms, codebook(shape.head_dim, width).to(device)


@dataclass(frozen=True)
class FusedTurboQuant(TurboQuant):
    """TurboQuant whose decoder unpacks and looks up in one pass, and turns back in another."""

    implementation: ClassVar[str] = "fused"

    def fused(self, device: str) -> Compressor:
        """Itself."""
        return self

    def _side(self, sections: dict[str, Tensor], side: str, shape: Shape, width: int, turn: Tensor) -> list[Tensor]:
        packed, norms, table = self._parts(sections, side, shape, width, turn.device)
        count = shape.heads * shape.tokens * shape.head_dim
        decode = compiled(rotated_decode)
        return [
            decode(packed, table, turn, length, width, layer * count, shape.torch_dtype)
            for layer, length in enumerate(norms)
        ]


@lru_cache(maxsize=64)
def rotation(channels: int, seed: int) -> Tensor:
    """An orthogonal matrix, float32 [channels, channels]: random signs, then a transform that spreads each channel.

    The transform is Hadamard's, times Hartley's for the odd factor of dimensions that are not powers of two; so
    every entry is at most sqrt(2 / channels), and no dimension is padded.
    """
    odd = channels // (channels & -channels)
    angles = 2 * np.pi / odd * np.outer(np.arange(odd), np.arange(odd))
    spread = np.kron(hadamard(channels // odd), np.cos(angles) + np.sin(angles)) / np.sqrt(channels)
    # NumPy guarantees the raw stream of its bit generators, not what its distributions make of it
    signs = np.where(np.random.PCG64(seed).random_raw(channels) >> np.uint64(63), 1.0, -1.0)
    return torch.from_numpy((spread * signs).astype(np.float32))


@lru_cache(maxsize=64)
def codebook(channels: int, width: int) -> Tensor:
    """The Lloyd-Max levels of one coordinate of a random unit vector: float32 [2**width], rising, symmetric."""
    shape, count = (channels - 1) / 2, 1 << width
    # a good start: levels as dense as the cube root of the density, which is best for many levels
    start = (channels + 3) / 6
    levels = 2 * betaincinv(start, start, (np.arange(count) + 0.5) / count) - 1
    scale = np.exp(-betaln(0.5, shape)) / (2 * shape)
    for _ in range(_ROUNDS):
        edges = np.concatenate([[-1.0], (levels[1:] + levels[:-1]) / 2, [1.0]])
        mass = np.diff(betainc(shape, shape, (1 + edges) / 2))
        moment = np.diff(-scale * (1 - edges**2) ** shape)  # of the density's integral of x
        levels = moment / mass
        levels = (levels - levels[::-1]) / 2
    return torch.from_numpy(levels.astype(np.float32))
