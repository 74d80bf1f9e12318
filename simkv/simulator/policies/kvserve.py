"""KVServe (arXiv 2605.13734, SIGCOMM 2026): each entry compressed for the task it is of and the link it will come over.

A *profile* of the paper, transform x quantiser x codec, is a variant here.  Offline, per task: the variants that are
good enough (``min_quality``) and that no other beats in size, codec time and quality at once; raw is always one of
them.  Online, when raw KV goes to a tier, from what is known of that tier's link:

* the break-even rule: a variant is worth its codec only below B* = S (1 - r) / t (S raw bytes, r size ratio, t codec
  seconds), and is dropped where the observed bandwidth is above that;
* of what is left the ``candidates`` fastest by T = size / B + t, raw among them or not, as the rule decides;
* T x (1 + d), with d the mean relative error of T for this task, link and variant, learnt from every load that ended
  (exponentially weighted, ``rate``; where encoding is part of T, it took what was expected); the smallest is taken, or,
  with probability ``epsilon``, any of the candidates.

The observed bandwidth is the tier's nominal one over how much longer than nominal its recent loads took, queues
included: ``Policy.loaded``, so nothing that has not happened yet.  Entries move through the tiers by LRU.

What differs from the authors' code (github.com/hpdps-group/KVServe): errors are relative instead of in ms, since loads
differ in size; bandwidths are not cut into intervals, the rule is evaluated at the bandwidth itself, which gives the
same piecewise optimum; the quality needed is a share of raw's; an entry that is compressed stays as it is, because the
paper compresses at the sender, from raw.  The controller's SLO is left out: without one it takes the fastest as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from simkv.errors import PolicyError
from simkv.simulator.entries import Entry, Load
from simkv.simulator.policies.tiered import TieredLru
from simkv.simulator.policies.utilities import chosen_variants

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["KvServe", "break_even_bytes_per_s"]

_LIMITS = {"min_quality": (0.0, 1.0), "epsilon": (0.0, 1.0), "rate": (1e-6, 1.0)}


def break_even_bytes_per_s(raw_bytes: float, stored_bytes: float, codec_s: float) -> float:
    """Bandwidth above which raw is faster: S (1 - r) / t, infinite for a codec that takes no time."""
    saved = raw_bytes - stored_bytes
    return saved / codec_s if codec_s > 0 else float("inf") if saved > 0 else 0.0


class _Choice(NamedTuple):
    """A variant of an entry on a tier: seconds on an idle link, seconds of codec, and B* over the idle bandwidth."""

    variant: int
    transfer_s: float
    codec_s: float
    break_even: float


@dataclass
class KvServe(TieredLru):
    """The variant that is fastest over the link as it is, among those that are good enough for the task.

    Args:
        min_quality: least quality, as a share of raw's (the paper's accuracy requirement).
        methods: compressors to choose from; None for all of the profile.
        candidates: how many variants the analytical model leaves to the bandit.
        epsilon: share of decisions that try any candidate.
        rate: weight of the newest load in observed bandwidths and errors.
        encode: count compression, too, as when KV is sent as soon as it is computed.
        seed: of the trials.
    """

    min_quality: float = 0.95
    methods: list[str] | None = None
    candidates: int = 3
    epsilon: float = 0.1
    rate: float = 0.2
    encode: bool = False
    seed: int = 0
    name: ClassVar[str] = "kvserve"

    def __post_init__(self) -> None:
        for parameter, (least, most) in _LIMITS.items():
            given = getattr(self, parameter)
            if not least <= given <= most:
                raise PolicyError(
                    f"policy kvserve: {parameter} is {given!r}; it must be a number from {least:g} to {most:g}"
                )
        for parameter, lowest in (("candidates", 1), ("seed", 0)):
            if getattr(self, parameter) < lowest:
                raise PolicyError(
                    f"policy kvserve: {parameter} is {getattr(self, parameter)}; it must be at least {lowest}"
                )

    def start(self, view: StoreView) -> None:
        """See Policy."""
        super().start(view)
        self._variants = chosen_variants(view, self.methods, self.name)
        self._random = Random(self.seed)
        self._slowdown = [1.0] * len(view.tiers)
        self._error: dict[tuple[int, int, int], float] = {}
        self._pareto: dict[tuple[int, int, int], list[_Choice]] = {}

    def variant_for(self, entry: Entry, tier: int) -> int:
        """A compressed entry stays as it is; a raw or new one is in the variant that serves this tier's link best."""
        if entry.placement is not None and entry.placement.variant:
            return entry.placement.variant
        slow = self._slowdown[tier]
        worth = [choice for choice in self.choices(entry, tier) if choice.variant == 0 or choice.break_even * slow > 1]
        worth.sort(key=lambda choice: choice.transfer_s * slow + choice.codec_s)
        short = worth[: self.candidates]
        if len(short) > 1 and self.epsilon and self._random.random() < self.epsilon:
            return self._random.choice(short).variant
        return min(short, key=lambda choice: self._corrected(entry.task, tier, choice)).variant

    def _corrected(self, task: int, tier: int, choice: _Choice) -> float:
        seconds = choice.transfer_s * self._slowdown[tier] + choice.codec_s
        return seconds * (1 + self._error.get((task, tier, choice.variant), 0.0))

    def choices(self, entry: Entry, tier: int) -> list[_Choice]:
        """The Pareto set of an entry on a tier, raw first; made once per size, quality and tier."""
        key = (entry.size_class, self._view.costs.quality.seen_row[entry.key], tier)
        found = self._pareto.get(key)
        if found is None:
            found = self._pareto[key] = self._make_choices(entry, tier)
        return found

    def _make_choices(self, entry: Entry, tier: int) -> list[_Choice]:
        view, qualities = self._view, self._view.qualities(entry)
        raw_bytes = view.size_bytes(entry, 0)
        raw_s = view.load_s(entry, view.placement(tier, 0))
        raw = _Choice(0, raw_s, 0.0, 0.0)
        rows: list[tuple[float, _Choice]] = []
        for variant in self._variants[1:]:
            size = view.size_bytes(entry, variant)
            if qualities[variant] < self.min_quality * qualities[0] or size >= raw_bytes:
                continue
            transfer_s = raw_s * size / raw_bytes
            codec_s = max(0.0, view.load_s(entry, view.placement(tier, variant)) - transfer_s)
            codec_s += view.encode_s(entry, variant) if self.encode else 0.0
            limit = break_even_bytes_per_s(raw_bytes, size, codec_s) * raw_s / raw_bytes
            rows.append((qualities[variant], _Choice(variant, transfer_s, codec_s, limit)))
        return [raw, *(choice for quality, choice in rows if not _is_beaten(quality, choice, rows))]

    def loaded(self, load: Load) -> None:
        """See Policy: what a load took, waits behind the request's other groups included, against what was expected."""
        tier, variant = load.placement
        view, first = self._view, load.entries[0]
        known = sum(view.load_s(entry, load.placement) for entry in load.entries)
        idle = sum(
            view.load_s(entry, view.placement(tier, 0)) * entry.size_bytes / view.size_bytes(entry, 0)
            for entry in load.entries
        )
        codec = max(0.0, known - idle)
        encode = sum(view.encode_s(entry, variant) for entry in load.entries) if self.encode else 0.0
        expected = encode + idle * self._slowdown[tier] + codec
        if expected > 0:
            error = (encode + (load.elapsed_ns + load.decode_ns) / 1e9) / expected - 1
            key = (first.task, tier, variant)
            self._error[key] = self._blend(self._error.get(key, 0.0), error)
        if idle > 0:
            inside = codec if not load.decode_ns else 0.0  # load lines of a profile have the codec in them
            took = max(0.0, load.elapsed_ns / 1e9 - inside)
            self._slowdown[tier] = self._blend(self._slowdown[tier], took / idle)

    def _blend(self, old: float, new: float) -> float:
        return old + self.rate * (new - old)


def _is_beaten(quality: float, choice: _Choice, rows: list[tuple[float, _Choice]]) -> bool:
    """Whether another variant is at least as good in all three and better in one (the earlier one among equals)."""
    mine = (-quality, choice.transfer_s, choice.codec_s, choice.variant)
    for other_quality, other in rows:
        theirs = (-other_quality, other.transfer_s, other.codec_s, other.variant)
        if all(a <= b for a, b in zip(theirs[:3], mine[:3], strict=True)) and theirs < mine:
            return True
    return False
