"""The orders in which entries leave a tier, against plain lists, with pins coming and going."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simkv.simulator.entries import Entry
from simkv.simulator.policies.heap import HeapOrder
from simkv.simulator.policies.lru import RecencyOrder


class Plain:
    """The same in a list that is searched from the front: slow and obvious."""

    def __init__(self, refresh: bool, score: Callable[[Entry], float]) -> None:
        self.rows: list[tuple[int, Entry]] = []  # (sequence, entry)
        self.scores: dict[int, float] = {}
        self.refresh, self.score = refresh, score
        self.sequence = 0

    def insert(self, entry: Entry) -> None:
        """At the end."""
        self.sequence += 1
        self.rows.append((self.sequence, entry))
        self.scores[entry.key] = self.score(entry)

    def touch(self, entry: Entry) -> None:
        """To the end, if touches count."""
        if self.refresh:
            self.remove(entry)
            self.insert(entry)

    def remove(self, entry: Entry) -> None:
        """Out."""
        self.rows = [row for row in self.rows if row[1] is not entry]

    def rescore(self) -> None:
        """All scores anew."""
        self.scores = {entry.key: self.score(entry) for _, entry in self.rows}

    def victim(self) -> Entry | None:
        """The unpinned entry of smallest score and sequence."""
        free = [row for row in self.rows if not row[1].pins]
        return min(free, key=lambda row: (self.scores[row[1].key], row[0]))[1] if free else None


def hits(entry: Entry) -> float:
    """Score of LFU."""
    return float(entry.hits)


ORDERS: dict[str, tuple[Callable[[], Any], Callable[[], Plain]]] = {
    "lru": (lambda: RecencyOrder(refresh=True), lambda: Plain(True, lambda entry: 0.0)),
    "fifo": (lambda: RecencyOrder(refresh=False), lambda: Plain(False, lambda entry: 0.0)),
    "lfu": (lambda: HeapOrder(hits), lambda: Plain(True, hits)),
}
ACTIONS = st.sampled_from(["insert", "touch", "remove", "pin", "release", "rescore"])
steps_of = st.lists(st.tuples(ACTIONS, st.integers(0, 7)))


@pytest.mark.parametrize("name", list(ORDERS))
@settings(max_examples=300)
@given(steps=steps_of)
def test_same_victims_as_a_plain_search(name: str, steps: list[tuple[str, int]]) -> None:
    """Whatever is inserted, touched, removed, pinned and released in whatever order, the next victim is the same."""
    order, plain = ORDERS[name][0](), ORDERS[name][1]()
    entries = {key: Entry(key, 1, 0, 0, 0) for key in range(8)}
    inside: set[int] = set()
    for action, key in steps:
        entry = entries[key]
        if action == "insert" and key not in inside:
            inside.add(key)
            order.insert(entry)
            plain.insert(entry)
        elif action == "touch" and key in inside:
            entry.hits += 1
            order.touch(entry)
            plain.touch(entry)
        elif action == "remove" and key in inside and not entry.pins:
            inside.remove(key)
            order.remove(entry)
            plain.remove(entry)
        elif action == "pin" and key in inside:
            entry.pins += 1
        elif action == "release" and entry.pins:
            entry.pins -= 1
            if not entry.pins:
                order.released(entry)
        elif action == "rescore" and name == "lfu":
            for changed in entries.values():
                changed.hits = (changed.hits * 5 + changed.key) % 7
            order.rescore()
            plain.rescore()
        assert plain.victim() is order.victim()


class Watched(Entry):
    """An entry that counts how often anybody asks whether it is pinned."""

    __slots__ = ("_pinned",)
    asked = 0

    @property
    def pins(self) -> int:
        """Counts."""
        Watched.asked += 1
        return self._pinned

    @pins.setter
    def pins(self, value: int) -> None:
        self._pinned = value


@pytest.mark.parametrize("name", list(ORDERS))
def test_pinned_entries_are_passed_over_once(name: str) -> None:
    """With 2,000 pinned entries in front, 1,000 victims cost 2,000 questions and a few each, not two million."""
    order = ORDERS[name][0]()
    entries = [Watched(key, 1, 0, 0, 0) for key in range(3_000)]
    for entry in entries:
        entry.pins = int(entry.key < 2_000)
        order.insert(entry)
    Watched.asked = 0
    for expected in entries[2_000:]:
        assert expected is order.victim()
        order.remove(expected)
    assert 3_000 <= Watched.asked <= 5_000
    assert order.victim() is None


@pytest.mark.parametrize("name", list(ORDERS))
def test_released_entries_take_their_old_turn(name: str) -> None:
    """Entries that were set aside come back in front of what came after them, in their own order."""
    order = ORDERS[name][0]()
    entries = [Entry(key, 1, 0, 0, 0) for key in range(4)]
    for entry in entries:
        order.insert(entry)
    entries[0].pins = entries[1].pins = 1
    assert entries[2] is order.victim()
    for entry in (entries[1], entries[0]):
        entry.pins = 0
        order.released(entry)
    leaving = []
    while (entry := order.victim()) is not None:
        leaving.append(entry.key)
        order.remove(entry)
    assert [0, 1, 2, 3] == leaving


def test_rescoring_reaches_what_is_set_aside() -> None:
    """An entry whose score rises from 0 to 5 while it is set aside leaves after one of score 1."""
    order = HeapOrder(hits)
    entries = [Entry(key, 1, 0, 0, 0) for key in range(2)]
    entries[1].hits = 1
    for entry in entries:
        order.insert(entry)
    entries[0].pins = 1
    assert entries[1] is order.victim()
    entries[0].hits = 5
    order.rescore()
    entries[0].pins = 0
    order.released(entries[0])
    assert entries[1] is order.victim()
