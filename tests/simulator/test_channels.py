"""Channels alone: FIFO with parallel servers, and processor sharing against exact fractions."""

import heapq
import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simpy import Environment

from simkv.errors import ConfigError
from simkv.profiles import TierSpec
from simkv.simulator.entries import Transfer
from simkv.simulator.events import ARRIVE, FIRST_TOKEN, LINK, READ, READY, TRANSFER, At
from simkv.simulator.tiers import Channel, FairChannel, FifoChannel, make_channel
from tests.simulator.helpers import DRAM

Jobs = Sequence[tuple[int, int]]  # (arrival, service), ns
DAY_NS = 86_400 * 10**9


def served(
    make: type, servers: int, jobs: Jobs, offset: int = 0, kinds: tuple[int, int] = (ARRIVE, READ)
) -> tuple[list[tuple[int, int]], list[int], Channel]:
    """(start, finish) of each job, the order in which they ended, and the channel.

    ``kinds`` are those of the events that begin and end jobs.
    """
    env = Environment(initial_time=0)
    channel = make(env, servers)
    spans = [(0, 0)] * len(jobs)
    order: list[int] = []

    def ended(job: int, start: int, finish: int) -> None:
        spans[job] = (start - offset, finish - offset)
        order.append(job)

    def begin(job: int, now: int) -> None:
        channel.submit(now, jobs[job][1], kinds[1], job, 0, lambda start, finish: ended(job, start, finish))

    for job, (arrival, _) in enumerate(jobs):
        At(env, arrival + offset, kinds[0], job, 0, lambda now, job=job: begin(job, now))  # type: ignore[misc]
    env.run()
    return spans, order, channel


def exact_sharing(jobs: Jobs) -> list[Fraction]:
    """When each job ends under processor sharing, in exact fractions, by stepping from one change to the next."""
    left: dict[int, Fraction] = {}
    ends = [Fraction(0)] * len(jobs)
    now, waiting = Fraction(0), sorted(range(len(jobs)), key=lambda job: jobs[job][0])
    while waiting or left:
        arrival = Fraction(jobs[waiting[0]][0]) if waiting else None
        finish = now + min(left.values()) * len(left) if left else None
        if finish is not None and (arrival is None or finish <= arrival):
            done = (finish - now) / len(left)
            now = finish
            left = {job: rest - done for job, rest in left.items()}
            for job in [job for job, rest in left.items() if rest == 0]:
                ends[job] = now
                del left[job]
        else:
            assert arrival is not None
            done = (arrival - now) / len(left) if left else Fraction(0)
            left = {job: rest - done for job, rest in left.items()}
            now = arrival
            job = waiting.pop(0)
            left[job] = Fraction(jobs[job][1])
    return ends


jobs_of = st.integers(1, 200).flatmap(
    lambda spread: st.lists(st.tuples(st.integers(0, spread), st.integers(0, 60)), min_size=1, max_size=25)
)


# --- FIFO -----------------------------------------------------------------------------------------------------------


def test_fifo_one_server() -> None:
    """Jobs of 10, 5, 1 at 0, 2, 20: the second waits until 10, the third finds the channel idle."""
    spans, _, channel = served(FifoChannel, 1, [(0, 10), (2, 5), (20, 1)])
    assert [(0, 10), (10, 15), (20, 21)] == spans
    assert 16 == channel.busy_ns


def test_fifo_two_servers() -> None:
    """Jobs of 10, 4, 3, 9 at 0 on two servers: the third follows the second at 4, the fourth the third at 7."""
    spans, order, _ = served(FifoChannel, 2, [(0, 10), (0, 4), (0, 3), (0, 9)])
    assert [(0, 10), (0, 4), (4, 7), (7, 16)] == spans
    assert [1, 2, 0, 3] == order


@given(jobs_of, st.integers(1, 4))
def test_fifo_servers_never_overlap_and_keep_the_order(jobs: Jobs, servers: int) -> None:
    """Starts follow arrivals, at most ``servers`` jobs run at once, and no server idles while a job waits."""
    spans, _, channel = served(FifoChannel, servers, jobs)
    order = sorted(range(len(jobs)), key=lambda job: (jobs[job][0], job))
    starts = [spans[job][0] for job in order]
    assert sorted(starts) == starts
    free = [0] * servers
    for job in order:
        assert (max(jobs[job][0], free[0]), jobs[job][1]) == (spans[job][0], spans[job][1] - spans[job][0])
        heapq.heapreplace(free, spans[job][1])
    assert sum(service for _, service in jobs) == channel.busy_ns


def test_fifo_estimate_counts_the_backlog() -> None:
    """With 10 ns of work ahead on each of two servers at time 3, a job of 5 takes 7 + 5."""
    channel = FifoChannel(Environment(), 2)
    for _ in range(2):
        channel.reserve(0, 10)
    assert 12 == channel.estimate(3, 5)
    assert 5 == channel.estimate(30, 5)


# --- processor sharing ----------------------------------------------------------------------------------------------


def test_fair_two_jobs() -> None:
    """10 at 0 and 10 at 4: 4 done alone, 6 left shared until 16 ends the first, the second's last 4 alone end at 20."""
    spans, _, channel = served(FairChannel, 1, [(0, 10), (4, 10)])
    assert [(0, 16), (4, 20)] == spans
    assert 20 == channel.busy_ns


def test_fair_short_job_overtakes() -> None:
    """100 at 0 and 2 at 10: the short one needs 4 and ends at 14, the long one loses 2 and ends at 102."""
    spans, order, _ = served(FairChannel, 1, [(0, 100), (10, 2)])
    assert [(0, 102), (10, 14)] == spans
    assert [1, 0] == order


def test_fair_equal_jobs_end_together_in_request_order() -> None:
    """Three jobs of 7 at 0 all end at 21, the earlier request first."""
    spans, order, _ = served(FairChannel, 1, [(0, 7), (0, 7), (0, 7)])
    assert [(0, 21)] * 3 == spans
    assert [0, 1, 2] == order


def test_fair_thirds_are_rounded_up() -> None:
    """1 at 0, 2 at 0, 2 at 0: the first ends at 3; 1 each is left, both end at 5.  No time is lost to rounding."""
    spans, _, _ = served(FairChannel, 1, [(0, 1), (0, 2), (0, 2)])
    assert [(0, 3), (0, 5), (0, 5)] == spans


def test_fair_empty_job_ends_at_once() -> None:
    """A job without service ends when it starts, even among others."""
    spans, _, _ = served(FairChannel, 1, [(0, 10), (4, 0)])
    assert [(0, 10), (4, 4)] == spans


# What begins jobs on a shared channel, and what their ends are: loads from a tier, the link, background moves.
BEGIN_AND_END = [(ARRIVE, READ), (READY, READ), (READ, LINK), (FIRST_TOKEN, TRANSFER), (FIRST_TOKEN, LINK)]


@pytest.mark.parametrize("kinds", BEGIN_AND_END)
@settings(max_examples=200)
@given(jobs_of)
def test_fair_equals_exact_fractions(kinds: tuple[int, int], jobs: Jobs) -> None:
    """Every job ends within 1 ns (and the grain of V, 2^-10 ns per job present) of the exact time, rounded up.

    That needs what ends at an instant to come before what begins, for every pair of kinds that meet on a channel.
    """
    spans, order, _ = served(FairChannel, 1, jobs, kinds=kinds)
    exact = exact_sharing(jobs)
    grain = Fraction(len(jobs), 1024)
    for (_, finish), end in zip(spans, exact, strict=True):
        assert -grain <= finish - end < 1 + grain
    for earlier, later in itertools.pairwise(order):
        assert exact[earlier] <= exact[later] + 2 * grain


@given(jobs_of)
def test_fair_conserves_work(jobs: Jobs) -> None:
    """The channel is busy for exactly the total service, and each busy period ends when a FIFO server's would."""
    spans, _, channel = served(FairChannel, 1, jobs)
    fifo, _, _ = served(FifoChannel, 1, jobs)
    assert sum(service for _, service in jobs) == channel.busy_ns
    assert max(finish for _, finish in fifo) == max(finish for _, finish in spans)


@given(jobs_of)
def test_fair_does_not_drift_with_time(jobs: Jobs) -> None:
    """Thirty days later, every span is the same to the nanosecond."""
    spans, order, _ = served(FairChannel, 1, jobs)
    assert (spans, order) == served(FairChannel, 1, jobs, 30 * DAY_NS)[:2]


def test_fair_many_long_jobs_stay_exact() -> None:
    """300 jobs of up to a second within a minute (overload, 150 at once) end in the exact order within 2 ns each."""
    rng = np.random.default_rng(3)
    arrivals, services = rng.integers(0, 60 * 10**9, 300), rng.integers(1, 10**9, 300)
    jobs = [(int(arrival), int(service)) for arrival, service in zip(arrivals, services, strict=True)]
    spans, order, _ = served(FairChannel, 1, jobs)
    exact = exact_sharing(jobs)
    assert sorted(range(300), key=lambda job: exact[job]) == order
    assert all(-1 < finish - end < 2 for (_, finish), end in zip(spans, exact, strict=True))


def test_fair_background_job_fills_in_its_transfer() -> None:
    """A background job of 6 beside a load of 6, both at 0, ends at 12; 5 ns of recoding follow."""
    env = Environment(initial_time=0)
    channel = FairChannel(env, 1)
    transfer = Transfer(0, 5)
    told: list[int] = []
    transfer.waiters.append(told.append)
    channel.background(0, 6, 0, 0, transfer)
    channel.submit(0, 6, READ, 1, 0, lambda start, finish: None)
    assert 1 == transfer.pending
    env.run()
    assert (0, 17, [17]) == (transfer.pending, transfer.ready_ns, told)


def test_fair_estimate_counts_the_jobs_present() -> None:
    """With two jobs under way a job of 5 is expected to take 15."""
    channel = FairChannel(Environment(), 1)
    for part in range(2):
        channel.submit(0, 100, READ, 0, part, lambda start, finish: None)
    assert 15 == channel.estimate(0, 5)


def test_channels_by_name() -> None:
    """A tier's discipline picks the channel; unknown ones, and shared ones with several servers, are refused."""
    env = Environment()
    assert isinstance(make_channel(env, DRAM), FifoChannel)
    with pytest.raises(ConfigError, match="did you mean 'fair'"):
        make_channel(env, TierSpec("dram", None, 1, 1, discipline="fairr"))
    with pytest.raises(ConfigError, match="channels = 2"):
        make_channel(env, TierSpec("dram", None, 1, 1, channels=2, discipline="fair"))
