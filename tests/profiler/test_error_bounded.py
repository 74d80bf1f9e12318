"""kvcomp, packkv and cachegen: bounds on adversarial values, plain references, sizes against entropy, calibration."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simkv.profiler.compressors.base import Compressor, CompressorError, KVCache, PrefillContext
from simkv.profiler.compressors.bits import pack_bits
from simkv.profiler.compressors.bounded import largest_error, narrow, quantise, restore, side_rates, whole_blocks
from simkv.profiler.compressors.cachegen import CacheGen
from simkv.profiler.compressors.kvcomp import KVComp
from simkv.profiler.compressors.ordering import greedy_order, median_order
from simkv.profiler.compressors.packkv import PackKV
from simkv.profiler.compressors.payload import PayloadError, pack, unpack
from tests.profiler import compressor_laws as laws

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
NOTHING = PrefillContext()
# nothing raw but an incomplete block, so that short caches are coded
VARIANTS: dict[str, Compressor] = {
    "kvcomp": KVComp(block=32, buffer=32),
    "kvcomp-bufferless": KVComp(block=16, buffer=0),
    "packkv": PackKV(block=32, buffer=32),
    "packkv-greedy": PackKV(block=16, pack=8, buffer=16, order="greedy"),
    "packkv-unordered": PackKV(block=8, pack=8, buffer=0, order="none"),
    "packkv-uneven": PackKV(block=12, pack=3, buffer=12),
    "cachegen-serde": CacheGen(delta=False),
    "cachegen-windows": CacheGen(window=50, group=3),
}
# scales of values, and how far their mean is from zero in ranges
VALUES = st.tuples(
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, 1e-44, 1e-40, 6e-8, 1e-5, 0.1, 1.0, 300.0, 6e4, 1e37, 3e38]),
    st.sampled_from([0.0, 0.5, 30.0, 1e3, 1e6]),
    st.integers(0, 2**31),
)


def _adversarial(given: tuple[torch.dtype, float, float, int], heads: int, tokens: int, head_dim: int) -> Tensor:
    """Finite values [H, T, D]: noise of some scale far from zero, with constant, zero and huge parts strewn in."""
    dtype, scale, offset, seed = given
    source = torch.Generator().manual_seed(seed)
    noise = torch.randn(heads, tokens, head_dim, generator=source, dtype=torch.float64)
    noise[:, :, 1] = 1.0
    noise[:, :, 2] = 0.0
    noise[:, tokens // 3] = -2.0
    noise[0, tokens // 2, 0] = 1e4
    noise[:, :, 3] *= 1e-3
    most = torch.finfo(dtype).max
    return ((noise + offset) * scale).clamp(-most, most).to(dtype)


@given(VALUES, st.sampled_from([0.005, 0.03, 0.1, 0.5, 1.0]), st.sampled_from([(1,), (0, 2), (0, 1, 2)]))
@settings(max_examples=200)
def test_the_bound_holds_on_adversarial_values(
    given: tuple[torch.dtype, float, float, int], rel: float, dims: tuple[int, ...]
) -> None:
    """Constants, denormals, huge ranges, means far from zero: every element, every dtype, any unit."""
    values = _adversarial(given, 2, 24, 5)
    found = quantise(values, dims, rel)
    assert int(found.codes.max()) <= 1 / rel + 4
    restored = restore(found.codes, narrow(found.zeros), found.steps, values.dtype)
    error = (restored.double() - values.double()).abs()
    assert bool((error <= largest_error(values, dims, rel)).all())


@given(VALUES, st.sampled_from(sorted(VARIANTS)), st.integers(0, 10))
@settings(max_examples=100)
def test_whole_compressors_hold_their_bound(given: tuple[torch.dtype, float, float, int], name: str, rate: int) -> None:
    """The same values through bytes, at every knob; cachegen may refuse the largest in a line."""
    compressor = VARIANTS[name]
    keys, values = (list(_adversarial((*given[:3], seed), 2, 70, 8).unbind(0)) for seed in (given[3], given[3] + 1))
    cache = KVCache([side[None] for side in keys], [side[None] for side in values])
    try:
        laws.assert_decodes(compressor, cache, NOTHING, compressor.knobs[rate % len(compressor.knobs)])
    except CompressorError as error:
        assert given[1] > 1e30
        assert name.startswith("cachegen")
        assert "\n" not in str(error)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bound_is_tight_on_ordinary_values(dtype: torch.dtype) -> None:
    """Half of the asked step but for the dtype's rounding, and some element comes within 2 % of it."""
    values = laws.sample(512, dtype=dtype)[0].values[0]
    found = quantise(values, (0, 2), 0.1)
    reach = values.double().abs().amax((0, 2), keepdim=True)
    span = values.double().amax((0, 2), keepdim=True) - values.double().amin((0, 2), keepdim=True)
    bound = largest_error(values, (0, 2), 0.1)
    assert bool((bound <= 0.05 * span * 1.01 + torch.finfo(dtype).eps * reach).all())
    error = (restore(found.codes, found.zeros, found.steps, dtype).double() - values.double()).abs()
    assert float((error / bound).max()) > (0.98 if dtype != torch.bfloat16 else 0.9)


def test_codes_equal_a_plain_loop() -> None:
    """code = round(x / step) - round(min / step), step the next half float above rel x range, unit by unit."""
    values = laws.sample(40, heads=1, head_dim=6)[0].keys[0]
    found = quantise(values, (1,), 0.07)
    for channel in range(6):
        unit = values[0, :, channel].tolist()
        exact = (max(unit) - min(unit)) * 0.07
        step = float(found.steps[0, 0, channel])
        assert exact <= step <= exact * (1 + 2**-10)
        zero = round(float(np.float32(min(unit)) / np.float32(step)))
        assert zero == int(found.zeros[0, 0, channel])
        codes = [round(float(np.float32(value) / np.float32(step))) - zero for value in unit]
        assert codes == found.codes[0, :, channel].tolist()


@pytest.mark.parametrize(
    ("tokens", "block", "buffer", "coded"),
    [
        (512, 64, 192, 384),  # the released caches: at least buffer - block tokens stay raw
        (511, 64, 192, 320),
        (575, 64, 192, 384),
        (576, 64, 192, 448),
        (191, 64, 192, 0),
        (192, 64, 192, 64),
        (128, 64, 64, 128),
        (127, 64, 64, 64),
        (128, 64, 0, 128),
        (63, 64, 0, 0),
        (512, 64, 10_000, 0),
        (200, 64, 100, 128),
    ],
)
def test_whole_blocks(tokens: int, block: int, buffer: int, coded: int) -> None:
    """Blocks are coded from the front as soon as ``buffer`` raw tokens are full."""
    assert coded == whole_blocks(tokens, block, buffer)


def test_rates_of_both_sides() -> None:
    """A plain number sets both, "k..v.." each; out of range is refused."""
    assert (0.1, 0.1) == side_rates(KVComp(), "0.1", 0.005, 1)
    assert (0.1, 0.25) == side_rates(KVComp(), "k0.1v0.25", 0.005, 1)
    for knob in ("0.001", "k0.1v2", "k0.1", "k.v1", "k0.1v0.2 "):
        with pytest.raises(CompressorError):
            side_rates(KVComp(), knob, 0.005, 1)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_obey_the_laws(name: str) -> None:
    """Round trips at many lengths, damage and forgery, with almost nothing raw and every field off its default."""
    compressor = VARIANTS[name]
    for tokens, dtype in zip((1, 15, 16, 17, 31, 32, 33, 65, 100), itertools.cycle(DTYPES), strict=False):
        cache, context = laws.sample(tokens, 3, 10, dtype)
        sizes = [laws.assert_decodes(compressor, cache, context, knob) for knob in compressor.knobs]
        assert sorted(sizes, reverse=True) == sizes
    encoded = compressor.encode(*laws.sample(100), compressor.knobs[2])
    laws.assert_refuses_damage(compressor, encoded)
    laws.assert_survives_forgery(compressor, encoded)


def test_knobs_of_one_side_leave_the_other() -> None:
    """With a coarser K only K's sections and values change, in all three."""
    for compressor, fine, coarse in ((VARIANTS["kvcomp"], "0.05", "k0.4v0.05"), (CacheGen(), "3", "k0v3")):
        cache, context = laws.sample(96)
        one, two = (compressor.encode(cache, context, knob) for knob in (fine, coarse))
        for name, size in one.sections.items():
            if name.startswith("value"):
                assert size == two.sections[name]
        before, after = compressor.decode(one.payload), compressor.decode(two.payload)
        assert torch.equal(before.values[1], after.values[1])
        assert not torch.equal(before.keys[1], after.keys[1])


@pytest.mark.parametrize(
    ("kind", "arguments"), [(KVComp, {"buffer": 128}), (PackKV, {}), (PackKV, {"order": "greedy"})]
)
def test_recent_tokens_are_exact(kind: type[Compressor], arguments: dict[str, object]) -> None:
    """The buffer keeps its tokens bit for bit, the rest is lossy."""
    compressor = kind(**arguments)
    cache, context = laws.sample(300)
    decoded = compressor.decode(compressor.encode(cache, context, compressor.knobs[-1]).payload)
    for before, after in zip((*cache.keys, *cache.values), (*decoded.keys, *decoded.values), strict=True):
        assert torch.equal(before[:, -64:], after[:, -64:])
        assert not torch.equal(before[:, :64], after[:, :64])


# KVComp


def _entropy_bytes(codes: Tensor) -> float:
    counts = torch.unique(codes, return_counts=True)[1].double()
    return float(-(counts * (counts / counts.sum()).log2()).sum() / 8)


@pytest.mark.parametrize("knob", ["0.02", "0.05", "0.1", "0.2", "0.4"])
def test_kvcomp_streams_are_near_the_entropy(knob: str) -> None:
    """Within 2 % of the zero-order entropy of each side's codes; everything else is counted beside them."""
    compressor, rel = KVComp(buffer=64), float(knob)
    cache, context = laws.sample(512, layers=3, head_dim=64)
    sections = compressor.encode(cache, context, knob).sections
    keys, values = cache.stacked()
    units = quantise(keys.unflatten(2, (8, 64)), (3,), rel)
    tokens = quantise(values, (1, 3), rel)
    for side, found in (("key", units), ("value", tokens)):
        assert sections[f"{side}_codes"] <= 1.02 * _entropy_bytes(found.codes)
        assert 2 * found.steps.numel() == sections[f"{side}_steps"]
        assert found.zeros.numel() in (sections[f"{side}_zeros"], sections[f"{side}_zeros"] / 2)
        assert sections[f"{side}_book"] <= 0.03 * sections[f"{side}_codes"]
        assert 0 == sections[f"{side}_raw"]


def test_kvcomp_restores_what_its_codes_say() -> None:
    """Keys are multiples of a step per (head, block, channel), values of a step per token."""
    compressor = VARIANTS["kvcomp"]
    cache, context = laws.sample(96, dtype=torch.float32)
    decoded = compressor.decode(compressor.encode(cache, context, "0.1").payload)
    for layer in range(2):
        units = quantise(cache.keys[layer].unflatten(1, (3, 32)), (2,), 0.1)
        levels = decoded.keys[layer].unflatten(1, (3, 32)) / units.steps.float()
        assert float((levels - levels.round()).abs().max()) < 1e-4
        tokens = quantise(cache.values[layer], (0, 2), 0.1)
        levels = decoded.values[layer] / tokens.steps.float()
        assert float((levels - levels.round()).abs().max()) < 1e-4


@pytest.mark.parametrize("compressor", [KVComp(buffer=64), CacheGen(), CacheGen(delta=False)], ids=repr)
def test_fitted_tables_are_shared_not_stored(compressor: Compressor) -> None:
    """A calibrated model's objects carry no tables, decode with the same calibration only, and need few more bits."""
    samples = [laws.sample(200 + seed, seed=seed)[0] for seed in (1, 2, 3)]
    fitted, other = compressor.fit(samples), compressor.fit(samples[:1])
    assert 0 == compressor.shared_bytes() < fitted.shared_bytes()
    cache, context = laws.sample(512, seed=9)
    for knob in compressor.knobs:
        own, shared = compressor.encode(cache, context, knob), fitted.encode(cache, context, knob)
        assert "key_book" not in shared.sections
        assert 0 == shared.sections.get("key_tables", 0)
        stream = "key_codes" if "key_codes" in own.sections else "key_streams"
        assert shared.sections[stream] <= 1.1 * own.sections[stream]
        before, after = compressor.decode(own.payload), fitted.decode(shared.payload)
        assert all(torch.equal(one, two) for one, two in zip(before.keys, after.keys, strict=True))
        fitted.decode(own.payload)
        for stranger in (compressor, other):
            with pytest.raises(PayloadError, match="fitted"):
                stranger.decode(shared.payload)
    laws.assert_survives_forgery(fitted, fitted.encode(cache, context, compressor.knobs[1]))


def test_fitted_objects_fall_back_to_their_own_tables() -> None:
    """A rate that was not fitted, a code beyond the codebook, or another shape: the object stores its tables."""
    fitted = KVComp(buffer=64).fit([laws.sample(128)[0]])
    assert "key_book" in fitted.encode(*laws.sample(128), "0.123").sections
    assert "value_book" not in fitted.encode(*laws.sample(128), "k0.123v0.1").sections
    tiny = replace(
        fitted, books=tuple((name, KVComp().fit([laws.sample(128)[0]]).books[-1][1]) for name, _ in fitted.books)
    )
    laws.assert_decodes(tiny, *laws.sample(128), "0.02")
    assert "key_book" in tiny.encode(*laws.sample(128), "0.02").sections
    streams = CacheGen().fit([laws.sample(128)[0]])
    assert streams.encode(*laws.sample(128, heads=3), "2").sections["key_tables"]
    laws.assert_decodes(streams, *laws.sample(1), "2")


def test_fitting_needs_caches() -> None:
    """No cache, one too short, or caches of different shapes are refused in a line."""
    with pytest.raises(CompressorError, match="whole block"):
        KVComp().fit([laws.sample(100)[0]])
    with pytest.raises(CompressorError, match="one shape"):
        CacheGen().fit([])
    with pytest.raises(CompressorError, match="one shape"):
        CacheGen().fit([laws.sample(50)[0], laws.sample(50, heads=1)[0]])
    with pytest.raises(CompressorError, match="two tokens"):
        CacheGen().fit([laws.sample(1)[0]])


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (KVComp, {"block": 0}),
        (KVComp, {"buffer": -1}),
        (PackKV, {"pack": 24}),
        (PackKV, {"block": 1 << 20}),
        (PackKV, {"order": "random"}),
        (CacheGen, {"group": 1}),
        (CacheGen, {"window": -5}),
    ],
)
def test_impossible_parameters_are_refused(kind: type[Compressor], arguments: dict[str, object]) -> None:
    """Before anything is encoded."""
    with pytest.raises(CompressorError):
        kind(**arguments)


# PackKV


def _published_bits(packs: Tensor, bits: int) -> tuple[int, int, int]:
    """Bits of minima, widths and residuals of packs [N, p, C], counted one pack at a time."""
    mins = widths = residuals = 0
    for pack_codes in packs.transpose(1, 2).reshape(-1, packs.shape[1]).tolist():
        mins += bits
        widths += math.ceil(math.log2(bits + 1))
        residuals += len(pack_codes) * math.ceil(math.log2(max(pack_codes) - min(pack_codes) + 1))
    return mins, widths, residuals


@pytest.mark.parametrize("order", ["none", "median", "greedy"])
def test_packkv_sizes_equal_the_published_formula(order: str) -> None:
    """Pack by pack: minimum in b bits, width in ceil(log2(b + 1)), 16 residuals in ceil(log2(max - min + 1)) each."""
    compressor = PackKV(buffer=64, order=order)
    cache, context = laws.sample(128)
    encoded = compressor.encode(cache, context, "0.1")
    keys, values = (quantise(side, (1, 3), 0.1).codes.transpose(1, 2).reshape(4, 64, -1) for side in cache.stacked())
    if order != "none":
        places = median_order(values) if order == "median" else greedy_order(torch.cat([keys, values], 2), 16)
        keys, values = (side.gather(1, places[:, :, None].expand_as(side)) for side in (keys, values))
        assert 6 * 256 / 8 == encoded.sections["places"]
    for side, codes in (("key", keys), ("value", values)):
        bits = _published_bits(codes.unflatten(1, (4, 16)).flatten(0, 1), int(codes.max()).bit_length())
        found = [encoded.sections[f"{side}_{name}"] for name in ("mins", "widths", "residuals")]
        assert [math.ceil(count / 8) for count in bits] == found


def test_packkv_order_is_undone() -> None:
    """Whatever the order, the decoded cache is the same, token for token."""
    cache, context = laws.sample(200)
    found = []
    for order in ("none", "median", "greedy"):
        compressor = PackKV(buffer=64, order=order)
        found.append(compressor.decode(compressor.encode(cache, context, "0.1").payload))
    for other in found[1:]:
        for one, two in zip((*found[0].keys, *found[0].values), (*other.keys, *other.values), strict=True):
            assert torch.equal(one, two)


def test_packkv_order_pays_where_tokens_differ_in_kind() -> None:
    """With two kinds of tokens alternating, both orders save more than a quarter of the packs' bits."""
    cache, context = laws.sample(512)
    for side in (*cache.keys, *cache.values):
        side *= 0.2
        side[:, ::2, :24] += 3
        side[:, 1::2, :24] -= 3
    sizes = {}
    for order in ("none", "median", "greedy"):
        sections = PackKV(buffer=64, order=order).encode(cache, context, "0.1").sections
        sizes[order] = sum(sections.get(name, 0) for name in ("places", "key_residuals", "value_residuals"))
    assert sizes["median"] < 0.75 * sizes["none"]
    assert sizes["greedy"] < 0.75 * sizes["none"]


def test_median_order_equals_a_plain_sort() -> None:
    """By falling lower median, ties as they came."""
    codes = torch.randint(0, 9, (3, 16, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = [sorted(range(16), key=lambda token, block=block: -sorted(block[token])[3]) for block in codes.tolist()]
    assert expected == median_order(codes).tolist()


def test_greedy_order_equals_a_plain_loop() -> None:
    """Seed by cosine with the rounded mean, then least growth of the sum of widths, as in the released code."""
    codes = torch.randint(0, 12, (4, 16, 9), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    expected = []
    for block in codes.double():
        free, order = list(range(16)), []
        while free:
            mean = block[free].mean(0).round()
            closest = torch.cosine_similarity(block[free], mean[None], dim=1)
            chosen = [free.pop(int(closest.argmax()))]
            while len(chosen) < 4:
                spans = [block[[*chosen, token]].amax(0) - block[[*chosen, token]].amin(0) for token in free]
                growth = torch.stack([(span + 1).log2().ceil().sum() for span in spans])
                chosen.append(free.pop(int(growth.argmin())))
            order += chosen
        expected.append(order)
    assert expected == greedy_order(codes, 4).tolist()


def test_packkv_refuses_an_order_that_is_none() -> None:
    """Places that name a token twice, with the checksum recomputed."""
    compressor = VARIANTS["packkv"]
    facts, sections = unpack(compressor.encode(*laws.sample(64), "0.1").payload, compressor.format)
    twice = torch.arange(32).repeat(4)
    twice[5] = 4
    forged = pack(compressor.format, facts, {**sections, "places": pack_bits(twice, 5)})
    with pytest.raises(PayloadError, match="no order"):
        compressor.decode(forged.payload)


# CacheGen


@pytest.mark.parametrize("level", ["0", "2", "4"])
def test_cachegen_serde_equals_the_released_formula(level: str) -> None:
    """Without deltas: round(x * half / max) steps of max / half per token, half = bins // 2 - 1 of the layer."""
    bins = {"0": ((12, 8, 8), (8, 8, 8)), "2": ((32, 16, 16), (32, 16, 16)), "4": ((64,) * 3, (64,) * 3)}[level]
    compressor = CacheGen(delta=False)
    cache, context = laws.sample(60, layers=3, dtype=torch.float32)
    decoded = compressor.decode(compressor.encode(cache, context, level).payload)
    for found, before, counts in zip((decoded.keys, decoded.values), (cache.keys, cache.values), bins, strict=True):
        for layer, count in enumerate(counts):
            half = count // 2 - 1
            step = before[layer].double().abs().amax((0, 2), keepdim=True) / half
            expected = (before[layer].double() / step).round() * step
            # the stored half-precision step is up to 2**-10 larger, which may move a code at a tie
            close = (expected - found[layer]).abs() <= step * half * 2.0**-10
            assert float(close.double().mean()) > 0.98
            assert bool(((expected - found[layer]).abs() <= step * 1.05).all())


def test_cachegen_deltas_do_not_add_up() -> None:
    """A drift that grows over thousands of steps stays within half a step of its own delta, group by group."""
    slope = torch.tensor([50.0, 31.0, -17.0, 5.0])
    drift = (torch.linspace(0, 1, 200)[None, :, None] * slope).expand(2, 200, 4).contiguous()
    cache = KVCache([drift], [drift])
    errors = []
    for compressor in (CacheGen(), CacheGen(delta=False)):
        decoded = compressor.decode(compressor.encode(cache, NOTHING, "3").payload)
        errors.append((decoded.keys[0] - drift).abs())
    assert float(errors[0][:, ::10].max()) <= 1.01 * 50 / 127 / 2  # anchors in 8 bits
    assert float(errors[0].max()) <= 1.01 * (9 * 50 / 199 + 0.2) / 15 / 2 + 0.2  # nine tokens' drift
    assert float(errors[1].max()) > 1


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("level", ["4", "3", "2", "1", "0"])
def test_cachegen_streams_are_near_the_entropy(delta: bool, level: str) -> None:
    """Within 2 % of the entropy of every (layer, channel), the anchors' of every layer; tables take 4 bits a bin."""
    compressor = CacheGen(delta=delta)
    cache, context = laws.sample(1024, heads=2, head_dim=16)
    encoded = compressor.encode(cache, context, level)
    bins = {"4": (64, 64), "3": (32, 32), "2": (32, 16), "1": (16, 16), "0": (12, 8)}[level]
    entropy = 0.0
    for keys, count in zip(cache.keys, bins, strict=True):
        half, tokens = count // 2 - 1, keys.transpose(0, 1).flatten(1)
        base, others = torch.zeros_like(tokens), torch.ones(1024, dtype=torch.bool)
        if delta:
            others = torch.arange(1024) % 10 > 0
            codes, step = _symmetric(tokens[::10], 127)
            entropy += _entropy_bytes(codes)
            base = (codes * step).repeat_interleave(10, 0)[:1024]
        codes, _ = _symmetric((tokens.float() - base)[others], half)
        entropy += sum(_entropy_bytes(channel) for channel in codes.T)
    assert encoded.sections["key_streams"] <= 1.02 * entropy
    per_bin = sum(32 * (2 * (count // 2 - 1) + 1) for count in bins) / 2
    assert per_bin + (256 if delta else 0) == pytest.approx(encoded.sections["key_tables"], abs=4)


def _symmetric(tokens: Tensor, half: int) -> tuple[Tensor, Tensor]:
    step = tokens.float().abs().amax(1, keepdim=True) / half
    step = torch.where(step.half().float() < step, torch.nextafter(step.half(), torch.tensor(6e4).half()), step.half())
    return (tokens.float() / step.float()).round(), step.float()


def test_cachegen_tables_weigh_on_small_windows() -> None:
    """One set of tables per 64 tokens costs more than one per object, and decodes to the same cache."""
    cache, context = laws.sample(512)
    whole, windows = CacheGen(), CacheGen(window=64)
    one, two = whole.encode(cache, context, "3"), windows.encode(cache, context, "3")
    assert 7 * one.sections["key_tables"] < two.sections["key_tables"]  # 461 other tokens: eight windows
    assert one.size_bytes < two.size_bytes
    before, after = whole.decode(one.payload), whole.decode(two.payload)
    assert all(torch.equal(left, right) for left, right in zip(before.keys, after.keys, strict=True))
