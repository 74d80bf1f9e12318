"""The small model's shape, and a lean forward pass for training it on many questions per context.

The parameters are those of an ordinary ``transformers`` LlamaForCausalLM, and the logits are the same.  What the lean
pass adds is the store's own situation: one causal prefix, then questions that each see the prefix and themselves but
not one another, all at the positions that follow the prefix.  Contexts carry no loss, so their last layer is not
computed further than its keys and values.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from simkv.profiler.tasks.base import BOS, END, PAD, VOCABULARY, Context

__all__ = ["Batch", "batch_of", "logits_of", "small_config"]


def small_config(hidden: int = 128, layers: int = 3, context: int = 1024, base: float = 1e6) -> LlamaConfig:
    """The shape: 4 query and 2 KV heads of 64 dimensions, RoPE of that base, tied embeddings; ``hidden`` even."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=context,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": base},
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=BOS,
        eos_token_id=END,
        pad_token_id=PAD,
    )


@dataclass(frozen=True)
class Batch:
    """B contexts of L tokens with their questions packed into Q places each.

    ``context`` int64[B, L]; ``tokens``, ``targets`` int64[B, Q] (target -1: no loss here); ``steps`` int64[B, Q], place
    within the question, from 0; ``owner`` int64[B, Q], number of the question within the context, -1 for padding;
    ``task`` int64[B].
    """

    context: Tensor
    tokens: Tensor
    targets: Tensor
    steps: Tensor
    owner: Tensor
    task: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def batch_of(contexts: list[Context], tasks: list[int], places: int) -> Batch:
    """Pack as many whole questions of each context as fit into ``places``."""
    rows = np.zeros((4, len(contexts), places), dtype=np.int64)
    tokens, targets, steps, owner = rows
    targets[:], owner[:] = -1, -1
    for row, context in enumerate(contexts):
        _pack(context, tokens[row], targets[row], steps[row], owner[row])
    prefix = np.stack([context.tokens for context in contexts])
    packed = (torch.from_numpy(x) for x in (prefix, tokens, targets, steps, owner))
    return Batch(*packed, torch.tensor(tasks))  # type: ignore[call-arg]


def _pack(
    context: Context,
    tokens: NDArray[np.int64],
    targets: NDArray[np.int64],
    steps: NDArray[np.int64],
    owner: NDArray[np.int64],
) -> None:
    start = 0
    for number, (query, answer, _) in enumerate(context.questions):
        line = (*query, *answer)
        stop = start + len(line) - 1
        if stop > len(tokens):
            return
        tokens[start:stop] = line[:-1]
        targets[start + len(query) - 1 : stop] = answer
        steps[start:stop] = np.arange(stop - start)
        owner[start:stop] = number
        start = stop


def logits_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Logits at the questions' places, [B, Q, vocabulary]; those of padding mean nothing."""
    config: Any = model.config
    decoder = model.model
    prefix = batch.context.shape[1]
    turn = _Turn(config.head_dim, config.rope_parameters["rope_theta"])
    before = turn.at(torch.arange(prefix, device=batch.context.device))
    after = turn.at(prefix + batch.steps)
    mask = _mask(batch.owner, prefix)
    context, asked = decoder.embed_tokens(batch.context), decoder.embed_tokens(batch.tokens)
    for number, layer in enumerate(decoder.layers):
        inner = layer.self_attn
        x, y = layer.input_layernorm(context), layer.input_layernorm(asked)
        keys, values = _heads(inner.k_proj(x), before), _heads(inner.v_proj(x))
        own_keys, own_values = _heads(inner.k_proj(y), after), _heads(inner.v_proj(y))
        if number < config.num_hidden_layers - 1:
            seen = _attend(_heads(inner.q_proj(x), before), keys, values, None)
            context = _after_attention(layer, context, inner.o_proj(seen))
        seen = _attend(
            _heads(inner.q_proj(y), after),
            torch.cat([keys, own_keys], dim=2),
            torch.cat([values, own_values], dim=2),
            mask,
        )
        asked = _after_attention(layer, asked, inner.o_proj(seen))
    return F.linear(decoder.norm(asked), model.lm_head.weight)


@dataclass(frozen=True)
class _Turn:
    """RoPE's angles."""

    head_dim: int
    base: float

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin), each [..., 1, T, head_dim], for positions [..., T]."""
        steps = torch.arange(0, self.head_dim, 2, dtype=torch.int64, device=positions.device)
        exponent = steps.float() / self.head_dim
        angle = positions[..., None].float() * (1.0 / self.base**exponent)
        angle = torch.cat([angle, angle], dim=-1).unsqueeze(-3)
        return angle.cos(), angle.sin()


def _heads(x: Tensor, turn: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """[B, T, heads * 64] -> [B, heads, T, 64], turned by RoPE when asked."""
    x = x.unflatten(-1, (-1, 64)).transpose(1, 2)
    if turn is None:
        return x
    first, second = x.chunk(2, dim=-1)
    return x * turn[0] + torch.cat([-second, first], dim=-1) * turn[1]


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Grouped-query attention; causal when there is no mask.  Returns [B, T, heads * 64]."""
    if queries.is_cuda:  # where no fast kernel takes both a mask and fewer KV heads
        keys, values = (_repeated(x, queries.shape[1] // x.shape[1]) for x in (keys, values))
    seen = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=not queries.is_cuda
    )
    return seen.transpose(1, 2).flatten(-2)


def _repeated(x: Tensor, times: int) -> Tensor:
    """[B, heads, T, 64] -> [B, heads * times, T, 64], every head ``times`` times in a row."""
    return x[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2)


def _after_attention(layer: Any, x: Tensor, seen: Tensor) -> Tensor:
    x = x + seen
    return x + layer.mlp(layer.post_attention_layernorm(x))


def _mask(owner: Tensor, prefix: int) -> Tensor:
    """Additive, [B, 1, Q, prefix + Q]: the whole prefix, and of the questions one's own up to here."""
    places = owner.shape[1]
    causal = torch.ones(places, places, dtype=torch.bool, device=owner.device).tril()
    own = (owner[:, :, None] == owner[:, None, :]) & causal
    open_ = torch.cat([own.new_ones(*owner.shape, prefix), own], dim=2)
    return torch.zeros(open_.shape, device=owner.device).masked_fill(~open_, float("-inf"))[:, None]
