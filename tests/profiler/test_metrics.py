"""Text metrics against examples worked by hand and slow textbook definitions."""

from collections.abc import Sequence
from functools import cache, partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simkv.errors import SimkvError
from simkv.profiler.tasks.metrics import (
    LONGEST,
    METRICS,
    best,
    classification,
    edit,
    edit_distance,
    exact,
    f1,
    f1_zh,
    lcs,
    normalised,
    number,
    recall,
    rouge_l,
    rouge_l_zh,
)

CLASSES = ("animal", "animal part", "city", "other city")
UNITS = st.lists(st.sampled_from("abc"), max_size=9)
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="ab A the.\n#/12苹果、", max_size=30),
    st.sampled_from(["", "the", "# x", "7 8"]),
)


def textbook_lcs(a: Sequence[str], b: Sequence[str]) -> int:
    """The recursion on the last units."""

    @cache
    def upto(i: int, j: int) -> int:
        if not i or not j:
            return 0
        if a[i - 1] == b[j - 1]:
            return upto(i - 1, j - 1) + 1
        return max(upto(i - 1, j), upto(i, j - 1))

    return upto(len(a), len(b))


def textbook_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """The recursion on the last units."""

    @cache
    def upto(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(upto(i - 1, j) + 1, upto(i, j - 1) + 1, upto(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return upto(len(a), len(b))


@given(UNITS, UNITS)
def test_bits_agree_with_the_textbook_recursions(a: list[str], b: list[str]) -> None:
    """Longest common subsequence and edit distance, both ways round."""
    assert textbook_lcs(a, b) == lcs(a, b) == lcs(b, a)
    assert textbook_distance(a, b) == edit_distance(a, b) == edit_distance(b, a)


def test_textbook_examples() -> None:
    """kitten and sitting are three edits apart; ABCBDAB and BDCABA share BCBA, four letters."""
    assert 3 == edit_distance("kitten", "sitting")
    assert 4 == lcs("ABCBDAB", "BDCABA")
    assert (0, 3) == (lcs("", "abc"), edit_distance("", "abc"))


def test_normalised_drops_case_punctuation_and_articles() -> None:
    """Articles inside words stay, and punctuation joins what it parted."""
    assert ["cats", "hat", "anthem", "isnt", "new"] == normalised("The cat's hat, an anthem: A isn't  NEW!")


@pytest.mark.parametrize(
    ("output", "reference", "score"),
    [
        ("The Eiffel Tower.", "eiffel tower", 1.0),
        ("in the city of Paris", "Paris", 2 * (1 / 4) * 1 / (1 / 4 + 1)),
        ("red red blue", "red blue blue", 2 / 3),
        ("", "Paris", 0.0),
        ("a", "the", 1.0),
    ],
)
def test_f1_by_hand(output: str, reference: str, score: float) -> None:
    """Precision 1/4 and recall 1 give 2/5; repeated words count as often as both have them."""
    assert pytest.approx(score) == f1(output, reference)


def test_exact_match_by_hand() -> None:
    """Only what normalising removes may differ."""
    assert (1.0, 0.0, 0.0) == (exact("A dog!", "dog"), exact("dogs", "dog"), exact("", "dog"))


def test_recall_by_hand() -> None:
    """Two of three words found, in any order, among others; parts of words are not found."""
    assert pytest.approx(2 / 3) == recall("it was 20 and then 10", "10, 20, 30")
    assert 0.0 == recall("1020", "10, 20")
    assert 0.5 == recall("ten", "ten ten")


def test_rouge_l_by_hand() -> None:
    """Lin's example: "police kill the gunman" shares police, the, gunman with "police killed the gunman"."""
    assert pytest.approx(3 / 4) == rouge_l("police kill the gunman", "Police killed the gunman.")
    assert pytest.approx(2 / 4) == rouge_l("the gunman kill police", "police killed the gunman")
    assert pytest.approx(2 * (2 / 5) * (2 / 2) / (2 / 5 + 2 / 2)) == rouge_l("a b c d e", "b e")
    assert 0.0 == rouge_l("", "police")


def test_edit_similarity_by_hand() -> None:
    """One substitution in ten characters, whatever stands on comment lines before or on lines after."""
    assert pytest.approx(0.9) == edit("x = a + b1", "x = a + b2")
    assert pytest.approx(0.9) == edit("```python\n# sums\n// sums\n\n    x = a + b1\n    y = 3", "    x = a + b2\n")
    assert 1.0 == edit("# only this", "# only this")
    assert 0.0 == edit("", "x") == edit("yyy", "x")


def test_number_by_hand() -> None:
    """Half of the output's numbers are right; 7 is not 17."""
    assert 1.0 == number("It is paragraph 7.", "Paragraph 7")
    assert 0.5 == number("段落7 或 8", "段落7")
    assert 0.0 == number("17", "Paragraph 7") == number("seven", "Paragraph 7")


@pytest.mark.parametrize(
    ("output", "reference", "score"),
    [
        ("I think city.", "city", 1.0),
        ("animal or city", "city", 0.5),
        ("animal part", "animal", 0.0),
        ("animal part", "animal part", 1.0),
        ("City", "city", 0.0),
        ("", "city", 0.0),
    ],
)
def test_classification_by_hand(output: str, reference: str, score: float) -> None:
    """Names are looked for as they are written; two guesses share the point; the longest name counts."""
    assert score == classification(output, reference, CLASSES)


def test_chinese_is_compared_by_characters() -> None:
    """Two of three characters of the output, two of two of the reference; punctuation is nothing, GPU4 is one unit."""
    assert pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1)) == f1_zh("大苹果。", "苹果")
    assert pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)) == rouge_l_zh("果苹 gpu4", "苹、果")
    assert 1.0 == f1_zh("GPU4、很快", "很快gpu4")


@pytest.mark.parametrize("name", [*METRICS, "classification"])
@given(a=TEXTS, b=TEXTS)
def test_every_metric_lies_in_zero_to_one_and_is_one_on_itself(name: str, a: str, b: str) -> None:
    """So an output can be scored against another output, an empty one too."""
    metric = METRICS.get(name, partial(classification, classes=("a", "ab", "苹果")))
    assert 0.0 <= metric(a, b) <= 1.0
    assert 1.0 == metric(a, a) == metric("", "")


def test_best_takes_the_best_reference() -> None:
    """And gives nothing without any."""
    assert pytest.approx(2 / 3) == best(f1, "red car", ["blue", "red", "red or blue car lot"])
    assert 0.0 == best(f1, "red car", [])


def test_texts_beyond_the_bound_are_refused() -> None:
    """At the bound a score, one character more an error that names both sizes."""
    assert 1.0 == best(exact, "a" * LONGEST, ["A" * LONGEST])
    with pytest.raises(SimkvError, match=f"{LONGEST + 1} characters.*at most {LONGEST}"):
        best(exact, "a", ["a" * (LONGEST + 1)])
