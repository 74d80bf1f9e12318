"""Real contexts of varied length with real questions, and traces of requests for them.

What it is: what a request of the trace stands for: which context, which question, and what the uncompressed cache says
to it.  A prompt is a context, which may be stored, and a question, which is always new.  What it is not: serving them.

The questions that are asked, on the clock or afterwards of what was loaded, are those of each context's first half,
which its profile's quality does not rest on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simkv.errors import SimkvError
from simkv.profiler.compressors.base import DecodedCache
from simkv.profiler.models import CachedModel
from simkv.profiler.quality import answer_score, halves
from simkv.profiler.sources import Source
from simkv.profiler.tasks import Context, Question, Task
from simkv.profiler.workloads import Workload, generated
from simkv.testbed.plan import WorkloadPlan
from simkv.traces.arrivals import arrival_times_ns, streams, zipf_shares
from simkv.traces.trace import Trace, build_trace

__all__ = ["Bench", "Requests", "make_bench"]


@dataclass(frozen=True)
class Requests:
    """A trace, and what its requests ask.

    Attributes:
        trace: one block per context; its ids are numbered by first appearance.
        context: int64[R], number of the context in the bench.
        question: int64[R], number of the question in the context.
    """

    trace: Trace
    context: NDArray[np.int64]
    question: NDArray[np.int64]


@dataclass
class Bench:
    """Contexts, by number; the contexts of a task are its profile's samples in order.

    Attributes:
        tasks: that they are made by.
        workloads: one per task.
        contexts: all of them.
        places: (workload, sample) of each.
    """

    tasks: tuple[Task, ...]
    workloads: tuple[Workload, ...]
    contexts: tuple[Context, ...]
    places: tuple[tuple[int, int], ...]
    _raw: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        """Different lengths of contexts in tokens, rising."""
        return sorted({len(context.tokens) for context in self.contexts})

    def tokens_of(self, task: str, sample: int) -> int:
        """Tokens of a task's context, by the number of its sample in the profile."""
        names = [workload.task for workload in self.workloads]
        return len(self.workloads[names.index(task)].context(sample).tokens)

    def asked(self, number: int) -> tuple[Question, ...]:
        """Questions of a context that requests ask."""
        questions = self.contexts[number].questions
        return questions[halves(len(questions))[0]] or questions

    def longest(self, number: int) -> int:
        """Most tokens of an answer about a context."""
        spare = self.workloads[self.places[number][0]].spare_tokens
        return max(len(question.answer) for question in self.contexts[number].questions) + spare

    def stop(self, number: int) -> int | None:
        """Token that ends an answer about a context."""
        return self.workloads[self.places[number][0]].stop

    def requests(self, count: int, exponent: float, rate_per_s: float, seed: int) -> Requests:
        """Requests whose popularity falls as rank^-exponent, which arrive by a Poisson process.

        The same seed asks the same of the same contexts in the same order whatever the rate.
        """
        ranks, drawn, asked, clock = streams(seed, 4)
        contexts = len(self.contexts)
        order = ranks.permutation(contexts)
        context = order[drawn.choice(contexts, count, p=zipf_shares(contexts, exponent))]
        question = np.array([asked.integers(len(self.asked(number))) for number in context], dtype=np.int64)
        tokens = np.array([len(self.contexts[number].tokens) for number in context])
        queries = [len(self.asked(number)[which].query) for number, which in zip(context, question, strict=True)]
        trace = build_trace(
            arrival_ns=arrival_times_ns(clock, count, rate_per_s=rate_per_s, arrivals="poisson", burstiness=1.0),
            input_tokens=tokens + np.array(queries),
            output_tokens=np.array([self.longest(number) for number in context]),
            block_counts=np.ones(count, dtype=np.int64),
            block_keys=context,
            occurrence_tokens=tokens,
            task=np.array([self.places[number][0] for number in context]),
            meta={
                "name": "validate",
                "format": "generated",
                "clock": f"generated: poisson, {rate_per_s:g}/s",
                "task_names": [workload.task for workload in self.workloads],
            },
        )
        return Requests(trace, context, question)

    def prompt(self, requests: Requests, request: int) -> tuple[list[int], list[int]]:
        """Tokens of a request's context, and of its question."""
        number = int(requests.context[request])
        question = self.asked(number)[int(requests.question[request])]
        return self.contexts[number].tokens.tolist(), list(question.query)

    def score(self, model: CachedModel, number: int, which: int, output: list[int]) -> float:
        """Quality of an answer to a context's question against the one from the uncompressed cache."""
        if (number, which) not in self._raw:
            self._answer(model, number)
        workload, question = self.workloads[self.places[number][0]], self.asked(number)[which]
        raw = tuple(self._raw[number, which])
        return answer_score(workload, output, question._replace(answer=raw, references=()))

    def _answer(self, model: CachedModel, number: int) -> None:
        """What the uncompressed cache says to every question about a context, stop tokens included."""
        tokens, stop, longest = self.contexts[number].tokens.tolist(), self.stop(number), self.longest(number)
        cache, _ = model.prefill(tokens)
        queries = [question.query for question in self.asked(number)]
        answers = model.answer(DecodedCache(cache.keys, cache.values, len(tokens)), queries, longest, stop)
        for which, answer in enumerate(answers):
            ended = stop is not None and len(answer) < longest
            self._raw[number, which] = [*answer, stop] if ended else answer  # type: ignore[list-item]


def make_bench(source: Source, plan: WorkloadPlan, contexts: int, seed: int) -> Bench:
    """Contexts of all tasks in turn, their lengths drawn from the seed.

    Raises:
        SimkvError: an unknown task, or contexts that do not fit the model's window.
    """
    tasks = list(source.chosen(plan.tasks).values())
    lengths = np.arange(plan.shortest, plan.longest + 1, plan.step)
    drawn = np.random.default_rng([seed, 0xBE7C]).choice(lengths, contexts)
    made: list[Context] = []
    for number, length in enumerate(drawn.tolist()):
        task, sample = tasks[number % len(tasks)], number // len(tasks)
        one = generated(task, sample + 1, plan.questions, length, seed, source.stop, source.spare_tokens)
        made.append(one.context(sample))
    _check_window(source.model, made, source.spare_tokens)
    workloads = []
    for index, task in enumerate(tasks[:contexts]):
        own = made[index :: len(tasks)]
        workloads.append(Workload(task.name, len(own), own.__getitem__, task.score, source.stop, source.spare_tokens))
    places = tuple((number % len(tasks), number // len(tasks)) for number in range(contexts))
    return Bench(tuple(tasks), tuple(workloads), tuple(made), places)


def _check_window(model: CachedModel, contexts: Sequence[Context], spare: int) -> None:
    for context in contexts:
        longest = max(len(question.query) + len(question.answer) for question in context.questions) + spare
        if len(context.tokens) + longest > model.window_tokens:
            raise SimkvError(
                f"workload.longest: a context of {len(context.tokens)} tokens with up to {longest} of question and "
                f"answer; model {model.name} has a window of {model.window_tokens}"
            )
