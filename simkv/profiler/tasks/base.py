"""What a task is, and the token vocabulary that all token-space tasks share.

A task makes contexts: a token sequence that is prefilled and compressed before any question is known, and
questions asked of it afterwards, each answered on its own from the same cache.  Every context carries its *latents*,
the properties that make one context more sensitive to compression than another: where the asked-about region lies,
how dense the records are, how many distractors there are, how redundant the facts.

This module holds no task and no model.  A task in text, for any tokenizer, meets the same protocol with its own tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simkv.errors import SimkvError

__all__ = [
    "BODY",
    "BOS",
    "DEFINE",
    "END",
    "EQUALS",
    "FILLER",
    "KEYS",
    "NEEDLE",
    "PAD",
    "QUERY",
    "SEP",
    "SLOTS",
    "SUMMARISE",
    "TRACE",
    "VALUES",
    "VOCABULARY",
    "Context",
    "Question",
    "Span",
    "Task",
    "TaskError",
    "filler",
    "finish",
    "hot_choice",
    "place",
    "scatter",
    "share_in_place",
]


class Span(NamedTuple):
    """A run of token ids with one role: ``first`` to ``first + size - 1``."""

    first: int
    size: int


PAD, BOS, SEP, END = 0, 1, 2, 3
QUERY, NEEDLE, EQUALS, TRACE, SUMMARISE, DEFINE = 4, 5, 6, 7, 8, 9
SLOTS = Span(16, 24)
KEYS = Span(40, 128)
VALUES = Span(168, 128)
FILLER = Span(296, 96)
BODY = Span(392, 112)
VOCABULARY = 512

_FIRST_TAG = 10
_ZIPF = 1.0 / np.arange(1, FILLER.size + 1)


class TaskError(SimkvError):
    """A context that a task cannot make: too short, or too many questions."""


class Question(NamedTuple):
    """A question and its right answer, both token ids; the answer ends with the task's stop token.

    ``references`` are the right answers as text, for tasks whose metric compares text.
    """

    query: tuple[int, ...]
    answer: tuple[int, ...]
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """A context of one task.

    ``tokens`` int64[length] is the prefix whose cache is stored, BOS first and SEP last.  ``latents`` are its hidden
    properties, by name.  ``questions`` are distinct and in random order, so that any split of them is a fair one.
    """

    task: str
    tokens: NDArray[np.int64]
    latents: dict[str, float]
    questions: tuple[Question, ...]


class Task(Protocol):
    """A seeded generator of contexts with questions, and the metric of its answers."""

    @property
    def name(self) -> str:
        """Its key in the table of tasks."""
        ...

    def generate(self, rng: np.random.Generator, length: int, questions: int = 16) -> Context:
        """A context of exactly ``length`` tokens with up to ``questions`` distinct questions.

        From 256 tokens on there are at least 16; shorter contexts hold fewer facts and may give fewer questions.
        Raises TaskError when ``length`` has no room for one record.
        """
        ...

    def score(self, output: Sequence[int], question: Question) -> float:
        """Quality of an output in [0, 1]; what follows the first stop token is not looked at."""
        ...


def finish(tokens: Sequence[int]) -> list[int]:
    """The tokens before the first END."""
    kept = list(tokens)
    return kept[: kept.index(END)] if END in kept else kept


def share_in_place(output: Sequence[int], answer: Sequence[int]) -> float:
    """Share of the answer's tokens (END not counted) that the output has at the same position."""
    right, got = finish(answer), finish(output)
    return sum(a == b for a, b in zip(right, got, strict=False)) / len(right)


def filler(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Tokens without information, int64[count], Zipf-distributed as words are."""
    return FILLER.first + rng.choice(FILLER.size, size=count, p=_ZIPF / _ZIPF.sum())


def place(tokens: Span, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """``count`` different tokens of a role, int64[count]."""
    return tokens.first + rng.permutation(tokens.size)[:count]


def scatter(rng: np.random.Generator, tag: int, length: int, records: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Lay the records out in order, with filler in random gaps between them: BOS, task tag, ..., SEP.

    Returns int64[length].  Raises TaskError when the records do not fit.
    """
    room = length - 3 - sum(len(record) for record in records)
    if room < 0 or not records:
        raise TaskError(f"a context of {length} tokens has no room for its {len(records)} records")
    cuts = np.sort(rng.integers(0, room + 1, size=len(records)))
    gaps = np.diff(cuts, prepend=0, append=room)
    noise = filler(rng, room)
    parts: list[NDArray[np.int64]] = [np.array([BOS, _FIRST_TAG + tag], dtype=np.int64)]
    for gap, cut, record in zip(gaps[:-1], cuts, records, strict=True):
        parts += [noise[cut - gap : cut], np.array(record, dtype=np.int64)]
    parts += [noise[cuts[-1] :], np.array([SEP], dtype=np.int64)]
    return np.concatenate(parts)


def hot_choice(rng: np.random.Generator, records: int, questions: int, latents: dict[str, float]) -> NDArray[np.int64]:
    """Numbers of the records that are asked about: all near one place of the context, in random order.

    Adds to ``latents`` where that hot region lies (``focus``, 0 first to 1 last) and its share of the records
    (``width``), which is never narrower than the questions need.
    """
    count = min(records, questions)
    focus, width = float(rng.random()), float(rng.uniform(0.2, 0.6))
    reach = max(count, round(width * records))
    distance = np.abs(np.arange(records) / max(records - 1, 1) - focus)
    near = np.argsort(distance, kind="stable")[:reach]
    latents |= {"focus": focus, "width": reach / records}
    return rng.permutation(near)[:count]
