"""The laws of ``compressor_laws.py``, over every compressor in the table."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from simkv.profiler.compressors import COMPRESSORS
from simkv.profiler.compressors.base import CompressorError, DecodedCache, KVCache, PrefillContext
from simkv.profiler.compressors.identity import Identity
from simkv.profiler.compressors.int8 import Int8
from simkv.profiler.compressors.payload import Encoded, pack
from tests.profiler import compressor_laws as laws

NAMES = sorted(COMPRESSORS)
# lengths around the windows and groups in use (16, 32, 64, 128), primes, and the shortest
LENGTHS = (1, 2, 7, 15, 16, 17, 31, 32, 33, 61, 63, 64, 65, 127, 128, 129, 191, 257)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("heads", "head_dim", "dtype"),
    [
        (2, 32, torch.float16),
        (8, 64, torch.bfloat16),
        (2, 80, torch.float32),
        (8, 80, torch.float16),
        (2, 64, torch.float32),
        (8, 32, torch.float32),
    ],
    ids=str,
)
def test_every_knob_round_trips(name: str, heads: int, head_dim: int, dtype: torch.dtype) -> None:
    """Any head count, head dimension and dtype: deterministic, sizes add up, shapes and positions right, bound held."""
    compressor = laws.ready(COMPRESSORS[name], heads, head_dim, dtype)
    cache, context = laws.sample(161, heads, head_dim, dtype)
    for knob in compressor.knobs:
        laws.assert_decodes(compressor, cache, context, knob)


@pytest.mark.parametrize("name", NAMES)
def test_every_length_round_trips(name: str) -> None:
    """One token, one less, as many and one more than a window or group, and primes."""
    compressor = laws.ready(COMPRESSORS[name])
    for tokens in LENGTHS:
        cache, context = laws.sample(tokens)
        for knob in compressor.knobs:
            laws.assert_decodes(compressor, cache, context, knob)


@pytest.mark.parametrize("name", NAMES)
def test_extreme_values_round_trip(name: str) -> None:
    """All zeros, one constant, tiny numbers and large ones are coded, within the bound, or refused in a line."""
    compressor = laws.ready(COMPRESSORS[name])
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        cache, context = laws.sample(161, dtype=dtype)
        for scale, shift in ((0.0, 0.0), (0.0, 3.7), (1e-7, 0.0), (1e-7, 1.0), (3e3, 0.0), (1e-30, 0.0), (1e20, 0.0)):
            keys, values = ([side * scale + shift for side in part] for part in (cache.keys, cache.values))
            if not all(bool(side.isfinite().all()) for side in (*keys, *values)):
                continue
            for knob in compressor.knobs:
                try:
                    laws.assert_decodes(compressor, KVCache(keys, values), context, knob)
                except CompressorError as error:
                    assert scale > 1e3, f"{dtype} {scale} {shift}"
                    assert "\n" not in str(error)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("heads", "head_dim"), [(2, 32), (8, 80)], ids=str)
def test_sizes_fall_along_the_ladder(name: str, heads: int, head_dim: int) -> None:
    """No knob is larger than the one before it; there are at least four, and the last is smaller than the first."""
    compressor = laws.ready(COMPRESSORS[name], heads, head_dim)
    for tokens in (2, 33, 129, 300):
        cache, context = laws.sample(tokens, heads, head_dim)
        sizes = [compressor.encode(cache, context, knob).size_bytes for knob in compressor.knobs]
        assert sorted(sizes, reverse=True) == sizes, f"{tokens} tokens"
    if name != "identity":
        assert len(set(compressor.knobs)) == len(compressor.knobs) >= 4
        assert sizes[-1] < sizes[0]
        assert sizes[-1] < cache.shape.raw_bytes


@pytest.mark.parametrize("name", NAMES)
def test_unknown_knobs_are_refused(name: str) -> None:
    """A knob that does not exist is a CompressorError of one line."""
    laws.assert_refuses_knobs(laws.ready(COMPRESSORS[name]))


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_are_refused_or_kept(name: str) -> None:
    """A cache that is not finite never gives bytes that cannot be decoded."""
    laws.assert_survives_nonfinite(laws.ready(COMPRESSORS[name]))


@pytest.mark.parametrize("name", NAMES)
def test_damaged_bytes_are_refused(name: str) -> None:
    """Cut, longer, flipped and foreign payloads raise PayloadError."""
    compressor = laws.ready(COMPRESSORS[name])
    cache, context = laws.sample(161)
    laws.assert_refuses_damage(compressor, compressor.encode(cache, context, compressor.knobs[-1]))


@pytest.mark.parametrize("name", NAMES)
def test_forged_bytes_never_crash_the_decoder(name: str) -> None:
    """With the checksum recomputed: PayloadError, or a cache of the claimed shape with positions that exist."""
    compressor = laws.ready(COMPRESSORS[name])
    cache, context = laws.sample(161)
    for knob in (compressor.knobs[0], compressor.knobs[-1]):
        laws.assert_survives_forgery(compressor, compressor.encode(cache, context, knob))


@pytest.mark.parametrize("name", NAMES)
def test_uneven_caches_are_refused(name: str) -> None:
    """Layers of different length or dtype are a CompressorError."""
    compressor = laws.ready(COMPRESSORS[name])
    cache, context = laws.sample(40)
    for odd in (cache.keys[1][:, :-1], cache.keys[1].float(), cache.keys[1].int()):
        with pytest.raises(CompressorError):
            compressor.encode(KVCache([cache.keys[0], odd], cache.values), context, compressor.knobs[0])


def test_identity_is_exact() -> None:
    """The identity gives back every bit, of NaN too."""
    compressor = laws.ready(COMPRESSORS["identity"])
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        cache, context = laws.sample(161, dtype=dtype)
        cache.keys[0][0, 0, 0] = torch.nan
        decoded = compressor.decode(compressor.encode(cache, context, "").payload)
        for before, after in zip((*cache.keys, *cache.values), (*decoded.keys, *decoded.values), strict=True):
            assert torch.equal(before.view(torch.uint8), after.view(torch.uint8))


@dataclass(frozen=True)
class Broken(Identity):
    """The identity with one fault."""

    fault: str = ""
    knobs: ClassVar[tuple[str, ...]] = ("",)

    def encode(self, cache: KVCache, context: PrefillContext, knob: str) -> Encoded:
        """See Compressor."""
        if self.fault == "random":
            cache = KVCache([key + torch.rand(()) for key in cache.keys], cache.values)
        if self.fault == "any knob":
            knob = ""
        encoded = super().encode(cache, context, knob)
        if self.fault == "uncounted":
            return replace(encoded, sections={"keys": 1})
        if self.fault == "careless":
            keys, values = cache.stacked()
            return pack(self.format, {**encoded.facts, "extra": 1}, {"keys": keys, "values": values})
        return encoded

    def decode(self, payload: bytes, device: torch.device | str = "cpu") -> DecodedCache:
        """See Compressor."""
        if self.fault == "careless":
            _ = self.opened(payload)[0]["extra"]
        decoded = super().decode(payload, device)
        if self.fault == "short":
            decoded.keys.pop()
        if self.fault == "position":
            decoded.next_position -= 1
        if self.fault == "order":
            decoded.kept = [torch.arange(161).flip(0)] * 2
        if self.fault == "dtype":
            decoded.values = [value.double() for value in decoded.values]
        return decoded


@dataclass(frozen=True)
class Boastful(Int8):
    """Promises half of the error that it makes."""

    def error_bound(self, cache: KVCache, knob: str) -> tuple[list[Tensor], list[Tensor]]:
        """See Compressor."""
        keys, values = super().error_bound(cache, knob)
        return [bound / 2 for bound in keys], [bound / 2 for bound in values]


@pytest.mark.parametrize("fault", ["random", "uncounted", "short", "position", "order", "dtype"])
def test_laws_notice_a_wrong_round_trip(fault: str) -> None:
    """The laws themselves can fail: each fault of an otherwise perfect compressor is noticed."""
    with pytest.raises(AssertionError):
        laws.assert_decodes(Broken(fault=fault), *laws.sample(161), "")


def test_laws_notice_a_bound_that_does_not_hold() -> None:
    """Half of the honest bound is too little."""
    with pytest.raises(AssertionError):
        laws.assert_decodes(Boastful(), *laws.sample(161), "head")


def test_laws_notice_a_careless_decoder() -> None:
    """A decoder that trusts the header fails when its facts are forged."""
    broken = Broken(fault="careless")
    with pytest.raises(KeyError, match="extra"):
        laws.assert_survives_forgery(broken, broken.encode(*laws.sample(161), ""))


def test_laws_notice_knobs_that_mean_nothing() -> None:
    """A compressor that takes any text for a knob is noticed."""
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        laws.assert_refuses_knobs(Broken(fault="any knob"))
