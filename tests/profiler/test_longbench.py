"""The reader of LongBench's format and of users' own files: contexts, questions, metrics, and what it refuses."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simkv.profiler.tasks import Context, Question, TaskError, longbench
from simkv.profiler.tasks.longbench import DATASETS, ContextFile, LongBenchFile, read_longbench
from simkv.profiler.tasks.metrics import LONGEST
from tests.profiler.text_tokenizers import BareBytes, Bytes, trained

CLASSES = ["Animal", "Other animal", "City"]


def row(dataset: str = "hotpotqa", **changes: Any) -> dict[str, Any]:
    """A line as LongBench has it, with text of our own."""
    given = {"input": "Who baked?", "context": "The baker baked. The farmer slept.", "answers": ["The baker", "He"]}
    rest = {"length": 6, "dataset": dataset, "language": "en", "all_classes": None, "_id": "0f3a"}
    return given | rest | changes


def plain(**changes: Any) -> dict[str, Any]:
    """A line of the plain form."""
    return {"context": "The river rose.", "question": "What rose?", "answers": ["the river"]} | changes


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Writes lines to a file and reads it back."""

    def reader(
        *lines: dict[str, Any] | str, max_tokens: int = 500, tokenizer: Any = None, **more: Any
    ) -> LongBenchFile:
        path = tmp_path / "mine.jsonl"
        texts = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
        path.write_text("\n".join(texts), encoding="utf-8")
        return read_longbench(path, tokenizer or Bytes(), max_tokens, **more)

    return reader


def said(text: str) -> list[int]:
    return list(text.encode())


def asked(context: Context) -> list[tuple[str, str]]:
    return [(Bytes().decode(q.query), Bytes().decode(q.answer)) for q in context.questions]


def test_a_line_becomes_a_context_and_a_question(read: Any) -> None:
    """The context as it stands after BOS; the question after it; the first answer, with EOS, is the one to predict."""
    source: ContextFile = read(row())
    context = source.context(0)
    assert ("hotpotqa", 257, 1) == (source.name, source.stop, len(source))
    assert [256, *said("The baker baked. The farmer slept.")] == context.tokens.tolist()
    assert ("hotpotqa", np.int64, {"text_tokens": 35.0, "kept": 1.0}) == (
        context.task,
        context.tokens.dtype,
        context.latents,
    )
    ((query, answer, references),) = context.questions
    assert "\n\nQuestion: Who baked?\nShort answer:" == Bytes().decode(query)
    assert ([*said(" The baker"), 257], ("The baker", "He")) == (list(answer), references)


def test_lines_with_the_same_context_become_its_questions(read: Any) -> None:
    """In the file's order of contexts; a repeated line counts once; the questions' order is fixed but shuffled."""
    lines = [row(input=f"Question {i}", answers=[str(i)]) for i in range(12)]
    source = read(*lines, row(context="Another one."), lines[3])
    first, second = source.contexts()
    assert 2 == len(source)
    queries = [query for query, _ in asked(first)]
    assert 12 == len(set(queries)) == len(queries)
    assert sorted(queries) != queries
    assert first.questions == source.context(0).questions
    assert said("Another one.") == second.tokens.tolist()[1:]
    assert [first.tokens.tolist()] == [context.tokens.tolist() for context in source.contexts(1)]
    assert 2 == len(source.contexts(5))


def test_limits_on_lines_and_questions(read: Any) -> None:
    """Only so many lines are read, so many questions asked."""
    lines = [row(input=f"Question {i}") for i in range(12)]
    assert 4 == len(read(*lines, limit=4).context(0).questions)
    assert 3 == len(read(*lines, questions=3).context(0).questions)
    assert 1 == len(read(row(), "this line is not read", limit=1))


@pytest.mark.parametrize("tokenizer", [BareBytes(), Bytes(), trained()], ids=["bare", "bytes", "bpe"])
@pytest.mark.parametrize("most", [20, 21])
def test_long_contexts_lose_their_middle(read: Any, tokenizer: Any, most: int) -> None:
    """The first half of the bound and the last, BOS counted; what fits stays whole; questions too are bounded."""
    text = " ".join(f"Word{i}" for i in range(60))
    source = read(row(context=text, input=text), max_tokens=most, tokenizer=tokenizer)
    context = source.context(0)
    start = [] if source.stop is None else [tokenizer.bos_token_id]
    whole = [*start, *tokenizer.encode(text, add_special_tokens=False)]
    assert whole[: most - most // 2] + whole[-(most // 2) :] == context.tokens.tolist()
    assert {"text_tokens": len(whole), "kept": most / len(whole)} == context.latents
    assert most == len(context.questions[0].query)
    fits = read(row(context=text), max_tokens=len(whole), tokenizer=tokenizer)
    assert whole == fits.context(0).tokens.tolist()


def test_the_table_is_the_21_datasets_with_their_metrics() -> None:
    """As LongBench's own evaluation assigns them."""
    groups = {
        "f1": "narrativeqa qasper multifieldqa_en hotpotqa 2wikimqa musique triviaqa",
        "f1_zh": "multifieldqa_zh",
        "rouge_l": "gov_report qmsum multi_news samsum",
        "rouge_l_zh": "dureader vcsum",
        "classification": "trec lsht",
        "number": "passage_count passage_retrieval_en passage_retrieval_zh",
        "edit": "lcc repobench-p",
    }
    expected = {name: metric for metric, names in groups.items() for name in names.split()}
    assert expected == {name: dataset.metric for name, dataset in DATASETS.items()}
    assert 21 == len(DATASETS)
    assert {"trec", "triviaqa", "samsum", "lsht"} == {name for name, dataset in DATASETS.items() if not dataset.whole}


@pytest.mark.parametrize(
    ("dataset", "answers", "output", "score"),
    [
        ("qasper", ["no", "the red one"], "Red one!", 1.0),
        ("musique", ["red one"], " red\none", 1.0),
        ("triviaqa", ["red one"], "\n red\none", 2 / 3),
        ("multifieldqa_zh", ["苹果"], "大苹果", 0.8),
        ("vcsum", ["苹果好"], "苹果", 0.8),
        ("gov_report", ["one two three four"], "one three", 2 / 3),
        ("trec", ["Animal"], "Animal or City\nCity", 0.5),
        ("trec", ["Animal"], "Other animal", 0.0),
        ("passage_retrieval_zh", ["段落12"], "段落12", 1.0),
        ("passage_count", ["7"], "7 or 8", 0.5),
        ("lcc", ["return a"], "# so:\nreturn b\nx", 7 / 8),
    ],
)
def test_each_kind_of_dataset_has_its_metric(
    read: Any, dataset: str, answers: list[str], output: str, score: float
) -> None:
    """The best over the answers, up to EOS, and for few-shot datasets up to the first line's end."""
    source = read(row(dataset, answers=answers, all_classes=CLASSES if dataset == "trec" else None))
    (question,) = source.context(0).questions
    assert pytest.approx(score) == source.score([*said(output), 257, *said("Animal red 12 ")], question)


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_asks_in_words_and_takes_its_own_answer(read: Any, dataset: str) -> None:
    """Also without an input; the answer to predict scores 1; an output agrees fully with itself."""
    source = read(row(dataset, input="", answers=["City 3"], all_classes=["City 3", "Sea"]))
    (question,) = source.context(0).questions
    assert question.query and "{" not in Bytes().decode(question.query)
    assert 1.0 == source.score(question.answer, question)
    odd = said("\nno idea, 3 or 4\nSea")
    assert 1.0 == source.score(odd, Question((1,), (*odd, 257)))


def test_subsets_of_longbench_e_are_the_same_datasets(read: Any) -> None:
    """Their names end with _e."""
    assert "hotpotqa" == read(row("hotpotqa_e")).name


def test_plain_form(read: Any) -> None:
    """Named after its file, scored by token F1 or by the metric that all its lines name."""
    source = read(plain(), plain(context="Two.", answers=["two"]))
    (question,) = source.context(0).questions
    assert ("mine", 2) == (source.name, len(source))
    assert 1.0 == source.score(said("River"), question)
    strict = read(plain(metric="exact"))
    assert 0.0 == strict.score(said("the river rose"), strict.context(0).questions[0])


def test_the_plain_name_fits_a_profile(tmp_path: Path) -> None:
    """Only characters that a profile's task may have."""
    for stem, name in (("my data (new)", "my_data_new"), ("_.-", "file"), ("x" * 90, "x" * 60)):
        path = tmp_path / f"{stem}.jsonl"
        path.write_text(json.dumps(plain()))
        assert name == read_longbench(path, Bytes(), 100).name


def test_the_hash_is_of_the_lines_read(read: Any) -> None:
    """So rows measured on other contents can be told apart."""
    first = json.dumps(row())
    assert hashlib.sha256((first + "\n").encode()).hexdigest() == read(first, row("qasper"), limit=1).sha256


def test_a_very_long_answer_is_predicted_in_part_and_scored_whole(read: Any) -> None:
    """At most 512 of its tokens and EOS."""
    source = read(plain(answers=["river " * 400]))
    (question,) = source.context(0).questions
    assert (513, 2400) == (len(question.answer), len(question.references[0]))
    assert source.score(question.answer, question) < 1.0


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "is not JSON"),
        ('{"a": ' + "[" * 100_000, "is not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
        ("[1]", "must be a JSON object, found list"),
        ("{}", "neither the key 'input'.*nor 'question'"),
        (row("hotpot"), "dataset: unknown dataset 'hotpot' .did you mean 'hotpotqa'.*known: 2wikimqa"),
        (row(dataset=3), "dataset: 3; allowed: text that is not blank"),
        (row(context="  "), "context: '  '; allowed: text that is not blank"),
        (row(input=None), "input: None; allowed: text"),
        (row(answers="x"), "answers: 'x'; allowed: a list of 1 to 1000 strings"),
        (row(answers=[]), "answers: .*allowed: a list of 1 to 1000"),
        (row(answers=["x"] * 1001), "answers: .*allowed: a list of 1 to 1000"),
        (row(answers=["x", 5]), "answers: 5; allowed: text"),
        (row(answers=["x" * (LONGEST + 1)]), f"answers: 'x+; allowed: strings of at most {LONGEST} characters"),
        (row("passage_count", answers=["seven"]), "answers: 'seven'; allowed: strings that hold a number"),
        (row("trec"), "all_classes: None; allowed: a list"),
        (row("trec", all_classes=["Sea"]), "answers: 'The baker'; allowed: names in all_classes"),
        ('{"input": "", "dataset": "lcc", "context": "\\ud800", "answers": ["x"]}', "context: .*lone surrogates"),
        (plain(metrc="f1"), "unknown key 'metrc' .did you mean 'metric'"),
        (plain(metric="f2"), "metric: unknown metric 'f2'.*known: edit, exact"),
        (plain(metric=None), "metric: None; allowed: text"),
        ({"question": "q", "answers": ["a"]}, "context: missing; allowed: text that is not blank"),
    ],
)
def test_a_bad_line_is_refused_with_its_place(read: Any, line: dict[str, Any] | str, complaint: str) -> None:
    """One short line: file, number of the line (blank ones count), key, value, what is allowed."""
    with pytest.raises(TaskError, match=rf"mine\.jsonl:2: .*{complaint}") as caught:
        read("", line)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        (row(), row("qasper"), "dataset: another .'qasper'."),
        (plain(), plain(metric="exact"), "metric: another .'exact'."),
        (
            row("trec", answers=["City"], all_classes=CLASSES),
            row("trec", answers=["City"], all_classes=["City"]),
            "all_cl",
        ),
        (row(), plain(), "dataset: another .'mine'."),
    ],
)
def test_a_file_holds_one_task(read: Any, first: dict[str, Any], second: dict[str, Any], complaint: str) -> None:
    """Lines of another dataset, metric, list of classes or form are refused."""
    with pytest.raises(TaskError, match=f":2: {complaint}.*than the first line"):
        read(first, second)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, a folder, empty, not UTF-8, a line or a file beyond the bounds."""
    path = tmp_path / "mine.jsonl"
    for missing in (path, tmp_path):
        with pytest.raises(TaskError, match="there is no such file"):
            read_longbench(missing, Bytes(), 100)
    path.write_text("\n \n")
    with pytest.raises(TaskError, match="holds no line"):
        read_longbench(path, Bytes(), 100)
    path.write_bytes(b'{"context": "\xff"}')
    with pytest.raises(TaskError, match=r"mine\.jsonl:1: is not JSON in UTF-8"):
        read_longbench(path, Bytes(), 100)
    path.write_text(json.dumps(row()))
    monkeypatch.setattr(longbench, "MOST_LINE_BYTES", 20)
    with pytest.raises(TaskError, match=r"mine\.jsonl:1: longer than 20 bytes"):
        read_longbench(path, Bytes(), 100)
    monkeypatch.setattr(longbench, "MOST_FILE_BYTES", 30)
    with pytest.raises(TaskError, match="larger than 30 bytes"):
        read_longbench(path, Bytes(), 100)


@pytest.mark.parametrize("bad", [{"max_tokens": 3}, {"limit": 0}, {"questions": 0}])
def test_bounds_that_leave_nothing_are_refused(read: Any, bad: dict[str, int]) -> None:
    """Named with the least that is allowed."""
    ((key, value),) = bad.items()
    with pytest.raises(TaskError, match=rf"{key} = {value}; allowed: at least \d"):
        read(row(), **bad)
