"""Fused decoders: the same cache as the reference's, from the same bytes, with or without a compiler."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from simkv.profiler.compressors import chunks, kivi, kvcomp, make_compressor, turboquant
from simkv.profiler.compressors.base import Compressor, DecodedCache, KVCache, PrefillContext
from simkv.profiler.compressors.bits import pack_bits
from simkv.profiler.compressors.fused import codes_at
from simkv.profiler.compressors.payload import PayloadError
from simkv.profiler.random_caches import CacheShape, random_cache

MODULES = (kivi, kvcomp, turboquant)


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' arithmetic as it stands: a compiler takes minutes on a CPU."""
    torch.set_num_threads(1)

    def as_it_is(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return function

    monkeypatch.setattr(chunks, "compiled", as_it_is)
    for module in MODULES:
        monkeypatch.setattr(module, "compiled", as_it_is)
        monkeypatch.setattr(module, "compiles", lambda device: True)


@pytest.mark.parametrize("width", range(1, 9))
def test_codes_are_found_where_they_are_packed(width: int) -> None:
    """Every code from its own place, also in the middle of a stream, up to its last byte."""
    codes = torch.randint(0, 1 << width, (7, 5), generator=torch.Generator().manual_seed(width)).to(torch.uint8)
    packed = pack_bits(codes, width)
    assert torch.equal(codes, codes_at(packed, width, (7, 5)).to(torch.uint8))
    assert torch.equal(codes[3:], codes_at(packed, width, (4, 5), first=15).to(torch.uint8))


def _both(name: str, cache: KVCache, knob: str) -> tuple[DecodedCache, DecodedCache, Compressor]:
    _, context = random_cache(CacheShape(2, 2, 4, cache.shape.head_dim), cache.shape.tokens, "cpu", torch.float16, 0)
    plain = make_compressor(name)
    fast = plain.fused("cpu")
    payload = plain.encode(cache, context, knob).payload
    assert payload == fast.encode(cache, context, knob).payload
    return plain.decode(payload), fast.decode(payload), fast


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 127, 128, 300])
@pytest.mark.parametrize(
    ("name", "knob"), [("kivi", "2"), ("kivi", "k4v3"), ("turboquant", "k8v3"), ("chain:snapkv+kivi", "0.5+4")]
)
def test_fused_equals_reference(name: str, knob: str, tokens: int, dtype: torch.dtype) -> None:
    """To within one rounding of the cache's dtype, whatever the length and the head dimension."""
    for head_dim in (16, 40):
        cache, _ = random_cache(CacheShape(2, 2, 4, head_dim), tokens, "cpu", dtype, 0)
        plain, fast, _ = _both(name, cache, knob)
        assert plain.next_position == fast.next_position
        for side in ("keys", "values"):
            for left, right in zip(getattr(plain, side), getattr(fast, side), strict=True):
                assert left.dtype == right.dtype == dtype
                slack = 2 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
                torch.testing.assert_close(left, right, rtol=slack, atol=slack)


@pytest.mark.parametrize(
    ("knob", "dtype", "fitted"),
    [("0.02", torch.float16, True), ("k0.4v0.8", torch.bfloat16, False), ("1", torch.float32, False)],
)
def test_fused_kvcomp_equals_the_reference_bit_for_bit(knob: str, dtype: torch.dtype, fitted: bool) -> None:
    """With codebooks of the model and of the object, with and without coded blocks, and of constant caches."""
    shape = CacheShape(2, 2, 4, 8)
    cache, _ = random_cache(shape, 70, "cpu", dtype, 0)
    constant = KVCache([torch.ones_like(key) for key in cache.keys], [torch.ones_like(key) for key in cache.keys])
    plain = replace(make_compressor("kvcomp"), buffer=16, block=16)  # type: ignore[call-arg]
    plain = plain.fit([random_cache(shape, 64, "cpu", dtype, 1)[0]]) if fitted else plain
    fast = plain.fused("cpu")
    for one in (cache, constant, random_cache(shape, 1, "cpu", dtype, 0)[0]):
        payload = plain.encode(one, PrefillContext(), knob).payload
        assert payload == fast.encode(one, PrefillContext(), knob).payload
        left, right = plain.decode(payload), fast.decode(payload)
        for side in ("keys", "values"):
            found = zip(getattr(left, side), getattr(right, side), strict=True)
            assert all(torch.equal(a, b) and a.dtype == b.dtype == dtype for a, b in found)


def test_fused_decoders_say_so_and_keep_name_and_parameters() -> None:
    """So that their rows are told apart, and their payloads are not."""
    plain = replace(make_compressor("kivi"), residual=32)  # type: ignore[call-arg]
    fast = plain.fused("cpu")
    assert ("reference", "fused") == (plain.implementation, fast.implementation)
    assert (plain.name, plain.format, 32) == (fast.name, fast.format, fast.residual)  # type: ignore[attr-defined]
    assert fast is fast.fused("cpu")
    assert make_compressor("int8").fused("cpu") == make_compressor("int8")


def test_without_a_compiler_decoders_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is returned, and says that it is."""
    for module in MODULES:
        monkeypatch.setattr(module, "compiles", lambda device: False)
    for name in ("kivi", "kvcomp", "turboquant", "chain:snapkv+kivi"):
        assert make_compressor(name) == make_compressor(name).fused("cpu")


def test_damaged_payloads_are_refused_alike() -> None:
    """The checks are the reference's."""
    cache, _ = random_cache(CacheShape(2, 2, 4, 16), 160, "cpu", torch.float16, 0)
    for name, knob in (("kivi", "4"), ("kvcomp", "0.1")):
        fast = make_compressor(name).fused("cpu")
        payload = fast.encode(cache, PrefillContext(), knob).payload
        with pytest.raises(PayloadError):
            fast.decode(payload[:-8])
