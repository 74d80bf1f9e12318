"""Laws that every compressor obeys, and the caches and damaged payloads that they are tried on.

``test_compressor_laws.py`` runs them over every class in COMPRESSORS; a plug-in's author can run them the same way.
"""

import json
import math
import random
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from simkv.profiler.compressors.base import (
    Compressor,
    CompressorError,
    DecodedCache,
    KVCache,
    PrefillContext,
    Shape,
)
from simkv.profiler.compressors.payload import Encoded, PayloadError, pack, unpack

QUERY_HEADS = 8
BAD_KNOBS = ("nonsense", "-1", "nan", "1e9", "k4", "4v", " 4", "4\n", "٤", "k16v8v2", "+", "0x4", "9" * 5000)
BAD_FACTS: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**70, 0.5, math.nan, math.inf, "", "x", [], [0], [1, 2, 3], [2**40] * 4, {},
)  # fmt: skip
BAD_SHAPES: tuple[Any, ...] = (None, [], [0], [-1], [2**39], [2**39] * 4, [1] * 9, [0, 2**39, 2**39], ["x"], 7, [True])


def sample(
    tokens: int,
    heads: int = 2,
    head_dim: int = 32,
    dtype: torch.dtype = torch.float16,
    layers: int = 2,
    seed: int = 0,
) -> tuple[KVCache, PrefillContext]:
    """A cache with large key channels before RoPE, and all side information, from a seed."""
    torch.set_num_threads(1)
    source = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> list[Tensor]:
        return [torch.randn(*size, generator=source) for _ in range(layers)]

    places = torch.arange(tokens, dtype=torch.float64).unsqueeze(1)
    phases = (places * 1e4 ** (-torch.arange(0, head_dim, 2) / head_dim)).repeat(1, 2)
    cos, sin = phases.cos().float(), phases.sin().float()
    loud = torch.ones(head_dim)
    loud[::11] = 8.0
    plain = [key * loud + loud for key in normal(heads, tokens, head_dim)]
    turned = [key * cos + torch.cat([-key[..., head_dim // 2 :], key[..., : head_dim // 2]], -1) * sin for key in plain]
    values, queries = normal(heads, tokens, head_dim), normal(QUERY_HEADS, tokens, head_dim)
    context = PrefillContext(
        queries=[query[:, -64:] for query in queries],
        attention=[mass.softmax(-1) for mass in normal(QUERY_HEADS, tokens)],
        rope_angles=(cos, sin),
    )
    return KVCache([key.to(dtype) for key in turned], [value.to(dtype) for value in values]), context


def normal_cache(
    tokens: int, heads: int, head_dim: int, layers: int = 1, dtype: torch.dtype = torch.float16
) -> KVCache:
    """Gaussian keys and values."""
    torch.set_num_threads(1)
    source = torch.Generator().manual_seed(3)
    both = [torch.randn(heads, tokens, head_dim, generator=source).to(dtype) for _ in range(2 * layers)]
    return KVCache(both[:layers], both[layers:])


def edited(compressor: Compressor, payload: bytes, name: str, content: Tensor) -> bytes:
    """A payload with one section replaced by another, checksum and all."""
    facts, sections = unpack(payload, compressor.format)
    assert sections[name].shape == content.shape
    return pack(compressor.format, facts, {**sections, name: content}).payload


def ready(kind: type[Compressor], heads: int = 2, head_dim: int = 32, dtype: torch.dtype = torch.float16) -> Compressor:
    """An instance with default parameters, calibrated on other caches if it asks for that."""
    compressor = kind()
    if "calibration" in compressor.needs:
        compressor = compressor.fit([sample(128, heads, head_dim, dtype, seed=seed)[0] for seed in (101, 102)])
    return compressor


def assert_decodes(compressor: Compressor, cache: KVCache, context: PrefillContext, knob: str) -> int:
    """Encoding and decoding repeat, the bytes add up, the result fits the cache and its bound.  The size in bytes."""
    encoded = compressor.encode(cache, context, knob)
    assert encoded.payload == compressor.encode(cache, context, knob).payload
    assert len(encoded.payload) == encoded.size_bytes == sum(encoded.sections.values())
    decoded = compressor.decode(encoded.payload)
    again = compressor.decode(encoded.payload)
    for one, two in zip((*decoded.keys, *decoded.values), (*again.keys, *again.values), strict=True):
        assert torch.equal(one, two)
    assert_well_formed(decoded, cache.shape)
    assert all(bool(side.isfinite().all()) for side in (*decoded.keys, *decoded.values))
    _assert_within_bound(compressor, cache, decoded, knob)
    return encoded.size_bytes


def assert_well_formed(decoded: DecodedCache, shape: Shape) -> None:
    """Layers, heads, dtype and next position are the cache's; kept positions rise and exist."""
    assert shape.tokens == decoded.next_position
    assert shape.layers == len(decoded.keys) == len(decoded.values)
    for layer, (key, value) in enumerate(zip(decoded.keys, decoded.values, strict=True)):
        tokens = key.shape[1]
        assert (shape.heads, tokens, shape.head_dim) == tuple(key.shape) == tuple(value.shape)
        assert shape.torch_dtype == key.dtype == value.dtype
        if decoded.kept is None:
            assert shape.tokens == tokens
            continue
        kept = decoded.kept[layer]
        assert tuple(kept.shape) in ((tokens,), (shape.heads, tokens))
        assert tokens
        assert int(kept.min()) >= 0 and int(kept.max()) < shape.tokens
        assert bool((kept.diff(dim=-1) > 0).all())


def _assert_within_bound(compressor: Compressor, cache: KVCache, decoded: DecodedCache, knob: str) -> None:
    bound = compressor.error_bound(cache, knob)
    if bound is None:
        return
    given, found = (*cache.keys, *cache.values), (*decoded.keys, *decoded.values)
    for before, after, most in zip(given, found, (*bound[0], *bound[1]), strict=True):
        assert bool(((before.double() - after.double()).abs() <= most.double()).all())


def assert_refuses_knobs(compressor: Compressor) -> None:
    """A text that is no knob is one line of CompressorError."""
    cache, context = sample(40)
    for knob in BAD_KNOBS:
        with pytest.raises(CompressorError) as caught:
            compressor.encode(cache, context, knob)
        assert "\n" not in str(caught.value)


def assert_survives_nonfinite(compressor: Compressor) -> None:
    """NaN or infinity in the cache is refused by the encoder, or comes through to a cache again."""
    for side, worst in (("keys", math.nan), ("keys", math.inf), ("values", -math.inf), ("values", math.nan)):
        cache, context = sample(161)
        getattr(cache, side)[1][0, 3, 5] = worst
        for knob in compressor.knobs:
            try:
                payload = compressor.encode(cache, context, knob).payload
            except CompressorError:
                continue
            assert_well_formed(compressor.decode(payload), cache.shape)


def assert_refuses_damage(compressor: Compressor, encoded: Encoded) -> None:
    """Cut, extended, flipped or foreign bytes are always a PayloadError."""
    payload = encoded.payload
    source = random.Random(0)
    cuts = {*range(16), *(source.randrange(len(payload)) for _ in range(20)), len(payload) - 1}
    damaged = [payload[:cut] for cut in cuts] + [payload + b"\0", payload[1:], payload[::-1]]
    for _ in range(40):
        place = source.randrange(len(payload))
        damaged.append(payload[:place] + bytes([payload[place] ^ 1 << source.randrange(8)]) + payload[place + 1 :])
    facts = {"shape": [1, 1, 1, 1], "dtype": "f16"}
    damaged += [pack("other/1", facts, {}).payload, pack(compressor.format, {}, {}).payload, source.randbytes(200)]
    damaged += [pack(compressor.format, facts, {}).payload, pack(f"{compressor.format}1", facts, {}).payload]
    for data in damaged:
        with pytest.raises(PayloadError) as caught:
            compressor.decode(data)
        assert "\n" not in str(caught.value)


def assert_survives_forgery(compressor: Compressor, encoded: Encoded) -> None:
    """Bytes changed on purpose, the checksum with them, give a PayloadError or a cache of the shape they claim."""
    refused = 0
    forgeries = [*_flips(encoded.payload), *_forged_headers(encoded.payload), *_forged_contents(encoded)]
    for data in forgeries:
        try:
            decoded = compressor.decode(data)
        except PayloadError:
            refused += 1
            continue
        assert_well_formed(decoded, Shape.from_facts(_header(data)[0]["facts"]))
    assert refused > len(forgeries) // 4


def _sealed(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def _header(payload: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(payload[4:8], "little")
    return json.loads(payload[8 : 8 + length]), payload[8 + length : -4]


def _with_header(payload: bytes, header: Any) -> bytes:
    text = json.dumps(header).encode()
    return _sealed(payload[:4] + len(text).to_bytes(4, "little") + text + _header(payload)[1])


def _flips(payload: bytes) -> Iterator[bytes]:
    """Bits changed all over the header and here and there behind it."""
    source = random.Random(1)
    body = payload[:-4]
    behind = 8 + int.from_bytes(payload[4:8], "little")
    places = [*range(4, behind, 3), *(source.randrange(behind, len(body)) for _ in range(60))]
    for place in places:
        yield _sealed(body[:place] + bytes([body[place] ^ 1 << source.randrange(8)]) + body[place + 1 :])


def _forged_headers(payload: bytes) -> Iterator[bytes]:
    """Facts and section rows that are missing, of a wrong type, or out of range."""
    for name in _header(payload)[0]["facts"]:
        for bad in BAD_FACTS:
            header = _header(payload)[0]
            header["facts"][name] = bad
            yield _with_header(payload, header)
        header = _header(payload)[0]
        del header["facts"][name]
        yield _with_header(payload, header)
    for row in range(len(_header(payload)[0]["sections"])):
        for column, bads in ((0, ("x", None)), (1, ("f32", "u8", "i64", [], {})), (2, BAD_SHAPES)):
            for bad in bads:
                header = _header(payload)[0]
                header["sections"][row][column] = bad
                yield _with_header(payload, header)
    for bad in ([], 7, {"what": 1}, {**_header(payload)[0], "sections": [7]}, {**_header(payload)[0], "facts": []}):
        yield _with_header(payload, bad)


def _forged_contents(encoded: Encoded) -> Iterator[bytes]:
    """Each section overwritten by zeros, ones, the bytes of infinity and NaN, noise, and itself turned round."""
    body = encoded.payload[:-4]
    start = encoded.sections["header"]
    for name, size in encoded.sections.items():
        if name in ("header", "checksum"):
            continue
        whole = body[start : start + size]
        noise = random.Random(size).randbytes(size)
        infinite, nan = (b"\x00\x7c" * size)[:size], (b"\x00\x00\xc0\x7f" * size)[:size]
        for content in (bytes(size), b"\xff" * size, b"\x7f" * size, infinite, nan, noise, whole[::-1]):
            yield _sealed(body[:start] + content + body[start + size :])
        start += size
