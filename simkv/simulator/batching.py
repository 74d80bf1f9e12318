"""GPUs that prefill and decode: continuous batching, one event per change of a batch, never one per token.

What it is: which request is on which GPU, and when its first and last tokens come (SPECIFICATION.md section 9).
A *stretch* is a time in which a GPU's batch does not change; its steps are added up in closed form by
``step_times.py``, and a request that comes in the middle of one cuts it at the next end of a step.
What it is not: a model of GPU memory; a batch is limited by its number of sequences only.
"""

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Callable

from simpy import Environment

from simkv.simulator.compute import Job
from simkv.simulator.events import COMPUTE, FIRST_TOKEN, At
from simkv.simulator.settings import DecodeSettings
from simkv.simulator.step_times import PS_PER_NS

__all__ = ["BatchingServers", "Gpu"]

PrefillNs = Callable[[int, int], int]  # (cached tokens, tokens of the prompt) -> ns


class Gpu:
    """One GPU: its batch, its prefill, and the stretch under way.

    Attributes:
        batch: heap of (step after which the last token is there, request, tokens in its cache then).
        steps: decode steps so far; ``cached``: tokens in the caches of the batch after them.
        job: being prefilled (``begun``), or about to be at the end of the present step; ``place``: tokens of its prompt
            that are done, ``left``: chunks that are not; ``spent_ns``: own work of the pieces that are done.
        since_ns: start of the stretch; ``planned``: its decode steps; ``running``: whether there is one.
        held: a policy has it.
    """

    __slots__ = (
        "batch",
        "begun",
        "cached",
        "generation",
        "held",
        "index",
        "job",
        "left",
        "place",
        "planned",
        "running",
        "since_ns",
        "spent_ns",
        "steps",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.batch: list[tuple[int, int, int]] = []
        self.steps = self.cached = 0
        self.job: Job | None = None
        self.place = self.left = self.spent_ns = 0
        self.since_ns = self.planned = self.generation = 0
        self.begun = self.running = self.held = False


class BatchingServers:
    """``count`` GPUs that decode in batches; see Compute for the calls.

    Args:
        env: clock.
        count: GPUs.
        decode: mode, limits and step times.
        prefill_ns: ``CostTables.prefill_ns``.
        last_token: called with (request, now) at the last token of a request of two or more.
    """

    def __init__(
        self,
        env: Environment,
        count: int,
        decode: DecodeSettings,
        prefill_ns: PrefillNs,
        last_token: Callable[[int, int], None],
    ) -> None:
        self.env = env
        self.decode = decode
        self.gpus = [Gpu(index) for index in range(count)]
        self.waiting: deque[Job] = deque()
        self.busy_ns = 0
        self.steps = 0
        self.tokens = 0
        self._prefill_ns = prefill_ns
        self._last_token = last_token

    # ------------------------------------------------------------------ what the engine calls

    def submit(self, now: int, job: Job) -> None:
        """See Compute: to the GPU with the smallest batch that can take it, else it waits in line."""
        most = self.decode.max_batch
        able = [gpu for gpu in self.gpus if gpu.job is None and not gpu.held and len(gpu.batch) < most]
        if not able:
            self.waiting.append(job)
            return
        gpu = min(able, key=lambda gpu: len(gpu.batch))
        self._take(gpu, job)
        if gpu.running:
            self._cut(gpu, now)
        else:
            self._begin(gpu, now)

    def idle(self, now_ns: int) -> bool:
        """See Compute: a GPU without prefill and without sequences."""
        return any(self._is_empty(gpu) for gpu in self.gpus)

    def hold(self, now: int, work: int) -> int:
        """See Compute."""
        gpu = next(gpu for gpu in self.gpus if self._is_empty(gpu))
        gpu.held = True
        self._run(gpu, now, now + work, 0)
        return now + work

    @staticmethod
    def _is_empty(gpu: Gpu) -> bool:
        return gpu.job is None and not gpu.batch and not gpu.held

    # ------------------------------------------------------------------ stretches

    def _take(self, gpu: Gpu, job: Job) -> None:
        gpu.job = job
        gpu.begun = False
        gpu.place, gpu.spent_ns = job.cached, 0
        chunk = self.decode.chunk_tokens
        gpu.left = 1 if chunk is None else max(1, -(-(job.total - job.cached) // chunk))

    def _begin(self, gpu: Gpu, now: int) -> None:
        """Start the next stretch: a prefill, steps with chunks of one, or steps; none if there is nothing to do."""
        if gpu.job is None and self.waiting and len(gpu.batch) < self.decode.max_batch:
            self._take(gpu, self.waiting.popleft())
        if gpu.job is not None and (self.decode.chunk_tokens is None or not gpu.batch):
            self._run(gpu, now, now + self._rest_ns(gpu, gpu.job), 0)
        elif gpu.batch:
            steps = gpu.batch[0][0] - gpu.steps
            if gpu.job is not None:
                steps = min(steps, gpu.left)
            self._run(gpu, now, now + self._elapsed_ns(gpu, steps), steps)
        gpu.begun = gpu.job is not None

    def _run(self, gpu: Gpu, now: int, end: int, steps: int) -> None:
        gpu.since_ns = now
        gpu.running = True
        self._schedule(gpu, end, steps)

    def _schedule(self, gpu: Gpu, end: int, steps: int) -> None:
        """The stretch ends then, after so many decode steps; an earlier schedule becomes void."""
        gpu.planned = steps
        gpu.generation += 1
        generation = gpu.generation

        def ended(now: int) -> None:
            if generation == gpu.generation:
                self._end(gpu, now)

        At(self.env, end, COMPUTE, gpu.index, 0, ended)

    def _cut(self, gpu: Gpu, now: int) -> None:
        """End the stretch of steps at the first end of a step that is not before now."""
        passed = now - gpu.since_ns
        steps = bisect_left(range(gpu.planned), passed, key=lambda count: self._steps_ns(gpu, count))
        self._schedule(gpu, gpu.since_ns + self._steps_ns(gpu, steps), steps)

    def _end(self, gpu: Gpu, now: int) -> None:
        """Enter what the stretch has done, then start the next one."""
        steps, batch = gpu.planned, len(gpu.batch)
        self.busy_ns += now - gpu.since_ns
        self.steps += steps
        self.tokens += steps * batch
        gpu.running = gpu.held = False
        gpu.steps += steps
        gpu.cached += steps * batch
        while gpu.batch and gpu.batch[0][0] == gpu.steps:
            _, request, tokens = heapq.heappop(gpu.batch)
            gpu.cached -= tokens
            self._last_token(request, now)
        if gpu.begun and gpu.job is not None:
            self._advance(gpu, gpu.job, steps, now)
        self._begin(gpu, now)

    def _advance(self, gpu: Gpu, job: Job, steps: int, now: int) -> None:
        """A chunk per step is done, or without steps all that was left; then come the first token and the batch."""
        pieces = self._chunks_ns(gpu, job, steps) if steps else [self._prefill_ns(gpu.place, job.total)]
        gpu.spent_ns += sum(pieces)
        gpu.left -= steps or gpu.left
        if gpu.left:
            gpu.place += steps * (self.decode.chunk_tokens or 0)
            return
        gpu.job = None
        spent = job.lead_ns + gpu.spent_ns
        wait = now - job.first_ns - spent
        At(self.env, now, FIRST_TOKEN, job.request, 0, lambda end: job.done(wait, spent, end))
        if job.output > 1:
            heapq.heappush(gpu.batch, (gpu.steps + job.output - 1, job.request, job.total + job.output - 1))
            gpu.cached += job.total

    # ------------------------------------------------------------------ durations

    def _rest_ns(self, gpu: Gpu, job: Job) -> int:
        """What is left of a prefill that has the GPU to itself: one piece, whatever was done in chunks before."""
        return (0 if gpu.begun else job.lead_ns) + self._prefill_ns(gpu.place, job.total)

    def _chunks_ns(self, gpu: Gpu, job: Job, steps: int) -> list[int]:
        """The next so many chunks, each at what prefilling it alone takes."""
        chunk = self.decode.chunk_tokens or 0
        begins = range(gpu.place, gpu.place + steps * chunk, chunk)
        return [self._prefill_ns(begin, min(job.total, begin + chunk)) for begin in begins]

    def _steps_ns(self, gpu: Gpu, steps: int) -> int:
        return -(-self.decode.steps.elapsed_ps(len(gpu.batch), gpu.cached, steps) // PS_PER_NS)

    def _elapsed_ns(self, gpu: Gpu, steps: int) -> int:
        """Steps in a row, each with a chunk of the prompt under way, if any: max(chunk, shared) + step - shared."""
        job = gpu.job
        if job is None:
            return self._steps_ns(gpu, steps)
        shared = self.decode.steps.shared_ps
        extra = 0 if gpu.begun else job.lead_ns * PS_PER_NS
        extra += sum(max(0, took * PS_PER_NS - shared) for took in self._chunks_ns(gpu, job, steps))
        plain = self.decode.steps.elapsed_ps(len(gpu.batch), gpu.cached, steps)
        return -(-(plain + extra) // PS_PER_NS)
