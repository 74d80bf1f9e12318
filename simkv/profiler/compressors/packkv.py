"""PackKV: error-bounded quantisation per token, tokens reordered so that packs of codes need few bits.

Attention does not care about the order of tokens once RoPE is applied, so the tokens of a block may be sorted until
16 neighbours of a channel have close codes; such a pack is stored as its minimum, a width, and what exceeds the
minimum in so many bits.  K and V share the order.  Here the order is stored and undone.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from simkv.profiler.compressors.base import Compressor, CompressorError, DecodedCache, KVCache, PrefillContext, Shape
from simkv.profiler.compressors.bits import pack_bits, packed_bytes, unpack_bits
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
from simkv.profiler.compressors.ordering import greedy_order, median_order
from simkv.profiler.compressors.parts import finite_section, finite_stacks, whole_fact
from simkv.profiler.compressors.payload import Encoded, PayloadError

__all__ = ["PackKV"]

_SIDES = ("key", "value")
_TOKEN = (1, 3)  # dimensions of [L, H, T, D] that make a token: all heads and channels
_MOST = 1 << 12
_ORDERS = ("median", "greedy", "none")
_BIT_LENGTHS = torch.tensor([code.bit_length() for code in range(256)], dtype=torch.uint8)


@dataclass(frozen=True)
class PackKV(Compressor):
    """PackKV (https://arxiv.org/abs/2512.24449).

    Knob: step relative to a token's range over all heads and channels, 0.005 to 1, for both ("0.1") or for K and V
    ("k0.1v0.2"); the error is at most half a step.  A token stores step and integer zero point of K and of V, which
    the published sizes leave out, and its place: log2(block) bits, 6 of a block of 64.  Leaving the order out, as a
    fused kernel may, would save them: 0.003 bits per element of 2 x 1024 channels, 0.023 of 2 x 128.

    Attributes:
        block: tokens among which the order may change.
        pack: tokens of a pack; divides ``block``.
        buffer: recent tokens that stay raw: from ``buffer - block`` to ``buffer - 1`` of them (192 as released);
            ``block`` leaves only an incomplete block raw.
        order: "median" sorts by each token's median V code; "greedy" seeds a pack with the token most like the mean
            and adds the token that widens the pack least; "none" keeps the order.
    """

    name: ClassVar[str] = "packkv"
    knobs: ClassVar[tuple[str, ...]] = ("0.01", "0.02", "0.05", "k0.1v0.2", "k0.2v0.4", "k0.4v0.8")

    block: int = 64
    pack: int = 16
    buffer: int = 192
    order: str = "median"

    def __post_init__(self) -> None:
        if not (0 < self.pack <= self.block <= _MOST and 0 <= self.buffer <= _MOST) or self.block % self.pack:
            raise CompressorError(
                f"compressor packkv: block {self.block}, pack {self.pack} and buffer {self.buffer} are not possible"
            )
        if self.order not in _ORDERS:
            raise CompressorError(f"compressor packkv: order {self.order!r}; known: {', '.join(_ORDERS)}")

    def encode(self, cache: KVCache, context: PrefillContext, knob: str) -> Encoded:
        """See Compressor."""
        rates, stacks, shape = side_rates(self, knob, FINEST, 1), finite_stacks(cache), cache.shape
        coded = whole_blocks(shape.tokens, self.block, self.buffer)
        found = [quantise(s[:, :, :coded], _TOKEN, r) for s, r in zip(stacks, rates, strict=True)]
        blocks = [_blocks(side.codes, self.block) for side in found]
        facts: dict[str, Any] = {"block": self.block, "pack": self.pack, "coded": coded}
        sections: dict[str, Tensor | bytes] = {}
        if self.order != "none":
            places = (
                median_order(blocks[1]) if self.order == "median" else greedy_order(torch.cat(blocks, dim=2), self.pack)
            )
            blocks = [_taken(side, places) for side in blocks]
            sections["places"] = pack_bits(places, _place_bits(self.block))
        for side, stack, quantised, codes in zip(_SIDES, stacks, found, blocks, strict=True):
            facts[f"{side}_bits"], packed = _packed(codes, self.pack)
            sections |= {f"{side}_{name}": content for name, content in packed.items()}
            sections[f"{side}_zeros"], sections[f"{side}_steps"] = narrow(quantised.zeros), quantised.steps
            sections[f"{side}_raw"] = stack[:, :, coded:]
        return self.packed(shape, facts, sections)

    def decode(self, payload: bytes, device: torch.device | str = "cpu") -> DecodedCache:
        """See Compressor."""
        facts, sections, shape = self.opened(payload)
        block, tokens = whole_fact(facts, "block", 1, _MOST), whole_fact(facts, "pack", 1, _MOST)
        coded = whole_fact(facts, "coded", 0, shape.tokens)
        if block % tokens or coded % block:
            raise PayloadError(f"an encoded cache of {coded} tokens in blocks of {block} and packs of {tokens}")
        places = _stored_places(sections, shape.layers * (coded // block), block)
        decoded = []
        for side in _SIDES:
            raw_shape = (shape.layers, shape.heads, shape.tokens - coded, shape.head_dim)
            raw = finite_section(sections, f"{side}_raw", raw_shape, shape.torch_dtype).to(device)
            units = (shape.layers, 1, coded, 1)
            zeros = zero_section(sections, f"{side}_zeros", units).to(device)
            steps = step_section(sections, f"{side}_steps", units).to(device)
            bits = whole_fact(facts, f"{side}_bits", 1, 8)
            packs = (shape.layers * (coded // block), block // tokens, shape.heads * shape.head_dim)
            codes = _unpacked(sections, side, packs, tokens, bits, torch.device(device))
            if places is not None:
                codes = _put_back(codes, places.to(device))
            restored = restore(_tokens(codes, shape, coded), zeros, steps, shape.torch_dtype)
            decoded.append(torch.cat([restored, raw], dim=2))
        return DecodedCache(list(decoded[0]), list(decoded[1]), shape.tokens)

    def error_bound(self, cache: KVCache, knob: str) -> tuple[list[Tensor], list[Tensor]]:
        """Half a step and the rounding of the result; zero for raw tokens.  Per layer [1, T, 1], float64."""
        coded = whole_blocks(cache.shape.tokens, self.block, self.buffer)
        bounds = []
        for stack, rate in zip(finite_stacks(cache), side_rates(self, knob, FINEST, 1), strict=True):
            bound = torch.zeros(stack.shape[0], 1, stack.shape[2], 1, dtype=torch.float64)
            bound[:, :, :coded] = largest_error(stack[:, :, :coded], _TOKEN, rate)
            bounds.append(list(bound))
        return bounds[0], bounds[1]


def _blocks(codes: Tensor, block: int) -> Tensor:
    """[L, H, T, D] as [L * T / block, block, H * D]."""
    layers, heads, tokens, channels = codes.shape
    return codes.transpose(1, 2).reshape(layers * (tokens // block), block, heads * channels)


def _tokens(blocks: Tensor, shape: Shape, coded: int) -> Tensor:
    return blocks.reshape(shape.layers, coded, shape.heads, shape.head_dim).transpose(1, 2)


def _taken(blocks: Tensor, places: Tensor) -> Tensor:
    return blocks.gather(1, places.unsqueeze(-1).expand_as(blocks))


def _put_back(blocks: Tensor, places: Tensor) -> Tensor:
    return torch.empty_like(blocks).scatter_(1, places.unsqueeze(-1).expand_as(blocks), blocks)


def _place_bits(block: int) -> int:
    return max(1, (block - 1).bit_length())


def _packed(blocks: Tensor, tokens: int) -> tuple[int, dict[str, Tensor]]:
    """Bits of the largest code, and the sections of the packs: minima, widths, and residuals by width."""
    packs = blocks.unflatten(1, (blocks.shape[1] // tokens, tokens))  # [N, B / p, p, C]
    mins = packs.amin(2)
    widths = _BIT_LENGTHS.to(blocks.device)[(packs.amax(2) - mins).int()]
    residuals = (packs - mins.unsqueeze(2)).transpose(2, 3)  # [N, B / p, C, p]
    parts = [pack_bits(residuals[widths == width], width) for width in range(1, 9)]
    bits = max(1, int(blocks.max()).bit_length()) if blocks.numel() else 1
    return bits, {
        "mins": pack_bits(mins, bits),
        "widths": pack_bits(widths, bits.bit_length()),
        "residuals": torch.cat(parts),
    }


def _unpacked(
    sections: dict[str, Tensor], side: str, packs: tuple[int, int, int], tokens: int, bits: int, device: torch.device
) -> Tensor:
    """Blocks [N, B, C] from the sections that ``_packed`` made."""
    count = packs[0] * packs[1] * packs[2]
    streams = {}
    for name, width in (("mins", bits), ("widths", bits.bit_length())):
        stream = Compressor.section(sections, f"{side}_{name}", (packed_bytes(count, width),), torch.uint8)
        streams[name] = unpack_bits(stream.to(device), width, count)
    widths = streams["widths"]
    counts = torch.bincount(widths.int(), minlength=16).tolist()
    sizes = [packed_bytes(counts[width] * tokens, width) for width in range(1, bits + 1)]
    if any(counts[bits + 1 :]):
        raise PayloadError(f"section '{side}_widths' holds widths of more than {bits} bits")
    stream = Compressor.section(sections, f"{side}_residuals", (sum(sizes),), torch.uint8).to(device)
    codes = streams["mins"].unsqueeze(-1).repeat(1, tokens)
    for width, part in enumerate(stream.split(sizes), start=1):
        if counts[width]:
            codes[widths == width] += unpack_bits(part, width, counts[width] * tokens).view(-1, tokens)
    if bool((codes < streams["mins"].unsqueeze(-1)).any()):
        raise PayloadError(f"section '{side}_residuals' holds codes of more than 8 bits")
    return codes.view(*packs, tokens).transpose(2, 3).flatten(1, 2)


def _stored_places(sections: dict[str, Tensor], blocks: int, block: int) -> Tensor | None:
    """Which token of its block each place holds [blocks, block], int64; None where the order was kept."""
    if "places" not in sections:
        return None
    bits = _place_bits(block)
    stream = Compressor.section(sections, "places", (packed_bytes(blocks * block, bits),), torch.uint8)
    places = unpack_bits(stream, bits, blocks * block).view(blocks, block).long()
    if not bool((places.sort(dim=1).values == torch.arange(block)).all()):
        raise PayloadError("section 'places' is no order of the tokens of a block")
    return places
