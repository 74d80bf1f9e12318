"""Which models the profiler can measure: those built like Llama, whose attention it can stand in for.

What it is: two checks, of a model's parts and of what its attention does, each ending in one clear error.  What it is
not: the attention itself (``attention.py``), or the refusal of caches of another kind by their config (``models.py``).
"""

from typing import Any

import torch
from transformers import DynamicCache

from simkv.errors import SimkvError
from simkv.profiler.attention import IMPLEMENTATION, Capture, capturing
from simkv.profiler.model_calls import cache_argument

__all__ = ["check_attention", "replace_attention"]

_ALLOWED = (
    "supported are models built like Llama (Llama, Qwen2, Qwen3, Mistral, Mixtral, Phi, OLMo, Granite, GLM, Cohere)"
)
_TOKENS = 2


def replace_attention(model: Any, name: str) -> None:
    """Set a model's attention to the profiler's.

    Raises SimkvError for a model without the parts that are needed, or that does not let its attention be replaced.
    """
    decoder = getattr(model, "model", None)
    if decoder is None or not callable(getattr(decoder, "rotary_emb", None)):
        raise SimkvError(
            f"model {name}: {type(model).__name__} has no rotary position embedding at model.rotary_emb; {_ALLOWED}"
        )
    try:
        model.set_attn_implementation(IMPLEMENTATION)
    except (ValueError, ImportError, AttributeError) as error:
        raise SimkvError(
            f"model {name}: the attention of {type(model).__name__} cannot be replaced: {' '.join(str(error).split())}"
        ) from error


@torch.inference_mode()
def check_attention(model: Any, name: str, layers: int, kv_heads: int, head_dim: int) -> None:
    """Raises SimkvError unless every layer, on two tokens, attends by the profiler's function, over a plain cache.

    transformers only warns of a model whose attention is its own; such a model would not see the profiler's masks.
    """
    device = next(model.parameters()).device
    ids = torch.zeros(1, _TOKENS, dtype=torch.int64, device=device)
    cache: Any = DynamicCache()
    with capturing(Capture(1, False)) as capture:
        try:
            model.model(input_ids=ids, use_cache=True, **cache_argument(model.model, cache))
        except SimkvError as error:
            raise SimkvError(f"model {name}: {error}; {_ALLOWED}") from error
    if len(capture.queries) != layers:
        raise SimkvError(
            f"model {name}: {type(model).__name__} attends by itself in {layers - len(capture.queries)} of {layers} "
            f"layers, where answers from a compressed cache could not be masked; {_ALLOWED}"
        )
    plain = (1, kv_heads, _TOKENS, head_dim)
    sides = [side for layer in cache.layers for side in (layer.keys, layer.values)]
    if len(cache.layers) != layers or any(tuple(side.shape) != plain for side in sides):
        found = sorted({tuple(side.shape) for side in sides})
        raise SimkvError(f"model {name}: caches of shape {found}, where its config says {plain}; {_ALLOWED}")
