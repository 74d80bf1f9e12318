"""Code copy and completion in text: functions of a small grammar, one line of one of which is asked for again.

The asked line stands in the context and cannot be guessed: its variables and numbers are random.  Comments are the
filler.
"""

from dataclasses import dataclass, field

import numpy as np

from simkv.profiler.tasks.metrics import Metric, edit
from simkv.profiler.tasks.text_base import Asked, Draft, TextTask
from simkv.profiler.tasks.text_words import VALUES, names

__all__ = ["TextCode"]

_LINES = 4
_SAMPLE = 8
_OPERATORS = ("+", "-", "*", "//", "%")


@dataclass(frozen=True)
class TextCode(TextTask):
    """Code copy and completion, scored by edit similarity of one line.

    A question gives a function's head and up to three of its lines; the answer is the next one.  Most questions ask for
    the functions written last.  Latents: ``recent`` (share of questions on the last quarter), ``reuse`` (chance that an
    operand is a variable of the function, not a new number), ``functions``.
    """

    name: str = "code"
    metric: Metric = field(default=edit, repr=False)
    joint: str = "\n"
    filler_form: str = "# {}"
    most: int = 512

    def draft(self, rng: np.random.Generator, length: int, questions: int) -> Draft:
        """See TextTask."""
        recent, reuse = float(rng.uniform(0.4, 0.9)), float(rng.uniform(0.1, 0.9))
        sample = ["\n".join(self._function(rng, name, reuse)) for name in names(rng, _SAMPLE)]
        count = min(self.most, self.room(length, float(rng.uniform(0.6, 0.85)), sample, 1))
        made = [self._function(rng, name, reuse) for name in names(rng, count)]
        asked = [self._next_line(made[i], given) for i, given in self._choice(rng, count, questions, recent)]
        latents = {"recent": recent, "reuse": reuse, "functions": float(count)}
        return Draft(["\n".join(lines) for lines in made], latents, asked)

    @staticmethod
    def _function(rng: np.random.Generator, name: str, reuse: float) -> list[str]:
        """The head, the lines of the body, the return."""
        known = [VALUES[i] for i in rng.permutation(len(VALUES))[: _LINES + 2]]
        lines = [f"def {name}({known[0]}, {known[1]}):"]
        for written in range(2, _LINES + 2):
            left = known[rng.integers(written)]
            right = known[rng.integers(written)] if rng.random() < reuse else str(rng.integers(10, 1000))
            lines.append(f"    {known[written]} = {left} {_OPERATORS[rng.integers(len(_OPERATORS))]} {right}")
        return [*lines, f"    return {known[rng.integers(2, _LINES + 2)]}"]

    @staticmethod
    def _choice(rng: np.random.Generator, functions: int, questions: int, recent: float) -> list[tuple[int, int]]:
        """Different pairs (function, lines given), the recent share in the last quarter."""
        pairs = [(i, given) for i in range(functions) for given in range(_LINES)]
        new = np.array([i >= functions - max(1, functions // 4) for i, _ in pairs])
        weight = np.where(new, recent / new.sum(), (1 - recent) / max(1, (~new).sum()))
        order = rng.choice(len(pairs), size=min(questions, len(pairs)), replace=False, p=weight / weight.sum())
        return [pairs[i] for i in order]

    @staticmethod
    def _next_line(lines: list[str], given: int) -> Asked:
        name = lines[0].removeprefix("def ").partition("(")[0]
        shown = "\n".join(lines[: given + 1])
        answer = lines[given + 1]
        return Asked(f"\n\n# Question: what does {name} look like?\n# Answer:\n{shown}\n", answer, answer)
