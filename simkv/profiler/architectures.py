"""Random-weight models of known shapes, for the time of a prefill and of a step.

What it is: what ``simkv.models`` leaves out because a cache does not depend on it, and a model made of it, with fewer
layers where memory or patience does not suffice.  Dense models are built as Llama, whose layers cost the same as those
of Mistral and Qwen2.5 to within their biases and norms.  What it is not: trained; its text means nothing.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from simkv.errors import SimkvError
from simkv.models import MODELS, ModelShape

__all__ = ["ARCHITECTURES", "Architecture", "random_model", "weight_bytes"]

_SCALE = 0.02


@dataclass(frozen=True)
class Architecture:
    """What a model's speed depends on beside its cache's shape.

    Attributes:
        query_heads, hidden, inner, vocabulary: sizes; ``inner`` is one expert's where there are several.
        experts, active: of a mixture; 1 of each in a dense model.
    """

    query_heads: int
    hidden: int
    inner: int
    vocabulary: int
    experts: int = 1
    active: int = 1


ARCHITECTURES = {
    "llama-3.1-8b": Architecture(32, 4096, 14_336, 128_256),
    "llama-3.1-70b": Architecture(64, 8192, 28_672, 128_256),
    "llama-3.2-1b": Architecture(32, 2048, 8192, 128_256),
    "llama-3.2-3b": Architecture(24, 3072, 8192, 128_256),
    "mistral-7b-v0.3": Architecture(32, 4096, 14_336, 32_768),
    "qwen2.5-7b": Architecture(28, 3584, 18_944, 152_064),
    "qwen2.5-14b": Architecture(40, 5120, 13_824, 152_064),
    "qwen2.5-32b": Architecture(40, 5120, 27_648, 152_064),
    "qwen3-8b": Architecture(32, 4096, 12_288, 151_936),
    "qwen3-30b-a3b": Architecture(32, 2048, 768, 151_936, experts=128, active=8),
    "longchat-7b": Architecture(32, 4096, 11_008, 32_000),
}
"""Sizes as the models' published ``config.json`` files state them: ``num_attention_heads``, ``hidden_size``,
``intermediate_size`` (``moe_intermediate_size``, ``num_experts``, ``num_experts_per_tok``) and ``vocab_size``.

Checked on 2026-11-26 against public copies of those files (longchat-7b-v1.5-32k, Qwen2.5-7B, Qwen3-8B) and against
LitGPT's table of the same files (https://github.com/Lightning-AI/litgpt, ``litgpt/config.py`` at 2685705; all but
longchat), whose ``padded_vocab_size`` is the file's ``vocab_size``.
"""


def weight_bytes(name: str, itemsize: int) -> tuple[int, int]:
    """Bytes of one layer's weights, and of the tied embedding and head.  Raises SimkvError for an unknown model."""
    shape, built = _known(name)
    projections = 2 * built.hidden * (built.query_heads + shape.kv_heads) * shape.head_dim
    layer = projections + built.experts * 3 * built.hidden * built.inner
    return layer * itemsize, built.vocabulary * built.hidden * itemsize


def random_model(name: str, layers: int, device: str, dtype: torch.dtype, seed: int) -> Any:
    """A transformers causal LM of a known shape with ``layers`` layers and random weights.

    Embedding and head share their weights.  Raises SimkvError for an unknown model.
    """
    shape, built = _known(name)
    common: dict[str, Any] = {
        "vocab_size": built.vocabulary,
        "hidden_size": built.hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": built.query_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.window_tokens,
        "tie_word_embeddings": True,
    }
    # A model on "meta" takes no memory and no time; its weights are drawn once, where they belong.
    with torch.device("meta"):
        model: Any
        if built.experts > 1:
            moe: dict[str, Any] = {"moe_intermediate_size": built.inner, "num_experts": built.experts}
            model = Qwen3MoeForCausalLM(
                Qwen3MoeConfig(**common, **moe, num_experts_per_tok=built.active, intermediate_size=built.inner)
            )
        else:
            model = LlamaForCausalLM(LlamaConfig(**common, intermediate_size=built.inner))
    model = model.to(dtype).to_empty(device=device)
    model.tie_weights()
    _draw(model, seed)
    return model.eval()


def _draw(model: Any, seed: int) -> None:
    """Small random weights, norms of 1, and the rotary frequencies, which are no weights."""
    source = torch.Generator(model.device).manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                nn.init.ones_(weight)
            else:
                weight.uniform_(-_SCALE, _SCALE, generator=source)
        rotary = model.model.rotary_emb
        fresh = type(rotary)(model.config)
        for buffer, value in fresh.named_buffers():
            setattr(rotary, buffer, value.to(model.device))


def _known(name: str) -> tuple[ModelShape, Architecture]:
    if name not in ARCHITECTURES:
        raise SimkvError(f"model {name}: only its cache's shape is known; known: {', '.join(ARCHITECTURES)}")
    return MODELS[name], ARCHITECTURES[name]
