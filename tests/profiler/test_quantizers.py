"""The quantisers' own stories: plain reference implementations, true sizes, published error figures."""

import itertools
import math

import numpy as np
import pytest
import torch

from simkv.profiler.compressors.base import Compressor, CompressorError, KVCache, PrefillContext
from simkv.profiler.compressors.bits import unpack_bits
from simkv.profiler.compressors.fp8 import Fp8
from simkv.profiler.compressors.int8 import Int8
from simkv.profiler.compressors.kivi import Kivi
from simkv.profiler.compressors.kvquant import KVQuant
from simkv.profiler.compressors.payload import PayloadError, unpack
from simkv.profiler.compressors.turboquant import TurboQuant, codebook, rotation
from tests.profiler.compressor_laws import edited, normal_cache, sample

QUANTISERS: list[Compressor] = [Fp8(), Int8(), Kivi(), KVQuant(), TurboQuant()]
NOTHING = PrefillContext()


def ratio(compressor: Compressor, cache: KVCache, knob: str, context: PrefillContext = NOTHING) -> float:
    """Raw bytes over stored bytes."""
    return cache.shape.raw_bytes / compressor.encode(cache, context, knob).size_bytes


def plain_group(values: list[float], bits: int) -> tuple[float, float, list[int]]:
    """Minimum, step and codes of one group, in fp16 side information, one number at a time."""
    low = float(np.float16(min(values)))
    step = float(np.float16((np.float32(max(values)) - np.float32(min(values))) / np.float32(2**bits - 1)))
    codes = [round(min(max((np.float32(v) - np.float32(low)) / np.float32(step), 0), 2**bits - 1)) for v in values]
    return low, step, codes


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("head_dim", [16, 24])
def test_kivi_codes_equal_a_plain_loop(bits: int, head_dim: int) -> None:
    """Keys in groups of 16 tokens per channel, values of 16 channels (the last of 8) per token, code for code."""
    tokens, group, residual = 71, 16, 32
    compressor, cache = Kivi(group=group, residual=residual), normal_cache(tokens, 2, head_dim)
    sections = unpack(compressor.encode(cache, NOTHING, str(bits)).payload, "kivi/1")[1]
    key_end, value_end = 64, tokens - residual
    found = unpack_bits(sections["key_codes"], bits, 2 * key_end * head_dim).view(2, key_end, head_dim)
    for head, first, channel in itertools.product(range(2), range(0, key_end, group), range(head_dim)):
        low, step, codes = plain_group(cache.keys[0][head, first : first + group, channel].tolist(), bits)
        assert codes == found[head, first : first + group, channel].tolist()
        place = (0, head, first // group, channel)
        assert (low, step) == (float(sections["key_lows"][place]), float(sections["key_steps"][place]))
    found = unpack_bits(sections["value_codes"], bits, 2 * value_end * head_dim).view(2, value_end, head_dim)
    for head, token, first in itertools.product(range(2), range(value_end), range(0, head_dim, group)):
        low, step, codes = plain_group(cache.values[0][head, token, first : first + group].tolist(), bits)
        assert codes == found[head, token, first : first + group].tolist()
        place = (0, head, token, first // group)
        assert (low, step) == (float(sections["value_lows"][place]), float(sections["value_steps"][place]))


@pytest.mark.parametrize(("tokens", "raw_keys", "raw_values"), [(127, 127, 127), (128, 0, 128), (300, 44, 128)])
def test_kivi_residual_is_exact(tokens: int, raw_keys: int, raw_values: int) -> None:
    """The last T mod R keys and the last R values come back bit for bit, the token before them does not."""
    compressor, cache = Kivi(), normal_cache(tokens, 2, 32)
    decoded = compressor.decode(compressor.encode(cache, NOTHING, "2").payload)
    for before, after, raw in (
        (cache.keys[0], decoded.keys[0], raw_keys),
        (cache.values[0], decoded.values[0], raw_values),
    ):
        start = tokens - raw
        assert torch.equal(before[:, start:], after[:, start:])
        assert raw == tokens or not torch.equal(before[:, start - 1], after[:, start - 1])


@pytest.mark.parametrize(
    ("knob", "group", "expected"),
    [("2", 32, 5.16), ("2", 64, 6.14), ("2", 128, 6.79), ("4", 32, 3.15), ("4", 64, 3.49), ("4", 128, 3.69)],
)
def test_kivi_true_sizes(knob: str, group: int, expected: float) -> None:
    """8,192 tokens of the Llama-3.1-8B shape, one of its equal layers: within 1 % of what scales and residual leave."""
    assert ratio(Kivi(group=group), normal_cache(8192, 8, 128), knob) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("group", "residual"), [(32, 100), (0, 128), (64, 32), (-32, 128)])
def test_kivi_residual_must_be_a_multiple_of_the_group(group: int, residual: int) -> None:
    """Other parameters are refused when the compressor is made."""
    with pytest.raises(CompressorError, match="multiple"):
        Kivi(group=group, residual=residual)


def test_kivi_payload_carries_its_parameters() -> None:
    """A decoder made with other parameters reads the group and the residual from the payload."""
    cache = normal_cache(200, 2, 32)
    payload = Kivi(group=16, residual=64).encode(cache, NOTHING, "k4v2").payload
    one, other = Kivi(group=16, residual=64).decode(payload), Kivi().decode(payload)
    assert torch.equal(one.keys[0], other.keys[0]) and torch.equal(one.values[0], other.values[0])


def test_kivi_groups_keys_along_tokens_for_the_sake_of_large_channels() -> None:
    """A channel 100 times the others costs the others nothing in keys, and their precision in values."""
    cache = normal_cache(256, 1, 32)
    for side in (cache.keys[0], cache.values[0]):
        side[:, :, 5] *= 100
    decoded = Kivi().decode(Kivi().encode(cache, NOTHING, "4").payload)
    key_error = (decoded.keys[0] - cache.keys[0])[:, :128, 6:].float().std()
    value_error = (decoded.values[0] - cache.values[0])[:, :128, 6:].float().std()
    assert float(key_error) < 0.15 < 0.5 < float(value_error)


def test_int8_codes_equal_a_plain_loop() -> None:
    """Each token and head: the largest magnitude becomes 127, in an fp16 scale."""
    cache = normal_cache(9, 2, 24)
    sections = unpack(Int8().encode(cache, NOTHING, "g16").payload, "int8/1")[1]
    for head, token, (first, last) in itertools.product(range(2), range(9), ((0, 16), (16, 24))):
        values = cache.keys[0][head, token, first:last].tolist()
        scale = np.float16(np.float32(max(map(abs, values))) / np.float32(127))
        assert float(scale) == float(sections["key_scales"][0, head, token, first // 16])
        codes = [round(max(-127.0, min(127.0, float(np.float32(v) / np.float32(scale))))) for v in values]
        assert codes == sections["key_codes"][0, head, token, first:last].tolist()


def test_int8_and_fp8_true_sizes() -> None:
    """At 128 channels, int8 is 128 + 2 bytes a vector, and fp8 half of fp16; raw keys leave a quarter to save."""
    cache = normal_cache(1024, 8, 128)
    assert ratio(Int8(), cache, "head") == pytest.approx(256 / 130, rel=0.002)
    assert ratio(Int8(), cache, "g32") == pytest.approx(256 / 136, rel=0.002)
    assert ratio(Fp8(), cache, "e4m3") == pytest.approx(2, rel=0.002)
    assert ratio(Fp8(), cache, "k16v8") == pytest.approx(4 / 3, rel=0.002)


@pytest.mark.parametrize("compressor", [Int8(), Fp8()], ids=["int8", "fp8"])
def test_raw_keys_are_exact(compressor: Compressor) -> None:
    """ "k16v8" does not touch the keys and does quantise the values."""
    cache = normal_cache(40, 2, 32, dtype=torch.bfloat16)
    decoded = compressor.decode(compressor.encode(cache, NOTHING, "k16v8").payload)
    assert torch.equal(cache.keys[0], decoded.keys[0])
    assert not torch.equal(cache.values[0], decoded.values[0])


@pytest.mark.parametrize(("knob", "largest"), [("e4m3", 448.0), ("e5m2", 57344.0)])
def test_fp8_keeps_its_own_numbers(knob: str, largest: float) -> None:
    """Numbers of the format come back exactly when the largest of them is there, for then the scale is one."""
    numbers = torch.tensor([largest, -largest, 0.0, 1.0, -1.5, 2.0**-6, 24.0, -0.25])
    cache = KVCache([numbers.view(1, 2, 4)], [numbers.flip(0).view(1, 2, 4)])
    decoded = Fp8().decode(Fp8().encode(cache, NOTHING, knob).payload)
    assert torch.equal(cache.keys[0], decoded.keys[0]) and torch.equal(cache.values[0], decoded.values[0])


def test_fp8_scale_per_head_serves_a_quiet_head() -> None:
    """Beside a head a million times louder, a quiet head survives only if it has its own scale."""
    cache = normal_cache(64, 2, 32, dtype=torch.float32)
    cache.keys[0][1] *= 1e-6
    quiet = cache.keys[0][1].float()
    errors = {}
    for knob in ("e4m3", "e4m3-tensor"):
        decoded = Fp8().decode(Fp8().encode(cache, NOTHING, knob).payload)
        errors[knob] = float((decoded.keys[0][1].float() - quiet).norm() / quiet.norm())
    assert errors["e4m3"] < 0.05 < 0.5 < errors["e4m3-tensor"]


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_fp8_codes_that_are_no_numbers_are_refused(code: int) -> None:
    """The encoder never writes NaN, so the decoder does not read it."""
    cache = normal_cache(4, 1, 8)
    payload = Fp8().encode(cache, NOTHING, "e4m3").payload
    codes = torch.full((1, 1, 4, 8), code, dtype=torch.uint8)
    with pytest.raises(PayloadError, match="no finite numbers"):
        Fp8().decode(edited(Fp8(), payload, "key_codes", codes))


@pytest.mark.parametrize("channels", [2, 3, 32, 64, 80, 96, 112, 128, 576])
def test_turboquant_rotation_is_orthogonal_and_flat(channels: int) -> None:
    """No padding for any dimension: a rotation, no entry of which is larger than the square root of 2 / d."""
    turn = rotation(channels, 7).double()
    assert torch.allclose(torch.eye(channels, dtype=torch.float64), turn @ turn.T, atol=1e-5)
    assert float(turn.abs().max()) <= math.sqrt(2 / channels) + 1e-6
    assert torch.equal(rotation(channels, 7), rotation.__wrapped__(channels, 7))
    assert not torch.equal(rotation(channels, 7), rotation(channels, 8)) or channels < 4


def test_turboquant_keeps_the_papers_bound_on_spread_vectors_only() -> None:
    """Squared error below sqrt(3) pi / 2 / 4^bits of the norm's square; one channel exceeds it at 2 bits."""
    spread = normal_cache(500, 1, 128)
    one = KVCache([torch.eye(128)[None].half()], [torch.eye(128)[None].half()])
    found = {}
    for bits in (1, 2, 3, 4):
        for name, cache in (("spread", spread), ("one", one)):
            decoded = TurboQuant().decode(TurboQuant().encode(cache, NOTHING, str(bits)).payload)
            off = (decoded.keys[0].float() - cache.keys[0].float()).square().sum(-1)
            found[name, bits] = float((off / cache.keys[0].float().square().sum(-1)).mean())
        assert found["spread", bits] < math.sqrt(3) * math.pi / 2 / 4**bits
    assert [0.361, 0.116, 0.034, 0.0093] == pytest.approx([found["spread", bits] for bits in (1, 2, 3, 4)], rel=0.02)
    assert 0.255 == pytest.approx(found["one", 2], rel=0.01)


def test_turboquant_codebook_is_that_of_the_known_law() -> None:
    """One bit of a Gaussian: +-sqrt(2 / pi); a uniform coordinate (d = 3): evenly spaced; always rising, symmetric."""
    assert math.sqrt(2 / math.pi) == pytest.approx(float(codebook(1024, 1)[1]) * 32, rel=0.002)
    assert [-0.75, -0.25, 0.25, 0.75] == pytest.approx(codebook(3, 2).tolist(), abs=1e-4)
    for channels, bits in itertools.product((2, 3, 32, 80, 1024), range(1, 9)):
        levels = codebook(channels, bits)
        assert 1 << bits == len(levels)
        assert bool((levels.diff() > 0).all()) and torch.equal(levels, -levels.flip(0))


@pytest.mark.parametrize(("bits", "published"), [("1", 0.36), ("2", 0.117), ("3", 0.03), ("4", 0.009)])
@pytest.mark.parametrize("head_dim", [80, 128])
def test_turboquant_error_is_the_published_one(bits: str, published: float, head_dim: int) -> None:
    """Relative square error of the paper's table (rounded there); no worse for keys with a few loud channels."""
    cache = normal_cache(512, 4, head_dim)
    cache.keys[0][:, :, :4] *= 20
    decoded = TurboQuant().decode(TurboQuant().encode(cache, NOTHING, bits).payload)
    errors = [
        float(((before.float() - after.float()).pow(2).sum(-1) / before.float().pow(2).sum(-1)).mean())
        for before, after in ((cache.keys[0], decoded.keys[0]), (cache.values[0], decoded.values[0]))
    ]
    assert published == pytest.approx(errors[1], rel=0.15)
    assert errors[0] < 1.1 * errors[1]


@pytest.mark.parametrize(("bits", "expected"), [("2", 7.53), ("3", 5.12), ("4", 3.88)])
def test_turboquant_true_sizes(bits: str, expected: float) -> None:
    """128 channels and an fp16 norm, as others publish."""
    assert ratio(TurboQuant(), normal_cache(2048, 8, 128), bits) == pytest.approx(expected, rel=0.002)


def test_turboquant_seed_travels_with_the_payload() -> None:
    """Another seed makes other bytes, and any instance decodes both."""
    cache = normal_cache(32, 2, 32)
    payloads = [TurboQuant(seed=seed).encode(cache, NOTHING, "8").payload for seed in (0, 5)]
    assert payloads[0] != payloads[1]
    for payload in payloads:
        decoded = TurboQuant(seed=9).decode(payload)
        assert torch.allclose(cache.keys[0].float(), decoded.keys[0].float(), atol=0.1)
    with pytest.raises(CompressorError, match="seed -1"):
        TurboQuant(seed=-1)


@pytest.mark.parametrize("head_dim", [1, 1025])
def test_turboquant_refuses_impossible_head_dimensions(head_dim: int) -> None:
    """One channel has no direction; thousands would need a huge rotation."""
    with pytest.raises(CompressorError, match=f"head dimension {head_dim}"):
        TurboQuant().encode(normal_cache(2, 1, head_dim), NOTHING, "4")


@pytest.mark.parametrize("compressor", QUANTISERS, ids=lambda compressor: compressor.name)
def test_cache_that_is_not_finite_is_refused(compressor: Compressor) -> None:
    """NaN or infinity anywhere, at every knob: a CompressorError, for no code stands for them."""
    for side, worst in itertools.product(("keys", "values"), (math.nan, math.inf, -math.inf)):
        cache, context = sample(161)
        getattr(cache, side)[1][1, 160, 31] = worst
        for knob in compressor.knobs:
            with pytest.raises(CompressorError, match="finite"):
                compressor.encode(cache, context, knob)


@pytest.mark.parametrize("compressor", QUANTISERS, ids=lambda compressor: compressor.name)
def test_side_information_that_is_not_finite_is_refused(compressor: Compressor) -> None:
    """NaN or infinity in any section of floats is a PayloadError."""
    cache, context = sample(161, heads=8)
    payload = compressor.encode(cache, context, compressor.knobs[0]).payload
    floats = [n for n, part in unpack(payload, compressor.format)[1].items() if part.is_floating_point()]
    assert floats
    for name, worst in itertools.product(floats, (math.nan, math.inf)):
        part = unpack(payload, compressor.format)[1][name].clone()
        part.view(-1)[-1] = worst
        with pytest.raises(PayloadError, match=name):
            compressor.decode(edited(compressor, payload, name, part))


@pytest.mark.parametrize("compressor", [Int8(), Kivi(), KVQuant(), TurboQuant()], ids=lambda c: c.name)
def test_values_beyond_fp16_side_information_are_refused(compressor: Compressor) -> None:
    """A bf16 cache can hold numbers whose scale or norm fp16 cannot: a CompressorError, not infinity."""
    cache, context = sample(161, dtype=torch.bfloat16)
    cache.values[0][0, 5] *= 1e20
    with pytest.raises(CompressorError, match="do not fit fp16"):
        compressor.encode(cache, context, compressor.knobs[-1])


@pytest.mark.parametrize("compressor", QUANTISERS, ids=lambda compressor: compressor.name)
def test_largest_fp16_values_do_not_overflow(compressor: Compressor) -> None:
    """Values at the edge of fp16 decode to finite numbers, although steps and scales are rounded."""
    edge = torch.finfo(torch.float16).max if compressor.name in ("fp8", "int8", "kivi", "kvquant") else 8000.0
    keys = torch.full((2, 160, 32), edge, dtype=torch.float16)
    keys[:, 1::2] = edge / 3
    cache, context = KVCache([keys], [keys]), sample(160)[1]
    if compressor.name == "kvquant":
        context = PrefillContext(rope_angles=(torch.ones(160, 32), torch.zeros(160, 32)))
    for knob in compressor.knobs:
        decoded = compressor.decode(compressor.encode(cache, context, knob).payload)
        assert bool(decoded.keys[0].isfinite().all()) and bool(decoded.values[0].isfinite().all())
