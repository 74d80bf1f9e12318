"""Key-channel outliers for a model too small to have grown them, by an exact rescale that changes no answer.

Real models have a few key channels far larger than the rest, which is why per-channel key quantisation wins there.
Here the key rows of some RoPE pairs are multiplied by a power of two and the query rows of the same pairs divided by
it: RoPE turns both rows of a pair alike, each product of query and key keeps its value, and a power of two rounds
nothing, so in fp32 and bf16 the logits are bit-identical.  ``remove_outliers`` is the inverse.
"""

from typing import Any

import torch
from transformers import LlamaForCausalLM

__all__ = ["FACTOR", "PAIRS", "add_outliers", "remove_outliers"]

FACTOR = 8.0
PAIRS = 4


def add_outliers(model: LlamaForCausalLM, factor: float = FACTOR, pairs: int = PAIRS) -> None:
    """Scale ``pairs`` RoPE pairs of every KV head of every layer by ``factor``, a power of two, in place."""
    _rescale(model, factor, pairs)


def remove_outliers(model: LlamaForCausalLM, factor: float = FACTOR, pairs: int = PAIRS) -> None:
    """Undo ``add_outliers`` of the same arguments, exactly."""
    _rescale(model, 1.0 / factor, pairs)


@torch.no_grad()
def _rescale(model: LlamaForCausalLM, factor: float, pairs: int) -> None:
    config: Any = model.config
    size, half = config.head_dim, config.head_dim // 2
    group = config.num_attention_heads // config.num_key_value_heads
    for layer in model.model.layers:
        keys, queries = layer.self_attn.k_proj.weight, layer.self_attn.q_proj.weight
        for head in range(config.num_key_value_heads):
            chosen = half - 1 - 3 * torch.arange(pairs) - head  # among the slow pairs, which carry content
            rows = torch.cat([chosen, chosen + half])
            keys[head * size + rows] *= factor
            for query in range(head * group, (head + 1) * group):
                queries[query * size + rows] /= factor
