"""The four families of facts in sentences: retrieval ("qa"), needles, variable tracking, aggregation.

They ask the same things as the token-space tasks of the same names, in the manner of RULER
(https://arxiv.org/abs/2404.06654) but in words of our own.  A question repeats the beginning of the sentence that
answers it, so that a base model goes on with the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from simkv.profiler.tasks.base import hot_choice
from simkv.profiler.tasks.metrics import Metric, recall
from simkv.profiler.tasks.text_base import Asked, Draft, TextTask
from simkv.profiler.tasks.text_words import CRAFTS, OBJECTS, SHADES, VALUES, names

__all__ = ["TextAggregation", "TextNeedle", "TextRetrieval", "TextTracking"]

_SAMPLE = 8
_LEAST_FACETS = 16


def _asked(question: str, start: str, answer: str) -> Asked:
    return Asked(f"\n\nQuestion: {question}\nAnswer: {start}", f" {answer}.", answer)


@dataclass(frozen=True)
class TextRetrieval(TextTask):
    """Multi-key retrieval: badges of invented people, two words each, scored by the share of the words found.

    Latents: ``density`` (records per token), ``focus`` and ``width`` of the hot region that is asked about.
    """

    name: str = "qa"
    metric: Metric = field(default=recall, repr=False)
    most: int = 1024

    def draft(self, rng: np.random.Generator, length: int, questions: int) -> Draft:
        """See TextTask."""
        share = float(rng.uniform(0.35, 0.7))
        count = min(self.most, self.room(length, share, self._facts(rng, _SAMPLE)[0], 1))
        records, asked = self._facts(rng, count)
        latents = {"density": count / length}
        chosen = hot_choice(rng, count, questions, latents)
        return Draft(records, latents, [asked[i] for i in chosen])

    @staticmethod
    def _facts(rng: np.random.Generator, count: int) -> tuple[list[str], list[Asked]]:
        people = [name.capitalize() for name in names(rng, count)]
        words = [" ".join(VALUES[i] for i in pair) for pair in rng.integers(0, len(VALUES), size=(count, 2)).tolist()]
        starts = [f"The badge of {name} says" for name in people]
        records = [f"{start} {value}." for start, value in zip(starts, words, strict=True)]
        facts = zip(people, starts, words, strict=True)
        return records, [_asked(f"What does the badge of {name} say?", start, value) for name, start, value in facts]


@dataclass(frozen=True)
class TextNeedle(TextTask):
    """Multi-value needles: four numbers of a described object, scored by the share of the numbers found.

    Descriptions share their words with those of other objects: the distractors.  Latents: ``needles``, ``distractors``
    (mean number of other needles that share a word), ``focus`` and ``width`` of the hot region that is asked about.
    """

    name: str = "needle"
    metric: Metric = field(default=recall, repr=False)
    most: int = 40

    def draft(self, rng: np.random.Generator, length: int, questions: int) -> Draft:
        """See TextTask."""
        room = self.room(length, 0.85, [self._needle(rng, i, i)[0] for i in range(_SAMPLE)], 2)
        needles = int(rng.integers(min(16, max(2, room // 2)), min(self.most, room) + 1))
        side = int(np.ceil(np.sqrt(needles * rng.uniform(1.2, 2.5))))
        cells = rng.permutation(side * side)[:needles]
        pairs = np.stack([rng.permutation(len(SHADES))[cells // side], rng.permutation(len(OBJECTS))[cells % side]], 1)
        shared = (pairs[:, None, :] == pairs[None, :, :]).any(axis=2).sum(axis=1) - 1
        latents = {"needles": float(needles), "distractors": float(shared.mean())}
        made = [self._needle(rng, shade, thing) for shade, thing in pairs.tolist()]
        chosen = hot_choice(rng, needles, questions, latents)
        return Draft([record for record, _ in made], latents, [made[i][1] for i in chosen])

    @staticmethod
    def _needle(rng: np.random.Generator, shade: int, thing: int) -> tuple[str, Asked]:
        key = f"{SHADES[shade]} {OBJECTS[thing]}"
        first, second, third, fourth = rng.integers(1000, 10000, size=4).tolist()
        start, answer = f"The four marks of the {key} are", f"{first}, {second}, {third}, {fourth}"
        return f"{start} {answer}.", _asked(f"Which four marks does the {key} bear?", start, answer)


@dataclass(frozen=True)
class TextTracking(TextTask):
    """Variable tracking: assignments scattered through the text form chains that end in a number.

    The answer walks the chain of one variable, scored by the share of its links found.  Latents: ``hops`` (mean
    assignments per asked chain), ``chains``, ``density`` (assignments per token).
    """

    name: str = "tracking"
    metric: Metric = field(default=recall, repr=False)
    most: int = 1024
    most_hops: int = 4

    def draft(self, rng: np.random.Generator, length: int, questions: int) -> Draft:
        """See TextTask."""
        sample = [
            f"Set {first} = {second}." for first, second in zip(names(rng, _SAMPLE), names(rng, _SAMPLE), strict=True)
        ]
        count = min(self.most, self.room(length, float(rng.uniform(0.35, 0.7)), sample, 1))
        variables = names(rng, count)
        mean = float(rng.uniform(1.5, self.most_hops))
        source: dict[str, str] = {}
        left, chains = variables, 0
        while left:
            hops = min(len(left), self.most_hops, 1 + int(rng.poisson(mean - 1)))
            chain, left = left[:hops], left[hops:]
            source |= dict(zip(chain, [*chain[1:], str(rng.integers(10_000, 100_000))], strict=True))
            chains += 1
        order = [variables[i] for i in rng.permutation(count)]
        walks = {name: self._walk(name, source) for name in (order[i] for i in rng.permutation(count)[:questions])}
        walked = float(np.mean([len(walk) for walk in walks.values()]))
        latents = {"hops": walked, "chains": float(chains), "density": count / length}
        records = [f"Set {name} = {source[name]}." for name in order]
        return Draft(records, latents, [self._chain(name, walk) for name, walk in walks.items()])

    @staticmethod
    def _walk(name: str, source: dict[str, str]) -> list[str]:
        walk = [source[name]]
        while walk[-1] in source:
            walk.append(source[walk[-1]])
        return walk

    @staticmethod
    def _chain(name: str, walk: Sequence[str]) -> Asked:
        question = f"Which variables lead from {name} to its number, and what is the number?"
        return _asked(question, f"{name} =", " = ".join(walk))._replace(reference=" ".join(walk))


@dataclass(frozen=True)
class TextAggregation(TextTask):
    """Aggregation: what each town is known for, as most of its mentions say; 1 when the answer names it, else 0.

    The right craft always has at least three quarters of its town's mentions.  Latents: ``redundancy`` (mean mentions
    per town), ``noise`` (chance of a wrong mention), ``facets`` (towns).
    """

    name: str = "aggregation"
    metric: Metric = field(default=recall, repr=False)
    most: int = 48

    def draft(self, rng: np.random.Generator, length: int, questions: int) -> Draft:
        """See TextTask."""
        sample = [
            self._mention(name.capitalize(), craft) for name, craft in zip(names(rng, _SAMPLE), CRAFTS, strict=False)
        ]
        room = self.room(length, 0.85, sample, 1)
        facets = max(1, min(self.most, max(min(_LEAST_FACETS, room // 3), room // 7)))
        redundancy = float(rng.uniform(3.0, min(12.0, max(3.0, 0.9 * room / facets))))
        noise = float(rng.uniform(0.0, 0.25))
        counts = np.maximum(1, np.rint(rng.normal(redundancy, 0.7, size=facets))).astype(int)
        while counts.sum() > room:
            counts[counts.argmax()] -= 1
        towns = [name.capitalize() for name in names(rng, facets)]
        truth = [CRAFTS[i] for i in rng.integers(0, len(CRAFTS), size=facets)]
        records = []
        for town, craft, count in zip(towns, truth, counts.tolist(), strict=True):
            wrong = int(noise * count)
            others = [CRAFTS[i] for i in rng.permutation(len(CRAFTS)) if CRAFTS[i] != craft][:wrong]
            records += [self._mention(town, each) for each in [craft] * (count - wrong) + others]
        latents = {"redundancy": len(records) / facets, "noise": noise, "facets": float(facets)}
        asked = [self._majority(town, craft) for town, craft in zip(towns, truth, strict=True)]
        return Draft([records[i] for i in rng.permutation(len(records))], latents, asked[:questions])

    @staticmethod
    def _mention(town: str, craft: str) -> str:
        return f"A traveller praised {town} for its {craft}."

    @staticmethod
    def _majority(town: str, craft: str) -> Asked:
        return _asked(f"What do most travellers praise {town} for?", f"Most travellers praise {town} for its", craft)
