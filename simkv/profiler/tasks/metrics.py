"""Text metrics: how well an output agrees with a reference text, each in [0, 1].

What it is: the standard definitions, plain functions of (output, reference), and the table of those that a file may
name.  What it is not: any benchmark's own script; where LongBench (https://arxiv.org/abs/2308.14508) computes a metric
of the same name differently, the function says so.  By every metric a text agrees fully with itself, so that an output
can also be scored against another output.

Texts are bounded by ``LONGEST`` characters.  ROUGE-L and edit similarity cost (shorter x longer) bits: about a
millisecond for an answer, seconds for two texts at the bound.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from simkv.errors import SimkvError

__all__ = [
    "LONGEST",
    "METRICS",
    "Metric",
    "best",
    "classification",
    "edit",
    "edit_distance",
    "exact",
    "f1",
    "f1_zh",
    "lcs",
    "normalised",
    "number",
    "recall",
    "rouge_l",
    "rouge_l_zh",
]

LONGEST = 65_536
"""Longest text that is compared, characters."""

Metric = Callable[[str, str], float]
"""(output, reference) to a score in [0, 1]."""

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WORDS = re.compile(r"\w+")
_HAN_UNITS = re.compile(r"[a-z0-9]+|[^\W_]")
_NUMBERS = re.compile(r"[0-9]+")
_COMMENTS = ("#", "//", "```")


def normalised(text: str) -> list[str]:
    """Words in lower case, without ASCII punctuation and English articles, as in SQuAD.

    Source: Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250.
    """
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def exact(output: str, reference: str) -> float:
    """1 when both texts have the same normalised words, else 0 (SQuAD's exact match)."""
    return float(normalised(output) == normalised(reference))


def f1(output: str, reference: str) -> float:
    """Harmonic mean of precision and recall over normalised words, as multisets (SQuAD's F1).

    When one of the two has no words left, 1 if both have none, else 0, as in SQuAD 2.0.
    """
    return _overlap_f1(normalised(output), normalised(reference))


def recall(output: str, reference: str) -> float:
    """Share of the reference's normalised words, as a multiset, that the output holds in any order.

    The string match of RULER (Hsieh et al. 2024, https://arxiv.org/abs/2404.06654), on words, not on substrings.
    """
    right, got = Counter(normalised(reference)), Counter(normalised(output))
    return (right & got).total() / right.total() if right else float(not got)


def rouge_l(output: str, reference: str) -> float:
    """ROUGE-L with equal weights: F1 of the longest common subsequence of words in lower case.

    The text is one sequence (Lin 2004, https://aclanthology.org/W04-1013, section 3.1).  The package that LongBench
    calls splits it into sentences first, so its figures differ a little.
    """
    return _rouge(_WORDS.findall(output.lower()), _WORDS.findall(reference.lower()))


def edit(output: str, reference: str) -> float:
    """1 - Levenshtein distance / length of the longer, over characters of each text's first line of code.

    Blank lines, code fences, and lines that begin with ``#`` or ``//`` are passed over, unless there are no others;
    white space at the ends is not compared.  LongBench takes a ratio of matching characters instead, and also passes
    over lines with a comment at their end.
    """
    got, right = _code_line(output), _code_line(reference)
    longest = max(len(got), len(right))
    return 1.0 - edit_distance(got, right) / longest if longest else 1.0


def number(output: str, reference: str) -> float:
    """Share of the numbers in the output that are the reference's; an output without one is right if that has none.

    LongBench's count score and its retrieval score, whose references hold one number ("Paragraph 7").
    """
    right, given = _NUMBERS.findall(reference), _NUMBERS.findall(output)
    return sum(each in right for each in given) / len(given) if given else float(not right)


def f1_zh(output: str, reference: str) -> float:
    """F1 over Chinese characters; runs of Latin letters and digits count as one unit each.

    As for CMRC 2018 (Cui et al., https://arxiv.org/abs/1810.07366).  LongBench segments into words with a dictionary.
    """
    return _overlap_f1(_han_units(output), _han_units(reference))


def rouge_l_zh(output: str, reference: str) -> float:
    """ROUGE-L over the units of ``f1_zh``."""
    return _rouge(_han_units(output), _han_units(reference))


METRICS: dict[str, Metric] = {
    "edit": edit,
    "exact": exact,
    "f1": f1,
    "f1_zh": f1_zh,
    "number": number,
    "recall": recall,
    "rouge_l": rouge_l,
    "rouge_l_zh": rouge_l_zh,
}


def classification(output: str, reference: str, classes: Iterable[str]) -> float:
    """Share of the class names in the output that are also in the reference, which is usually one class name.

    A name inside a longer one that is also there does not count; LongBench drops only names inside the reference's.
    """
    known = tuple(classes)
    right, given = _named(reference, known), _named(output, known)
    return len(given & right) / len(given) if given else float(not right)


def best(metric: Metric, output: str, references: Sequence[str]) -> float:
    """The highest score over the references; 0 when there are none.

    Raises SimkvError when a text is longer than ``LONGEST`` characters.
    """
    size = max(map(len, (output, *references)))
    if size > LONGEST:
        raise SimkvError(f"a text of {size} characters cannot be scored; allowed: at most {LONGEST}")
    return max((metric(output, reference) for reference in references), default=0.0)


def lcs(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence of two sequences of units.

    One whole row per step, a bit per unit: Hyyro 2004, "Bit-parallel LCS-length computation revisited".
    """
    short, long = sorted((a, b), key=len)
    places, every = _places(short, long), (1 << len(long)) - 1
    row = every  # zeros mark where the row's value rises
    for unit in short:
        matched = row & places.get(unit, 0)
        row = ((row + matched) | (row - matched)) & every
    return len(long) - row.bit_count()


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein distance of two sequences of units: least insertions, deletions and substitutions.

    Bits of a column's steps up and down: Myers 1999, https://doi.org/10.1145/316542.316550, for global distance.
    """
    short, long = sorted((a, b), key=len)
    places, every = _places(short, long), (1 << len(long)) - 1
    up, down, distance = every, 0, len(long)
    for unit in short:
        same = places.get(unit, 0)
        diagonal = ((((same & up) + up) ^ up) | same) & every
        rises, falls = down | (every & ~(diagonal | up)), up & diagonal
        distance += (rises >> (len(long) - 1)) - (falls >> (len(long) - 1))
        rises, falls = (rises << 1 | 1) & every, falls << 1 & every
        up, down = falls | (every & ~(same | down | rises)), rises & (same | down)
    return distance


def _places(short: Sequence[str], long: Sequence[str]) -> dict[str, int]:
    """For every unit of ``short`` a number whose bits are its places in ``long``."""
    places = dict.fromkeys(short, 0)
    for place, unit in enumerate(long):
        if unit in places:
            places[unit] |= 1 << place
    return places


def _overlap_f1(got: Sequence[str], right: Sequence[str]) -> float:
    if not got or not right:
        return float(got == right)
    return 2.0 * (Counter(got) & Counter(right)).total() / (len(got) + len(right))


def _rouge(got: Sequence[str], right: Sequence[str]) -> float:
    return 2.0 * lcs(got, right) / (len(got) + len(right)) if got and right else float(got == right)


def _code_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(_COMMENTS)), lines[0] if lines else "")


def _named(text: str, classes: Sequence[str]) -> set[str]:
    found = {name for name in classes if name in text}
    return {name for name in found if not any(name != other and name in other for other in found)}


def _han_units(text: str) -> list[str]:
    return _HAN_UNITS.findall(text.lower())
