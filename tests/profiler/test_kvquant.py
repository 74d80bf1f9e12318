"""KVQuant's own stories: the rotary embedding undone, levels fitted, outliers kept, forged tables refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from simkv.profiler.compressors.base import CompressorError, PrefillContext
from simkv.profiler.compressors.kvquant import KVQuant
from simkv.profiler.compressors.nuq import fit_levels, frequencies, turned
from simkv.profiler.compressors.payload import PayloadError, unpack
from simkv.profiler.models import CachedModel
from tests.profiler.compressor_laws import edited, normal_cache, sample


def rotary(tokens: int, head_dim: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Angles of Llama's rotary embedding as transformers computes them, in float32."""
    rates = 1.0 / 5e5 ** (torch.arange(0, head_dim, 2).float() / head_dim)
    phases = torch.outer(torch.arange(start, start + tokens).float(), rates).repeat(1, 2)
    return phases.cos(), phases.sin()


@pytest.mark.parametrize("start", [0, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kvquant_reads_frequencies_off_the_angles(start: int, dtype: torch.dtype) -> None:
    """Rates from (cos, sin) to a thousandth of a turn at the last of 5,000 tokens, whatever the first position is."""
    cos, sin = (part.to(dtype) for part in rotary(5000, 64, start))
    found = frequencies((cos, sin), normal_cache(5000, 1, 64).shape)
    exact = 1.0 / 5e5 ** (torch.arange(0, 64, 2).double() / 64)
    assert float((found.double() - exact).abs().max()) * 5000 < (2 * math.pi / 1000 if dtype == torch.float32 else 0.02)


def test_kvquant_undoes_the_rotary_embedding() -> None:
    """Turned back, the keys are those before RoPE up to their rounding; turned forward again, themselves."""
    plain, (cos, sin) = normal_cache(200, 2, 64, dtype=torch.float32).keys[0], rotary(200, 64)
    keys = plain * cos + torch.cat([-plain[..., 32:], plain[..., :32]], dim=-1) * sin
    rates = frequencies((cos, sin), normal_cache(200, 2, 64).shape)
    back = turned(keys, rates, 0, -1)
    assert torch.allclose(plain, back, atol=2e-3)
    assert torch.allclose(keys, turned(back, rates, 0, 1), atol=1e-4)


def _tiny(kind: str) -> CachedModel:
    """A random model of two layers; GLM turns neighbouring channels together, Phi only some, Qwen3 norms its keys."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sizes = {"vocab_size": 60, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **sizes, **heads)
    return CachedModel(AutoModelForCausalLM.from_config(config), kind)


@pytest.mark.parametrize("kind", ["llama", "phi", "qwen3"])
def test_kvquant_takes_models_that_turn_the_halves(kind: str) -> None:
    """Their keys, some or all channels turned, with biases or norms, are taken."""
    cache, side = _tiny(kind).prefill(list(range(5, 55)), frozenset({"pre_rope"}))
    decoded = KVQuant().decode(KVQuant().encode(cache, side, "4").payload)
    assert torch.allclose(cache.keys[0].float(), decoded.keys[0].float(), atol=0.3 * float(cache.keys[0].abs().max()))


def test_kvquant_refuses_a_model_that_turns_neighbours() -> None:
    """GLM's angles look like Llama's, but turn channels 0 and 1, 2 and 3, and so on."""
    cache, side = _tiny("glm").prefill(list(range(5, 55)), frozenset({"pre_rope"}))
    with pytest.raises(CompressorError, match="does not turn the two halves"):
        KVQuant().encode(cache, side, "4")


def test_kvquant_turns_only_the_rotated_channels() -> None:
    """With angles for half of the channels, the other half is left as it is."""
    cache = normal_cache(64, 2, 32)
    rates = frequencies(rotary(64, 16), cache.shape)
    assert 8 == len(rates)
    back = turned(cache.keys[0].float(), rates, 0, -1)
    assert torch.equal(cache.keys[0][..., 16:].float(), back[..., 16:])
    assert not torch.equal(cache.keys[0][..., :16].float(), back[..., :16])


@pytest.mark.parametrize(
    ("angles", "says"),
    [
        (None, "pre_rope"),
        (rotary(63, 32), "do not fit"),
        (rotary(64, 64), "do not fit"),
        (tuple(part[:, :1] for part in rotary(64, 32)), "do not fit"),
        (tuple(part[:, :16].repeat_interleave(2, 1) for part in rotary(64, 32)), "halves"),
        (tuple(part.flip(0)[torch.arange(64) ** 2 % 64] for part in rotary(64, 32)), "evenly"),
    ],
    ids=["none", "short", "wide", "odd", "interleaved", "shuffled"],
)
def test_kvquant_refuses_angles_that_it_cannot_undo(angles: Any, says: str) -> None:
    """Without the side information, or with another kind of embedding, a clear CompressorError."""
    with pytest.raises(CompressorError, match=says):
        KVQuant().encode(normal_cache(64, 2, 32), PrefillContext(rope_angles=angles), "4")


def test_kvquant_gains_from_undoing_the_embedding() -> None:
    """Keys with loud channels lose less than when they are quantised as if nothing had been rotated."""
    cache, context = sample(300, heads=2, head_dim=64)
    still = PrefillContext(rope_angles=(torch.ones(300, 64), torch.zeros(300, 64)))
    errors = []
    for side in (context, still):
        decoded = KVQuant().decode(KVQuant().encode(cache, side, "3").payload)
        errors.append(float((decoded.keys[0].float() - cache.keys[0].float()).norm()))
    assert errors[0] < 0.85 * errors[1]


def test_kvquant_outliers_come_back_as_fp16() -> None:
    """The farthest per cent of each token's values, and the whole first token, are exact; nothing else is."""
    cache = normal_cache(50, 4, 64)
    angles = PrefillContext(rope_angles=rotary(50, 64))
    decoded = KVQuant().decode(KVQuant().encode(cache, angles, "2-1%").payload)
    values = cache.values[0].float().transpose(0, 1).flatten(1)  # [T, H * D]
    exact = (decoded.values[0] == cache.values[0]).transpose(0, 1).flatten(1)
    assert bool(exact[0].all()) and torch.equal(cache.keys[0][:, 0], decoded.keys[0][:, 0])
    for token in range(1, 50):
        far = (values[token] - values[token].mean()).abs().topk(2).indices  # 1 % of 256, rounded down
        assert bool(exact[token, far].all())
        assert int(exact[token].sum()) < 40


@pytest.mark.parametrize("knob", ["4", "4-1%", "k4v2", "2-9%"])
def test_kvquant_true_sizes(knob: str) -> None:
    """Codes, 48 bits an outlier, two fp16 a channel or token, a table: within 1 % of the sum."""
    tokens, heads, head_dim = 2049, 8, 128
    cache, angles = normal_cache(tokens, heads, head_dim), PrefillContext(rope_angles=rotary(tokens, head_dim))
    widths, _, percent = knob.partition("-")
    bits = {"4": 8, "k4v2": 6, "2": 4}[widths]
    channels, share = heads * head_dim, int(percent[:-1] or 0) if percent else 0
    codes = channels * (tokens - 1) * bits / 8 + 4 * (channels + tokens - 1)
    outliers = 6 * (channels * ((tokens - 1) * share // 100) + (tokens - 1) * (channels * share // 100))
    expected = codes + outliers + 4 * channels
    assert KVQuant().encode(cache, angles, knob).size_bytes == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("count", "expected"), [(2, 0.3634), (4, 0.1175), (8, 0.03454), (16, 0.009497)])
def test_fitted_levels_of_a_gaussian_are_as_good_as_max(count: int, expected: float) -> None:
    """The square error of J. Max's table of 1960, within 1 %, from evenly spread quantiles in any order."""
    quantiles = torch.special.ndtri((torch.arange(16001).double() + 0.5) / 16001).float()
    mixed = quantiles[torch.randperm(16001, generator=torch.Generator().manual_seed(0))]
    levels = fit_levels(mixed / 4, count) * 4
    assert expected == pytest.approx(float((mixed.unsqueeze(1) - levels).pow(2).amin(1).mean()), rel=0.01)


def test_fitted_levels_survive_values_that_repeat() -> None:
    """Fewer distinct values than levels: every value has a level of its own, and levels do not fall."""
    values = torch.tensor([-1.0, -0.25, -0.25, 0.5, 1.0]).repeat(100)
    levels = fit_levels(values, 8)
    assert bool((levels.diff() >= 0).all())
    assert float((values.unsqueeze(1) - levels).abs().amin(1).max()) < 1e-6
    assert [-1.0, 0.0, 1.0] == fit_levels(torch.empty(0), 3).tolist()


@pytest.mark.parametrize("bad", ["equal", "falling", "negative", "beyond"])
def test_kvquant_outlier_positions_must_rise_and_exist(bad: str) -> None:
    """Positions that repeat, fall or lie outside are refused."""
    cache, context = sample(161)
    payload = KVQuant().encode(cache, context, "4-1%").payload
    at = unpack(payload, "kvquant/1")[1]["key_outliers_at"].clone()
    at[1, -1] = {"equal": int(at[1, -2]), "falling": int(at[1, 0]), "negative": -5, "beyond": 2 * 160 * 32}[bad]
    with pytest.raises(PayloadError, match="rising positions"):
        KVQuant().decode(edited(KVQuant(), payload, "key_outliers_at", at))


@pytest.mark.parametrize("levels", [[1.0, -1.0, 0.0, 0.5], [0.0, 0.1, 0.2, 1.5], [-1.0, 0.0, 1.0, math.nan]], ids=str)
def test_kvquant_levels_must_rise_within_their_range(levels: list[float]) -> None:
    """A codebook that the encoder cannot have written is refused."""
    cache, context = sample(40)
    payload = KVQuant().encode(cache, context, "2").payload
    with pytest.raises(PayloadError, match="value_levels"):
        KVQuant().decode(edited(KVQuant(), payload, "value_levels", torch.tensor([levels] * 2, dtype=torch.float16)))
