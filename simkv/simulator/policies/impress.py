"""IMPRESS as the EvicPress paper emulates it (arXiv 2512.14946): only chunks with important tokens are kept, LRU.

Three heads each name their most important tokens.  If they agree well enough, the chunks that hold a token of their
union are stored and the rest is dropped; if not, everything is.  Entries then move through the tiers by LRU, as whole
contexts.  Which tokens heads name is not in a profile: how well the heads of an entry agree is drawn per entry, and
the union is that of sets which meet pairwise as often as that says.  What it is not: IMPRESS itself, which keeps all
tokens on the disk and orders them by importance.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, ClassVar

from simkv.errors import PolicyError
from simkv.simulator.entries import Entry
from simkv.simulator.policies.tiered import TieredLru
from simkv.simulator.policies.utilities import chosen_variants

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["Impress", "agreement_needed", "union_kept"]

_EXPONENT = 0.6
_LIMITS = {"removed": (0.0, 1.0), "agreement": (0.0, 1.0), "agreement_sd": (0.0, 1.0), "scatter": (1.0, 1e4)}


def agreement_needed(removed: float) -> float:
    """Mean pairwise Jaccard index that heads must reach: ((1 - removed) / (1 + removed)) ^ 0.6.

    The base is the index of two random sets that each keep ``1 - removed`` of the tokens.
    """
    return float(((1 - removed) / (1 + removed)) ** _EXPONENT)


def union_kept(removed: float, agreement: float) -> float:
    """Fraction of tokens kept by the union of three sets that each keep ``1 - removed``, with that Jaccard index.

    Two such sets share i = 2 p J / (1 + J) of the tokens; that all three share i^2 / p is assumed.
    """
    kept = 1 - removed
    shared = 2 * kept * agreement / (1 + agreement)
    return min(1.0, 3 * kept - 3 * shared + shared * shared / kept) if kept else 0.0


def _uniform(seed: int, key: int) -> float:
    """A number in (0, 1) per seed and key (SplitMix64, Steele et al. 2014)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + key * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    return ((mixed ^ (mixed >> 31)) // 2**12 + 0.5) / 2**52


@dataclass
class Impress(TieredLru):
    """Important chunks of each context, least recently used first out.

    Args:
        removed: fraction of tokens that a head does not call important (1 - fraction kept).
        method: compressor of the profile that scores tokens; None for its first one.
        agreement: mean Jaccard index of the heads' sets, and
        agreement_sd: its standard deviation over entries; neither is published.
        scatter: independent clusters of important tokens per chunk; 1 means that they fill whole chunks.
        seed: of each entry's agreement.
    """

    removed: float = 0.8
    method: str | None = None
    agreement: float = 0.5
    agreement_sd: float = 0.15
    scatter: float = 1.0
    seed: int = 0
    name: ClassVar[str] = "impress"

    def __post_init__(self) -> None:
        for parameter, (least, most) in _LIMITS.items():
            given = getattr(self, parameter)
            if not least <= given <= most:
                raise PolicyError(
                    f"policy impress: {parameter} is {given!r}; it must be a number from {least:g} to {most:g}"
                )
        if self.seed < 0:
            raise PolicyError(f"policy impress: seed is {self.seed}; it must be at least 0")

    def start(self, view: StoreView) -> None:
        """See Policy."""
        found = chosen_variants(view, None if self.method is None else [self.method], self.name)
        scorers = [view.variants[variant].partition(":")[0] for variant in found[1:]]
        self._variants = [variant for variant, scorer in zip(found[1:], scorers, strict=True) if scorer == scorers[0]]
        super().start(view)

    def variant_for(self, entry: Entry, tier: int) -> int:
        """What it was stored in first."""
        return self.variant_of(entry) if entry.placement is None else entry.placement.variant

    def variant_of(self, entry: Entry) -> int:
        """The smallest variant that holds the chunks of the heads' union; raw if the heads disagree or none does."""
        draw = NormalDist().inv_cdf(_uniform(self.seed, entry.key))
        agreement = min(1.0, max(0.0, self.agreement + self.agreement_sd * draw))
        if agreement < agreement_needed(self.removed):
            return 0
        chunks = 1 - (1 - union_kept(self.removed, agreement)) ** self.scatter
        size = self._view.size_bytes
        needed = chunks * size(entry, 0)
        large = [variant for variant in self._variants if needed <= size(entry, variant) < size(entry, 0)]
        return min(large, key=lambda variant: (size(entry, variant), variant), default=0)
