"""Aggregation, as a summary needs it: every facet is mentioned several times, the majority of its mentions counts.

A mention is ``slot value``; a share of each facet's mentions is wrong.  A question names a slot, the answer is the
value most of its mentions give.  Latents: ``redundancy`` (mean mentions per slot), ``noise`` (share of wrong
mentions), ``facets``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simkv.profiler.tasks.base import (
    END,
    SLOTS,
    SUMMARISE,
    VALUES,
    Context,
    Question,
    TaskError,
    finish,
    place,
    scatter,
)

__all__ = ["Aggregation"]


@dataclass(frozen=True)
class Aggregation:
    """Facet majority, scored by exact match; the right value always has at least three quarters of its mentions."""

    name: str = "aggregation"

    def generate(self, rng: np.random.Generator, length: int, questions: int = 16) -> Context:
        """See Task."""
        most = (length - 3) // 2
        if most < 1:
            raise TaskError(f"task {self.name}: {length} tokens hold no mention; give at least 5")
        facets = max(1, min(SLOTS.size, length // 16))
        redundancy = float(rng.uniform(3.0, min(12.0, max(3.0, 0.9 * most / facets))))
        noise = float(rng.uniform(0.0, 0.25))
        counts = np.maximum(1, np.rint(rng.normal(redundancy, 0.7, size=facets))).astype(int)
        while counts.sum() > most:
            counts[counts.argmax()] -= 1
        truth = (VALUES.first + rng.integers(0, VALUES.size, size=facets)).tolist()
        slots = place(SLOTS, rng, facets).tolist()
        mentions: list[tuple[int, int]] = []
        for slot, value, count in zip(slots, truth, counts.tolist(), strict=True):
            mentions += self._mentions(rng, slot, value, count, noise)
        mentions = [mentions[i] for i in rng.permutation(len(mentions))]
        tokens = scatter(rng, 3, length, mentions)
        latents = {"redundancy": len(mentions) / facets, "noise": noise, "facets": float(facets)}
        asked = [Question((SUMMARISE, s), (v, END)) for s, v in zip(slots, truth, strict=True)]
        return Context(self.name, tokens, latents, tuple(asked[:questions]))

    def score(self, output: Sequence[int], question: Question) -> float:
        """1 when the majority value is right, else 0."""
        return float(finish(output) == finish(question.answer))

    @staticmethod
    def _mentions(rng: np.random.Generator, slot: int, value: int, count: int, noise: float) -> list[tuple[int, int]]:
        wrong = int(noise * count)
        others = [v for v in place(VALUES, rng, wrong + 1).tolist() if v != value][:wrong]
        return [(slot, value)] * (count - wrong) + [(slot, other) for other in others]
