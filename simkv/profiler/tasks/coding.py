"""Code-like copy and completion: functions ``DEFINE name body``, asked for again after they were written.

A body follows a fixed grammar of two token classes in turn, and some of its tokens repeat the one four before, as
variables are reused.  A question gives a name, alone (copy) or with the body's first tokens (completion); the answer is
the (rest of the) body.  Most questions ask for the functions written last.

Latents: ``recent`` (share of questions on the last quarter), ``reuse`` (chance that a token repeats), ``functions``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simkv.profiler.tasks.base import (
    BODY,
    DEFINE,
    END,
    KEYS,
    VALUES,
    Context,
    Question,
    TaskError,
    finish,
    place,
    scatter,
)

__all__ = ["Coding"]

_BODY = 8
_GIVEN = 3
_PERIOD = 4


@dataclass(frozen=True)
class Coding:
    """Code copy and completion, scored by edit similarity."""

    name: str = "code"

    def generate(self, rng: np.random.Generator, length: int, questions: int = 16) -> Context:
        """See Task."""
        size = _BODY + 3
        functions = min(KEYS.size, (length - 3) // size)
        if functions < 1:
            raise TaskError(f"task {self.name}: {length} tokens hold no function; give at least {size + 3}")
        reuse, recent = float(rng.uniform(0.0, 0.5)), float(rng.uniform(0.4, 0.9))
        names = place(KEYS, rng, functions).tolist()
        bodies = self._bodies(rng, functions, reuse).tolist()
        records = [(DEFINE, name, *body, END) for name, body in zip(names, bodies, strict=True)]
        tokens = scatter(rng, 4, length, records)
        asked = []
        for i, given in self._choice(rng, functions, questions, recent):
            query = (DEFINE, names[i], *bodies[i][:given])
            asked.append(Question(query, (*bodies[i][given:], END)))
        latents = {"recent": recent, "reuse": reuse, "functions": float(functions)}
        return Context(self.name, tokens, latents, tuple(asked))

    def score(self, output: Sequence[int], question: Question) -> float:
        """1 - edit distance / length of the longer of the two."""
        got, right = finish(output), finish(question.answer)
        return 1.0 - _edit_distance(got, right) / max(len(got), len(right))

    @staticmethod
    def _bodies(rng: np.random.Generator, functions: int, reuse: float) -> np.ndarray:
        """int64[functions, body]: classes by turns; even places of the second half may repeat the first half's."""
        even = np.arange(_BODY) % 2 == 0
        first, size = (np.where(even, a, b) for a, b in zip(BODY, VALUES, strict=True))
        bodies = first + rng.integers(0, size, size=(functions, _BODY))
        repeat = (rng.random((functions, _BODY)) < reuse) & even
        bodies[:, _PERIOD:] = np.where(repeat, np.roll(bodies, _PERIOD, axis=1), bodies)[:, _PERIOD:]
        return bodies

    @staticmethod
    def _choice(rng: np.random.Generator, functions: int, questions: int, recent: float) -> list[tuple[int, int]]:
        """Pairs (function, body tokens given), different from each other, the recent share in the last quarter."""
        pairs = [(i, given) for i in range(functions) for given in (0, _GIVEN)]
        new = np.array([i >= functions - max(1, functions // 4) for i, _ in pairs])
        weight = np.where(new, recent / new.sum(), (1 - recent) / max(1, (~new).sum()))
        order = rng.choice(len(pairs), size=min(questions, len(pairs)), replace=False, p=weight / weight.sum())
        return [pairs[i] for i in order]


def _edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]
