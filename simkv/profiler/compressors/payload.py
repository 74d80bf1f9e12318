"""The bytes of an encoded cache: a checked container of named sections.

What it is: ``pack`` turns named tensors and byte strings into one self-contained payload, ``unpack`` reads one
back, and trusts nothing: every length is bounded by the payload, every section's shape by its bytes, and a
CRC32 covers the whole.  No pickle.  What it is not: a codec; compressors decide what the sections hold.

Layout (little endian): magic "SKV1", uint32 header length, header (JSON: what, facts, sections as [name, dtype,
shape]), the sections' raw bytes one after the other, uint32 CRC32 of all that precedes.
"""

import json
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkv.errors import SimkvError

__all__ = ["Encoded", "PayloadError", "pack", "unpack"]

_MAGIC = b"SKV1"
_MAX_HEADER = 1 << 20
_MAX_DIMS = 8
_MAX_ITEMS = 1 << 48
_DTYPES: dict[str, torch.dtype] = {
    "u8": torch.uint8,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class PayloadError(SimkvError):
    """Bytes that are no payload, are damaged or cut short, or do not fit the compressor that reads them."""


@dataclass(frozen=True)
class Encoded:
    """An encoded cache.

    Attributes:
        payload: the whole object; decoding needs nothing else but calibration data named in its facts.
        sections: bytes of each part, "header" and "checksum" among them; they sum to ``len(payload)``.
        facts: what the header says (JSON).
    """

    payload: bytes
    sections: dict[str, int]
    facts: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        """Stored bytes: the length of the payload, nothing else."""
        return len(self.payload)


def pack(what: str, facts: dict[str, Any], sections: dict[str, Tensor | bytes]) -> Encoded:
    """One payload from a format name, JSON-able facts and named sections (tensors on any device, or bytes).

    Raises PayloadError for a dtype that the container does not know.
    """
    listing: list[tuple[str, str, list[int]]] = []
    blobs: list[bytes] = []
    for name, content in sections.items():
        if isinstance(content, bytes):
            listing.append((name, "u8", [len(content)]))
            blobs.append(content)
            continue
        if content.dtype not in _NAMES:
            raise PayloadError(f"section {name!r}: dtype {content.dtype} cannot be stored")
        listing.append((name, _NAMES[content.dtype], list(content.shape)))
        flat = content.detach().cpu().contiguous().reshape(-1)
        # numpy gives an empty array no stride, so torch cannot view one as bytes
        blobs.append(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    header = json.dumps({"what": what, "facts": facts, "sections": listing}, separators=(",", ":")).encode()
    body = b"".join([_MAGIC, len(header).to_bytes(4, "little"), header, *blobs])
    payload = body + zlib.crc32(body).to_bytes(4, "little")
    sizes = {"header": len(_MAGIC) + 4 + len(header)}
    sizes.update({name: len(blob) for (name, _, _), blob in zip(listing, blobs, strict=True)})
    sizes["checksum"] = 4
    return Encoded(payload, sizes, facts)


def unpack(payload: bytes, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and sections (tensors on the CPU; byte strings come back as uint8) of a payload of format ``what``.

    Raises PayloadError naming what is wrong.
    """
    if len(payload) < 12 or payload[:4] != _MAGIC:
        raise PayloadError(f"not an encoded cache: {len(payload)} bytes that do not begin with {_MAGIC!r}")
    if zlib.crc32(payload[:-4]) != int.from_bytes(payload[-4:], "little"):
        raise PayloadError("an encoded cache that is damaged or cut short: its checksum does not match")
    length = int.from_bytes(payload[4:8], "little")
    if length > min(_MAX_HEADER, len(payload) - 12):
        raise PayloadError(f"an encoded cache whose header claims {length} bytes")
    try:
        header = json.loads(payload[8 : 8 + length])
        found, facts, listing = header["what"], header["facts"], header["sections"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PayloadError("an encoded cache whose header cannot be read") from error
    if found != what or not isinstance(facts, dict) or not isinstance(listing, list):
        raise PayloadError(f"an encoded cache of {found!r}, not of {what!r}")
    return facts, _sections(payload, 8 + length, listing)


def _sections(payload: bytes, start: int, listing: list[Any]) -> dict[str, Tensor]:
    end = len(payload) - 4
    sections: dict[str, Tensor] = {}
    for row in listing:
        name, dtype, shape = _section_row(row)
        size = math.prod(shape) * dtype.itemsize
        if size > end - start:
            raise PayloadError(f"section {name!r} claims {size} bytes, {end - start} are left")
        raw = np.frombuffer(payload, dtype=np.uint8, count=size, offset=start).copy()
        # numpy gives an empty array no stride, so torch cannot view one as another dtype
        sections[name] = torch.from_numpy(raw).view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
        start += size
    if start != end:
        raise PayloadError(f"{end - start} bytes belong to no section")
    return sections


def _section_row(row: Any) -> tuple[str, torch.dtype, list[int]]:
    if not (isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) and row[1] in list(_DTYPES)):
        raise PayloadError("an encoded cache whose list of sections cannot be read")
    shape = row[2]
    whole = isinstance(shape, list) and len(shape) <= _MAX_DIMS and all(type(size) is int for size in shape)
    if not whole or min(shape, default=0) < 0 or math.prod(max(size, 1) for size in shape) >= _MAX_ITEMS:
        raise PayloadError(f"section {row[0]!r} has no valid shape")
    return row[0], _DTYPES[row[1]], shape
