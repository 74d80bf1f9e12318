"""ReuseIndex: how soon what was asked for so long ago will be asked for again, learnt online per class.

What it is: a hazard (events per unit of time at risk) per class and age, from finished and from still open waits
(right-censored), shrunk towards coarser classes; and the index made of it, the best probability of a hit per second of
holding over all horizons, in the sense of LHD (Beckmann, Chen, Cidon: "LHD: Improving Cache Hit Rate by Maximizing
Hit Density", NSDI 2018).  What it is not: a cache; it sees counts and ages only, and nothing of the future.
"""

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

__all__ = ["ReuseIndex"]

_BUCKETS = 34  # half octaves: the last begins at 2^16 units
_SLOTS = 2048
_FIRST_REFRESH = 16
_GROWTH = 64  # requests between refreshes: at least this, and at least 1/64 of those so far
_PRIOR_UNITS = 512.0  # one event in so many units, as long as nothing is known
_SOON = 21  # buckets, up to 2^10 units


class ReuseIndex:
    """Index per class and age.

    Args:
        parents: coarse class of each class (a class without data behaves like its coarse class).
        unit_s: width of the youngest age bucket, seconds.
        weight: events' worth of prior with which a class is drawn to its coarse class, and that to all.
    """

    def __init__(self, parents: list[int], unit_s: float, weight: float) -> None:
        self._unit_s = unit_s
        self._weight = weight
        self._parents = np.array(parents, dtype=np.int64)
        lows = unit_s * 2.0 ** (np.arange(_BUCKETS - 1) / 2.0)
        self._lows = lows.tolist()
        self._edges = np.concatenate([[0.0], lows])
        self._widths = np.diff(np.append(self._edges, 2.0 * self._edges[-1]))
        shape = (len(parents), _BUCKETS)
        self._events = np.zeros(shape)
        self._within = np.zeros(shape)  # time at risk in the bucket in which a wait ended
        self._open: dict[tuple[int, int], float] = {}  # (class, time slot of the last access) -> blocks waiting
        self._slot_s = unit_s
        self._requests = 0
        self._due = _FIRST_REFRESH
        self._rows: list[list[float]] = []
        self._again: list[float] = []
        self._derive()

    def bucket(self, age_s: float) -> int:
        """Age bucket of an age in seconds."""
        return bisect_right(self._lows, age_s)

    def value(self, label: int, age_s: float) -> float:
        """Index of a class at an age: hits per second of holding."""
        return self._rows[label][bisect_right(self._lows, age_s)]

    def again(self, label: int) -> float:
        """Chance that what has just been asked for in a class is asked for again within 2^10 units."""
        return self._again[label]

    def usual_wait_s(self) -> float:
        """Median age at which blocks were asked for again, to half an octave; 0 before any was."""
        ended = self._events.sum(axis=0).cumsum()
        return float(self._edges[int(np.searchsorted(ended, ended[-1] / 2.0))]) if ended[-1] else 0.0

    def opened(self, label: int, now_s: float, blocks: int) -> None:
        """Blocks of a class were asked for and wait from now on."""
        key = (label, int(now_s / self._slot_s))
        self._open[key] = self._open.get(key, 0.0) + blocks

    def closed(self, label: int, since_s: float, now_s: float, blocks: int) -> None:
        """Blocks that waited since then in a class are asked for now."""
        key = (label, int(since_s / self._slot_s))
        left = self._open[key] - blocks
        if left > 0:
            self._open[key] = left
        else:
            del self._open[key]
        bucket = self.bucket(now_s - since_s)
        self._events[label, bucket] += blocks
        self._within[label, bucket] += blocks * (now_s - since_s - self._edges[bucket])

    def request(self, now_s: float) -> bool:
        """One more request is over; now and then the index is derived anew, which returns True."""
        self._requests += 1
        if self._requests < self._due:
            return False
        self._due = (
            self._requests + max(_GROWTH, self._requests // _GROWTH) if self._requests >= _GROWTH else 2 * self._due
        )
        self._coarsen()
        self._derive(now_s)
        return True

    def _coarsen(self) -> None:
        """Keep the number of time slots bounded: twice the width, half of them."""
        while len(self._open) > _SLOTS and self._slot_s < self._edges[-1]:
            self._slot_s *= 2.0
            merged: dict[tuple[int, int], float] = {}
            for (label, slot), blocks in self._open.items():
                key = (label, slot // 2)
                merged[key] = merged.get(key, 0.0) + blocks
            self._open = merged

    def _exposure(self, now_s: float) -> NDArray[np.float64]:
        """float[class, bucket]: block-seconds at risk, of finished and of open waits."""
        ended = self._events.copy()
        within = self._within.copy()
        if self._open:
            rows = np.array([(label, slot, blocks) for (label, slot), blocks in self._open.items()])
            label = rows[:, 0].astype(np.int64)
            age = np.maximum(0.0, now_s - (rows[:, 1] + 0.5) * self._slot_s)
            bucket = np.searchsorted(self._edges, age, side="right") - 1
            np.add.at(ended, (label, bucket), rows[:, 2])
            np.add.at(within, (label, bucket), rows[:, 2] * (age - self._edges[bucket]))
        later = ended[:, ::-1].cumsum(axis=1)[:, ::-1] - ended
        return np.asarray(later * self._widths + within)

    def _derive(self, now_s: float = 0.0) -> None:
        """Hazards, shrunk to the rate of all waits so far (so that ages not seen yet are as the others), and the index.

        Nothing ages before anything is known.
        """
        exposure = self._exposure(now_s)
        weight, parents = self._weight, self._parents
        coarse = int(parents.max()) + 1
        events_of, exposure_of = np.zeros((coarse, _BUCKETS)), np.zeros((coarse, _BUCKETS))
        np.add.at(events_of, parents, self._events)
        np.add.at(exposure_of, parents, exposure)
        prior = (self._events.sum() + 1.0) / (exposure.sum() + _PRIOR_UNITS * self._unit_s)
        pool = (events_of.sum(axis=0) + weight) / (exposure_of.sum(axis=0) + weight / prior)
        middle = (events_of + weight) / (exposure_of + weight / pool)
        used = np.flatnonzero(exposure.any(axis=1))
        hazard = middle[parents]
        hazard[used] = (self._events[used] + weight) / (exposure[used] + weight / middle[parents[used]])
        plain = self._index(middle)
        index = plain[parents]
        if len(used):
            index[used] = self._index(hazard[used])
        self._rows = index.tolist()
        self._again = (-np.expm1(-(hazard[:, :_SOON] * self._widths[:_SOON]).sum(axis=1))).tolist()

    def _index(self, hazard: NDArray[np.float64]) -> NDArray[np.float64]:
        """float[class, bucket]: max over horizons of P(hit before it) / E[seconds held until hit or horizon]."""
        risk = hazard * self._widths
        stay = np.exp(-risk)
        held = -np.expm1(-risk) / hazard  # seconds held within a bucket by what enters it
        best = np.empty_like(hazard)
        best[:, -1] = hazard[:, -1]
        for start in range(_BUCKETS - 1):
            alive = np.cumprod(stay[:, start:], axis=1)
            entering = np.concatenate([np.ones((len(hazard), 1)), alive[:, :-1]], axis=1)
            seconds = np.cumsum(entering * held[:, start:], axis=1)
            best[:, start] = ((1.0 - alive) / seconds).max(axis=1)
        return best
