"""The policy interface: where new blocks go, where hit entries go, and what leaves when a tier is full.

A policy is a dataclass whose fields are its parameters.  It sees a read-only ``StoreView`` and answers with
placements and moves; it never touches ledgers, clocks or devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from simkv.simulator.entries import Entry, Load, Move, Placement

if TYPE_CHECKING:
    from simkv.simulator.view import StoreView

__all__ = ["Policy"]


@dataclass
class Policy:
    """Base class of all policies; as it stands it stores nothing.

    Class attributes:
        name: shown in results.
        needs_future: True for policies that read ``entry.next_use`` (clairvoyant ones only).
        newcomer_stays: True keeps the entry that needs room from being named in ``make_room``.
        period_s: seconds between calls of ``rebalance``; 0 for never.
    """

    name: ClassVar[str] = "policy"
    needs_future: ClassVar[bool] = False
    newcomer_stays: ClassVar[bool] = False
    period_s: ClassVar[float] = 0.0

    def start(self, view: StoreView) -> None:
        """Called once before the run: resolve names, build tables.  Raise PolicyError for bad parameters."""

    def admit(self, entry: Entry, view: StoreView) -> Placement | None:
        """Where a block that has just been computed goes; None leaves it out.

        ``entry.placement`` is None and ``entry.size_bytes`` 0 until it is placed.
        """
        return None

    def on_hit(self, entry: Entry, view: StoreView) -> Placement | None:
        """Where a stored entry that has just been asked for should be from now on.

        ``entry.hits`` counts this hit; ``entry.last_hit_ns`` is still the previous one.
        """
        return entry.placement

    def make_room(self, tier: int, need_bytes: int, view: StoreView) -> Iterator[Move]:
        """Moves that free at least ``need_bytes`` on ``tier``, most wanted first; the store stops when it fits.

        The entry that needs the room already counts as stored and may itself be moved (unless
        ``newcomer_stays``).  Moves go to slower tiers, to a smaller variant on the same tier, or to None.
        Pinned entries must not be named.
        """
        return iter(())

    def placed(self, entry: Entry, old: Placement | None) -> None:
        """Called after every change of ``entry.placement``, also those of other entries' moves."""

    def released(self, entry: Entry) -> None:
        """Called when the last request that used a stored entry lets go of it, so that it may move again."""

    def loaded(self, load: Load) -> None:
        """Called when a load of a request has ended, with what a serving system would have measured of it."""

    def answered(self, ttft_s: float, quality: float) -> None:
        """Called at first tokens, before the request's blocks are offered, with what its user has seen.

        Only for requests that count in the summary: after the warm-up, and revisits where only these are measured.
        """

    def missed(self, ttft_s: np.ndarray, quality: np.ndarray) -> str | None:
        """Called after the run with TTFT and quality of each measured request: one line if a target was missed."""
        return None

    def rebalance(self, view: StoreView) -> Iterable[Move]:
        """Moves to carry out now, every ``period_s`` and when idle work has ended; any direction."""
        return ()

    def idle_work_s(self, view: StoreView) -> float:
        """Seconds of profiling that the policy wants to begin now, 0 for none.

        Asked after a first token while a GPU is free; the GPU is held for so long, and ``rebalance`` is called at
        the end.
        """
        return 0.0
