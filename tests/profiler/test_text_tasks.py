"""Text tasks: what is asked can be read from the context, lengths keep to their bound, scores are as documented."""

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from simkv.profiler.compressors.base import DecodedCache
from simkv.profiler.models import CachedModel
from simkv.profiler.tasks import TASKS, Context, Question, TaskError
from simkv.profiler.tasks.metrics import normalised
from simkv.profiler.tasks.text import TEXT_TASKS, TextTask, text_tasks
from simkv.profiler.tasks.text_base import parted
from simkv.profiler.tasks.text_words import CRAFTS, OBJECTS, SHADES, VALUES, filler_sentences, names
from tests.profiler.text_tokenizers import BareBytes, BytePairs, Bytes, MarkedBytes, trained

TOKENIZERS = {"bare": BareBytes, "bytes": Bytes, "marked": MarkedBytes, "pairs": BytePairs, "bpe": trained}
LENGTHS = [300, 1024, 2500]


def task_of(name: str, tokenizer: str = "bpe") -> TextTask:
    return text_tasks(TOKENIZERS[tokenizer]())[name]


@cache
def made(name: str, length: int, seed: int = 0, tokenizer: str = "bpe", questions: int = 16) -> Context:
    return task_of(name, tokenizer).generate(np.random.default_rng([seed, length]), length, questions)


def contexts(name: str) -> list[Context]:
    return [made(name, length, seed) for length in LENGTHS for seed in range(4)]


def text_of(context: Context) -> str:
    return str(trained().decode(context.tokens[1:]))


def read_qa(text: str, query: str) -> str:
    name = query.split()[-2]
    (found,) = re.findall(rf"The badge of {name} says ([a-z]+ [a-z]+)\.", text)
    return found


def read_needle(text: str, query: str) -> str:
    shade, thing = query.split()[-3:-1]
    (found,) = re.findall(rf"marks of the {shade} {thing} are ([\d, ]+)\.", text)
    return found


def read_tracking(text: str, query: str) -> str:
    walk, name = [], query.split()[-2]
    while found := re.findall(rf"Set {name} = (\w+)\.", text):
        (name,) = found
        walk.append(name)
    assert walk[-1].isdigit()
    return " ".join(walk)


def read_aggregation(text: str, query: str) -> str:
    town = query.split()[-3]
    (craft, most), *others = Counter(re.findall(rf"praised {town} for its (\w+)\.", text)).most_common()
    assert most >= 3 * sum(count for _, count in others)
    return craft


def read_code(text: str, query: str) -> str:
    shown = query[query.index("def ") :].rstrip("\n") + "\n"
    (start,) = (match.end() for match in re.finditer(re.escape(shown), text))
    return text[start:].split("\n", 1)[0]


READERS = {
    "qa": read_qa,
    "needle": read_needle,
    "tracking": read_tracking,
    "aggregation": read_aggregation,
    "code": read_code,
}


def test_the_families_are_those_of_the_token_space_tasks() -> None:
    """Same names, and every latent of a token-space task is one of its text task."""
    assert list(TASKS) == list(TEXT_TASKS)
    for name, task in TASKS.items():
        assert task.generate(np.random.default_rng(0), 512).latents.keys() == made(name, 1024).latents.keys()
        assert name == task_of(name).name == made(name, 1024).task


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_every_answer_can_be_read_from_its_context(name: str) -> None:
    """A reader of the decoded text that shares no code with the generator finds exactly the reference."""
    for context in contexts(name):
        text = text_of(context)
        for query, answer, (reference,) in context.questions:
            assert reference == READERS[name](text, trained().decode(query))
            said = trained().decode(answer[:-1])
            assert normalised(reference) == [word for word in normalised(said) if word != "="]


@pytest.mark.parametrize("name", TEXT_TASKS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_length_is_reached_but_for_one_sentence(name: str, tokenizer: str) -> None:
    """BOS first where there is one, never a token too many, and short by less than the longest filler sentence."""
    task = task_of(name, tokenizer)
    sample = [task.filler_form.format(text) for text in filler_sentences(np.random.default_rng(1), 2000)]
    longest = max(len(task.tokenizer.encode(" " + text, add_special_tokens=False)) for text in sample)
    for length in (1500, 1501, 4000):
        tokens = made(name, length, 2, tokenizer).tokens
        assert length - longest - 1 <= len(tokens) <= length
        assert np.int64 == tokens.dtype
        assert getattr(task.tokenizer, "bos_token_id", None) in (tokens[0], None)


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_queries_and_answers_continue_the_context(name: str) -> None:
    """Context, query and answer joined are the tokens of the joined text, and only the answer ends with EOS."""
    for context in contexts(name)[::4]:
        for query, answer, _ in context.questions:
            joined = [*context.tokens.tolist(), *query, *answer]
            text = str(trained().decode(joined[1:-1]))
            assert joined == [0, *trained().encode(text, add_special_tokens=False), 1]
            assert 1 not in joined[:-1]


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_the_same_seed_makes_the_same_context_and_another_seed_another(name: str) -> None:
    """Generators depend on the random generator alone."""
    again = task_of(name).generate(np.random.default_rng([0, 1024]), 1024)
    first, other = made(name, 1024, 0), made(name, 1024, 1)
    assert (first.tokens.tolist(), first.questions, first.latents) == (
        again.tokens.tolist(),
        again.questions,
        again.latents,
    )
    assert first.tokens.tolist() != other.tokens.tolist()


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_sixteen_different_questions_from_1024_tokens_on(name: str) -> None:
    """Half of the questions can train a policy and half score it; fewer when fewer are asked for."""
    for length in (1024, 2500):
        for seed in range(10):
            assert 16 == len({question.query for question in made(name, length, seed).questions})
    assert 5 == len(made(name, 2500, questions=5).questions)
    assert 1 <= len(made(name, 150).questions)


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_latents_are_finite_and_differ_between_contexts(name: str) -> None:
    """Contexts of one task differ in what makes them sensitive."""
    rows = [made(name, 2500, seed).latents for seed in range(6)]
    assert all(row.keys() == rows[0].keys() and np.isfinite(list(row.values())).all() for row in rows)
    assert 6 == len({tuple(row.values()) for row in rows})


@pytest.mark.parametrize("name", TEXT_TASKS)
@pytest.mark.parametrize("tokenizer", ["bare", "bytes", "marked", "bpe"])
def test_a_right_answer_scores_one_and_an_empty_one_zero(name: str, tokenizer: str) -> None:
    """Without EOS too, after a line break, and whatever is said on the next line or after EOS."""
    task = task_of(name, tokenizer)
    stop = [] if task.stop is None else [task.stop]
    more = task.tokenizer.encode("\nMore words, 12345.", add_special_tokens=False)
    for question in made(name, 1500, 3, tokenizer).questions:
        said = list(question.answer[:-1] if stop else question.answer)
        assert 1.0 == task.score(said, question) == task.score([*said, *stop], question)
        assert 1.0 == task.score([*said, *more], question) == task.score([*more[:1], *said], question)
        assert 0.0 == task.score([], question)
        assert 0.3 > task.score(more, question)
        if stop:
            assert 1.0 == task.score([*said, *stop, 70, 71], question)
            assert 0.0 == task.score([*stop, *said], question)


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_an_answer_without_references_is_scored_against_its_tokens(name: str) -> None:
    """As quality relative to the uncompressed cache needs it: an output agrees fully with itself, even an odd one."""
    task = task_of(name)
    for text in (" amber falcon.", "\n\nno idea: 3 or 4\nor so", " the", ""):
        said = tuple(trained().encode(text, add_special_tokens=False))
        assert 1.0 == task.score(said, Question((5,), (*said, 1)))
    assert 0.0 == task.score(said, Question((5,), tuple(trained().encode(" zinc", add_special_tokens=False))))


@pytest.mark.parametrize(
    ("name", "output", "reference", "score"),
    [
        ("qa", " amber otter.", "amber falcon", 0.5),
        ("needle", " 1000, 3000, 9999.\n2000", "1000, 2000, 3000, 4000", 0.5),
        ("tracking", " bada = 9 = 12345", "bada ceno 12345", 2 / 3),
        ("aggregation", " cheese, mostly", "cheese", 1.0),
        ("code", "    x = a - b", "    x = a + b", 8 / 9),
    ],
)
def test_scores_by_hand(name: str, output: str, reference: str, score: float) -> None:
    """One worked example of each family's metric; only the first line counts."""
    tokens = trained().encode(output, add_special_tokens=False)
    assert pytest.approx(score) == task_of(name).score(tokens, Question((), (), (reference,)))


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_a_context_without_room_is_refused_and_one_with_the_room_it_names_is_made(name: str) -> None:
    """One line that names the task, the length and what would do."""
    with pytest.raises(TaskError, match=rf"task {name}: 3 tokens .*give at least \d+$") as caught:
        made(name, 3)
    enough = int(str(caught.value).split()[-1]) + 20
    assert 1 <= len(made(name, enough).questions)


def test_needles_share_their_words_with_distractors() -> None:
    """Each word of a description fits several needles, both together only one."""
    context = made("needle", 2500)
    keys = re.findall(r"marks of the (\w+) (\w+) are", text_of(context))
    assert len(keys) == len(set(keys)) == context.latents["needles"]
    shared = [sum(a == c or b == d for c, d in keys) - 1 for a, b in keys]
    assert pytest.approx(np.mean(shared)) == context.latents["distractors"]
    assert 1.0 <= np.mean(shared)


def test_hot_region_questions_lie_near_its_focus() -> None:
    """A narrow region in retrieval asks for neighbouring records only."""
    for seed in range(10):
        context = made("qa", 2500, seed)
        records = re.findall(r"badge of (\w+) says", text_of(context))
        asked = [records.index(trained().decode(query).split()[-2]) for query, *_ in context.questions]
        assert max(asked) - min(asked) < context.latents["width"] * len(records) + 1


def test_latents_say_what_the_text_holds() -> None:
    """Records per token, mentions per town, links per walk, functions: counted in the decoded text."""
    qa, walks, towns, code = (made(name, 2500, 1) for name in ("qa", "tracking", "aggregation", "code"))
    assert pytest.approx(len(re.findall("The badge of", text_of(qa))) / 2500) == qa.latents["density"]
    assert pytest.approx(len(re.findall("Set ", text_of(walks))) / 2500) == walks.latents["density"]
    assert len(re.findall(r"= \d+\.", text_of(walks))) == walks.latents["chains"]
    hops = [len(reference.split()) for *_, (reference,) in walks.questions]
    assert pytest.approx(np.mean(hops)) == walks.latents["hops"]
    mentions = Counter(re.findall(r"praised (\w+) for", text_of(towns)))
    assert len(mentions) == towns.latents["facets"]
    assert pytest.approx(np.mean(list(mentions.values()))) == towns.latents["redundancy"]
    assert len(re.findall("def ", text_of(code))) == code.latents["functions"]


def test_code_questions_prefer_the_functions_written_last() -> None:
    """More than four tenths of the questions fall on the last quarter, in the mean over contexts."""
    shares = []
    for seed in range(12):
        context = made("code", 2500, seed)
        functions = re.findall(r"def (\w+)", text_of(context))
        asked = [re.findall(r"def (\w+)", trained().decode(query))[0] for query, *_ in context.questions]
        shares.append(np.mean([functions.index(name) >= 0.75 * len(functions) - 1 for name in asked]))
    assert 0.4 < np.mean(shares) < 0.95


def test_filler_and_names_hold_no_value() -> None:
    """No word of the filler answers a question, and invented names are different and no words of the lists."""
    rng = np.random.default_rng(0)
    words = {word for text in filler_sentences(rng, 3000) for word in normalised(text)}
    answers = {*VALUES, *CRAFTS, *SHADES, *OBJECTS}
    invented = names(rng, 4096)
    assert set() == words & answers
    assert 4096 == len(set(invented)) == len({*invented} - words - answers)
    assert len(VALUES) + len(CRAFTS) + len(SHADES) + len(OBJECTS) == len(answers)


def test_no_start_mark_stands_between_context_query_and_answer() -> None:
    """The mark that a tokenizer puts before every text is cut off."""
    assert (list(b"\nWhy?"), list(b" So.")) == parted(MarkedBytes(), "\nWhy?", " So.")


def test_a_token_over_the_border_is_the_answers() -> None:
    """Query and answer joined decode to the joined text, also where no token ends between the two."""
    tokenizer = BytePairs()
    for query, answer in (("abc", "def"), ("abcd", "ef"), ("a", "bc")):
        first, second = parted(tokenizer, query, answer)
        assert query + answer == tokenizer.decode(first) + tokenizer.decode(second)
        assert first and second
    assert ["ab", "cdef"] == [tokenizer.decode(part) for part in parted(tokenizer, "abc", "def")]


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_a_model_answers_from_the_cache_of_a_text_context(name: str) -> None:
    """Context, queries and answers fit the model wrapper, and its outputs can be scored."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": len(trained())}
    model = CachedModel(LlamaForCausalLM(LlamaConfig(**sizes, **heads)), "random")
    task, context = task_of(name), made(name, 300, questions=4)
    cache, _ = model.prefill(context.tokens.tolist())
    keys, values = ([part.float() for part in parts] for parts in (cache.keys, cache.values))
    decoded = DecodedCache(keys, values, len(context.tokens))
    queries = [question.query for question in context.questions]
    outputs = model.answer(decoded, queries, 6, task.stop)
    assert len(queries) == len(outputs) and all(len(output) <= 6 for output in outputs)
    assert all(0.0 <= task.score(*pair) <= 1.0 for pair in zip(outputs, context.questions, strict=True))
    told = model.answer_logits(decoded, queries, [question.answer for question in context.questions])
    assert [len(question.answer) for question in context.questions] == [len(logits) for logits in told]
