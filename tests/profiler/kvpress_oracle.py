"""What kvpress keeps: run by an interpreter that has kvpress, never by ours (it pins an older transformers).

Usage: ``python kvpress_oracle.py OUT.npz``.  Prefills different tokens through a random Llama (4 layers, 4 query heads
on 2 KV heads) and writes, in float32: the whole cache, all queries after RoPE, the attention mass per visible query,
and the positions that every press keeps, per layer and head.
"""

import sys

import numpy as np
import torch
from kvpress import KeyDiffPress, KnormPress, ObservedAttentionPress, SnapKVPress, StreamingLLMPress, TOVAPress
from kvpress.utils import get_prerope_query_states
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import rotate_half

PRESSES = {
    "knorm": KnormPress,
    "keydiff": KeyDiffPress,
    "snapkv": SnapKVPress,
    "h2o": ObservedAttentionPress,
    "streamingllm": StreamingLLMPress,
    "tova": TOVAPress,
}
REMOVED = (0.25, 0.5, 0.75)
TOKENS = 333


def main(out: str) -> None:
    """Run everything and write ``out``."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    # All different: equal tokens have keys of equal norm in the first layer, and ties are broken by rounding.
    tokens = torch.randperm(512)[None, :TOKENS]
    found = {}
    queries: list[torch.Tensor] = []

    def capture(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        states = get_prerope_query_states(module, kwargs["hidden_states"])
        cos, sin = (part.unsqueeze(1) for part in kwargs["position_embeddings"])
        queries.append((states * cos + rotate_half(states) * sin)[0])

    hooks = [layer.self_attn.register_forward_pre_hook(capture, with_kwargs=True) for layer in model.model.layers]
    whole = DynamicCache()
    with torch.no_grad():
        attentions = model(tokens, past_key_values=whole, output_attentions=True).attentions
    for hook in hooks:
        hook.remove()
    keys = [layer.keys[0] for layer in whole.layers]
    found["keys"] = torch.stack(keys)
    found["values"] = torch.stack([layer.values[0] for layer in whole.layers])
    found["queries"] = torch.stack(queries)
    visible = torch.arange(TOKENS, 0, -1)
    found["attention"] = torch.stack([weights[0].sum(dim=1) / visible for weights in attentions])
    for name, press in PRESSES.items():
        for removed in REMOVED:
            cache = DynamicCache()
            with torch.no_grad(), press(compression_ratio=removed)(model):
                model(tokens, past_key_values=cache, output_attentions=name == "h2o")
            kept = [_positions(layer.keys[0], keys[place]) for place, layer in enumerate(cache.layers)]
            found[f"{name}:{1 - removed}"] = torch.stack(kept)
    np.savez(out, **{name: tensor.numpy() for name, tensor in found.items()})


def _positions(kept: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """[H, n] ascending positions of the kept keys [H, n, D] among all [H, T, D]: the one that is equal."""
    same = (kept.unsqueeze(2) == whole.unsqueeze(1)).all(dim=-1)
    assert bool((same.sum(dim=-1) == 1).all())
    return same.int().argmax(dim=-1).sort(dim=-1).values


if __name__ == "__main__":
    main(sys.argv[1])
