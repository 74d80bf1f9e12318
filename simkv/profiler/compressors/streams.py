"""Streams and tables of a CacheGen object: which symbols share a distribution, and their coding.

What it is: the order of parts, each with its own stream (``ans.py``): per layer the anchors, one distribution for
all channels, then windows of the other tokens, a distribution per channel.  A distribution is stored as 4 bits per
bin, unless the model's are known.  What it is not: quantisation (``deltas.py``).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simkv.profiler.compressors.ans import decode_rows, encode_rows, frequencies, grades_of
from simkv.profiler.compressors.base import Compressor
from simkv.profiler.compressors.bits import pack_bits, packed_bytes, unpack_bits
from simkv.profiler.compressors.deltas import ANCHOR_HALF, Deltas
from simkv.profiler.compressors.payload import PayloadError

__all__ = ["Distributions", "Part", "Plan", "decoded", "encoded", "pooled", "read_tables"]

Distributions = dict[tuple[int, bool], NDArray[np.uint8]]
"""Grades [rows, bins] by layer, and whether they are its anchors'."""


@dataclass(frozen=True)
class Part:
    """What shares one stream: ``rows`` rows of symbols below ``bins``, of tokens ``start`` to ``stop``."""

    layer: int
    anchors: bool
    start: int
    stop: int
    rows: int
    bins: int


@dataclass(frozen=True)
class Plan:
    """Sizes of a side: anchors and other tokens, channels of a token, tokens of a window (0: all), largest codes."""

    anchors: int
    others: int
    channels: int
    window: int
    halves: tuple[int, ...]

    def parts(self) -> Iterator[Part]:
        """In the order in which tables and streams are stored."""
        step = self.window or self.others or 1
        for layer, half in enumerate(self.halves):
            if self.anchors:
                yield Part(layer, True, 0, self.anchors, 1, 2 * ANCHOR_HALF + 1)
            for start in range(0, self.others, step):
                yield Part(layer, False, start, min(self.others, start + step), self.channels, 2 * half + 1)


def encoded(found: Deltas, plan: Plan, fitted: Distributions) -> dict[str, bytes | Tensor]:
    """Sections "lengths", "tables" and "streams"; tables are left out where distributions were fitted."""
    tables: list[bytes] = []
    streams: list[bytes] = []
    for part in plan.parts():
        symbols = _symbols(found, part)
        if fitted:
            grades = fitted[part.layer, part.anchors]
        else:
            grades = grades_of(_counts(symbols, part.bins))
            tables.append(_packed(grades))
        streams.append(encode_rows(symbols, frequencies(grades)))
    lengths = torch.tensor([len(stream) for stream in streams], dtype=torch.int32)
    return {"lengths": lengths, "tables": b"".join(tables), "streams": b"".join(streams)}


def decoded(sections: dict[str, Tensor], side: str, plan: Plan, fitted: Distributions) -> tuple[Tensor, Tensor]:
    """Codes of the anchors and of the other tokens, [L, tokens, C].  Raises PayloadError."""
    parts = list(plan.parts())
    lengths = Compressor.section(sections, f"{side}_lengths", (len(parts),), torch.int32).tolist()
    tables, streams = (_bytes(sections, f"{side}_{name}") for name in ("tables", "streams"))
    if min(lengths, default=0) < 0 or sum(lengths) != len(streams):
        raise PayloadError(f"section '{side}_lengths' does not add up to the streams")
    anchors = torch.empty(len(plan.halves), plan.anchors, plan.channels, dtype=torch.uint8)
    others = torch.empty(len(plan.halves), plan.others, plan.channels, dtype=torch.uint8)
    for part, stream in zip(parts, streams.split(lengths), strict=True):
        if fitted:
            grades = fitted[part.layer, part.anchors]
        else:
            grades, tables = _unpacked(tables, part)
        length = (part.stop - part.start) * (plan.channels // part.rows)
        symbols = torch.from_numpy(decode_rows(stream.numpy(), frequencies(grades), length))
        if part.anchors:
            anchors[part.layer] = symbols.view(-1, plan.channels)
        else:
            others[part.layer, part.start : part.stop] = symbols.T
    if len(tables):
        raise PayloadError(f"section '{side}_tables' holds {len(tables)} bytes too many")
    return anchors, others


def pooled(samples: Iterable[tuple[Deltas, Plan]]) -> bytes:
    """Tables of all samples together, with a frequency for every symbol; ``read_tables`` reads them."""
    counts: dict[tuple[int, bool], NDArray[np.int64]] = {}
    for found, plan in samples:
        for part in replace(plan, window=0).parts():
            place = (part.layer, not part.anchors)
            counts[place] = counts.get(place, 1) + _counts(_symbols(found, part), part.bins)
    return b"".join(_packed(grades_of(counts[place])) for place in sorted(counts))


def read_tables(data: bytes, plan: Plan) -> Distributions:
    """Raises PayloadError unless the tables are of this plan's layers and channels."""
    fitted: Distributions = {}
    rest = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    for part in replace(plan, anchors=min(plan.anchors, 1), others=1, window=0).parts():
        fitted[part.layer, part.anchors], rest = _unpacked(rest, part)
    if len(rest):
        raise PayloadError(f"{len(rest)} bytes of tables too many")
    return fitted


def _symbols(found: Deltas, part: Part) -> NDArray[np.uint8]:
    """[rows, symbols] of a part."""
    codes = (found.anchors if part.anchors else found.codes)[part.layer, part.start : part.stop]
    return (codes.reshape(1, -1) if part.anchors else codes.T).cpu().contiguous().numpy()


def _counts(symbols: NDArray[np.uint8], bins: int) -> NDArray[np.int64]:
    rows = np.arange(len(symbols))[:, None] * bins
    return np.bincount((symbols + rows).reshape(-1), minlength=len(symbols) * bins).reshape(-1, bins)


def _packed(grades: NDArray[np.uint8]) -> bytes:
    return pack_bits(torch.from_numpy(grades), 4).numpy().tobytes()


def _unpacked(data: Tensor, part: Part) -> tuple[NDArray[np.uint8], Tensor]:
    """Grades of a part from the beginning of a section of tables, and what follows them."""
    size = packed_bytes(part.rows * part.bins, 4)
    grades = unpack_bits(data[:size], 4, part.rows * part.bins)
    return grades.view(part.rows, part.bins).numpy(), data[size:]


def _bytes(sections: dict[str, Tensor], name: str) -> Tensor:
    found = sections.get(name)
    if found is None or found.dtype != torch.uint8 or found.ndim != 1:
        raise PayloadError(f"section {name!r} is missing or does not hold bytes")
    return found
