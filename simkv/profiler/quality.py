"""Quality against true size: every context prefilled once, encoded, decoded and questioned in every variant.

What it is: the loop that measures one row per (context, variant), from a model, a workload and compressors.  A
context is compressed before its questions are known, unless query-aware measuring is asked for.  What it is not: the
rows' file (``rows.py``), the profile made of them (``measured.py``), or speed: times here mean nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from time import perf_counter

import torch
from torch import Tensor

from simkv.errors import SimkvError
from simkv.profile_types import RAW, Variant
from simkv.profiler.compressors.base import Compressor, CompressorError, DecodedCache, KVCache, PrefillContext
from simkv.profiler.models import CachedModel
from simkv.profiler.rows import Row
from simkv.profiler.tasks import Context, Question
from simkv.profiler.workloads import Workload

__all__ = ["Setting", "answer_score", "halves", "measured_rows", "needs_of", "round_trip", "window_of"]

_SEES_QUERIES = frozenset({"queries", "attention"})
_WINDOW = 64


@dataclass(frozen=True)
class Setting:
    """One variant to measure, with the compressor and the knob that make it."""

    variant: Variant
    compressor: Compressor
    knob: str

    @classmethod
    def of(cls, compressor: Compressor, knob: str) -> "Setting":
        """The setting of a compressor at a knob.  Raises ProfileError when their names make no variant."""
        return cls(Variant(compressor.name, knob), compressor, knob)


def halves(questions: int) -> tuple[slice, slice]:
    """Which questions are for policies to learn from, and which score: the first half and the rest.

    A single question scores.
    """
    return slice(0, questions // 2), slice(questions // 2, questions)


def answer_score(workload: Workload, output: list[int], question: Question) -> float:
    """Quality in [0, 1] of an output against a question's answer, which may be what the uncompressed cache said.

    Nothing is matched by nothing, whatever the metric.
    """
    if not [token for token in question.answer if token != workload.stop]:
        return float(not output)
    return workload.score(output, question)


def round_trip(setting: Setting, cache: KVCache, side: PrefillContext) -> tuple[DecodedCache, int]:
    """A cache encoded and decoded again on its own device, and its stored bytes.

    Raises:
        CompressorError: a compressor that cannot take the cache, or whose decoded cache does not fit it.
    """
    try:
        payload = setting.compressor.encode(cache, side, setting.knob).payload
        decoded = setting.compressor.decode(payload, cache.keys[0].device)
    except Exception as error:  # a plug-in's code may fail in any way
        what = str(error) if isinstance(error, SimkvError) else f"{type(error).__name__}: {error}"
        raise CompressorError(f"variant {setting.variant}: {what}") from error
    shape = cache.shape
    fits = len(decoded.keys) == len(decoded.values) == shape.layers and decoded.next_position == shape.tokens
    sides = zip(decoded.keys, decoded.values, strict=False)
    whole = (shape.heads, shape.head_dim)
    if not fits or any(k.shape != v.shape or (k.shape[0], k.shape[-1]) != whole for k, v in sides):
        raise CompressorError(f"variant {setting.variant}: its decoded cache does not fit the model's {shape}")
    return decoded, len(payload)


def window_of(settings: Sequence[Setting]) -> int:
    """Last queries that a prefill must keep for these settings."""
    return max([_WINDOW, *(getattr(setting.compressor, "window", 0) for setting in settings)])


def needs_of(settings: Sequence[Setting]) -> frozenset[str]:
    """Side information that a prefill must keep for these settings."""
    return frozenset().union(*(setting.compressor.needs for setting in settings))


def measured_rows(
    model: CachedModel,
    workload: Workload,
    settings: Sequence[Setting],
    done: Callable[[str, int, str], bool],
    query_aware: bool = False,
) -> Iterator[Row]:
    """The rows that are not done yet, context by context, raw first.

    Args:
        model: answers the questions.
        workload: contexts with questions.
        settings: variants to measure; raw is always measured and not among them.
        done: whether the row of (task, sample, variant) exists.
        query_aware: compress each context anew for every question, which the compressor has seen.

    Raises:
        CompressorError: a compressor that cannot take a cache, or whose decoded cache does not fit the model.
    """
    for sample in range(workload.count):
        wanted = [setting for setting in settings if not done(workload.task, sample, str(setting.variant))]
        raw_done = done(workload.task, sample, str(RAW))
        if not wanted and raw_done:
            continue
        start = perf_counter()
        measure = _Measure(model, workload, workload.context(sample), sample, wanted, query_aware)
        raw = measure.raw_row(perf_counter() - start)
        if not raw_done:
            yield raw
        for setting in wanted:
            yield measure.row(setting)


@dataclass
class _Scores:
    """What is known of each question's answer from one variant."""

    output: list[list[int]]
    nll: list[float]
    kl: list[float]
    top1: list[float]


@dataclass
class _Measure:
    """One context: its cache, the uncompressed cache's answers, and the rows of its variants."""

    model: CachedModel
    workload: Workload
    context: Context
    sample: int
    settings: Sequence[Setting]
    query_aware: bool
    outputs: list[list[int]] = field(init=False)
    told: list[tuple[int, ...]] = field(init=False)
    predicted: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Prefill, and answer from the uncompressed cache."""
        self.questions = self.context.questions
        self.longest = max(len(question.answer) for question in self.questions) + self.workload.spare_tokens
        self.tokens = self.context.tokens.tolist()
        asked = max(len(question.query) for question in self.questions) + self.longest
        if len(self.tokens) + asked > self.model.window_tokens:
            raise SimkvError(
                f"task {self.workload.task}, context {self.sample}: {len(self.tokens)} tokens and up to {asked} of "
                f"question and answer; model {self.model.name} has a window of {self.model.window_tokens}"
            )
        self.window = window_of(self.settings)
        self.cache, self.side = self.model.prefill(self.tokens, needs_of(self.settings), self.window)
        self.whole = DecodedCache(self.cache.keys, self.cache.values, len(self.tokens))
        queries = [question.query for question in self.questions]
        self.outputs = self.model.answer(self.whole, queries, self.longest, self.workload.stop)
        self.told = [self._with_stop(output) for output in self.outputs]
        self.predicted = self.model.answer_logits(self.whole, queries, self.told)

    def _with_stop(self, output: list[int]) -> tuple[int, ...]:
        """What the model said, the stop token included where it came to it; never empty."""
        stop = self.workload.stop
        return (*output, stop) if stop is not None and len(output) < self.longest else tuple(output)

    def raw_row(self, seconds: float) -> Row:
        """The uncompressed cache's row: quality 1 by definition; what it is against the truth is measured."""
        answers = [question.answer for question in self.questions]
        found = self.model.answer_logits(self.whole, [question.query for question in self.questions], answers)
        nll = [_nll(logits, answer) for logits, answer in zip(found, answers, strict=True)]
        return self._row(RAW, _Scores(self.outputs, nll, [0.0] * len(nll), [1.0] * len(nll)), self.raw_bytes, seconds)

    @property
    def raw_bytes(self) -> int:
        """Bytes of the uncompressed cache."""
        return self.cache.shape.raw_bytes

    def row(self, setting: Setting) -> Row:
        """The row of one variant."""
        start = perf_counter()
        scores = _Scores([], [], [], [])
        sizes = []
        numbers = list(range(len(self.questions)))
        alone = self.query_aware and bool(setting.compressor.needs & _SEES_QUERIES)
        for asked in [[number] for number in numbers] if alone else [numbers]:
            cache, side = self._seen_by(asked[0]) if alone else (self.cache, self.side)
            decoded, size = self._decoded(setting, cache, side)
            sizes.append(size)
            self._answer(decoded, asked, scores)
        return self._row(setting.variant, scores, round(fmean(sizes)), perf_counter() - start)

    def _seen_by(self, number: int) -> tuple[KVCache, PrefillContext]:
        """The context's cache with the side information of a prefill that goes on through the question."""
        query = self.questions[number].query
        cache, side = self.model.prefill([*self.tokens, *query], _SEES_QUERIES, self.window)
        length = len(self.tokens)
        attention = None if side.attention is None else [mass[:, :length] for mass in side.attention]
        kept = [[part[:, :length] for part in parts] for parts in (cache.keys, cache.values)]
        later = [keys[:, length:] for keys in cache.keys]
        return KVCache(*kept), replace(side, attention=attention, later_keys=later)

    def _decoded(self, setting: Setting, cache: KVCache, side: PrefillContext) -> tuple[DecodedCache, int]:
        try:
            return round_trip(setting, cache, side)
        except CompressorError as error:
            raise CompressorError(f"task {self.workload.task}, context {self.sample}, {error}") from error

    def _answer(self, cache: DecodedCache, asked: list[int], scores: _Scores) -> None:
        """Answers to some questions, appended to ``scores``.

        One teacher-forced pass over what the uncompressed cache said (and, where that is wrong, over the truth)
        shows which greedy answers are the same; only the others are generated.
        """
        told = [(number, self.told[number]) for number in asked]
        wrong = [number for number in asked if self.told[number] != self.questions[number].answer]
        lines = [*told, *((number, self.questions[number].answer) for number in wrong)]
        found = self.model.answer_logits(
            cache, [self.questions[number].query for number, _ in lines], [line for _, line in lines]
        )
        truths = dict(zip(wrong, found[len(told) :], strict=True))
        same = {}
        for (number, line), logits in zip(told, found, strict=False):
            same[number] = logits.argmax(-1).tolist() == list(line)
            truth = truths.get(number, logits)
            scores.nll.append(_nll(truth, self.questions[number].answer))
            scores.kl.append(_divergence(self.predicted[number], logits))
            agrees = self.predicted[number].argmax(-1) == logits.argmax(-1)
            scores.top1.append(float(agrees.float().mean()))
        others = [number for number in asked if not same[number]]
        queries = [self.questions[number].query for number in others]
        fresh = dict(zip(others, self.model.answer(cache, queries, self.longest, self.workload.stop), strict=True))
        scores.output += [fresh.get(number, self.outputs[number]) for number in asked]

    def _row(self, variant: Variant, scores: _Scores, size: int, seconds: float) -> Row:
        train, scored = halves(len(self.questions))
        like_raw = [
            answer_score(self.workload, output, question._replace(answer=raw, references=()))
            for output, question, raw in zip(scores.output, self.questions, self.told, strict=True)
        ]
        answered = zip(scores.output, self.questions, strict=True)
        truth = [answer_score(self.workload, output, question) for output, question in answered]
        return Row(
            task=self.workload.task,
            sample=self.sample,
            variant=str(variant),
            quality=_rounded(like_raw[scored]),
            quality_train=_rounded(like_raw[train]) if like_raw[train] else None,
            truth=_rounded(truth[scored]),
            nll=_rounded(scores.nll[scored]),
            kl=_rounded(scores.kl[scored]),
            top1=_rounded(scores.top1[scored]),
            stored_bytes=size,
            raw_bytes=self.raw_bytes,
            seconds=round(seconds, 4),
        )


def _nll(logits: Tensor, answer: Sequence[int]) -> float:
    """Mean negative log-likelihood of an answer, nats per token."""
    return float(-logits.gather(1, torch.tensor(answer, device=logits.device)[:, None]).mean())


def _divergence(first: Tensor, second: Tensor) -> float:
    """Mean Kullback-Leibler divergence of log-probabilities [tokens, vocabulary], nats per token."""
    return max(0.0, float((first.exp() * (first - second)).nan_to_num(0.0).sum(-1).mean()))


def _rounded(values: Sequence[float]) -> float:
    return round(fmean(values), 5)
