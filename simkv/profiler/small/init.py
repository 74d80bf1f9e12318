"""Structured initialisation: an induction circuit is seeded, then everything is trained.

A Llama of this size started at random sits on a plateau for longer than its whole training lasts here.  So three parts
get a meaning at the start; all of them are plain Llama parameters that training is free to change:

1. Embeddings have equal norm and use the first 64 hidden dimensions; dimension 0 is a constant.
2. Layer 0, heads 0 and 2, look one and two tokens back (the constant, turned by RoPE's fast pairs) and write what they
   see, each through its own rotation, into the next 64.
3. Layer 1, heads 0 and 1, look for the place whose previous token is the current one, head 0 also for the token before
   that (RoPE's slow pairs, which turn by less than 2 rad over the window), and copy what stands there.

It is an initialisation, not the model: every quality figure is taken after training, on held-out data.
"""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

__all__ = ["initialise"]

_WIDTH = 64
_STD = 0.2
_OUT = 0.5
_CONSTANT = 4.0
_FAST = 0.05
_TURN = 2.0
_LOOK_BACK, _MATCH, _COPY = 8.0, 2.2, 5.0


@torch.no_grad()
def initialise(model: LlamaForCausalLM, seed: int) -> None:
    """Fill all parameters of a small model (head dimension 64, hidden size at least 128) in place, reproducibly."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(_OUT if name == "model.norm.weight" else 1.0)
        else:
            small = 0.25 * _STD if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * small / math.sqrt(parameter.shape[1]))
    _embed(model, draw)
    codes = [torch.zeros(_WIDTH, model.config.hidden_size) for _ in range(2)]
    for code in codes:
        code[:, _WIDTH : 2 * _WIDTH] = _rotation(_WIDTH, draw)
    for head, back, code in ((0, 1, codes[0]), (2, 2, codes[1])):
        _look_back(model, head, back, code)
    _match(model, codes, draw)


def _embed(model: LlamaForCausalLM, draw: torch.Generator) -> None:
    weight = model.model.embed_tokens.weight
    tokens, hidden = weight.shape
    rows = torch.randn(tokens, _WIDTH - 1, generator=draw)
    weight.zero_()
    weight[:, 1:_WIDTH] = rows / rows.norm(dim=1, keepdim=True) * _STD * math.sqrt(hidden)
    weight[:, 0] = _CONSTANT * _STD


def _rotation(size: int, draw: torch.Generator) -> Tensor:
    """Orthonormal, [size, size]."""
    return torch.linalg.qr(torch.randn(size, size, generator=draw))[0]


def _pairs(model: LlamaForCausalLM) -> Tensor:
    """Angle per token of RoPE's pairs, [head_dim / 2], fast to slow."""
    config: Any = model.config
    size = config.head_dim
    return config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)


def _rows(head: int) -> slice:
    return slice(_WIDTH * head, _WIDTH * head + _WIDTH)


def _look_back(model: LlamaForCausalLM, head: int, back: int, code: Tensor) -> None:
    """Make a head of layer 0 see the token ``back`` places before, and write it through ``code`` [64, hidden]."""
    inner = model.model.layers[0].self_attn
    config: Any = model.config
    group = config.num_attention_heads // config.num_key_value_heads
    omega = _pairs(model)
    fast = torch.nonzero(omega > _FAST).flatten()
    query, key = inner.q_proj.weight[_rows(head)], inner.k_proj.weight[_rows(head // group)]
    query *= 0.1
    key *= 0.1
    key[fast, 0] = _LOOK_BACK / _CONSTANT
    query[fast, 0] = _LOOK_BACK / _CONSTANT * torch.cos(-omega[fast] * back)
    query[fast + len(omega), 0] = _LOOK_BACK / _CONSTANT * torch.sin(-omega[fast] * back)
    inner.v_proj.weight[_rows(head // group)] = _current(model)
    inner.o_proj.weight[:, _rows(head)] = code.T * _STD


def _match(model: LlamaForCausalLM, codes: list[Tensor], draw: torch.Generator) -> None:
    """Heads 0 and 1 of layer 1: match on previous tokens, then copy."""
    inner, current = model.model.layers[1].self_attn, _current(model)
    slow = torch.nonzero(_pairs(model) * model.config.max_position_embeddings < _TURN).flatten()
    rows = torch.cat([slow, slow + _WIDTH // 2])
    read = [_rotation(_WIDTH, draw)[: len(rows)] for _ in range(2)]  # [slow dimensions, 64]
    gain = _MATCH * math.sqrt(4.0 * _WIDTH / model.config.hidden_size)
    key = inner.k_proj.weight[_rows(0)]
    key *= 0.1
    key[rows] = gain * (read[0] @ codes[0] + read[1] @ codes[1])
    for head, wanted in ((0, read[0] @ current + read[1] @ codes[0]), (1, read[0] @ current)):
        query = inner.q_proj.weight[_rows(head)]
        query *= 0.1
        query[rows] = gain * wanted
        inner.o_proj.weight[:, _rows(head)] = torch.eye(model.config.hidden_size, _WIDTH) * _COPY * _STD / 2
    inner.v_proj.weight[_rows(0)] = current


def _current(model: LlamaForCausalLM) -> Tensor:
    """Reads the current token's embedding without the constant, [64, hidden]."""
    reader = torch.eye(_WIDTH, model.config.hidden_size)
    reader[0, 0] = 0.0
    return reader
