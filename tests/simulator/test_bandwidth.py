"""No channel carries more than its bandwidth, in whole runs where loads and background moves compete."""

import itertools
from dataclasses import replace
from typing import Any

from simkv.profiles import PrefillFit
from simkv.simulator.engine import Engine
from simkv.simulator.tiers import FairChannel, FifoChannel
from simkv.traces.trace import Trace
from tests.simulator.helpers import DRAM, SIZE, SSD, make_engine, make_profile, random_trace


class RecordingFifo(FifoChannel):
    """Notes (start, finish) of each job."""

    spans: list[tuple[int, int]]

    def reserve(self, now: int, service: int, server: int | None = None) -> tuple[int, int, int]:
        """As FifoChannel."""
        start, finish, server = super().reserve(now, service, server)
        assert (start >= now, finish - start) == (True, service)
        self.spans.append((start, finish))
        return start, finish, server


class RecordingFair(FairChannel):
    """Notes (submission, finish, service) of each foreground job."""

    spans: list[tuple[int, int, int]]

    def submit(self, now: int, service: int, kind: int, request: int, part: int, done: Any) -> None:
        """As FairChannel."""

        def noted(start: int, finish: int) -> None:
            self.spans.append((start, finish, service))
            done(start, finish)

        super().submit(now, service, kind, request, part, noted)


def busy_engine(trace: Trace, discipline: str) -> Engine:
    """LRU with little room and quick prefill: loads, admissions and demotions compete for channels that take notes."""
    tiers = (replace(DRAM, capacity_bytes=6 * SIZE, discipline=discipline), replace(SSD, capacity_bytes=30 * SIZE))
    tiers = (tiers[0], replace(tiers[1], channels=2))
    engine = make_engine(trace, "lru", tiers=tiers, profile=make_profile(prefill=PrefillFit(0.0, 1e-7)))
    for channels in (engine.readers, engine.writers):
        for index, channel in enumerate(channels):
            kind = RecordingFifo if isinstance(channel, FifoChannel) else RecordingFair
            recording = kind(engine.env, engine.costs.tiers[index].channels)
            recording.spans = []
            channels[index] = recording
    engine.run()
    return engine


def most_at_once(spans: list[tuple[int, int]]) -> int:
    """Largest number of spans that overlap; one that ends when another begins does not overlap it."""
    edges = sorted([(start, 1) for start, finish in spans if finish > start] + [(f, -1) for s, f in spans if f > s])
    return max(itertools.accumulate((edge for _, edge in edges)), default=0)


def test_fifo_bandwidth_is_never_exceeded() -> None:
    """On every read and write channel at most ``channels`` jobs run at once, and work is at most channels x time."""
    engine = busy_engine(random_trace(5, requests=300, spread_us=60_000), "fifo")
    for channels in (engine.readers, engine.writers):
        for tier, channel in zip(engine.costs.tiers, channels, strict=True):
            assert isinstance(channel, RecordingFifo) and len(channel.spans) > 30
            work = sum(finish - start for start, finish in channel.spans)
            assert channel.busy_ns == work <= tier.channels * max(finish for _, finish in channel.spans)
            assert 1 <= most_at_once(channel.spans) <= tier.channels


def test_fair_bandwidth_is_never_exceeded() -> None:
    """No job beats its dedicated time, and all jobs that ended by any time fit into the time before it."""
    engine = busy_engine(random_trace(6, requests=300, spread_us=60_000), "fair")
    channel = engine.readers[0]
    assert isinstance(channel, RecordingFair) and len(channel.spans) > 100
    assert all(finish - start >= service for start, finish, service in channel.spans)
    ordered = sorted(channel.spans, key=lambda span: span[1])
    for (_, finish, _), done in zip(ordered, itertools.accumulate(span[2] for span in ordered), strict=True):
        assert done <= finish - min(start for start, _, _ in ordered) + 1
