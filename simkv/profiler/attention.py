"""Attention as the profiler needs it: caches of any length per layer, and the prefill's queries and attention mass.

What it is: one function in the form that transformers calls attention implementations, registered as "simkv".
Decoding continues from caches whose layers may hold different numbers of tokens, which the masks of transformers
do not allow for; so the mask is made here, per layer.  Prefill can leave behind what query-aware compressors ask
for.  What it is not: fast; it is exact, in plain torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from simkv.errors import SimkvError

__all__ = ["IMPLEMENTATION", "Capture", "capturing", "continuing", "masked_to"]

IMPLEMENTATION = "simkv"
_NOT_PLAIN = ("softcap", "s_aux", "sliding_window")  # what models ask of attention that would change its answers
_BLOCK = 512  # queries at a time when attention mass is summed


@dataclass
class Capture:
    """What a prefill leaves behind, per layer.

    Attributes:
        window: keep the last so many queries.
        wants_mass: sum the attention that each token receives.
        queries: [query heads, window, D] after RoPE.
        scalings: what the layer multiplies queries times keys by before softmax.
        mass: [query heads, T], summed over queries, divided by how many could see the token.
    """

    window: int
    wants_mass: bool
    queries: list[Tensor] = field(default_factory=list)
    scalings: list[float] = field(default_factory=list)
    mass: list[Tensor] = field(default_factory=list)


@dataclass
class _State:
    capture: Capture | None = None
    new_mask: Tensor | None = None  # bool [batch, new, new so far], True: may be seen
    continues: bool = False


_STATE = _State()


@contextlib.contextmanager
def capturing(capture: Capture) -> Iterator[Capture]:
    """Fill ``capture`` during a prefill of one sequence."""
    _STATE.capture = capture
    try:
        yield capture
    finally:
        _STATE.capture = None


@contextlib.contextmanager
def masked_to(new_mask: Tensor) -> Iterator[None]:
    """Continue from a cache: every cached token is seen, new ones as ``new_mask`` says.

    Args:
        new_mask: bool[batch, new tokens, new tokens so far].
    """
    _STATE.new_mask = new_mask
    try:
        yield
    finally:
        _STATE.new_mask = None


@contextlib.contextmanager
def continuing() -> Iterator[None]:
    """New tokens follow the cached ones: each sees the whole cache, and the new ones up to itself; without a mask."""
    _STATE.continues = True
    try:
        yield
    finally:
        _STATE.continues = False


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention of [B, heads, n, D] queries over [B, KV heads, T, D]; returns [B, n, heads, D].

    ``dropout`` is part of the form, and not used: nothing is trained here.  Raises SimkvError for a model that asks
    for more than plain attention.
    """
    for name in _NOT_PLAIN:
        if more.get(name) is not None:
            raise SimkvError(f"{type(module).__name__} asks for attention with {name}={str(more[name])[:40]}")
    mask = None
    if _STATE.continues:
        return _continued(query, key, value, scaling), None
    if _STATE.new_mask is not None:
        batch, new, so_far = _STATE.new_mask.shape
        cached = key.shape[2] - so_far
        seen = torch.ones(batch, new, cached, dtype=torch.bool, device=key.device)
        mask = torch.cat([seen, _STATE.new_mask], dim=2).unsqueeze(1)
    elif _STATE.capture is not None:
        _record(_STATE.capture, query, key, scaling)
    out = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


def _continued(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    new, groups = query.shape[2], query.shape[1] // key.shape[1]
    if new == 1:
        out = functional.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=groups > 1)
    else:
        # The fast kernels with this alignment know no groups, so heads are repeated.
        key, value = (side.repeat_interleave(groups, dim=1) if groups > 1 else side for side in (key, value))
        mask: Any = causal_lower_right(new, key.shape[2])
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out.transpose(1, 2).contiguous()


def _record(capture: Capture, query: Tensor, key: Tensor, scaling: float | None) -> None:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    capture.queries.append(query[0, :, -capture.window :].clone(memory_format=torch.contiguous_format))
    capture.scalings.append(scale)
    if not capture.wants_mass:
        return
    heads, tokens = query.shape[1], key.shape[2]
    keys = key[0].repeat_interleave(heads // key.shape[1], dim=0)
    mass = torch.zeros(heads, tokens, dtype=torch.float32, device=key.device)
    for start in range(0, tokens, _BLOCK):
        block = query[0, :, start : start + _BLOCK]
        logits = (block @ keys.transpose(1, 2)).float() * scale
        rows = torch.arange(start, start + block.shape[1], device=key.device)
        hidden = torch.arange(tokens, device=key.device)[None, :] > rows[:, None]
        mass += logits.masked_fill(hidden, float("-inf")).softmax(dim=-1).sum(dim=1)
    capture.mass.append(mass / torch.arange(tokens, 0, -1, device=key.device))


def _no_mask(*_: Any, **__: Any) -> None:
    """Masks are made in ``_attention``."""


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _no_mask)
