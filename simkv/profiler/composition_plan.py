"""Which prompts are measured: assignments of variants to the blocks of a context.

What it is: the variants, what makes them, and every context's list of prompts.  What it is not: the measuring
(``composition.py``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from simkv.profile_types import RAW, Variant
from simkv.profiler.compressors import make_compressor
from simkv.profiler.compressors.base import Compressor
from simkv.profiler.compressors.identity import Identity
from simkv.profiler.small.settings import PARAMETERS

__all__ = ["DROPPERS", "QUANTISERS", "RECOMPUTED", "Prompt", "prompts", "stores"]

QUANTISERS = ("kivi:4", "kivi:2", "kvcomp:0.4", "turboquant:2")
DROPPERS = ("streamingllm:0.5", "streamingllm:0.25", "snapkv:0.5", "h2o:0.5")
RECOMPUTED = "recomputed"

_RAW = str(RAW)
_POOLS = {
    "quantisers": (_RAW, *QUANTISERS),
    "droppers": (_RAW, *DROPPERS),
    "both": (_RAW, *QUANTISERS, *DROPPERS),
}
_HARSH = ("turboquant:2", "kivi:1", "streamingllm:0.25")
_VARIANTS = tuple(dict.fromkeys((*QUANTISERS, *DROPPERS, *_HARSH)))
_MIXES = {2: 2, 4: 2, 8: 1}  # random mixtures of every pool, by blocks of a prompt
_SHARED = 4  # blocks of the prompts whose harsh share varies


@dataclass(frozen=True)
class Prompt:
    """One assignment of variants to the equal blocks of a context.

    Attributes:
        kind: "alike" (one variant), "mixed" (drawn at random), "share" (some blocks harsh, the others raw),
            "recomputed" (a harsh prefix; what follows is prefilled on top of it).
        pool: what was drawn from, or the variant that varies.
        group: number of the mixture; of "share" and "recomputed" the number of harsh blocks.
        turn: prompts that differ in nothing else are rotations of each other over the places.
        variants: by place.
    """

    kind: str
    pool: str
    group: int
    turn: int
    variants: tuple[str, ...]


def prompts(rng: np.random.Generator) -> Iterator[Prompt]:
    """All prompts of one context; the random ones from ``rng``."""
    for variant in _VARIANTS:
        for blocks in (1, *_MIXES):
            yield Prompt("alike", variant, 0, 0, (variant,) * blocks)
    for pool, variants in _POOLS.items():
        for blocks, mixes in _MIXES.items():
            for group in range(mixes):
                yield from _turns("mixed", pool, group, _drawn(rng, variants, blocks))
    for harsh in _HARSH:
        for count in range(1, _SHARED):
            rest = _SHARED - count
            yield from _turns("share", harsh, count, (harsh,) * count + (_RAW,) * rest)
            yield Prompt("recomputed", harsh, count, 0, (harsh,) * count + (RECOMPUTED,) * rest)


def stores() -> dict[str, tuple[Compressor, str]]:
    """Compressor and knob by variant, raw included; parameters are those of the small model's profile."""
    made: dict[str, tuple[Compressor, str]] = {_RAW: (Identity(), "")}
    for name in _VARIANTS:
        variant = Variant.parse(name)
        compressor = make_compressor(variant.compressor, **PARAMETERS.get(variant.compressor, {}))
        made[name] = (compressor, variant.knob)
    return made


def _drawn(rng: np.random.Generator, variants: Sequence[str], blocks: int) -> tuple[str, ...]:
    """A variant for each block, not all the same."""
    while True:
        drawn = tuple(variants[i] for i in rng.integers(len(variants), size=blocks))
        if len(set(drawn)) > 1:
            return drawn


def _turns(kind: str, pool: str, group: int, variants: tuple[str, ...]) -> Iterator[Prompt]:
    for turn in range(len(variants)):
        yield Prompt(kind, pool, group, turn, variants[turn:] + variants[:turn])
