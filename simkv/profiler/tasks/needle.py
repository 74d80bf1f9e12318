"""Multi-value needle with distractors: ``NEEDLE k1 k2 v1 v2 v3 v4`` in noise, keyed by a pair of tokens.

Both tokens of every key come from small sets, so each is shared with other needles: the distractors.  A question
names one pair; the answer is its four values.  Latents: ``needles``, ``distractors`` (mean number of other needles that
share a key token), ``focus`` and ``width`` of the hot region that is asked about.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simkv.profiler.tasks.base import (
    END,
    KEYS,
    NEEDLE,
    VALUES,
    Context,
    Question,
    TaskError,
    hot_choice,
    place,
    scatter,
    share_in_place,
)

__all__ = ["Needle"]

_TOKENS = 7


@dataclass(frozen=True)
class Needle:
    """Multi-value needles, scored by the share of values in place."""

    name: str = "needle"

    def generate(self, rng: np.random.Generator, length: int, questions: int = 16) -> Context:
        """See Task."""
        most = (length - 3) // _TOKENS
        if most < 2:
            raise TaskError(f"task {self.name}: {length} tokens hold no two needles; give at least {2 * _TOKENS + 3}")
        needles = int(rng.integers(min(16, max(2, most // 2)), min(40, most) + 1))
        side = int(np.ceil(np.sqrt(needles * rng.uniform(1.2, 2.5))))
        first, second = np.split(place(KEYS, rng, 2 * side), 2)
        cells = rng.permutation(side * side)[:needles]
        pairs = np.stack([first[cells // side], second[cells % side]], axis=1)
        values = VALUES.first + rng.integers(0, VALUES.size, size=(needles, 4))
        shared = (pairs[:, None, :] == pairs[None, :, :]).any(axis=2).sum(axis=1) - 1
        latents = {"needles": float(needles), "distractors": float(shared.mean())}
        asked = hot_choice(rng, needles, questions, latents)
        facts = np.concatenate([np.full((needles, 1), NEEDLE), pairs, values], axis=1).tolist()
        tokens = scatter(rng, 1, length, facts)
        return Context(
            self.name, tokens, latents, tuple(Question(tuple(facts[i][:3]), (*facts[i][3:], END)) for i in asked)
        )

    def score(self, output: Sequence[int], question: Question) -> float:
        """Share of the four values in place."""
        return share_in_place(output, question.answer)
