"""Contexts and questions from a user's file: LongBench's JSON lines, or a plain form for one's own data.

LongBench (https://arxiv.org/abs/2308.14508, https://github.com/THUDM/LongBench) has one JSON object per line with
``input``, ``context``, ``answers``, ``dataset`` and ``all_classes``; other keys are not read.  The plain form has
``context``, ``question``, ``answers`` and, if wanted, ``metric``, a name in ``metrics.METRICS``.  One file is one task.

The question follows its context and is not seen when the context is compressed.  The prompts are our own and no chat
template is applied, so scores compare with those of the uncompressed cache, not with a leaderboard.  Chinese is scored
by characters.  Nothing is downloaded.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from simkv.errors import unknown_name
from simkv.profiler.tasks.base import Context, Question, TaskError
from simkv.profiler.tasks.metrics import LONGEST, METRICS, Metric, classification
from simkv.profiler.tasks.text_base import Tokenizer, agreement, opening, parted, stop_token

__all__ = ["DATASETS", "ContextFile", "Dataset", "LongBenchFile", "read_longbench"]

MOST_FILE_BYTES = 1 << 30
"""Largest file that is read, bytes."""
MOST_LINE_BYTES = 1 << 24
"""Longest line, bytes."""
MOST_STRINGS = 1000
"""Most answers, or class names, of a line."""
MOST_ANSWER_TOKENS = 512
"""Tokens of a right answer beyond these are not predicted; LongBench's longest outputs have as many."""

_LEAST_TOKENS = 4
_SHOWN = 60
_NO_NAME = re.compile(r"[^A-Za-z0-9_.+-]+")
_PLAIN_KEYS = ("answers", "context", "metric", "question")
_CLASSIFICATION = "classification"


class ContextFile(Protocol):
    """Contexts that exist already, as a measurement goes through them."""

    @property
    def name(self) -> str:
        """The task that a profile's rows are filed under."""
        ...

    @property
    def stop(self) -> int | None:
        """The token that ends an answer, None for none."""
        ...

    def __len__(self) -> int:
        """Number of contexts."""
        ...

    def context(self, index: int) -> Context:
        """The context of a number from 0 on, the same every time."""
        ...

    def contexts(self, count: int | None = None) -> list[Context]:
        """The first ``count`` contexts; all when there are fewer or ``count`` is None."""
        ...

    def score(self, output: Sequence[int], question: Question) -> float:
        """Quality of an output in [0, 1]."""
        ...


class Dataset(NamedTuple):
    """How a dataset asks and scores.

    ``prompt`` follows the context, with the row's input in place of ``{input}``.  ``metric`` is a name in METRICS, or
    "classification".  Where ``whole`` is False only an output's first line is scored, as LongBench does.
    """

    metric: str
    prompt: str
    whole: bool = True


_QUESTION = "\n\nQuestion: {input}\nShort answer:"
_QUESTION_ZH = "\n\n问：{input}\n简短作答："  # noqa: RUF001
_SUMMARY = "\n\nSummarise all of the above in a few paragraphs.\nIn short:"
_MEETING = "\n\nThis was asked about the meeting: {input}\nReply in one paragraph:"
_SUMMARY_ZH = "\n\n概述以上会议内容。\n概述："  # noqa: RUF001
_EXAMPLES = "\n{input}"
_PASSAGE = "\n\nWhich of the paragraphs above is described here?\n{input}\nGive its name, like Paragraph 3:"
_PASSAGE_ZH = "\n\n下面的概要写的是上文哪一段？\n{input}\n只写段名，例如段落3："  # noqa: RUF001
_COUNT = "\n\nSome of the paragraphs above occur twice or more. Number of different paragraphs:"
_CODE = "{input}\nThe line that comes next:\n"

DATASETS: dict[str, Dataset] = {
    "narrativeqa": Dataset("f1", _QUESTION),
    "qasper": Dataset("f1", _QUESTION),
    "multifieldqa_en": Dataset("f1", _QUESTION),
    "multifieldqa_zh": Dataset("f1_zh", _QUESTION_ZH),
    "hotpotqa": Dataset("f1", _QUESTION),
    "2wikimqa": Dataset("f1", _QUESTION),
    "musique": Dataset("f1", _QUESTION),
    "dureader": Dataset("rouge_l_zh", _QUESTION_ZH),
    "gov_report": Dataset("rouge_l", _SUMMARY),
    "qmsum": Dataset("rouge_l", _MEETING),
    "multi_news": Dataset("rouge_l", _SUMMARY),
    "vcsum": Dataset("rouge_l_zh", _SUMMARY_ZH),
    "trec": Dataset(_CLASSIFICATION, _EXAMPLES, whole=False),
    "triviaqa": Dataset("f1", _EXAMPLES, whole=False),
    "samsum": Dataset("rouge_l", _EXAMPLES, whole=False),
    "lsht": Dataset(_CLASSIFICATION, _EXAMPLES, whole=False),
    "passage_count": Dataset("number", _COUNT),
    "passage_retrieval_en": Dataset("number", _PASSAGE),
    "passage_retrieval_zh": Dataset("number", _PASSAGE_ZH),
    "lcc": Dataset("edit", _CODE),
    "repobench-p": Dataset("edit", _CODE),
}


class _Kind(NamedTuple):
    """What all lines of a file share."""

    name: str
    metric: str
    classes: tuple[str, ...]
    whole: bool

    @property
    def function(self) -> Metric:
        """The metric as a function of output and reference."""
        if self.metric == _CLASSIFICATION:
            return partial(classification, classes=self.classes)
        return METRICS[self.metric]


class _Asked(NamedTuple):
    query: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class LongBenchFile:
    """The contexts of one file; texts become tokens when a context is asked for.

    ``rows`` are the distinct contexts in the file's order with their questions; ``sha256`` is of the lines read.
    """

    name: str
    tokenizer: Tokenizer = field(repr=False)
    max_tokens: int
    questions: int
    kind: _Kind = field(repr=False)
    rows: tuple[tuple[str, tuple[_Asked, ...]], ...] = field(repr=False)
    sha256: str

    @property
    def stop(self) -> int | None:
        """The token that ends an answer, None when the tokenizer has no EOS."""
        return stop_token(self.tokenizer)

    def __len__(self) -> int:
        """Number of distinct contexts."""
        return len(self.rows)

    def context(self, index: int) -> Context:
        """The context of a number from 0 on, with its questions in an order drawn from the number.

        Longer ones than ``max_tokens`` lose their middle.  Latents: ``text_tokens`` (the whole context's, BOS too) and
        ``kept`` (share of them).
        """
        text, asked = self.rows[index]
        whole = [*opening(self.tokenizer), *self.tokenizer.encode(text, add_special_tokens=False)]
        tokens = _without_middle(whole, self.max_tokens)
        order = np.random.default_rng(index).permutation(len(asked))[: self.questions]
        latents = {"text_tokens": float(len(whole)), "kept": len(tokens) / len(whole)}
        questions = tuple(self._question(asked[i]) for i in order)
        return Context(self.name, np.array(tokens, dtype=np.int64), latents, questions)

    def contexts(self, count: int | None = None) -> list[Context]:
        """The first ``count`` contexts; all when there are fewer or ``count`` is None."""
        return [self.context(index) for index in range(len(self) if count is None else min(count, len(self)))]

    def score(self, output: Sequence[int], question: Question) -> float:
        """The task's metric of the output's text up to EOS, in [0, 1]: the best over the right answers."""
        return agreement(self.tokenizer, self.kind.function, output, question, self.kind.whole)

    def _question(self, asked: _Asked) -> Question:
        space = "" if asked.query[-1].isspace() or not asked.query[-1].isascii() else " "
        query, answer = parted(self.tokenizer, asked.query, space + asked.answers[0])
        end = [] if self.stop is None else [self.stop]
        told = (*answer[:MOST_ANSWER_TOKENS], *end)
        return Question(tuple(_without_middle(query, self.max_tokens)), told, asked.answers)


def read_longbench(
    path: Path, tokenizer: Tokenizer, max_tokens: int, limit: int | None = None, questions: int = 64
) -> LongBenchFile:
    """A file's contexts: one per distinct ``context``, whose lines become its questions (repeated ones once).

    Args:
        path: JSON lines in UTF-8.
        tokenizer: makes tokens of the texts, BOS first.
        max_tokens: longest context, and longest question; longer ones lose their middle.  The model's window must hold
            a context, a question and its answer.
        limit: lines to read, None for all.
        questions: most questions of a context.

    Raises:
        TaskError: file, line and key of what is wrong.
    """
    for key, value, least in (
        ("max_tokens", max_tokens, _LEAST_TOKENS),
        ("limit", limit, 1),
        ("questions", questions, 1),
    ):
        if value is not None and value < least:
            raise TaskError(f"{path}: {key} = {value}; allowed: at least {least}")
    digest = hashlib.sha256()
    kind: _Kind | None = None
    rows: dict[str, dict[_Asked, None]] = {}
    for count, (place, line) in enumerate(_lines(path), start=1):
        digest.update(line)
        row = _Line(place, line)
        found = row.kind(path)
        kind = kind or found
        if found != kind:
            raise TaskError(f"{place}: {_differing(found, kind)} than the first line; a file holds one task")
        rows.setdefault(row.text("context"), {})[row.asked(found)] = None
        if count == limit:
            break
    if kind is None:
        raise TaskError(f"{path}: holds no line with a context")
    grouped = tuple((text, tuple(asked)) for text, asked in rows.items())
    return LongBenchFile(kind.name, tokenizer, max_tokens, questions, kind, grouped, digest.hexdigest())


class _Line:
    """One line of the file, read key by key so that every complaint names file, line and key."""

    def __init__(self, place: str, line: bytes) -> None:
        self.place = place
        try:
            self.data: Any = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{place}: is not JSON in UTF-8: {' '.join(str(error).split())[:200]}") from error
        if not isinstance(self.data, dict):
            raise TaskError(f"{place}: must be a JSON object, found {type(self.data).__name__}")
        self.plain = "question" in self.data
        if not self.plain and "input" not in self.data:
            raise TaskError(f"{place}: has neither the key 'input' (LongBench) nor 'question' (plain form)")
        for key in self.data if self.plain else ():
            if key not in _PLAIN_KEYS:
                raise TaskError(f"{place}: {unknown_name('key', key[:_SHOWN], _PLAIN_KEYS)}")

    def text(self, key: str, empty: bool = False) -> str:
        """A string that tokenizers can take, not blank unless ``empty``."""
        return self._string(key, self.data.get(key), empty)

    def kind(self, path: Path) -> _Kind:
        """The task of the line: its dataset, or for the plain form the file's name."""
        if self.plain:
            metric = self.text("metric") if "metric" in self.data else "f1"
            if metric not in METRICS:
                raise TaskError(f"{self.place}: metric: {unknown_name('metric', metric[:_SHOWN], METRICS)}")
            return _Kind(_NO_NAME.sub("_", path.stem).strip("_.+-")[:_SHOWN] or "file", metric, (), True)
        name, (metric, _, whole) = self._dataset()
        classes = self._strings("all_classes") if metric == _CLASSIFICATION else ()
        return _Kind(name, metric, classes, whole)

    def asked(self, kind: _Kind) -> _Asked:
        """The question as it follows the context, and its right answers."""
        answers = self._strings("answers")
        for answer in answers:
            if len(answer) > LONGEST:
                raise self._refused("answers", answer, f"strings of at most {LONGEST} characters")
            if kind.metric == "number" and not any(char in "0123456789" for char in answer):
                raise self._refused("answers", answer, "strings that hold a number")
            if kind.metric == _CLASSIFICATION and answer not in kind.classes:
                raise self._refused("answers", answer, "names in all_classes")
        prompt = _QUESTION if self.plain else self._dataset()[1].prompt
        text = self.text("question") if self.plain else self.text("input", empty=True)
        return _Asked(prompt.replace("{input}", text), answers)

    def _dataset(self) -> tuple[str, Dataset]:
        given = self.text("dataset")
        name = given.removesuffix("_e")  # LongBench-E names its subsets so
        if name not in DATASETS:
            raise TaskError(f"{self.place}: dataset: {unknown_name('dataset', given[:_SHOWN], DATASETS)}")
        return name, DATASETS[name]

    def _strings(self, key: str) -> tuple[str, ...]:
        values = self.data.get(key)
        if not isinstance(values, list) or not 0 < len(values) <= MOST_STRINGS:
            raise self._refused(key, values, f"a list of 1 to {MOST_STRINGS} strings")
        return tuple(self._string(key, value) for value in values)

    def _string(self, key: str, value: Any, empty: bool = False) -> str:
        if not isinstance(value, str) or not (empty or value.strip()):
            raise self._refused(key, value, "text" if empty else "text that is not blank")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self._refused(key, value, "text without lone surrogates") from error
        return value

    def _refused(self, key: str, value: Any, allowed: str) -> TaskError:
        shown = "missing" if key not in self.data else ascii(value)[:_SHOWN]
        return TaskError(f"{self.place}: {key}: {shown}; allowed: {allowed}")


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Place and bytes of every line that is not blank."""
    try:
        if not path.is_file():
            raise TaskError(f"{path}: there is no such file")
        if path.stat().st_size > MOST_FILE_BYTES:
            raise TaskError(f"{path}: larger than {MOST_FILE_BYTES} bytes, the most that is read")
        with path.open("rb") as handle:
            number = 0
            while line := handle.readline(MOST_LINE_BYTES + 1):
                number += 1
                if len(line) > MOST_LINE_BYTES:
                    raise TaskError(f"{path}:{number}: longer than {MOST_LINE_BYTES} bytes, the most of a line")
                if line.strip():
                    yield f"{path}:{number}", line
    except OSError as error:
        raise TaskError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from error


def _differing(found: _Kind, first: _Kind) -> str:
    """The first thing that two kinds differ in, in words."""
    for key, a, b in zip(("dataset", "metric", "all_classes"), found, first, strict=False):
        if a != b:
            return f"{key}: another ({ascii(a)[:_SHOWN]})"
    return "form: another"


def _without_middle(tokens: list[int], most: int) -> list[int]:
    """At most ``most`` tokens: as many from the start as from the end, the odd one from the start."""
    return tokens if len(tokens) <= most else tokens[: most - most // 2] + tokens[len(tokens) - most // 2 :]
