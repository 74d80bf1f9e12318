"""Symmetric quantisation of tokens and of their deltas to an anchor token, as CacheGen does it.

What it is: anchors and the other tokens as codes and steps, the way back, and the largest error that follows.  Token
t belongs to the group of anchor ``t - t % group``; its delta is taken to the anchor *as decoded*, so errors do not add
up.  A group of 1 has no anchors: tokens are quantised as they are.  What it is not: entropy coding (``ans.py``).

Shapes: L layers, T tokens of which A are anchors, C = H x D channels of a token.  ``halves`` is, per layer, the
largest code of a delta in magnitude.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simkv.profiler.compressors.base import CompressorError, Shape
from simkv.profiler.compressors.bounded import step_section, stored_steps, unit_roundoff
from simkv.profiler.compressors.payload import PayloadError

__all__ = ["ANCHOR_HALF", "Deltas", "anchor_count", "error_of", "quantised", "restored", "step_sections"]

ANCHOR_HALF = 127
"""Largest code of an anchor in magnitude: 8 bits."""

_LARGEST = torch.finfo(torch.float32).max / 8


@dataclass(frozen=True)
class Deltas:
    """Codes (uint8, 0 is the lowest level) and steps of a side.

    Attributes:
        anchors, anchor_steps: [L, A, C] and [L, A, 1].
        codes, steps: of the other tokens, [L, T - A, C] and [L, T - A, 1].
    """

    anchors: Tensor
    anchor_steps: Tensor
    codes: Tensor
    steps: Tensor


def anchor_count(tokens: int, group: int) -> int:
    """Anchors among so many tokens."""
    return -(-tokens // group) if group > 1 else 0


def quantised(stack: Tensor, group: int, halves: Sequence[int]) -> Deltas:
    """Codes and steps of finite values [L, H, T, D].

    Raises CompressorError for values so large that a delta could leave float32.
    """
    values = stack.transpose(1, 2).flatten(2).float()  # [L, T, C]
    if float(values.abs().max()) > _LARGEST:
        raise CompressorError(f"a cache with values beyond {_LARGEST:.2g} has no deltas in float32")
    is_anchor = _is_anchor(values.shape[1], group, stack.device)
    anchors, anchor_steps = _symmetric(values[:, is_anchor], torch.tensor(ANCHOR_HALF), stack.dtype)
    base = _base(anchors, anchor_steps, is_anchor, group)
    codes, steps = _symmetric(values[:, ~is_anchor].sub_(base), _column(halves, stack.device), stack.dtype)
    return Deltas(anchors, anchor_steps, codes, steps)


def restored(found: Deltas, shape: Shape, group: int, halves: Sequence[int]) -> Tensor:
    """Values [L, H, T, D] in the cache's dtype."""
    device = found.codes.device
    is_anchor = _is_anchor(shape.tokens, group, device)
    values = torch.empty(shape.layers, shape.tokens, shape.heads * shape.head_dim, device=device)
    values[:, is_anchor] = _levels(found.anchors, found.anchor_steps, torch.tensor(ANCHOR_HALF))
    base = _base(found.anchors, found.anchor_steps, is_anchor, group)
    values[:, ~is_anchor] = _levels(found.codes, found.steps, _column(halves, device)).add_(base)
    most = torch.finfo(shape.torch_dtype).max
    whole = values.clamp_(-most, most).to(shape.torch_dtype)
    return whole.unflatten(2, (shape.heads, shape.head_dim)).transpose(1, 2)


def error_of(stack: Tensor, group: int, halves: Sequence[int]) -> Tensor:
    """Largest absolute error of each token [L, 1, T, 1], float64.

    Half a step, and the rounding of deltas and sums in float32 and of the result.
    """
    found = quantised(stack, group, halves)
    is_anchor = _is_anchor(stack.shape[2], group, stack.device)
    dtype = torch.finfo(stack.dtype)
    reach = stack.abs().amax((1, 3)).double()  # [L, T]
    steps = torch.empty_like(reach)
    steps[:, is_anchor], steps[:, ~is_anchor] = found.anchor_steps[..., 0].double(), found.steps[..., 0].double()
    largest = reach + steps
    summed = largest + (largest[:, is_anchor].repeat_interleave(group, 1)[:, : reach.shape[1]] if group > 1 else 0)
    bound = steps * (0.5 + 2.0**-16) + unit_roundoff(stack.dtype) * largest + 2.0**-22 * summed
    return (bound + dtype.tiny * dtype.eps)[:, None, :, None]


def step_sections(
    sections: dict[str, Tensor], side: str, shape: Shape, group: int, halves: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Steps of the anchors and of the other tokens.  Raises PayloadError."""
    anchors = anchor_count(shape.tokens, group)
    first = step_section(sections, f"{side}_anchor_steps", (shape.layers, anchors, 1))
    second = step_section(sections, f"{side}_steps", (shape.layers, shape.tokens - anchors, 1))
    for steps, half in ((first, ANCHOR_HALF), (second, max(halves))):
        if steps.numel() and float(steps.max()) * half > 4 * _LARGEST:
            raise PayloadError(f"steps of the {side} side that leave float32")
    return first, second


def _is_anchor(tokens: int, group: int, device: torch.device) -> Tensor:
    places = torch.arange(tokens, device=device)
    return places % group == 0 if group > 1 else places < 0


def _column(halves: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(halves, device=device)[:, None, None]


def _symmetric(values: Tensor, halves: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    steps = stored_steps(values.abs().amax(2, keepdim=True).double() / halves, dtype)
    return values.div(steps.float().where(steps > 0, 1.0)).round_().add_(halves).to(torch.uint8), steps


def _levels(codes: Tensor, steps: Tensor, halves: Tensor) -> Tensor:
    return codes.float().sub_(halves).mul_(steps.float())


def _base(anchors: Tensor, steps: Tensor, is_anchor: Tensor, group: int) -> Tensor:
    """What the anchor of each other token decodes to [L, T - A, C]; zeros without anchors."""
    if group == 1:
        return torch.zeros(1, device=anchors.device)
    decoded = _levels(anchors, steps, torch.tensor(ANCHOR_HALF))
    return decoded.repeat_interleave(group, dim=1)[:, : len(is_anchor)][:, ~is_anchor]
