"""Droppers that rank by attention rank by the model's own: its scaling, and a question's true place."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from simkv.profiler.compressors.base import CompressorError, KVCache, PrefillContext
from simkv.profiler.compressors.dropping import Dropper, best
from simkv.profiler.compressors.pyramidinfer import PyramidInfer
from simkv.profiler.compressors.snapkv import SnapKV, last_queries, recent_attention
from simkv.profiler.compressors.tova import TOVA
from simkv.profiler.models import CachedModel
from simkv.profiler.quality import Setting, _Measure
from simkv.profiler.tasks import Context, Question
from simkv.profiler.workloads import Workload

SIZES: dict[str, Any] = {"vocab_size": 60, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
TOKENS = [int(token) for token in torch.randint(5, 60, (90,), generator=torch.Generator().manual_seed(1))]
NEEDS = frozenset({"queries", "attention"})


def _granite(attention: str) -> GraniteForCausalLM:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = GraniteConfig(**SIZES, **HEADS, attention_multiplier=2.0, initializer_range=0.3)
    return GraniteForCausalLM._from_config(config, attn_implementation=attention).eval()


def _llama() -> CachedModel:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return CachedModel(LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, initializer_range=0.3)), "llama")


def _weights(cache: KVCache, side: PrefillContext, layer: int, window: int) -> Tensor:
    return recent_attention(last_queries(SnapKV(), cache, side, layer, window), cache, side, layer)


def test_weights_are_those_of_the_model_itself() -> None:
    """Granite scales by a constant of its configuration: what transformers' plain attention gives is what is ranked."""
    with torch.inference_mode():
        expected = _granite("eager")(torch.tensor([TOKENS]), output_attentions=True).attentions
    cache, side = CachedModel(_granite("sdpa"), "granite").prefill(TOKENS, NEEDS)
    for layer in range(2):
        found = _weights(cache, side, layer, 20)
        assert torch.allclose(expected[layer][0, :, -20:], found, atol=2e-2)
        unscaled = _weights(cache, replace(side, scalings=None), layer, 20)
        assert 0.1 < float((expected[layer][0, :, -20:] - unscaled).abs().max())


@pytest.mark.parametrize("dropper", [SnapKV(window=8), TOVA(), PyramidInfer(window=8)], ids=lambda one: one.name)
def test_the_models_scaling_decides_what_stays(dropper: Dropper) -> None:
    """The choice is that from queries scaled up by hand, and is not that of the usual 1 / sqrt(D)."""
    cache, side = CachedModel(_granite("sdpa"), "granite").prefill(TOKENS, NEEDS)
    assert side.queries is not None
    by_hand = replace(side, scalings=None, queries=[2.0 * 16**0.5 * query for query in side.queries])
    chosen = [kept.tolist() for kept in dropper.choose(cache, side, "0.25")]
    assert [kept.tolist() for kept in dropper.choose(cache, by_hand, "0.25")] == chosen
    assert [kept.tolist() for kept in dropper.choose(cache, replace(side, scalings=None), "0.25")] != chosen


def _known(model: CachedModel, query: tuple[int, ...], dropper: Dropper) -> tuple[KVCache, PrefillContext]:
    """The cache of a context and the side information of a query-aware measurement."""
    context = Context("any", np.array(TOKENS), {}, (Question(query, (7,)),))
    workload = Workload("any", 1, lambda _: context, lambda output, question: 0.0, None, 0)
    measure = _Measure(model, workload, context, 0, [Setting.of(dropper, "0.25")], True)
    return measure._seen_by(0)


@pytest.mark.parametrize("length", [1, 5, 8, 20])
def test_a_known_question_ranks_by_its_full_attention(length: int) -> None:
    """SnapKV's choice is that from the weights of one prefill over context and question, for windows on either side."""
    model, dropper = _llama(), SnapKV(window=8)
    query = tuple(TOKENS[3 : 3 + length])
    cache, side = _known(model, query, dropper)
    whole, full = model.prefill([*TOKENS, *query], NEEDS)
    found = dropper.choose(cache, side, "0.25")
    for layer in range(2):
        weights = _weights(whole, full, layer, 8)[..., : len(TOKENS)]
        assert torch.equal(weights, _weights(cache, side, layer, 8))
        earlier = min(len(TOKENS), len(TOKENS) + length - 8)
        pooled = avg_pool1d(weights[..., :earlier].mean(-2), 5, stride=1, padding=2).view(2, 2, -1).mean(1)
        scores = torch.full((2, len(TOKENS)), torch.inf)
        scores[:, :earlier] = pooled
        assert torch.equal(best(scores, 22), found[layer])


def test_a_known_question_is_all_that_is_recent() -> None:
    """TOVA ranks by the question's last token, and the context's last token must earn its place like any other."""
    model = _llama()
    cache, side = _known(model, (9, 11, 13), TOVA())
    whole, full = model.prefill([*TOKENS, 9, 11, 13], NEEDS)
    for layer, kept in enumerate(TOVA().choose(cache, side, "0.1")):
        assert torch.equal(best(_weights(whole, full, layer, 1).mean(0)[0, : len(TOKENS)], 9), kept)


def test_keys_of_other_tokens_must_fit() -> None:
    """Of a question or of what stands before: of other heads or fewer layers, a CompressorError."""
    cache, side = _known(_llama(), (9, 11, 13), SnapKV())
    assert side.later_keys is not None
    for wrong in (side.later_keys[:1], [keys[:1] for keys in side.later_keys]):
        for place in ("later_keys", "earlier_keys"):
            with pytest.raises(CompressorError, match="keys of other tokens that do not fit"):
                SnapKV().encode(cache, replace(side, **{place: wrong}), "0.25")
