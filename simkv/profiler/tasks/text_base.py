"""What the text tasks share: tokenizers as they see them, the laying out of sentences to a length, and scoring.

Sits between the families (``text_facts``, ``text_code``) and the protocol in ``base``.  It holds no family, and no chat
template: contexts and questions are plain text.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simkv.profiler.tasks.base import Context, Question, TaskError
from simkv.profiler.tasks.metrics import LONGEST, Metric, best
from simkv.profiler.tasks.text_words import filler_sentences

__all__ = ["Asked", "Draft", "TextTask", "Tokenizer", "agreement", "opening", "parted", "stop_token"]

_SAMPLE = 16
_BEFORE = "."


class Tokenizer(Protocol):
    """A tokenizer as transformers has them; ``bos_token_id`` and ``eos_token_id`` are used when it has them."""

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, token_ids: Any) -> Any:
        """The text of token ids."""
        ...


def opening(tokenizer: Tokenizer) -> list[int]:
    """The tokens that a context begins with: BOS, or nothing when the tokenizer has none."""
    token = getattr(tokenizer, "bos_token_id", None)
    return [] if token is None else [int(token)]


def stop_token(tokenizer: Tokenizer) -> int | None:
    """The token that ends an answer: EOS, None when the tokenizer has none."""
    token = getattr(tokenizer, "eos_token_id", None)
    return None if token is None else int(token)


def parted(tokenizer: Tokenizer, query: str, answer: str) -> tuple[list[int], list[int]]:
    """Tokens of a query where it follows a full stop, and of the answer where it follows the query.

    Both are cut from the tokens of the joined text, as the same words stand in the context, and without the mark that
    some tokenizers put before every text.  A token that holds the end of the query and the start of the answer is the
    answer's.
    """
    encode = partial(tokenizer.encode, add_special_tokens=False)
    start, asked, whole = encode(_BEFORE), encode(_BEFORE + query), encode(_BEFORE + query + answer)
    if asked[: len(start)] != start:
        start, asked, whole = [], encode(query), encode(query + answer)
    shared = next((i for i, (a, b) in enumerate(zip(asked, whole, strict=False)) if a != b), len(asked))
    if not len(start) < shared < len(whole):
        return list(asked[len(start) :]), list(encode(answer))
    return list(whole[len(start) : shared]), list(whole[shared:])


def output_text(tokenizer: Tokenizer, output: Sequence[int]) -> str:
    """The text of an output up to the first EOS, at most the characters that metrics compare."""
    tokens, stop = list(output), stop_token(tokenizer)
    return str(tokenizer.decode(tokens[: tokens.index(stop)] if stop in tokens else tokens))[:LONGEST]


def agreement(tokenizer: Tokenizer, metric: Metric, output: Sequence[int], question: Question, whole: bool) -> float:
    """The metric of an output against the question's references, or against its answer's text when it has none.

    Texts count up to EOS, and unless ``whole`` only their first line that is not blank.
    """
    shown = str if whole else first_line
    references = question.references or (shown(output_text(tokenizer, question.answer)),)
    return best(metric, shown(output_text(tokenizer, output)), references)


def first_line(text: str) -> str:
    """The first line that is not blank."""
    return next((line for line in text.splitlines() if line.strip()), "")


class Asked(NamedTuple):
    """A question in text: what follows the context, the answer that follows it, and the text it is scored by."""

    query: str
    answer: str
    reference: str


class Draft(NamedTuple):
    """What a family decides: its records (sentences or lines, in order), its latents, its questions."""

    records: list[str]
    latents: dict[str, float]
    asked: list[Asked]


@dataclass(frozen=True)
class TextTask(ABC):
    """A task family in the text of one tokenizer.

    A context is the records in order with filler sentences in random gaps, BOS first.  It has at most the tokens asked
    for, and one more filler sentence would exceed them: short by a sentence, some 15 tokens of a byte-pair encoding.
    Questions follow the context as text of their own; an answer ends with EOS.  Only the first line of an output that
    is not blank, up to EOS, is compared with the reference.
    """

    tokenizer: Tokenizer = field(repr=False)
    name: str
    metric: Metric = field(repr=False)
    joint: str = " "
    filler_form: str = "{}"

    @property
    def stop(self) -> int | None:
        """The token that ends an answer, None when the tokenizer has no EOS."""
        return stop_token(self.tokenizer)

    @abstractmethod
    def draft(self, rng: np.random.Generator, length: int, questions: int) -> Draft:
        """Records for a context of ``length`` tokens and up to ``questions`` questions about them."""

    def generate(self, rng: np.random.Generator, length: int, questions: int = 16) -> Context:
        """A context of at most ``length`` tokens with up to ``questions`` distinct questions; see the class.

        From 1024 tokens of a byte-pair encoding on there are at least 16.  Raises TaskError when ``length`` has no
        room for the least records.
        """
        records, latents, asked = self.draft(rng, length, questions)
        tokens = self._filled(rng, records, length)
        return Context(self.name, tokens, latents, tuple(self._question(each) for each in asked))

    def score(self, output: Sequence[int], question: Question) -> float:
        """The family's metric on the first line of the output, in [0, 1]."""
        return agreement(self.tokenizer, self.metric, output, question, whole=False)

    def room(self, length: int, share: float, sample: Sequence[str], least: int) -> int:
        """How many records like the sample's costliest fill ``share`` of ``length`` tokens, at least ``least``.

        Raises TaskError when even those do not fit.
        """
        cost = max(self._tokens([record]) for record in sample)
        fits = (length - 1) // cost
        if fits < least:
            need = least * cost + 1
            raise TaskError(f"task {self.name}: {length} tokens hold too few records; give at least {need}")
        return max(least, int(share * fits))

    def _tokens(self, pieces: Sequence[str]) -> int:
        return len(self.tokenizer.encode(self.joint + self.joint.join(pieces), add_special_tokens=False))

    def _filled(self, rng: np.random.Generator, records: Sequence[str], length: int) -> NDArray[np.int64]:
        """The context int64[<= length] with as many filler sentences as fit."""
        sample = [self.filler_form.format(text) for text in filler_sentences(rng, _SAMPLE)]
        cost = self._tokens(sample) / _SAMPLE
        count = int(2 * length / cost) + 2
        filler = [self.filler_form.format(text) for text in filler_sentences(rng, count)]
        weights = np.diff(np.sort(rng.random(len(records))), prepend=0.0, append=1.0)
        gaps = rng.choice(len(records) + 1, size=count, p=weights / weights.sum()).tolist()

        def laid_out(used: int) -> list[int]:
            pieces: list[list[str]] = [[] for _ in range(len(records) + 1)]
            for text, gap in zip(filler[:used], gaps, strict=False):
                pieces[gap].append(text)
            for before, record in zip(pieces, records, strict=False):
                before.append(record)
            text = self.joint.join(piece for group in pieces for piece in group)
            return opening(self.tokenizer) + list(self.tokenizer.encode(text, add_special_tokens=False))

        fitting = laid_out(0)
        if len(fitting) > length:
            raise TaskError(
                f"task {self.name}: the records take {len(fitting)} tokens, more than the {length} asked for"
            )
        low, high, guess = 0, count + 1, int((length - len(fitting)) / cost)
        while high - low > 1:
            guess = min(max(guess, low + 1), high - 1)
            tried = laid_out(guess)
            low, high, fitting = (guess, high, tried) if len(tried) <= length else (low, guess, fitting)
            guess += int((length - len(tried)) // cost)
        return np.array(fitting, dtype=np.int64)

    def _question(self, asked: Asked) -> Question:
        query, answer = parted(self.tokenizer, asked.query, asked.answer)
        end = [] if self.stop is None else [self.stop]
        return Question(tuple(query), (*answer, *end), (asked.reference,))
