"""Which tokens a dropper kept, as few bytes: a bitmap or the gaps between them, whichever is smaller.

What it is: ``pack_positions`` and ``unpack_positions``, the section and facts that travel beside kept keys and
values.  What it is not: the choice (``dropping.py`` and the methods).

Kept positions are per layer [n] (one set for all heads) or [H, n] (a set per head), ascending; n may differ between
layers.  A set that all layers share is stored once.
"""

from typing import Any

import torch
from torch import Tensor

from simkv.profiler.compressors.base import Shape
from simkv.profiler.compressors.bits import pack_bits, packed_bytes, unpack_bits
from simkv.profiler.compressors.payload import PayloadError

__all__ = ["pack_positions", "unpack_positions"]

_MOST_GAP_BITS = 16
_SETS = ("shared", "layer", "head")


def pack_positions(kept: list[Tensor], tokens: int) -> tuple[dict[str, Any], Tensor]:
    """Facts and bytes of the kept positions of every layer, out of ``tokens``.

    Facts: "counts" kept per layer; "sets": "shared" by all layers, one per "layer", or one per "head"; "gap_bits":
    width of the gaps, 0 for a bitmap.
    """
    kept = [positions.cpu() for positions in kept]
    if kept[0].ndim == 2:
        sets, rows = "head", [row for positions in kept for row in positions]
    elif all(torch.equal(kept[0], positions) for positions in kept):
        sets, rows = "shared", kept[:1]
    else:
        sets, rows = "layer", kept
    facts: dict[str, Any] = {"counts": [positions.shape[-1] for positions in kept], "sets": sets, "gap_bits": 0}
    gaps = torch.cat([row.diff(prepend=row.new_tensor([-1])) - 1 for row in rows])
    width = max(1, int(gaps.max()).bit_length())
    if width <= _MOST_GAP_BITS and packed_bytes(len(gaps), width) < packed_bytes(len(rows) * tokens, 1):
        facts["gap_bits"] = width
        return facts, pack_bits(gaps.to(torch.int32), width)
    mask = torch.zeros(len(rows), tokens, dtype=torch.uint8)
    for place, row in enumerate(rows):
        mask[place, row] = 1
    return facts, pack_bits(mask, 1)


def unpack_positions(facts: dict[str, Any], data: Tensor | None, shape: Shape) -> list[Tensor]:
    """The kept positions of every layer, checked: ascending, within the cache, as many as the facts say.

    Raises PayloadError.
    """
    counts, sets, width = facts.get("counts"), facts.get("sets"), facts.get("gap_bits")
    if not isinstance(counts, list) or len(counts) != shape.layers:
        raise PayloadError(f"kept tokens are not counted for each of {shape.layers} layers")
    if any(type(count) is not int or not 0 < count <= shape.tokens for count in counts):
        raise PayloadError(f"a layer keeps fewer than 1 or more than {shape.tokens} tokens")
    if sets not in _SETS or type(width) is not int or not 0 <= width <= _MOST_GAP_BITS or data is None:
        raise PayloadError("an encoded cache without readable positions of its tokens")
    if sets == "shared":
        if any(count != counts[0] for count in counts):
            raise PayloadError("layers that share their kept tokens do not keep equally many")
        return _rows(counts[:1], data, width, shape.tokens) * shape.layers
    if sets == "layer":
        return _rows(counts, data, width, shape.tokens)
    heads = shape.heads
    # Checked before the list of a row per head is made: it must not be longer than the bytes that are there.
    _check_length(data, sum(counts) * heads, len(counts) * heads, width, shape.tokens)
    rows = _rows([count for count in counts for _ in range(heads)], data, width, shape.tokens)
    return [torch.stack(rows[layer * heads : (layer + 1) * heads]) for layer in range(shape.layers)]


def _check_length(data: Tensor, kept: int, rows: int, width: int, tokens: int) -> None:
    expected = packed_bytes(kept, width) if width else packed_bytes(rows * tokens, 1)
    if data.dtype != torch.uint8 or data.ndim != 1 or len(data) != expected:
        raise PayloadError(f"positions of kept tokens take {data.numel()} bytes where {expected} are expected")


def _rows(counts: list[int], data: Tensor, width: int, tokens: int) -> list[Tensor]:
    """The positions of every set, from gaps of ``width`` bits or, for width 0, from a bitmap."""
    _check_length(data, sum(counts), len(counts), width, tokens)
    if width:
        steps = unpack_bits(data, width, sum(counts)).to(torch.int64) + 1
        rows = [row.cumsum(0) - 1 for row in steps.split(counts)]
        if any(int(row[-1]) >= tokens for row in rows):
            raise PayloadError(f"a kept token lies beyond the {tokens} tokens of the cache")
        return rows
    mask = unpack_bits(data, 1, len(counts) * tokens).view(len(counts), tokens)
    if mask.sum(dim=1).tolist() != counts:
        raise PayloadError("the bitmap of kept tokens does not hold as many as are counted")
    return list(mask.nonzero()[:, 1].split(counts))
