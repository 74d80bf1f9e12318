"""Codes of 1 to 16 bits as bytes, and back.

What it is: dense packing, vectorised, on any device.  Code ``i`` takes bits ``i * width`` to ``(i + 1) * width - 1``
of the stream, least significant bit first, so eight codes take ``width`` whole bytes; only the last byte is padded.
What it is not: entropy coding (``huffman.py``).
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from simkv.profiler.compressors.payload import PayloadError

__all__ = ["pack_bits", "packed_bytes", "unpack_bits"]

_MOST_BITS = 16


def packed_bytes(count: int, width: int) -> int:
    """Bytes that ``count`` codes of ``width`` bits take."""
    return (count * width + 7) // 8


def pack_bits(codes: Tensor, width: int) -> Tensor:
    """The codes, in their flat order, as a 1-D uint8 tensor of ``packed_bytes(codes.numel(), width)``.

    Codes are integers (uint8 is fastest) from 0 to ``2**width - 1``.  Raises ValueError for others, and for a width
    outside 1 to 16.
    """
    _check_width(width)
    flat = codes.reshape(-1)
    low, high = (int(edge) for edge in torch.aminmax(flat)) if flat.numel() else (0, 0)
    if low < 0 or high >= 1 << width:
        raise ValueError(f"codes from {low} to {high} do not fit {width} bits")
    flat = flat.to(torch.uint8 if width <= 8 else torch.int32)
    if width == 8:
        return flat.clone()
    count = flat.numel()
    lanes = pad(flat, (0, -count % 8)).view(-1, 8)
    packed = torch.zeros(lanes.shape[0], width, dtype=torch.uint8, device=flat.device)
    for lane, byte, shift in _places(width):
        part = lanes[:, lane] << shift if shift >= 0 else lanes[:, lane] >> -shift
        packed[:, byte] |= (part if width <= 8 else part & 255).to(torch.uint8)
    return packed.view(-1)[: packed_bytes(count, width)].clone()


def unpack_bits(data: Tensor, width: int, count: int) -> Tensor:
    """The ``count`` codes packed in a 1-D uint8 tensor: uint8 up to 8 bits, int32 above.

    Raises PayloadError when the data is not exactly as long as so many codes are; ValueError for a width outside 1
    to 16.
    """
    _check_width(width)
    if data.dtype != torch.uint8 or data.ndim != 1 or data.numel() != packed_bytes(count, width):
        raise PayloadError(f"{data.numel()} packed bytes are not {count} codes of {width} bits")
    if width == 8:
        return data.clone()
    groups = (count + 7) // 8
    stream = pad(data, (0, groups * width - data.numel())).view(groups, width)
    lanes = torch.zeros(groups, 8, dtype=torch.uint8 if width <= 8 else torch.int32, device=data.device)
    for lane, byte, shift in _places(width):
        part = stream[:, byte] if width <= 8 else stream[:, byte].to(torch.int32)
        lanes[:, lane] |= part >> shift if shift >= 0 else part << -shift
    lanes &= (1 << width) - 1
    return lanes.view(-1)[:count].clone()


def _check_width(width: int) -> None:
    if not 1 <= width <= _MOST_BITS:
        raise ValueError(f"codes of {width} bits; 1 to {_MOST_BITS} are possible")


def _places(width: int) -> Iterator[tuple[int, int, int]]:
    """(code, byte, left shift of the code) for every byte that a code of a group of eight touches."""
    for lane in range(8):
        first = lane * width
        for byte in range(first // 8, (first + width - 1) // 8 + 1):
            yield lane, byte, first - 8 * byte
