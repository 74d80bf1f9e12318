"""The model wrapper: answers from a cache are those of the plain model, whatever the lengths of its layers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from simkv.errors import SimkvError
from simkv.profiler.compressors.base import DecodedCache, KVCache
from simkv.profiler.models import CachedModel

CONTEXT = list(range(7, 57))
QUERIES = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]


def _config(**changes: object) -> LlamaConfig:
    sizes = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256}
    return LlamaConfig(**{**sizes, **heads, **changes})


@pytest.fixture(scope="module")
def pair() -> tuple[CachedModel, LlamaForCausalLM]:
    """A random model behind the wrapper, and the same weights in a plain model."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(_config())
    plain = LlamaForCausalLM(_config())
    plain.load_state_dict(model.state_dict())
    return CachedModel(model, "random"), plain.eval()


def _decoded(cache: KVCache, drop: int = 0) -> DecodedCache:
    keys = [key.float()[:, : key.shape[1] - drop * layer] for layer, key in enumerate(cache.keys)]
    values = [value.float()[:, : value.shape[1] - drop * layer] for layer, value in enumerate(cache.values)]
    return DecodedCache(keys, values, cache.shape.tokens)


def _greedy(plain: LlamaForCausalLM, prompt: list[int], steps: int) -> list[int]:
    out: list[int] = []
    for _ in range(steps):
        logits = plain(torch.tensor([prompt + out])).logits
        out.append(int(logits[0, -1].argmax()))
    return out


def test_batched_answers_equal_the_plain_model(pair: tuple[CachedModel, LlamaForCausalLM]) -> None:
    """Questions of different lengths, batched on one cache, get the answers of the uncached model."""
    wrapped, plain = pair
    cache, _ = wrapped.prefill(CONTEXT)
    expected = [_greedy(plain, CONTEXT + query, 6) for query in QUERIES]
    assert expected == wrapped.answer(_decoded(cache), QUERIES, 6, None)


def test_stop_token_ends_an_answer(pair: tuple[CachedModel, LlamaForCausalLM]) -> None:
    """An answer ends before the stop token, and the others go on."""
    wrapped, plain = pair
    cache, _ = wrapped.prefill(CONTEXT)
    whole = _greedy(plain, CONTEXT + QUERIES[0], 6)
    stop = whole[3]
    assert whole[: whole.index(stop)] == wrapped.answer(_decoded(cache), QUERIES, 6, stop)[0]


def test_answer_logits_are_those_of_the_plain_model(pair: tuple[CachedModel, LlamaForCausalLM]) -> None:
    """Teacher-forced log-probabilities agree with the uncached model up to the cache's 16 bits."""
    wrapped, plain = pair
    cache, _ = wrapped.prefill(CONTEXT)
    answers = [[3, 4], [9, 9, 9], [1]]
    scored = wrapped.answer_logits(_decoded(cache), QUERIES, answers)
    for query, answer, found in zip(QUERIES, answers, scored, strict=True):
        logits = plain(torch.tensor([CONTEXT + query + answer])).logits[0].detach().log_softmax(-1)
        start = len(CONTEXT) + len(query) - 1
        assert 2e-3 > float((logits[start : start + len(answer)] - found).abs().max())


def test_layers_of_different_lengths_are_allowed(pair: tuple[CachedModel, LlamaForCausalLM]) -> None:
    """A cache whose deeper layers hold fewer tokens answers a batch as it answers each question alone."""
    wrapped, _ = pair
    cache, _ = wrapped.prefill(CONTEXT)
    alone = [wrapped.answer(_decoded(cache, drop=7), [query], 5, None)[0] for query in QUERIES]
    assert alone == wrapped.answer(_decoded(cache, drop=7), QUERIES, 5, None)


def test_side_information_has_the_promised_shapes_and_sums(pair: tuple[CachedModel, LlamaForCausalLM]) -> None:
    """Queries are the last ones; attention mass, undone from its division, sums to one per query."""
    wrapped, _ = pair
    cache, context = wrapped.prefill(CONTEXT, frozenset({"queries", "attention", "pre_rope"}), window=8)
    assert context.queries is not None and context.attention is not None and context.rope_angles is not None
    tokens = cache.shape.tokens
    assert [(4, 8, 16)] * 3 == [tuple(queries.shape) for queries in context.queries]
    total = (context.attention[0] * torch.arange(tokens, 0, -1)).sum(dim=1)
    assert total.tolist() == pytest.approx([tokens] * 4, rel=1e-4)
    assert (tokens, 16) == tuple(context.rope_angles[0].shape)


def test_unusual_models_are_refused() -> None:
    """Sliding windows, and contexts beyond the window, are one-line errors."""
    sliding = LlamaForCausalLM(_config())
    sliding.config.sliding_window = 64
    with pytest.raises(SimkvError, match="sliding-window"):
        CachedModel(sliding, "sliding")
    with pytest.raises(SimkvError, match="a context of 300 tokens; allowed: 1 to 256"):
        CachedModel(LlamaForCausalLM(_config()), "short").prefill(list(range(100)) * 3)


SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
ROPELESS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2, n_positions=64)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, intermediate_size=32)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=32, max_position_embeddings=64)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=60, hidden_size=32, n_layer=1, n_head=2)),
    "falcon": lambda: FalconForCausalLM(FalconConfig(**SMALL)),
}


@pytest.mark.parametrize("name", ROPELESS)
def test_models_that_are_not_built_like_llama_are_refused(name: str) -> None:
    """With what is missing and what is supported, whatever the family."""
    with pytest.raises(SimkvError, match=f"model {name}: .* has no rotary .* supported are models built like Llama"):
        CachedModel(ROPELESS[name](), name)


def test_a_model_whose_attention_is_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers only warns of one; here a layer of two answers by itself."""
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    layer = model.model.layers[1].self_attn
    monkeypatch.setattr(layer, "forward", lambda hidden_states, **given: (hidden_states, None))
    with pytest.raises(SimkvError, match="attends by itself in 1 of 2 layers"):
        CachedModel(model, "own")


def test_attention_that_is_not_plain_is_refused() -> None:
    """Gemma 2 caps its attention logits."""
    sizes = {**SMALL, "intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 16}
    config = Gemma2Config(**sizes, use_sliding_window=False, layer_types=["full_attention"] * 2)
    with pytest.raises(SimkvError, match="model capped: Gemma2Attention asks for attention with softcap=50"):
        CachedModel(Gemma2ForCausalLM(config), "capped")
