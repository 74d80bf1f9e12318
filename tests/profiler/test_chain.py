"""chain: the coder works on exactly what the dropper keeps, bytes count once, and parts that do not fit are refused."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from simkv.profile_types import Variant
from simkv.profiler.compressors.base import Compressor, CompressorError, KVCache, PrefillContext
from simkv.profiler.compressors.chain import Chain, chain
from simkv.profiler.compressors.dropping import Dropper, gather
from simkv.profiler.compressors.h2o import H2O
from simkv.profiler.compressors.identity import Identity
from simkv.profiler.compressors.keydiff import KeyDiff
from simkv.profiler.compressors.kivi import Kivi
from simkv.profiler.compressors.lowrank import LowRank
from simkv.profiler.compressors.payload import PayloadError, pack, unpack
from simkv.profiler.compressors.pyramidkv import PyramidKV
from simkv.profiler.compressors.snapkv import SnapKV
from simkv.profiler.compressors.streamingllm import StreamingLLM
from tests.profiler.prefills import prefill

SMALL_KIVI = Kivi(group=16, residual=16)
KNOWN: dict[str, type[Compressor]] = {kind.name: kind for kind in (SnapKV, KeyDiff, StreamingLLM, Kivi, LowRank)}


@dataclass(frozen=True)
class Demanding(Identity):
    """A coder that wants keys before RoPE."""

    needs: ClassVar[frozenset[str]] = frozenset({"pre_rope"})


@pytest.mark.parametrize("dropper", [SnapKV(window=8), StreamingLLM()], ids=["per head", "shared"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_chain_codes_what_the_dropper_keeps(dropper: Dropper, dtype: torch.dtype) -> None:
    """Decoding gives the coder's reconstruction of the gathered tokens, and the dropper's positions."""
    cache, context = prefill(100, dtype=dtype)
    both = Chain(dropper, SMALL_KIVI)
    decoded = both.decode(both.encode(cache, context, "0.5+4").payload)
    kept = dropper.choose(cache, context, "0.5")
    short = KVCache(gather(cache.keys, kept), gather(cache.values, kept))
    expected = SMALL_KIVI.decode(SMALL_KIVI.encode(short, PrefillContext(), "4").payload)
    assert 100 == decoded.next_position
    assert decoded.kept is not None
    for layer in range(3):
        assert torch.equal(kept[layer], decoded.kept[layer])
        assert torch.equal(expected.keys[layer], decoded.keys[layer])
        assert torch.equal(expected.values[layer], decoded.values[layer])


def test_identity_as_coder_gives_the_dropped_cache() -> None:
    """Nothing is lost but the tokens: the same cache as the dropper's own payload gives."""
    cache, context = prefill(50)
    both = Chain(KeyDiff(), Identity())
    alone = KeyDiff().decode(KeyDiff().encode(cache, context, "0.25").payload)
    decoded = both.decode(both.encode(cache, context, "0.25+").payload)
    assert all(torch.equal(a, b) for a, b in zip(alone.keys, decoded.keys, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(alone.values, decoded.values, strict=True))


def test_layers_of_unequal_length_are_coded_apart() -> None:
    """A pyramid's layers come back each with its own length; layers of equal length share one coded part."""
    cache, context = prefill(80)
    both = Chain(PyramidKV(window=8), SMALL_KIVI)
    encoded = both.encode(cache, context, "0.5+4")
    counts = encoded.facts["counts"]
    assert 3 == len(set(counts))
    assert {"coded_0", "coded_1", "coded_2"} < set(encoded.sections)
    decoded = both.decode(encoded.payload)
    assert counts == [keys.shape[1] for keys in decoded.keys]
    assert {"header", "positions", "coded_0", "checksum"} == set(both.encode(cache, context, "0.1+4").sections)


def test_bytes_are_the_coded_tokens_the_positions_and_a_header() -> None:
    """The payload is the coder's own payload of the kept tokens, plus positions, plus less than 300 bytes."""
    cache, context = prefill(400, dtype=torch.float16)
    encoded = Chain(StreamingLLM(), SMALL_KIVI).encode(cache, context, "0.5+4")
    kept = StreamingLLM().choose(cache, context, "0.5")
    short = KVCache(gather(cache.keys, kept), gather(cache.values, kept))
    alone = SMALL_KIVI.encode(short, PrefillContext(), "4").size_bytes
    assert alone == encoded.sections["coded_0"]
    assert encoded.size_bytes == sum(encoded.sections.values())
    assert 0 < encoded.size_bytes - alone - encoded.sections["positions"] < 300


def test_ladder_and_needs_follow_from_the_parts() -> None:
    """The dropper's ladder at the coder's second rate, as variants that name both parts."""
    both = Chain(H2O(), LowRank())
    assert [f"h2o+lowrank:{kept}+0.5" for kept in ("0.75", "0.5", "0.25", "0.1")] == list(both.knobs)
    assert {"attention"} == both.needs
    assert Variant("chain", "h2o+lowrank:0.5+0.5") == Variant.parse(f"{both.name}:{both.knobs[1]}")
    assert "snapkv+kivi:0.5+4" == Chain().knobs[1]
    assert Chain.knobs == Chain().knobs
    assert frozenset({"queries"}) == Chain.needs == Chain().needs


def test_knob_may_name_the_parts() -> None:
    """With the names of its own parts and without, a knob means the same."""
    cache, context = prefill(64)
    both = Chain(StreamingLLM(), SMALL_KIVI)
    named = both.encode(cache, context, "streamingllm+kivi:0.5+4")
    assert named.payload == both.encode(cache, context, "0.5+4").payload


def test_chain_by_name() -> None:
    """ "keydiff+lowrank" names a chain; unknown parts, other numbers of parts and wrong orders are refused."""
    assert Chain(KeyDiff(), LowRank()) == chain("keydiff+lowrank", KNOWN)
    for parts, problem in (
        ("keydif+kivi", "did you mean 'keydiff'"),
        ("keydiff", "two compressors"),
        ("keydiff+kivi+kivi", "two compressors"),
        ("kivi+keydiff", "kivi does not drop tokens"),
        ("snapkv+keydiff", "keydiff cannot code"),
    ):
        with pytest.raises(CompressorError, match=problem):
            chain(parts, KNOWN)


def test_coders_that_cannot_follow_are_refused() -> None:
    """A chain in a chain, and a coder that needs keys before RoPE, raise CompressorError."""
    for coder in (Chain(), Demanding()):
        with pytest.raises(CompressorError, match="cannot code what another compressor has kept"):
            Chain(SnapKV(), coder)


@pytest.mark.parametrize("knob", ["0.5", "0.5+", "+4", "0.5+9", "2+4", "0.5+4+4", "", ":0.5+4", "snapkv+kivi:0.5+4"])
def test_impossible_knobs_are_refused(knob: str) -> None:
    """A missing half, a half that its part refuses, or the names of other parts raise CompressorError."""
    cache, context = prefill(30)
    with pytest.raises(CompressorError):
        Chain(StreamingLLM(), Kivi()).encode(cache, context, knob)


def test_a_foreign_or_damaged_inner_part_is_refused() -> None:
    """Missing, foreign, damaged or differently shaped coded parts raise PayloadError."""
    cache, context = prefill(64)
    both = Chain(StreamingLLM(), SMALL_KIVI)
    facts, sections = unpack(both.encode(cache, context, "0.5+4").payload, both.format)
    other, _ = prefill(64, layers=2)
    wrong_layers = SMALL_KIVI.encode(other, PrefillContext(), "4").payload
    wrong_dtype, _ = prefill(32, dtype=torch.float16)
    parts = {
        "missing": None,
        "foreign": Identity().encode(cache, context, "").payload,
        "damaged": sections["coded_0"][:-3],
        "another dtype": sections["coded_0"].to(torch.int32),
        "fewer layers": wrong_layers,
        "half precision": SMALL_KIVI.encode(wrong_dtype, PrefillContext(), "4").payload,
    }
    for coded in parts.values():
        changed = {**sections} if coded is None else {**sections, "coded_0": coded}
        if coded is None:
            del changed["coded_0"]
        with pytest.raises(PayloadError):
            both.decode(pack(both.format, facts, changed).payload)


def test_payloads_of_another_chain_are_refused() -> None:
    """The payload names both parts."""
    cache, context = prefill(30)
    payload = Chain(StreamingLLM(), Kivi()).encode(cache, context, "0.5+4").payload
    with pytest.raises(PayloadError, match="chain:streamingllm\\+kivi"):
        Chain(StreamingLLM(), LowRank()).decode(payload)
