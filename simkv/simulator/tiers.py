"""Channels: how long bytes wait and travel.  A channel knows service times, not entries or policies.

``FifoChannel``: n parallel servers, first come first served, one number per server; a request takes one at a time.
``FairChannel``: egalitarian processor sharing by virtual time, exact in integers.
Both answer the same four calls, so a tier's discipline is configuration only.
"""

import heapq
from collections.abc import Callable
from typing import Protocol

from simpy import Environment

from simkv.errors import ConfigError, unknown_name
from simkv.profiles import TierSpec
from simkv.simulator.entries import Transfer
from simkv.simulator.events import TRANSFER, At

__all__ = ["CHANNELS", "Channel", "FairChannel", "FifoChannel", "make_channel"]

Done = Callable[[int, int], None]  # called with (start_ns, finish_ns)


class Channel(Protocol):
    """What the engine asks of a channel.  All times in ns."""

    busy_ns: int
    longest_wait_ns: int

    def submit(self, now: int, service: int, kind: int, request: int, part: int, done: Done) -> None:
        """Start a foreground job now; ``done(start, finish)`` is called when it ends."""

    def background(self, now: int, service: int, request: int, part: int, transfer: Transfer) -> None:
        """Start a job that nobody waits for yet; its end is entered in ``transfer``."""

    def estimate(self, now: int, service: int) -> int:
        """Time that a job started now would take, given what is under way."""


class FifoChannel:
    """First come, first served, ``servers`` at a time.

    The foreground jobs of one request follow each other on one server: servers are the paths of several GPUs, or
    drives that each hold all that a request reads, and what one request reads comes along one of them.
    """

    def __init__(self, env: Environment, servers: int) -> None:
        self.env = env
        self.free_at = [0] * servers
        self.busy_ns = 0
        self.longest_wait_ns = 0
        self._last: dict[int, tuple[int, int]] = {}  # request -> (server, end) of its last job until that ends

    def reserve(self, now: int, service: int, server: int | None = None) -> tuple[int, int, int]:
        """Take that server, or the one that is free first; returns (start, finish, server)."""
        free_at = self.free_at
        if server is None:
            server = free_at.index(min(free_at))
        start = free_at[server]
        if start <= now:
            start = now
        elif start - now > self.longest_wait_ns:
            self.longest_wait_ns = start - now
        free_at[server] = finish = start + service
        self.busy_ns += service
        return start, finish, server

    def submit(self, now: int, service: int, kind: int, request: int, part: int, done: Done) -> None:
        """See Channel."""
        last = self._last.get(request)
        start, finish, server = self.reserve(now, service, None if last is None else last[0])
        self._last[request] = job = (server, finish)

        def ended(end: int) -> None:
            if self._last.get(request) is job:
                del self._last[request]
            done(start, end)

        At(self.env, finish, kind, request, part, ended)

    def background(self, now: int, service: int, request: int, part: int, transfer: Transfer) -> None:
        """See Channel; the end is known at once."""
        _, finish, _ = self.reserve(now, service)
        transfer.ready_ns = max(transfer.ready_ns, finish + transfer.recode_ns)

    def estimate(self, now: int, service: int) -> int:
        """See Channel."""
        return max(0, min(self.free_at) - now) + service


class FairChannel:
    """Egalitarian processor sharing: k jobs each proceed at 1/k of the channel's speed.

    Virtual time V advances by 1/k per ns; a job of dedicated duration w that starts at V ends when V
    reaches its tag V + w.  V is an integer in units of 2^-10 ns; what a division leaves over is carried, so
    no work is lost, and a completion is rounded up to the next ns.  V returns to 0 when the channel is idle.
    """

    FRACTION_BITS = 10

    def __init__(self, env: Environment, servers: int) -> None:
        if servers != 1:
            raise ConfigError(f"channels = {servers} with discipline 'fair': a shared channel is one channel")
        self.env = env
        self.jobs: list[tuple[int, int, int, int, int, Done]] = []  # (tag, kind, request, part, start, done)
        self.virtual = 0
        self.carry = 0
        self.last = 0
        self.generation = 0
        self.busy_ns = 0
        self.longest_wait_ns = 0  # nobody waits, all are slowed down

    def _advance(self, now: int) -> None:
        if self.jobs:
            work = (now - self.last << self.FRACTION_BITS) + self.carry
            step, self.carry = divmod(work, len(self.jobs))
            self.virtual += step
        self.last = now

    def submit(self, now: int, service: int, kind: int, request: int, part: int, done: Done) -> None:
        """See Channel."""
        self._advance(now)
        tag = self.virtual + (service << self.FRACTION_BITS)
        heapq.heappush(self.jobs, (tag, kind, request, part, now, done))
        self.busy_ns += service
        self._schedule(now)

    def _schedule(self, now: int) -> None:
        """Schedule the end of the job that ends next; an earlier schedule becomes void."""
        self.generation += 1
        if not self.jobs:
            self.virtual = self.carry = 0
            return
        generation = self.generation
        tag, kind, request, part, _, _ = self.jobs[0]
        work = max(0, (tag - self.virtual) * len(self.jobs) - self.carry)
        finish = now + -(-work >> self.FRACTION_BITS)
        At(self.env, finish, kind, request, part, lambda end: self._complete(end, generation))

    def _complete(self, now: int, generation: int) -> None:
        if generation != self.generation:
            return
        self._advance(now)
        tag, _, _, _, start, done = heapq.heappop(self.jobs)
        surplus = (self.virtual - tag) * (len(self.jobs) + 1) + self.carry
        self.virtual, self.carry = tag, surplus
        if self.jobs:
            step, self.carry = divmod(surplus, len(self.jobs))
            self.virtual += step
        self._schedule(now)
        done(start, now)

    def background(self, now: int, service: int, request: int, part: int, transfer: Transfer) -> None:
        """See Channel; the end is entered when it comes."""
        transfer.pending += 1
        self.submit(now, service, TRANSFER, request, part, lambda _start, end: transfer.finish(end))

    def estimate(self, now: int, service: int) -> int:
        """See Channel: as if the present jobs stayed as long as this one."""
        return service * (len(self.jobs) + 1)


CHANNELS: dict[str, type] = {"fifo": FifoChannel, "fair": FairChannel}


def make_channel(env: Environment, spec: TierSpec) -> Channel:
    """The channel of a tier's discipline.  Raises ConfigError for an unknown one."""
    if spec.discipline not in CHANNELS:
        raise ConfigError(unknown_name(f"discipline of tier {spec.name!r}", spec.discipline, CHANNELS))
    return CHANNELS[spec.discipline](env, spec.channels)
