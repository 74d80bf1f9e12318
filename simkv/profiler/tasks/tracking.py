"""Variable tracking: assignments ``y = x`` scattered through noise form chains that end in a value.

A question names a variable; the answer walks its chain to the value, ``x = w = v``, so one lost assignment breaks
everything after it.  Latents: ``hops`` (mean assignments per asked chain), ``chains``, ``density`` (assignments per
token).  Every variable is assigned once, so contexts of more than 640 tokens hold as many assignments as one of 640.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simkv.profiler.tasks.base import (
    END,
    EQUALS,
    KEYS,
    TRACE,
    VALUES,
    Context,
    Question,
    TaskError,
    place,
    scatter,
    share_in_place,
)

__all__ = ["Tracking"]

_TOKENS = 3
_KEYS_LAST = 5 * KEYS.size  # tokens: the densest context of this length uses every key


@dataclass(frozen=True)
class Tracking:
    """Variable tracking, scored by the share of the chain's links in place.  ``most_hops`` is the longest chain."""

    name: str = "tracking"
    most_hops: int = 4

    def generate(self, rng: np.random.Generator, length: int, questions: int = 16) -> Context:
        """See Task."""
        most = min(KEYS.size, (length - 3) // _TOKENS)
        if most < 1:
            raise TaskError(f"task {self.name}: {length} tokens hold no assignment; give at least {_TOKENS + 3}")
        wanted = max(1, min(most, int(min(length, _KEYS_LAST) * rng.uniform(1 / 10, 1 / 5))))
        names = place(KEYS, rng, wanted).tolist()
        mean = float(rng.uniform(1.5, self.most_hops))
        source: dict[int, int] = {}
        chains = 0
        while names:
            hops = min(len(names), self.most_hops, 1 + int(rng.poisson(mean - 1)))
            chain, names = names[:hops], names[hops:]
            value = VALUES.first + int(rng.integers(VALUES.size))
            source |= dict(zip(chain, [*chain[1:], value], strict=True))
            chains += 1
        order = rng.permutation(list(source)).tolist()
        tokens = scatter(rng, 2, length, [(name, EQUALS, source[name]) for name in order])
        asked = [self._question(name, source) for name in rng.permutation(order)[:questions].tolist()]
        walked = float(np.mean([len(question.answer) / 2 for question in asked]))
        latents = {"hops": walked, "chains": float(chains), "density": wanted / length}
        return Context(self.name, tokens, latents, tuple(asked))

    def score(self, output: Sequence[int], question: Question) -> float:
        """Share of the links (variables and the value, not the equals signs) in place."""
        return share_in_place(list(output)[::2], list(question.answer)[::2])

    @staticmethod
    def _question(name: int, source: dict[int, int]) -> Question:
        answer: list[int] = [source[name]]
        while answer[-1] in source:
            answer += [EQUALS, source[answer[-1]]]
        return Question((TRACE, name, EQUALS), (*answer, END))
