"""The token-space tasks: laws over the whole table, answers against independent readers, and the metrics."""

from collections import Counter

import numpy as np
import pytest

from simkv.profiler.tasks import TASKS, Context, Question, TaskError
from simkv.profiler.tasks.base import BOS, DEFINE, END, EQUALS, FILLER, NEEDLE, SEP, VOCABULARY, finish

LENGTHS = [24, 48, 100, 256, 512]
SEEDS = range(6)


def made(task: str, length: int, seed: int = 0, questions: int = 16) -> Context:
    return TASKS[task].generate(np.random.default_rng([seed, length]), length, questions)


def contexts(task: str) -> list[Context]:
    return [made(task, length, seed) for length in LENGTHS for seed in SEEDS]


def after(context: Context, pattern: list[int], count: int) -> list[list[int]]:
    """What follows every place where the pattern stands in the context, ``count`` tokens each."""
    tokens = context.tokens.tolist()
    starts = (i for i in range(len(tokens)) if tokens[i : i + len(pattern)] == pattern)
    return [tokens[i + len(pattern) : i + len(pattern) + count] for i in starts]


def answer_qa(context: Context, query: list[int]) -> list[int]:
    (found,) = after(context, query[1:], 2)
    return found


def answer_needle(context: Context, query: list[int]) -> list[int]:
    assert query[0] == NEEDLE
    (found,) = after(context, query, 4)
    return found


def answer_tracking(context: Context, query: list[int]) -> list[int]:
    answer, name = [], query[1]
    while found := after(context, [name, EQUALS], 1):
        ((name,),) = found
        answer += [name, EQUALS]
    return answer[:-1]


def answer_aggregation(context: Context, query: list[int]) -> list[int]:
    (best, second) = (Counter(v for (v,) in after(context, query[1:], 1)) + Counter([-1])).most_common(2)
    assert best[1] >= 3 * (second[1] if second[0] != -1 else 0)
    return [best[0]]


def answer_code(context: Context, query: list[int]) -> list[int]:
    assert query[0] == DEFINE
    ((*body, end),) = after(context, query[:2], 9)
    assert end == END
    return body[len(query) - 2 :]


READERS = {
    "qa": answer_qa,
    "needle": answer_needle,
    "tracking": answer_tracking,
    "aggregation": answer_aggregation,
    "code": answer_code,
}


@pytest.mark.parametrize("task", TASKS)
def test_every_answer_can_be_read_from_its_context(task: str) -> None:
    """A reader that shares no code with the generator finds exactly the answer."""
    for context in contexts(task):
        for query, answer, _ in context.questions:
            assert list(answer) == [*READERS[task](context, list(query)), END]


@pytest.mark.parametrize("task", TASKS)
def test_contexts_have_the_length_asked_for_and_known_tokens(task: str) -> None:
    """BOS first, SEP last and nowhere else, every token in the vocabulary."""
    for length in LENGTHS:
        tokens = made(task, length).tokens
        assert (BOS, SEP, length) == (tokens[0], tokens[-1], len(tokens))
        assert 0 < tokens[1:-1].min() and SEP not in tokens[1:-1] and tokens.max() < VOCABULARY


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_makes_the_same_context_and_another_seed_another(task: str) -> None:
    """Generators depend on the random generator alone."""
    first, again, other = made(task, 256, 3), made(task, 256, 3), made(task, 256, 4)
    assert (first.tokens.tolist(), first.questions, first.latents) == (
        again.tokens.tolist(),
        again.questions,
        again.latents,
    )
    assert first.tokens.tolist() != other.tokens.tolist()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [256, 384, 512])
def test_sixteen_different_questions_from_256_tokens_on(task: str, length: int) -> None:
    """Half of the questions can train a policy and half score it."""
    for seed in range(40):
        assert 16 == len(set(made(task, length, seed).questions))


@pytest.mark.parametrize("task", TASKS)
def test_latents_are_named_finite_and_differ_between_contexts(task: str) -> None:
    """Contexts of one task differ in what makes them sensitive."""
    rows = [made(task, 512, seed).latents for seed in range(8)]
    assert all(row.keys() == rows[0].keys() and np.isfinite(list(row.values())).all() for row in rows)
    assert len({tuple(row.values()) for row in rows}) == 8


@pytest.mark.parametrize("task", TASKS)
def test_a_right_answer_scores_one_and_an_empty_one_zero(task: str) -> None:
    """With and without what a model might say after END, or without END."""
    for context in contexts(task):
        for question in context.questions:
            answer = question.answer
            assert 1.0 == TASKS[task].score(answer, question) == TASKS[task].score(answer[:-1], question)
            assert 1.0 == TASKS[task].score([*answer, 77, 78], question)
            assert 0.0 == TASKS[task].score([], question) == TASKS[task].score([END, *answer], question)


@pytest.mark.parametrize("task", TASKS)
def test_scores_lie_between_zero_and_one(task: str) -> None:
    """For any output, of any length."""
    rng = np.random.default_rng(5)
    for question in made(task, 256).questions:
        for size in range(12):
            output = rng.choice([*question.answer, 20, 50, 400], size=size).tolist()
            assert 0.0 <= TASKS[task].score(output, question) <= 1.0


@pytest.mark.parametrize(
    ("task", "output", "answer", "score"),
    [
        ("qa", [200, 201], [200, 202, END], 0.0),
        ("needle", [200, 201, 9, 203], [200, 201, 202, 203, END], 0.75),
        ("tracking", [50, EQUALS, 51, EQUALS, 9], [50, EQUALS, 51, EQUALS, 200, END], 2 / 3),
        ("aggregation", [200, END], [200, END], 1.0),
        ("code", [400, 402, 403], [400, 401, 402, 403, END], 0.75),
        ("code", [400, 401, 402, 403, 404], [400, 401, 402, 404, END], 0.8),
    ],
)
def test_metrics_by_hand(task: str, output: list[int], answer: list[int], score: float) -> None:
    """One worked example of partial credit per metric."""
    assert pytest.approx(score) == TASKS[task].score(output, Question((), tuple(answer)))


@pytest.mark.parametrize("task", TASKS)
def test_a_context_without_room_is_refused(task: str) -> None:
    """One line that names the task and the length."""
    with pytest.raises(TaskError, match=f"{task}.*4 tokens"):
        made(task, 4)


def test_needles_share_their_key_tokens_with_distractors() -> None:
    """Each key token alone fits several needles, the pair only one."""
    context = made("needle", 512)
    keys = [tokens[:2] for tokens in after(context, [NEEDLE], 6)]
    assert len(keys) == len({tuple(key) for key in keys}) == context.latents["needles"]
    assert 1.0 <= context.latents["distractors"]


def test_hot_region_questions_lie_near_its_focus() -> None:
    """A narrow region in retrieval asks for neighbouring records only."""
    for seed in range(20):
        context = made("qa", 512, seed)
        places = [context.tokens.tolist().index(query[1]) / 512 for query, *_ in context.questions]
        assert max(places) - min(places) < 1.3 * context.latents["width"] + 0.1


def test_code_questions_prefer_the_functions_written_last() -> None:
    """More than a third of the questions fall on the last quarter, in the mean over contexts."""
    shares = []
    for seed in range(20):
        context = made("code", 512, seed)
        places = [context.tokens.tolist().index(query[1]) for query, *_ in context.questions]
        shares.append(np.mean(np.array(places) > 0.7 * 512))
    assert 0.4 < np.mean(shares) < 0.95


def test_filler_is_skewed_as_words_are() -> None:
    """Filler stays in its own tokens, and its first is the most frequent."""
    tokens = np.concatenate([made("needle", 512, seed).tokens for seed in range(8)])
    counts = Counter(tokens[(tokens >= FILLER.first) & (tokens < FILLER.first + FILLER.size)].tolist())
    assert FILLER.first == counts.most_common(1)[0][0]


def test_finish_cuts_at_the_first_end() -> None:
    """And leaves an output without END alone."""
    assert [5] == finish([5, END, 6, END])
    assert [5, 6] == finish([5, 6])
