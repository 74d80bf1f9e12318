"""CacheGen: deltas to an anchor token, coarser bins in deeper layers, and arithmetic coding per layer and channel.

Tokens come in groups; the first of a group is its anchor, kept in 8 bits, and the others store what differs from the
decoded anchor.  Both are quantised by the largest magnitude of the token over all heads and channels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, ClassVar

import torch
from torch import Tensor

from simkv.profiler.compressors.base import Compressor, CompressorError, DecodedCache, KVCache, PrefillContext, Shape
from simkv.profiler.compressors.deltas import Deltas, anchor_count, error_of, quantised, restored, step_sections
from simkv.profiler.compressors.parts import finite_stacks, whole_fact
from simkv.profiler.compressors.payload import Encoded, PayloadError
from simkv.profiler.compressors.streams import Distributions, Plan, decoded, encoded, pooled, read_tables

__all__ = ["CacheGen"]

_SIDES = ("key", "value")
_KNOB = re.compile(r"k([0-4])v([0-4])|([0-4])")
_KEY_BINS = ((12, 8, 8), (16, 16, 12), (32, 16, 16), (32, 32, 32), (64, 64, 64))  # by thirds of the layers
_VALUE_BINS = ((8, 8), (16, 12), (32, 16), (32, 32), (64, 64))  # the first sixteenth of the layers, the rest
_MOST = 1 << 24
_MOST_LAYERS = 1 << 12


@dataclass(frozen=True)
class CacheGen(Compressor):
    """CacheGen (https://arxiv.org/abs/2310.07240).

    Knob: level 0 (smallest) to 4, for both ("2") or for K and V ("k3v1").  Levels 1 to 3 are the bins of the released
    artifact, 4 and 0 continue them.  Each (layer, channel) has its own distribution, the anchors one per layer; a
    table takes 4 bits per bin (``ans.py``) where the released serde takes 16.

    Attributes:
        delta: True as published; False as in the released serde, where every token is quantised as it is.
        group: tokens of a group, the anchor included; only with ``delta``.
        window: tokens (anchors apart) that share a set of tables, 0 for all; LMCache has objects of 256 or 1,024.
        tables: distributions of a model from ``fit``, as the paper profiles them, by level and shape; an object
            without one stores its own.
    """

    name: ClassVar[str] = "cachegen"
    knobs: ClassVar[tuple[str, ...]] = ("4", "3", "2", "1", "0")
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})

    delta: bool = True
    group: int = 10
    window: int = 0
    tables: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not (1 < self.group <= _MOST and 0 <= self.window <= _MOST):
            raise CompressorError(f"compressor cachegen: group {self.group}, window {self.window} are not possible")

    def encode(self, cache: KVCache, context: PrefillContext, knob: str) -> Encoded:
        """See Compressor."""
        shape, levels = cache.shape, self._levels(knob)
        facts: dict[str, Any] = {"group": self._group, "window": self.window}
        sections: dict[str, Tensor | bytes] = {}
        for side, stack, level in zip(_SIDES, finite_stacks(cache), levels, strict=True):
            plan = _plan(side, level, shape, self._group, self.window)
            found = quantised(stack, self._group, plan.halves)
            fitted = self._fitted(side, level, plan)
            facts[f"{side}_level"] = level
            if fitted:
                facts[f"{side}_fitted"] = self._tables_id()
            sections |= {f"{side}_anchor_steps": found.anchor_steps, f"{side}_steps": found.steps}
            sections |= {f"{side}_{name}": content for name, content in encoded(found, plan, fitted).items()}
        return self.packed(shape, facts, sections)

    def decode(self, payload: bytes, device: torch.device | str = "cpu") -> DecodedCache:
        """See Compressor."""
        facts, sections, shape = self.opened(payload)
        group, window = whole_fact(facts, "group", 1, _MOST), whole_fact(facts, "window", 0, _MOST)
        if shape.layers > _MOST_LAYERS:
            raise PayloadError(f"an encoded cache of {shape.layers} layers")
        sides = []
        for side in _SIDES:
            level = whole_fact(facts, f"{side}_level", 0, len(_KEY_BINS) - 1)
            plan = _plan(side, level, shape, group, window)
            steps = step_sections(sections, side, shape, group, plan.halves)
            fitted: Distributions = {}
            if f"{side}_fitted" in facts:
                fitted = self._fitted(side, level, plan)
                if not fitted or facts[f"{side}_fitted"] != self._tables_id():
                    raise PayloadError("an encoded cache whose tables this compressor was not fitted with")
            anchors, others = decoded(sections, side, plan, fitted)
            parts = [part.to(device) for part in (anchors, steps[0], others, steps[1])]
            sides.append(restored(Deltas(*parts), shape, group, plan.halves))
        return DecodedCache(list(sides[0]), list(sides[1]), shape.tokens)

    def fit(self, caches: Sequence[KVCache]) -> "CacheGen":
        """A copy with the distributions of these caches at every level, every symbol with a frequency.

        Raises CompressorError unless there are caches, of two tokens or more, and alike in all but their tokens.
        """
        tables: dict[str, bytes] = {}
        for knob in self.knobs:
            for index, level in enumerate(self._levels(knob)):
                plans = [_plan(_SIDES[index], level, cache.shape, self._group, 0) for cache in caches]
                if len({_table_name(_SIDES[index], level, plan) for plan in plans}) != 1:
                    raise CompressorError("compressor cachegen: tables are fitted to caches of one shape")
                if min(cache.shape.tokens for cache in caches) < 2:
                    raise CompressorError("compressor cachegen: tables are fitted to caches of at least two tokens")
                stacks = (finite_stacks(cache)[index] for cache in caches)
                samples = ((quantised(s, self._group, p.halves), p) for s, p in zip(stacks, plans, strict=True))
                tables[_table_name(_SIDES[index], level, plans[0])] = pooled(samples)
        return replace(self, tables=tuple(tables.items()))

    def shared_bytes(self) -> int:
        """Bytes of all tables from ``fit``."""
        return sum(len(table) for _, table in self.tables)

    def error_bound(self, cache: KVCache, knob: str) -> tuple[list[Tensor], list[Tensor]]:
        """Half a step of each token, and rounding.  Per layer [1, T, 1], float64."""
        keys, values = (
            error_of(stack, self._group, _plan(side, level, cache.shape, self._group, 0).halves)
            for side, stack, level in zip(_SIDES, finite_stacks(cache), self._levels(knob), strict=True)
        )
        return list(keys), list(values)

    @property
    def _group(self) -> int:
        """1 without deltas: no token is an anchor."""
        return self.group if self.delta else 1

    def _levels(self, knob: str) -> tuple[int, int]:
        match = _KNOB.fullmatch(knob)
        if match is None:
            raise CompressorError(
                f'compressor cachegen: knob {knob!r} is neither a level from 0 to 4 nor of the form "k3v1"'
            )
        key, value, both = match.groups()
        return int(key or both), int(value or both)

    def _fitted(self, side: str, level: int, plan: Plan) -> Distributions:
        """The model's distributions, empty where it has none for this level and shape."""
        data = dict(self.tables).get(_table_name(side, level, plan))
        return {} if data is None else read_tables(data, plan)

    def _tables_id(self) -> str:
        return sha256(repr(self.tables).encode()).hexdigest()[:16]


def _table_name(side: str, level: int, plan: Plan) -> str:
    kind = "deltas" if plan.anchors else "tokens"
    return f"{side} {level} of {len(plan.halves)} x {plan.channels} {kind}"


def _plan(side: str, level: int, shape: Shape, group: int, window: int) -> Plan:
    """``bins`` bins are codes from -half to half, half = bins // 2 - 1, as in the released quantiser."""
    if side == "key":
        third = max(1, shape.layers // 3)
        bins = [_KEY_BINS[level][min(layer // third, 2)] for layer in range(shape.layers)]
    else:
        first = max(1, shape.layers // 16)
        bins = [_VALUE_BINS[level][int(layer >= first)] for layer in range(shape.layers)]
    anchors = anchor_count(shape.tokens, group)
    halves = tuple(count // 2 - 1 for count in bins)
    return Plan(anchors, shape.tokens - anchors, shape.heads * shape.head_dim, window, halves)
