"""Workloads: the contexts that a quality measurement goes through, from generated tasks or from files.

What it is: a task's contexts in order, each made from the seed when it is asked for.  What it is not: the tasks
themselves (``tasks/``), or what is measured on them (``quality.py``).
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from simkv.errors import SimkvError
from simkv.profiler.tasks import Context, Question, Task

__all__ = ["Workload", "calibration_contexts", "generated"]

# Training draws from default_rng([seed, step]); more and other words keep these contexts apart from every seed's.
_HELD_OUT = 1 << 40
_MEASURED, _CALIBRATION = 2, 3


@dataclass(frozen=True)
class Workload:
    """Contexts of one task.

    Attributes:
        task: name, as the profile has it.
        count: number of contexts.
        context: makes the context of a number from 0 to ``count - 1``, the same every time.
        score: quality of an output in [0, 1] against a question's answer.
        stop: token that ends an answer, None for none.
        spare_tokens: how much longer than the longest right answer an answer may be.
    """

    task: str
    count: int
    context: Callable[[int], Context]
    score: Callable[[Sequence[int], Question], float]
    stop: int | None
    spare_tokens: int = 0

    def __post_init__(self) -> None:
        """Raises SimkvError for a workload without contexts."""
        if self.count < 1:
            raise SimkvError(f"task {self.task}: {self.count} contexts; at least 1 is needed")


def generated(
    task: Task, contexts: int, questions: int, length: int, seed: int, stop: int | None, spare_tokens: int = 0
) -> Workload:
    """Contexts of ``length`` tokens that a task generates, apart from all that the small model was trained on."""

    def context(number: int) -> Context:
        return task.generate(_rng(_MEASURED, task.name, length, seed, number), length, questions)

    return Workload(task.name, contexts, context, task.score, stop, spare_tokens)


def calibration_contexts(task: Task, contexts: int, length: int, seed: int) -> list[Context]:
    """Contexts for compressors to be calibrated on; never among those that ``generated`` gives."""
    return [task.generate(_rng(_CALIBRATION, task.name, length, seed, i), length, 1) for i in range(contexts)]


def _rng(purpose: int, task: str, length: int, seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([_HELD_OUT, purpose, seed, zlib.crc32(task.encode()), length, number])
