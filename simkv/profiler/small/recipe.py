"""What the small models are trained on, step by step: the recipes, and the batch of each step.

What it is: shape, schedule and data as functions of the seed and the step alone, whoever makes them, in whatever order.
What it is not: the training itself (``train.py``).
"""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import islice
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from simkv.profiler.small.model import Batch, batch_of
from simkv.profiler.tasks import TASKS

__all__ = ["RECIPES", "Recipe", "Stage", "batch_at", "batches"]

_AHEAD = 4
_LEAST_WINDOW = 1024


@dataclass(frozen=True)
class Stage:
    """So many steps on contexts of one length (tokens), so many contexts of each task per step."""

    length: int
    contexts: int
    steps: int


@dataclass(frozen=True)
class Recipe:
    """The whole schedule.

    ``hidden``, ``layers`` and ``base`` (RoPE's) are the model's shape.  Learning rates rise over ``warmup`` steps and
    fall linearly from the share ``decay_from`` of all steps to ``last_rate`` of their value.  ``earlier`` is the share
    of steps spent on the lengths of earlier stages; ``places`` and ``questions`` bound what is packed behind each
    context; every ``look_every`` steps accuracy is looked at and the state saved.
    """

    stages: tuple[Stage, ...]
    hidden: int = 128
    layers: int = 3
    places: int = 160
    questions: int = 40
    earlier: float = 0.25
    matrix_rate: float = 0.005
    vector_rate: float = 3e-3
    warmup: int = 20
    decay_from: float = 0.4
    last_rate: float = 0.02
    look_every: int = 100
    base: float = 1e6

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def window(self) -> int:
        """Tokens of the model's window: twice the longest context, so that questions and answers fit behind it."""
        return max(_LEAST_WINDOW, 2 * max(stage.length for stage in self.stages))

    def stage_at(self, step: int, rng: np.random.Generator) -> Stage:
        """The stage of a step, or, for the share ``earlier`` of steps, one of those before it."""
        ends = np.cumsum([stage.steps for stage in self.stages])
        now = int(np.searchsorted(ends, step, side="right"))
        if now and rng.random() < self.earlier:
            now = int(rng.integers(now))
        return self.stages[now]

    def rate(self, step: int) -> float:
        """Factor on the learning rates."""
        done = step / self.steps
        fall = (
            1.0
            if done < self.decay_from
            else 1 - (1 - self.last_rate) * (done - self.decay_from) / (1 - self.decay_from)
        )
        return min(1.0, (step + 1) / self.warmup) * fall

    def scaled(self, factor: float) -> "Recipe":
        """The same with every stage's steps multiplied, at least one each."""
        return replace(self, stages=tuple(replace(s, steps=max(1, round(s.steps * factor))) for s in self.stages))


RECIPES = {
    "small": Recipe((Stage(256, 2, 150), Stage(512, 1, 650))),
    # With RoPE's base at 1e6 too few pairs stay slow over 4,096 tokens to tell 128 keys apart.
    "large": Recipe(
        (Stage(256, 16, 200), Stage(512, 8, 200), Stage(1024, 6, 200), Stage(2048, 4, 400), Stage(4096, 2, 600)),
        hidden=256,
        layers=6,
        places=320,
        base=1e8,
    ),
}


def batch_at(recipe: Recipe, seed: int, step: int) -> Batch:
    """The batch of one step."""
    rng = np.random.default_rng([seed, step])
    stage = recipe.stage_at(step, rng)
    tasks = [i for i in range(len(TASKS)) for _ in range(stage.contexts)]
    makers = list(TASKS.values())
    contexts = [makers[i].generate(rng, stage.length, recipe.questions) for i in tasks]
    return batch_of(contexts, tasks, recipe.places)


def batches(recipe: Recipe, seed: int, first: int, workers: int = 0) -> Generator[Batch, None, None]:
    """The batches of the steps from ``first`` on, in order; close it when some are left.

    Worker processes, if any, make them ahead of their use, so that a GPU need not wait; they are the same batches.
    """
    steps = iter(range(first, recipe.steps))
    if not workers:
        yield from (batch_at(recipe, seed, step) for step in steps)
        return
    ahead: deque[Future[list[NDArray[Any]]]] = deque()
    pool = ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,))
    try:
        while True:
            free = _AHEAD * workers - len(ahead)
            ahead.extend(pool.submit(_arrays_at, recipe, seed, step) for step in islice(steps, free))
            if not ahead:
                return
            yield Batch(*map(torch.from_numpy, ahead.popleft().result()))
    finally:
        pool.shutdown(cancel_futures=True)


def _arrays_at(recipe: Recipe, seed: int, step: int) -> list[NDArray[Any]]:
    """As plain arrays, since tensors would travel between processes through shared memory that may be short."""
    batch = batch_at(recipe, seed, step)
    return [getattr(batch, field.name).numpy() for field in fields(Batch)]
