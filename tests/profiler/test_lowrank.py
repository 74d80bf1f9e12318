"""lowrank: how good the factors are, when they pay, and what damaged payloads do."""

import pytest
import torch

from simkv.profiler.compressors.base import CompressorError, KVCache, PrefillContext
from simkv.profiler.compressors.lowrank import LowRank
from simkv.profiler.compressors.payload import PayloadError, pack, unpack
from tests.profiler.prefills import prefill

NOTHING = PrefillContext()


def of_rank(rank: int, tokens: int, heads: int = 2, head_dim: int = 16, scale: float = 1.0) -> KVCache:
    """A cache of two layers whose keys and values, heads side by side, have exactly this rank."""
    source = torch.Generator().manual_seed(rank)

    def side() -> torch.Tensor:
        thin = torch.randn(tokens, rank, generator=source), torch.randn(rank, heads * head_dim, generator=source)
        return scale * (thin[0] @ thin[1]).view(tokens, heads, head_dim).transpose(0, 1)

    return KVCache([side(), side()], [side(), side()])


@pytest.mark.parametrize("tokens", [200, 20], ids=["tall", "wide"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_a_cache_of_low_rank_comes_back(tokens: int, scale: float) -> None:
    """Rank 3 within the stored rank: equal to float32 rounding, whatever the magnitude."""
    cache = of_rank(3, tokens, scale=scale)
    decoded = LowRank().decode(LowRank().encode(cache, NOTHING, "0.5").payload)
    for whole, found in zip((*cache.keys, *cache.values), (*decoded.keys, *decoded.values), strict=True):
        torch.testing.assert_close(whole / scale, found / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("tokens", [200, 20], ids=["tall", "wide"])
def test_no_approximation_of_that_rank_is_better(tokens: int) -> None:
    """The squared error is that of the singular values left out, as torch's own decomposition gives them."""
    cache, _ = prefill(tokens)
    encoded = LowRank().encode(cache, NOTHING, "0.5")
    rank = int(0.5 * tokens * 32 / (tokens + 32))
    assert (rank, rank) == (encoded.facts["key_rank"], encoded.facts["value_rank"])
    decoded = LowRank().decode(encoded.payload)
    for whole, found in zip((*cache.keys, *cache.values), (*decoded.keys, *decoded.values), strict=True):
        left_out = torch.linalg.svdvals(whole.transpose(0, 1).flatten(1).double())[rank:]
        assert float(left_out.square().sum()) == pytest.approx(float((whole - found).double().square().sum()), rel=1e-4)


def test_factors_are_counted_in_the_dtype_of_the_cache() -> None:
    """Half the break-even rank of 256 tokens x 32 channels is 14: 14 (256 + 32) numbers per side and layer."""
    cache, _ = prefill(256, dtype=torch.float16)
    sections = LowRank().encode(cache, NOTHING, "0.5").sections
    for side in ("key", "value"):
        assert (3 * 256 * 14 * 2, 3 * 14 * 32 * 2) == (sections[f"{side}_tokens"], sections[f"{side}_channels"])


def test_keys_and_values_have_their_own_knob() -> None:
    """ "k0.75v0.1" stores keys as "0.75" does and values as "0.1" does."""
    cache, _ = prefill(100)
    both, high, low = (LowRank().encode(cache, NOTHING, knob).sections for knob in ("k0.75v0.1", "0.75", "0.1"))
    assert high["key_tokens"] == both["key_tokens"]
    assert low["value_tokens"] == both["value_tokens"]


def test_what_does_not_pay_is_stored_raw() -> None:
    """One token, and one channel: no rank is smaller than the cache itself, which comes back bit for bit."""
    for tokens, heads, head_dim in ((1, 2, 16), (50, 1, 1), (2, 1, 2)):
        cache, _ = prefill(tokens, heads=heads, head_dim=head_dim)
        encoded = LowRank().encode(cache, NOTHING, "0.1")
        assert (0, 0) == (encoded.facts["key_rank"], encoded.facts["value_rank"])
        assert cache.shape.raw_bytes == encoded.sections["key_raw"] + encoded.sections["value_raw"]
        decoded = LowRank().decode(encoded.payload)
        assert all(torch.equal(a, b) for a, b in zip(cache.keys, decoded.keys, strict=True))


def test_a_cache_of_zeros_is_no_division_by_zero() -> None:
    """Rank 0 data decodes to zeros."""
    zeros = [torch.zeros(2, 50, 16, dtype=torch.float16)] * 2
    decoded = LowRank().decode(LowRank().encode(KVCache(zeros, zeros), NOTHING, "0.25").payload)
    assert all(torch.equal(zeros[0], found) for found in (*decoded.keys, *decoded.values))


def test_the_largest_fp16_values_stay_finite() -> None:
    """A cache full of 60,000 does not overflow fp16, neither its factors nor its reconstruction."""
    large = [torch.full((2, 300, 16), 60_000.0, dtype=torch.float16)] * 2
    decoded = LowRank().decode(LowRank().encode(KVCache(large, large), NOTHING, "0.1").payload)
    torch.testing.assert_close(large[0], decoded.keys[0], rtol=2e-3, atol=0)


def test_a_cache_that_is_not_finite_is_refused() -> None:
    """NaN and infinity raise CompressorError."""
    for bad in (torch.nan, torch.inf):
        cache, _ = prefill(30)
        cache.values[1][0, 3, 5] = bad
        with pytest.raises(CompressorError, match="finite"):
            LowRank().encode(cache, NOTHING, "0.5")


@pytest.mark.parametrize("knob", ["0", "1.5", "k0.5", "k0.5v", "k0.5v2", "k1..5v1", "nan", ""])
def test_impossible_knobs_are_refused(knob: str) -> None:
    """Shares outside (0, 1] and other texts raise CompressorError."""
    cache, _ = prefill(30)
    with pytest.raises(CompressorError, match="lowrank"):
        LowRank().encode(cache, NOTHING, knob)


@pytest.mark.parametrize(
    "change",
    [
        {"key_rank": 0},
        {"key_rank": 9},
        {"value_rank": 1 << 30},
        {"value_rank": None},
        {"shape": [3, 2, 99, 16]},
        {"shape": [3, 2, 1 << 23, 1 << 23]},
        {"dtype": "f16"},
    ],
    ids=str,
)
def test_false_facts_are_refused(change: dict[str, object]) -> None:
    """Ranks and shapes that do not fit the sections raise PayloadError."""
    cache, _ = prefill(100)
    facts, sections = unpack(LowRank().encode(cache, NOTHING, "0.5").payload, "lowrank/1")
    with pytest.raises(PayloadError):
        LowRank().decode(pack("lowrank/1", {**facts, **change}, {**sections}).payload)


def test_factors_that_are_not_finite_are_refused() -> None:
    """A NaN in a stored factor raises PayloadError."""
    cache, _ = prefill(100)
    facts, sections = unpack(LowRank().encode(cache, NOTHING, "0.5").payload, "lowrank/1")
    sections["key_channels"][0, 0, 0] = torch.nan
    with pytest.raises(PayloadError, match="NaN"):
        LowRank().decode(pack("lowrank/1", facts, {**sections}).payload)
