"""Multi-key retrieval ("qa"): many records ``key v1 v2``; a question names a key, the answer is its two values.

Latents: ``density`` (records per token), ``focus`` and ``width`` of the hot region that is asked about.
Every record has a key of its own, so contexts of more than 640 tokens hold as many records as one of 640, and more
filler between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simkv.profiler.tasks.base import (
    END,
    KEYS,
    QUERY,
    VALUES,
    Context,
    Question,
    TaskError,
    finish,
    hot_choice,
    place,
    scatter,
)

__all__ = ["Retrieval"]

_KEYS_LAST = 5 * KEYS.size  # tokens: the densest context of this length uses every key


@dataclass(frozen=True)
class Retrieval:
    """Multi-key retrieval, scored by exact match.  A twelfth to a fifth of (the first 640) tokens start a record."""

    name: str = "qa"

    def generate(self, rng: np.random.Generator, length: int, questions: int = 16) -> Context:
        """See Task."""
        density = float(rng.uniform(1 / 12, 1 / 5))
        records = min(KEYS.size, int(density * min(length, _KEYS_LAST)), (length - 3) // 3)
        if records < 1:
            raise TaskError(f"task {self.name}: {length} tokens hold no record; give at least 12")
        keys = place(KEYS, rng, records)
        values = VALUES.first + rng.integers(0, VALUES.size, size=(records, 2))
        facts = [(int(k), int(v), int(w)) for k, (v, w) in zip(keys, values, strict=True)]
        latents = {"density": records / length}
        asked = [facts[i] for i in hot_choice(rng, records, questions, latents)]
        tokens = scatter(rng, 0, length, facts)
        return Context(self.name, tokens, latents, tuple(Question((QUERY, k), (v, w, END)) for k, v, w in asked))

    def score(self, output: Sequence[int], question: Question) -> float:
        """1 when both values are right, else 0."""
        return float(finish(output) == finish(question.answer))
