"""Uncompressed answers of a token-space model: prefill a context once, then answer every question from its cache.

A trained checkpoint is accepted by these figures; compressed caches are the profiler's business, not this module's.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlamaForCausalLM

from simkv.profiler.model_calls import cache_argument
from simkv.profiler.tasks import TASKS, Context, Question
from simkv.profiler.tasks.base import END, finish

__all__ = ["Figures", "answers_of", "held_out", "held_out_contexts"]

# Training draws from default_rng([seed, step]); more and other words keep held-out data apart from every seed.
_HELD_OUT = 1 << 40


@dataclass(frozen=True)
class Figures:
    """Means over all questions of one task: the task's own score, and exact match; with the number of questions."""

    score: float
    exact: float
    questions: int


def held_out_contexts(task: str, length: int, contexts: int, questions: int = 16, fold: int = 0) -> list[Context]:
    """Contexts that no training run has seen; ``fold`` 0 is for final figures, others for looking during training."""
    number = list(TASKS).index(task)
    rngs = (np.random.default_rng([_HELD_OUT, fold, number, length, i]) for i in range(contexts))
    return [TASKS[task].generate(rng, length, questions) for rng in rngs]


def held_out(model: LlamaForCausalLM, length: int, contexts: int, questions: int = 16) -> dict[str, Figures]:
    """Held-out figures of every task at one context length."""
    figures = {}
    for name, task in TASKS.items():
        scores, exact = [], []
        for context in held_out_contexts(name, length, contexts, questions):
            for output, question in zip(answers_of(model, context), context.questions, strict=True):
                scores.append(task.score(output, question))
                exact.append(finish(output) == finish(question.answer))
        figures[name] = Figures(float(np.mean(scores)), float(np.mean(exact)), len(scores))
    return figures


@torch.inference_mode()
def answers_of(model: LlamaForCausalLM, context: Context) -> list[list[int]]:
    """Greedy answers to a context's questions, in their order, each cut after END or at the longest answer's length."""
    prefix = DynamicCache(config=model.config)
    model(torch.from_numpy(context.tokens)[None].to(model.device), logits_to_keep=1, **cache_argument(model, prefix))
    order = sorted(range(len(context.questions)), key=lambda i: len(context.questions[i].query))
    outputs: dict[int, list[int]] = {}
    for _, group in groupby(order, key=lambda i: len(context.questions[i].query)):
        numbers = list(group)
        decoded = _decode(model, prefix, [context.questions[i] for i in numbers])
        outputs |= dict(zip(numbers, decoded, strict=True))
    return [outputs[i] for i in range(len(context.questions))]


def _decode(model: LlamaForCausalLM, prefix: DynamicCache, questions: list[Question]) -> list[list[int]]:
    """Greedy answers to questions of equal query length."""
    rows = len(questions)
    layers: list[Any] = prefix.layers
    pairs = [(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1)) for layer in layers]
    cache = DynamicCache(ddp_cache_data=pairs)
    tokens = torch.tensor([question.query for question in questions], device=model.device)
    steps = []
    for _ in range(max(len(question.answer) for question in questions)):
        tokens = model(tokens, logits_to_keep=1, **cache_argument(model, cache)).logits[:, -1:].argmax(-1)
        steps.append(tokens)
    lines = torch.cat(steps, dim=1).tolist()
    return [line[: line.index(END) + 1] if END in line else line for line in lines]
