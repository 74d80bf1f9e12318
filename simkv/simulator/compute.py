"""The compute servers: decompression and prefill, first come first served.  Decode steps are not modelled here."""

import heapq

__all__ = ["ComputeServers"]


class ComputeServers:
    """``count`` GPUs, each serving one prefill at a time, in the order in which requests finish loading."""

    def __init__(self, count: int) -> None:
        self.free_at = [0] * count
        self.busy_ns = 0

    def idle(self, now_ns: int) -> bool:
        """Whether a GPU is free now; nobody waits for it then."""
        return self.free_at[0] <= now_ns

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
