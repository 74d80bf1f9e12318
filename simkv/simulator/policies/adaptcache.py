"""AdaptCache (arXiv 2509.00105): compression method, rate and tier per entry, by greedy marginal utility.

Utility of an option: quality_weight x quality - delay_weight x delay, times a frequency factor; on traces of
blocks, quality counts by the block's share of a prompt (``StoreView.weight``).  A new entry
enters DRAM uncompressed; while DRAM is over capacity, the step with the smallest utility lost per byte freed is
taken, over the new entry and all residents: a smaller variant in DRAM, or leaving it for the better of "discard"
and the best SSD variant not larger than the present one.  SSD is plain LRU.  SSD residents are not
optimised again, and nothing is promoted, as published; ``hit`` changes that.

Each entry has one next step and one heap row, so a decision costs O(log n) amortised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from simkv.errors import PolicyError
from simkv.simulator.entries import Entry, Move, Placement
from simkv.simulator.policies.base import Policy
from simkv.simulator.policies.heap import HeapOrder
from simkv.simulator.policies.lru import RecencyOrder

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["PRESETS", "AdaptCache"]

# What the paper's text says, and what the authors' public code does (both with alpha as the swept knob).
PRESETS: dict[str, dict[str, Any]] = {
    "code": {"alpha_on": "delay", "delay": "profiled", "frequency": "none", "per": "byte"},
    "paper": {"alpha_on": "quality", "delay": "transfer", "frequency": "count", "per": "byte"},
}

_CHOICES = {
    "alpha_on": ("delay", "quality"),
    "delay": ("profiled", "transfer"),
    "frequency": ("none", "count", "decayed"),
    "per": ("byte", "step"),
    "method": ("frozen", "free"),
    "hit": ("stay", "promote", "raise"),
    "preset": tuple(PRESETS),
}
_NEVER_LATER = -math.inf
_RESCALE_EXPONENT = 400.0


@dataclass
class AdaptCache(Policy):
    """Greedy marginal-utility placement.

    Args:
        alpha: the swept weight.  With ``alpha_on = "delay"`` (the code's sense) larger means faster and worse;
            with "quality" (the paper's sense) larger means better and slower.
        preset: "code" or "paper": defaults of the parameters below that are left None.
        alpha_on: what alpha multiplies; the other term has weight 1.
        delay: "profiled" (the profile's load time, decompression included) or "transfer" (size / bandwidth).
        frequency: factor on every loss: "none", "count" of uses so far, or "decayed" count.
        drop_after_uses: entries used that often leave for free when room is needed; 0 for never.  The
            authors' code has 2, which is knowledge of its workload: every context is asked for twice.
        per: losses are compared per "byte" freed, or per "step".
        window_s: of the decayed count, f <- f exp(-lambda dt) + 1 with lambda = 2 ln 2 / window.
        methods: compressors to choose from; None for all in the profile.
        method: "frozen": the method with the smaller loss per byte at insertion is kept for life (published);
            "free": any method at every step.
        hit: what a hit does: "stay" (published), "promote" what is on SSD to DRAM in the variant that it has, or
            "raise" every hit to DRAM raw from its pristine copy; the greedy then makes room as for a new entry.
        recompute: False takes "discard" out of the options (entries then leave for SSD).
    """

    alpha: float = 1.0
    preset: str = "code"
    alpha_on: str | None = None
    delay: str | None = None
    frequency: str | None = None
    drop_after_uses: int = 0
    per: str | None = None
    window_s: float = 600.0
    methods: list[str] | None = None
    method: str = "frozen"
    hit: str = "stay"
    recompute: bool = True
    name: ClassVar[str] = "adaptcache"

    def __post_init__(self) -> None:
        if not (isinstance(self.alpha, (int, float)) and 0 <= self.alpha < math.inf):
            raise PolicyError(f"policy adaptcache: alpha is {self.alpha!r}; it must be a number, at least 0")
        if not self.window_s > 0:
            raise PolicyError(f"policy adaptcache: window_s is {self.window_s!r}; it must be positive")
        if self.drop_after_uses < 0:
            raise PolicyError(f"policy adaptcache: drop_after_uses is {self.drop_after_uses}; it must be at least 0")
        if isinstance(self.methods, str):
            raise PolicyError(f"policy adaptcache: methods is {self.methods!r}; write a list, e.g. ['kivi']")
        for parameter, allowed in _CHOICES.items():
            given = getattr(self, parameter)
            if given is not None and given not in allowed:
                raise PolicyError(f"policy adaptcache: {parameter} is {given!r}; allowed: {', '.join(allowed)}")
        self._choice = {
            key: default if getattr(self, key) is None else getattr(self, key)
            for key, default in PRESETS[self.preset].items()
        }

    # ------------------------------------------------------------------ set-up

    def start(self, view: StoreView) -> None:
        """See Policy."""
        if len(view.tiers) < 2:
            raise PolicyError("policy adaptcache: needs two tiers that entries may be placed on (DRAM and SSD)")
        if self.hit == "raise" and len(view.tiers) == len(view.costs.tiers):
            raise PolicyError("policy adaptcache: hit = 'raise' needs raw copies to raise from: engine.pristine = true")
        self._view = view
        on_delay = self._choice["alpha_on"] == "delay"
        self._quality_weight, self._delay_weight = (1.0, self.alpha) if on_delay else (self.alpha, 1.0)
        compressors = [variant.partition(":")[0] for variant in view.variants]
        wanted = list(dict.fromkeys(compressors[1:])) if self.methods is None else self.methods
        for method in wanted:
            if method not in compressors[1:]:
                raise PolicyError(
                    f"policy adaptcache: method {method!r} is not in the profile; it has {', '.join(compressors[1:])}"
                )
        self._by_method = {m: [v for v, c in enumerate(compressors) if c == m] for m in wanted}
        self._all = [variant for variants in self._by_method.values() for variant in variants]
        self._compressors = compressors
        self._raw = view.placement(0, 0)
        self._frozen: dict[int, str] = {}
        self._gentlest: dict[tuple[int, int], str] = {}
        self._steps: dict[tuple, tuple[float, Placement | None]] = {}
        self._heat: dict[int, float] = {}
        self._epoch_s = 0.0
        self._dram = HeapOrder(self._loss_rate)
        self._ssd = RecencyOrder(refresh=True)

    # ------------------------------------------------------------------ utility

    def _delay_s(self, entry: Entry, placement: Placement) -> float:
        if self._choice["delay"] == "profiled":
            return self._view.load_s(entry, placement)
        return self._view.size_bytes(entry, placement.variant) / self._view.costs.tiers[placement.tier].read_bytes_per_s

    def utility(self, entry: Entry, placement: Placement | None) -> float:
        """Utility of an option, without the frequency factor; None is "discard": quality 1, delay = prefill."""
        quality_weight = self._quality_weight * self._view.weight(entry)
        if placement is None:
            return quality_weight - self._delay_weight * self._view.recompute_s(entry)
        quality = self._view.quality(entry, placement.variant)
        return quality_weight * quality - self._delay_weight * self._delay_s(entry, placement)

    def _allowed(self, entry: Entry, variant: int) -> list[int]:
        """Variants that the entry may be compressed to."""
        if variant and self.method == "frozen":
            return self._by_method[self._compressors[variant]]
        if self.method == "frozen" and entry.key in self._frozen:
            return self._by_method[self._frozen[entry.key]]
        return self._all

    def _next_step(self, entry: Entry, variants: list[int]) -> tuple[float, Placement | None]:
        """(loss per byte or per step, target) of the best step down from the present placement in DRAM."""
        view, placement = self._view, entry.placement
        assert placement is not None
        size = entry.size_bytes
        now = self.utility(entry, placement)
        smaller = [v for v in variants if view.size_bytes(entry, v) < size]
        per_byte = self._choice["per"] == "byte"
        room = view.capacity_bytes(1)
        leave = [v for v in (placement.variant, *smaller) if room is None or view.size_bytes(entry, v) <= room]
        choices = [view.placement(1, variant) for variant in leave]
        out: Placement | None = max(choices, key=lambda p: self.utility(entry, p), default=None)
        if self.recompute and self.utility(entry, None) >= self.utility(entry, out):
            out = None
        best = ((now - self.utility(entry, out)) / (size if per_byte else 1), out)
        for variant in smaller:
            target = view.placement(0, variant)
            freed = size - view.size_bytes(entry, variant)
            loss = (now - self.utility(entry, target)) / (freed if per_byte else 1)
            if loss < best[0]:
                best = (loss, target)
        return best

    def _step(self, entry: Entry) -> tuple[float, Placement | None]:
        """``_next_step``, remembered per (placement, size, quality row, recompute time, allowed methods)."""
        assert entry.placement is not None
        costs = self._view.costs
        key = (
            entry.placement.variant,
            entry.size_class,
            costs.quality.seen_row[entry.key],
            costs.recompute[entry.key],
            self._frozen.get(entry.key),
        )
        if key not in self._steps:
            self._steps[key] = self._next_step(entry, self._allowed(entry, entry.placement.variant))
        return self._steps[key]

    def _freeze(self, entry: Entry) -> None:
        """Choose the entry's method for life: the one with the smallest loss per byte freed by one step."""
        if self.method != "frozen" or len(self._by_method) < 2 or entry.key in self._frozen:
            return
        key = (entry.size_class, self._view.costs.quality.seen_row[entry.key])
        if key not in self._gentlest:
            losses = {method: self._compress_loss(entry, variants) for method, variants in self._by_method.items()}
            self._gentlest[key] = min(losses, key=lambda method: losses[method])
        self._frozen[entry.key] = self._gentlest[key]

    def _compress_loss(self, entry: Entry, variants: list[int]) -> float:
        view = self._view
        now = self.utility(entry, self._raw)
        raw = view.size_bytes(entry, 0)
        losses = [
            (now - self.utility(entry, view.placement(0, v))) / (raw - view.size_bytes(entry, v))
            for v in variants
            if view.size_bytes(entry, v) < raw
        ]
        return min(losses, default=math.inf)

    # ------------------------------------------------------------------ frequency

    def _loss_rate(self, entry: Entry) -> float:
        """Key of the heap: what the next step loses per byte, times how often the entry is used."""
        uses = entry.hits + 1
        if self.drop_after_uses and uses >= self.drop_after_uses:
            return _NEVER_LATER
        loss = self._step(entry)[0]
        frequency = self._choice["frequency"]
        if frequency == "count":
            return loss * uses
        return loss * self._heat[entry.key] if frequency == "decayed" else loss

    def _warm(self, entry: Entry, now_s: float) -> None:
        """One more use, in a decayed count kept relative to a common epoch so that ageing needs no work."""
        if self._choice["frequency"] != "decayed":
            return
        exponent = 2.0 * (now_s - self._epoch_s) / self.window_s
        if exponent > _RESCALE_EXPONENT:
            scale = 2.0**-exponent
            self._heat = {key: heat * scale for key, heat in self._heat.items()}
            self._epoch_s, exponent = now_s, 0.0
            self._dram.rescore()
        self._heat[entry.key] = self._heat.get(entry.key, 0.0) + 2.0**exponent

    # ------------------------------------------------------------------ decisions

    def admit(self, entry: Entry, view: StoreView) -> Placement | None:
        """Into DRAM, uncompressed; making room may compress or move it at once."""
        self._freeze(entry)
        self._warm(entry, view.now_ns / 1e9)
        return self._raw

    def on_hit(self, entry: Entry, view: StoreView) -> Placement | None:
        """Stays where it is, or comes back to DRAM (see ``hit``)."""
        self._warm(entry, view.now_ns / 1e9)
        placement = entry.placement
        assert placement is not None
        (self._ssd if placement.tier else self._dram).touch(entry)
        if self.hit == "raise":
            return self._raw
        return view.placement(0, placement.variant) if self.hit == "promote" else placement

    def placed(self, entry: Entry, old: Placement | None) -> None:
        """See Policy."""
        if old is not None:
            (self._ssd if old.tier else self._dram).remove(entry)
        if entry.placement is not None:
            (self._ssd if entry.placement.tier else self._dram).insert(entry)

    def released(self, entry: Entry) -> None:
        """See Policy."""
        if entry.placement is not None:
            (self._ssd if entry.placement.tier else self._dram).released(entry)

    def make_room(self, tier: int, need_bytes: int, view: StoreView) -> Iterator[Move]:
        """DRAM: the step with the smallest loss, again and again.  SSD: the least recently used."""
        if tier:
            while (oldest := self._ssd.victim()) is not None:
                yield Move(oldest, None)
            return
        while (entry := self._dram.victim()) is not None:
            free = self.drop_after_uses > 0 and self._loss_rate(entry) == _NEVER_LATER
            yield Move(entry, None if free else self._step(entry)[1])
