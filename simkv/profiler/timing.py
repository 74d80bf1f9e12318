"""How long a call takes: warm-up, device-synchronised, median and 95th percentile of several.

What it is: the one place where the profiler's speed half reads a clock, which tests replace.  What it is not: what is
called.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch

__all__ = ["Clock", "Patience", "Timing", "WallClock", "timed", "timing_of"]


class Clock(Protocol):
    """Tells the time; a fake one makes the speed half testable."""

    def seconds(self) -> float:
        """Seconds since whenever, after everything asked of the device has been done."""


@dataclass(frozen=True)
class WallClock:
    """The machine's clock; on a GPU it waits for all kernels first.

    Attributes:
        device: "cpu", "cuda" or "cuda:1".
    """

    device: str = "cpu"

    def seconds(self) -> float:
        """See Clock."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        return perf_counter()


@dataclass(frozen=True)
class Timing:
    """Median and 95th percentile, seconds, of so many timed calls."""

    median_s: float
    p95_s: float
    repeats: int


@dataclass(frozen=True)
class Patience:
    """How often a call is timed: until ``seconds`` are spent, at least ``least`` and at most ``most`` times.

    A call that takes longer than ``seconds`` by itself is timed once more after its warm-up and no further.
    """

    seconds: float = 1.0
    least: int = 3
    most: int = 25


def timed(call: Callable[[], Any], clock: Clock, patience: Patience) -> Timing:
    """Call it once to warm up, then time it; what it returns is let go of outside the timing."""
    start = clock.seconds()
    kept = call()
    slow = clock.seconds() - start > patience.seconds
    del kept
    spent: list[float] = []
    least = 1 if slow else patience.least
    while len(spent) < least or (sum(spent) < patience.seconds and len(spent) < patience.most):
        start = clock.seconds()
        kept = call()
        spent.append(clock.seconds() - start)
        del kept
    return timing_of(spent)


def timing_of(seconds: Sequence[float]) -> Timing:
    """Of single timings."""
    return Timing(float(np.median(seconds)), float(np.quantile(seconds, 0.95)), len(seconds))
