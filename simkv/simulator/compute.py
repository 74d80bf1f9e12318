"""The compute servers: decompression and prefill, first come first served; what an engine asks of any of them.

``ComputeServers`` knows no output tokens: a request leaves at its first token.  ``batching.py`` has the servers that
also decode.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from simpy import Environment

from simkv.simulator.events import FIRST_TOKEN, At

__all__ = ["Compute", "ComputeServers", "Job"]


@dataclass(slots=True)
class Job:
    """A request's work on a GPU.  Times in ns.

    Attributes:
        request: its number.
        first_ns: when it may start.
        work_ns: decompression (and loading by the GPU) + prefill in one piece.
        tail_ns: the share of the work that cannot begin before everything is loaded; all of it without overlap.
        lead_ns: the part of the work that is not prefill; it comes first.
        cached, total: tokens ``cached`` to ``total`` of the prompt are prefilled.
        output: tokens to generate, the first one included.
        done: called at the first token with (time waited for the GPU, work that was done, now); in pieces, the work
            may be more than ``work_ns``.
    """

    request: int
    first_ns: int
    work_ns: int
    tail_ns: int
    lead_ns: int
    cached: int
    total: int
    output: int
    done: Callable[[int, int, int], None]


class Compute(Protocol):
    """What the engine asks of its GPUs."""

    busy_ns: int

    def submit(self, now: int, job: Job) -> None:
        """Take in a job that is loaded now; ``job.done`` is called at its first token."""

    def idle(self, now_ns: int) -> bool:
        """Whether a GPU is free now; nobody waits for it then."""

    def hold(self, now: int, work: int) -> int:
        """Give an idle GPU to a policy for so long; returns the end."""


class ComputeServers:
    """``count`` GPUs, each serving one prefill at a time, in the order in which requests finish loading."""

    def __init__(self, env: Environment, count: int) -> None:
        self.env = env
        self.free_at = [0] * count
        self.busy_ns = 0

    def idle(self, now_ns: int) -> bool:
        """See Compute."""
        return self.free_at[0] <= now_ns

    def submit(self, now: int, job: Job) -> None:
        """See Compute; the end is known at once."""
        start, finish = self.start(job.first_ns, job.work_ns, now, job.tail_ns)
        queue = start - job.first_ns
        At(self.env, finish, FIRST_TOKEN, job.request, 0, lambda end: job.done(queue, job.work_ns, end))

    def hold(self, now: int, work: int) -> int:
        """See Compute."""
        return self.start(now, work, now, work)[1]

    def start(self, first_ns: int, work_ns: int, loaded_ns: int, tail_ns: int) -> tuple[int, int]:
        """Take the GPU that is free first; returns (start, finish).

        Work may begin at ``first_ns``, when the first layer is loaded; the last layer's share ``tail_ns`` of
        the work cannot begin before ``loaded_ns``.  Without overlap both are the same and tail = work.
        Layer k of L arrives linearly between the two, so the end is the later of "never stalled" and
        "the last layer arrives last" (makespan of a two-stage flow shop with equal jobs).
        """
        start = max(first_ns, self.free_at[0])
        finish = max(start + work_ns, loaded_ns + tail_ns)
        heapq.heapreplace(self.free_at, finish)
        self.busy_ns += finish - start
        return start, finish
