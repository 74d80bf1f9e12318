"""Payloads that claim to hold far more than their bytes can: refused before memory is given, and never made."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simkv.profiler.compressors import COMPRESSORS, make_compressor
from simkv.profiler.compressors.base import Compressor, CompressorError, KVCache, PrefillContext, Shape
from simkv.profiler.compressors.cachegen import _plan
from simkv.profiler.compressors.payload import PayloadError, pack
from simkv.profiler.compressors.streams import _packed
from tests.profiler import compressor_laws as laws

TOKENS, CHANNELS = 4096, 4096


def _packkv_bomb() -> dict[str, Any]:
    """Whole contexts in one pack of width 0: 4 bits for 4,096 tokens of a channel."""
    part = torch.zeros((CHANNELS + 7) // 8, dtype=torch.uint8)
    one = {
        "mins": part,
        "widths": part,
        "residuals": part[:0],
        "zeros": torch.zeros(1, 1, TOKENS, 1, dtype=torch.int8),
        "steps": torch.zeros(1, 1, TOKENS, 1, dtype=torch.float16),
        "raw": torch.zeros(1, 1, 0, CHANNELS, dtype=torch.float16),
    }
    facts = {"block": TOKENS, "pack": TOKENS, "coded": TOKENS, "key_bits": 1, "value_bits": 1}
    return {"facts": facts, "sections": {f"{side}_{k}": v for side in ("key", "value") for k, v in one.items()}}


def _cachegen_bomb() -> dict[str, Any]:
    """A stream of no words, in which every symbol is certain."""
    sections: dict[str, Tensor | bytes] = {}
    for side in ("key", "value"):
        plan = _plan(side, 0, Shape(1, 1, TOKENS, CHANNELS, "f16"), 1, 0)
        grades = np.zeros((CHANNELS, 2 * plan.halves[0] + 1), np.uint8)
        grades[:, 0] = 15
        sections |= {
            f"{side}_anchor_steps": torch.zeros(1, 0, 1, dtype=torch.float16),
            f"{side}_steps": torch.zeros(1, TOKENS, 1, dtype=torch.float16),
            f"{side}_lengths": torch.tensor([4], dtype=torch.int32),
            f"{side}_tables": _packed(grades),
            f"{side}_streams": (1 << 16).to_bytes(4, "little"),
        }
    return {"facts": {"group": 1, "window": 0, "key_level": 0, "value_level": 0}, "sections": sections}


@pytest.mark.parametrize(("name", "bomb"), [("packkv", _packkv_bomb()), ("cachegen", _cachegen_bomb())])
def test_bombs_are_refused(name: str, bomb: dict[str, Any]) -> None:
    """Some kilobytes, correct in every section, that would decode to 67 MB, and could to any size."""
    compressor = make_compressor(name)
    payload = pack(
        compressor.format, {"shape": [1, 1, TOKENS, CHANNELS], "dtype": "f16", **bomb["facts"]}, bomb["sections"]
    ).payload
    assert len(payload) < 100_000
    with pytest.raises(PayloadError, match="claim to hold a cache of 67108864"):
        compressor.decode(payload)


@pytest.mark.parametrize("kind", COMPRESSORS.values(), ids=COMPRESSORS)
def test_every_compressor_has_a_bound(kind: type[Compressor]) -> None:
    """A header that claims more than the bound is refused for that, whatever the sections."""
    compressor = kind()
    facts = {"shape": [64, 1 << 10, 1 << 23, 1 << 10], "dtype": "f32"}
    with pytest.raises(PayloadError, match="claim to hold"):
        compressor.decode(pack(compressor.format, facts, {}).payload)


def test_what_is_encoded_can_be_decoded() -> None:
    """A constant cache that would become smaller than decoders believe is refused by the encoder."""
    flat = KVCache([torch.zeros(16, 1024, 64).half()], [torch.zeros(16, 1024, 64).half()])
    cachegen = make_compressor("cachegen", delta=False, window=1024)
    short = KVCache([flat.keys[0][:, :32]], [flat.values[0][:, :32]])
    assert laws.assert_decodes(cachegen, short, PrefillContext(), "0") < short.shape.raw_bytes / 8
    with pytest.raises(CompressorError, match="only a constant cache becomes 256 times smaller"):
        cachegen.encode(flat, PrefillContext(), "0")
