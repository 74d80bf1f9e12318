"""Decoding in batches: by hand, against a model that makes one token at a time, and at the limits of queueing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from simkv.profiles import PrefillFit
from simkv.simulator.batching import BatchingServers
from simkv.simulator.engine import Engine
from simkv.simulator.settings import DecodeSettings
from simkv.simulator.step_times import given_steps
from simkv.traces.trace import Trace
from tests.simulator.decode_reference import Rules, replay
from tests.simulator.helpers import MS, US, Scripted, make_engine, make_profile, make_trace, rows, times
from tests.simulator.test_queueing import kiefer_wolfowitz, poisson

NS = 1000  # ps


def decoding(
    max_batch: int = 8, chunk: int | None = None, *, base_us: int = 100, sequence_us: int = 0, token_ns: int = 0
) -> DecodeSettings:
    """Steps of base + sequences x ... + cached tokens x ...; by default 0.1 ms whatever the batch."""
    steps = given_steps(max_batch, base_us * US * NS, sequence_us * US * NS, token_ns * NS)
    return DecodeSettings(max_batch, chunk, steps)


def generating(prompts: list[int], outputs: list[int], at_us: list[int]) -> Trace:
    """Prompts without blocks, 10 us of prefill per token."""
    return make_trace([[] for _ in prompts], inputs=prompts, outputs=outputs, at_us=at_us)


def tokens_at(engine: Engine) -> list[tuple[int, int]]:
    """(first token, last token) of each request, ns since the trace's start."""
    firsts = [row.arrival + row.ttft for row in rows(engine)]
    return [(first, engine.recorder.last_token_ns.get(request, first)) for request, first in enumerate(firsts)]


def generate(trace: Trace, decode: DecodeSettings, **settings: Any) -> Engine:
    """A finished run that stores nothing."""
    engine = make_engine(trace, "recompute", decode=decode, **settings)
    engine.run()
    return engine


# --- by hand --------------------------------------------------------------------------------------------------------


def test_batch_of_one_with_growth() -> None:
    """100 tokens of prefill are 1 ms; then 3 steps of 0.1 ms + 100, 101, 102 tokens x 1 us: 0.2 + 0.201 + 0.202 ms."""
    engine = generate(generating([100], [4], [0]), decoding(token_ns=US))
    assert [(MS, MS + 603 * US)] == tokens_at(engine)
    assert [(0, 0, MS)] == times(engine)


def test_two_sequences_overlap_with_growth() -> None:
    """Prefill goes first, between steps; two sequences share steps and each cache grows.

    A (10 tokens, 6 out) is prefilled in 0.1 ms and steps alone: 100 + 10 us, then 100 + 11.
    B (20 tokens, 3 out) comes at 250 us, in A's second step, which ends at 100 + 110 + 111 = 321: prefill until 521.
    Together: 12 + 20 = 32 tokens, 132 us; 34 tokens, 134 us: B has its three, A has five.
    A alone, for its sixth: 14 tokens, 114 us.
    """
    engine = generate(generating([10, 20], [6, 3], [0, 250]), decoding(token_ns=US))
    assert [(100 * US, 901 * US), (521 * US, 787 * US)] == tokens_at(engine)
    assert [(0, 0, 100 * US), (0, 71 * US, 200 * US)] == times(engine)


def test_max_batch_makes_others_wait() -> None:
    """One slot: the second request is prefilled only after the first one's last token, at 1 + 5 x 0.1 ms."""
    engine = generate(generating([100, 100], [6, 1], [0, 10]), decoding(1))
    assert [(1000 * US, 1500 * US), (2500 * US, 2500 * US)] == tokens_at(engine)
    assert (0, 1490 * US, MS) == times(engine)[1]


def test_prefill_first_pauses_decoding() -> None:
    """Two prompts of 1 ms that come at once, while A decodes: A's third step waits for both."""
    engine = generate(generating([100, 100, 100], [4, 1, 1], [0, 1150, 1150]), decoding())
    assert (MS, 1000 * US + 200 * US + 2 * MS + 100 * US) == tokens_at(engine)[0]
    assert [(0, 50 * US, MS), (0, 1050 * US, MS)] == times(engine)[1:]


def test_chunks_share_steps() -> None:
    """A prompt of 100 tokens in chunks of 40 beside one sequence: steps of max(chunk, 0.1 ms).

    A (1 token) decodes from 10 us on; B comes at 50 us, in the step that ends at 110 us.
    Chunks of 40, 40 and 20 tokens: steps of 0.4, 0.4 and 0.2 ms, in each of which A gets a token.
    B's first token at 1110 us; it waited 60 us, and its work is 1 ms.  Then both step: A's last ones at 1210, 1310.
    """
    engine = generate(generating([1, 100], [7, 3], [0, 50]), decoding(chunk=40))
    assert [(10 * US, 1310 * US), (1110 * US, 1310 * US)] == tokens_at(engine)
    assert (0, 60 * US, MS) == times(engine)[1]


def test_small_chunks_take_a_whole_step() -> None:
    """Chunks of 5 tokens (50 us) cost no less than the step's 0.1 ms that they share, and per-sequence time on top.

    A's steps take 0.1 + 0.02 ms; B's 10 tokens take two of them, so B waits 140 us for 100 us of work.
    """
    engine = generate(generating([1, 10], [9, 1], [0, 10]), decoding(chunk=5, sequence_us=20))
    assert (10 * US, 250 * US) == (tokens_at(engine)[0][0], tokens_at(engine)[1][0])
    assert (0, 140 * US, 100 * US) == times(engine)[1]


def test_a_sequence_may_end_in_the_middle_of_a_chunked_prefill() -> None:
    """A gets its last token with B's first chunk; B's other two chunks have the GPU to themselves."""
    engine = generate(generating([1, 100], [3, 1], [0, 50]), decoding(chunk=40, sequence_us=20))
    assert [(10 * US, 550 * US), (1150 * US, 1150 * US)] == tokens_at(engine)


@pytest.mark.parametrize(
    ("fit", "chunks_us", "work_us"),
    [(PrefillFit(200e-6, 10e-6), (600, 600, 400), 1600), (PrefillFit(0.0, 10e-6, 0.0, 350e-6), (400, 400, 350), 1150)],
    ids=["fixed", "floor"],
)
def test_each_chunk_takes_what_prefilling_it_alone_takes(
    fit: PrefillFit, chunks_us: tuple[int, ...], work_us: int
) -> None:
    """100 tokens in chunks of 40, 40 and 20: a fixed part of 0.2 ms, or a floor of 0.35 ms, counts in each of them.

    A (1 token: 210 or 350 us) decodes from its first token on, in steps of 0.1 ms and 20 us for each of one sequence;
    B comes 40 us into the first of them.  Each step with a chunk takes the chunk and 20 us; B waits 80 us for the end
    of that step and 3 x 20 us beside its chunks, and its work is what the chunks take.
    """
    begin = 210 if fit.base_s else 350
    trace = generating([1, 100], [6, 1], [0, begin + 40])
    engine = generate(trace, decoding(chunk=40, sequence_us=20), profile=make_profile(prefill=fit))
    first = (begin + 120 + sum(chunks_us) + 60) * US
    assert [(begin * US, first + 120 * US), (first, first)] == tokens_at(engine)
    assert (0, 140 * US, work_us * US) == times(engine)[1]


@pytest.mark.parametrize(
    ("fit", "piece_us", "rest_us"),
    [(PrefillFit(200e-6, 10e-6), 600, 800), (PrefillFit(0.0, 10e-6, 0.0, 700e-6), 700, 700)],
    ids=["fixed", "floor"],
)
def test_what_is_left_without_sequences_is_one_piece(fit: PrefillFit, piece_us: int, rest_us: int) -> None:
    """A's last token comes with B's first chunk of 40: the other 60 tokens are one prefill, with its own fixed part.

    Alone, 100 tokens would take 1.2 ms, or 1 ms; in the two pieces they take 0.6 + 0.8, or 0.7 + 0.7 ms.
    """
    begin = 210 if fit.base_s else 700
    trace = generating([1, 100], [3, 1], [0, begin + 40])
    engine = generate(trace, decoding(chunk=40), profile=make_profile(prefill=fit))
    assert [begin + 100 + piece_us, begin + 100 + piece_us + rest_us] == [last // US for _, last in tokens_at(engine)]
    assert (0, 60 * US, (piece_us + rest_us) * US) == times(engine)[1]
    whole = generate(generating([1, 100], [1, 1], [0, begin]), decoding(chunk=40), profile=make_profile(prefill=fit))
    assert (0, 0, 1200 * US if fit.base_s else MS) == times(whole)[1]


def test_decompression_comes_first() -> None:
    """A hit in kivi:4 (20 us to decode, no prefill) shares one step: its 20 us are added to the step's 0.1 ms."""
    trace = make_trace([[0], [], [0]], inputs=[100, 1, 100], outputs=[1, 50, 1], at_us=[0, 10_000, 10_035])
    engine = make_engine(trace, Scripted({0: "dram kivi:4"}), decode=decoding(chunk=40))
    engine.run()
    load, queue, work = times(engine)[2]
    assert (50 * US, 125 * US, 20 * US) == (load, queue, work)


@pytest.mark.parametrize("output", [1, 50])
def test_decompression_is_paid_once(output: int) -> None:
    """A hit with 20 us to decode and two chunks of 0.4 ms to prefill; a sequence ends with the first of them.

    The second chunk then shares its step with another sequence, or has the GPU to itself.  Loaded 50 us after 10,035,
    started with the step at 10,110, done 20 + 400 + 400 us later.
    """
    asked = {"inputs": [100, 1, 1, 180], "outputs": [1, 3, output, 1], "at_us": [0, 10_000, 10_000, 10_035]}
    engine = make_engine(
        make_trace([[0], [], [], [0]], **asked), Scripted({0: "dram kivi:4"}), decode=decoding(chunk=40)
    )
    engine.run()
    assert (50 * US, 25 * US, 820 * US) == times(engine)[3]
    assert 10_530 * US == tokens_at(engine)[1][1]


def test_the_smallest_batch_is_chosen() -> None:
    """Two GPUs: the third request goes to the one whose only sequence has ended, and stays there."""
    engine = generate(generating([100] * 3, [100, 2, 2], [0, 0, 2000]), decoding(), gpus=2)
    assert [(2 * MS + MS, 3100 * US)] == tokens_at(engine)[2:]


def test_closed_loop_sends_at_the_last_token() -> None:
    """Concurrency 1: the next request arrives when the last token of the one before is there, 1.2 ms later each."""
    engine = generate(generating([100] * 3, [3, 1, 3], [0, 0, 0]), decoding(), arrivals="closed")
    assert [0, 1200 * US, 2200 * US] == [row.arrival for row in rows(engine)]


# --- one token at a time --------------------------------------------------------------------------------------------


def random_load(seed: int, count: int = 150) -> tuple[list[tuple[int, int, int]], dict[str, Any]]:
    """Requests (arrival ns, prompt, output) in bursts, and limits, all drawn."""
    rng = np.random.default_rng([seed, 3])
    arrivals = np.sort(rng.integers(0, 40_000, count)) * 5 * US
    prompts, outputs = rng.integers(1, 120, count), rng.choice([0, 1, 2, 3, 10, 60], count)
    chosen = {"gpus": int(rng.integers(1, 4)), "max_batch": int(rng.choice([1, 2, 5, 64]))}
    return list(zip(arrivals.tolist(), prompts.tolist(), outputs.tolist(), strict=True)), chosen


PREFILLS: list[dict[str, int]] = [
    {},
    {"fixed_ns": 70 * US},
    {"floor_ns": 250 * US, "square_ns": 13},
    {"fixed_ns": 30 * US, "token_ns": 1700, "square_ns": 90, "floor_ns": 45 * US},
]


@pytest.mark.parametrize("chunk", [None, 7, 30, 1000])
@pytest.mark.parametrize("seed", range(8))
def test_equals_the_model_of_single_tokens(seed: int, chunk: int | None) -> None:
    """First and last token and work of each request are those of a model that goes token by token, to the nanosecond.

    Prefill has a fixed part, a floor or a part that grows with the position, or none of them.
    """
    requests, limits = random_load(seed)
    step_ns: Callable[[int, int], int] = lambda batch, cached: 40 * US + batch * 3 * US + cached * 11  # noqa: E731
    rules = Rules(limits["max_batch"], chunk, step_ns, 40 * US, **PREFILLS[seed % len(PREFILLS)])
    expected = replay(requests, limits["gpus"], rules)
    seconds = (part / 1e9 for part in (rules.fixed_ns, rules.token_ns, rules.square_ns, rules.floor_ns))
    profile = make_profile(prefill=PrefillFit(*seconds))
    steps = given_steps(limits["max_batch"], 40 * US * NS, 3 * US * NS, 11 * NS)
    arrivals, prompts, outputs = (list(column) for column in zip(*requests, strict=True))
    trace = generating(prompts, outputs, [at // US for at in arrivals])
    decode = DecodeSettings(limits["max_batch"], chunk, steps)
    engine = generate(trace, decode, gpus=limits["gpus"], profile=profile)
    assert [(one.first, max(one.first, one.last)) for one in expected] == tokens_at(engine)
    assert [(0, one.first - one.arrival - one.work, one.work) for one in expected] == times(engine)
    assert max(row.queue for row in rows(engine)) > 0


@pytest.mark.parametrize("chunk", [None, 30])
def test_tokens_are_conserved(chunk: int | None) -> None:
    """Decoded tokens are the outputs without the first ones; GPUs are never busier than the clock; steps are fewer."""
    requests, limits = random_load(11)
    arrivals, prompts, outputs = (list(column) for column in zip(*requests, strict=True))
    trace = generating(prompts, outputs, [at // US for at in arrivals])
    engine = generate(trace, decoding(limits["max_batch"], chunk), gpus=2)
    servers = engine.gpus
    assert isinstance(servers, BatchingServers)
    assert sum(max(0, output - 1) for output in outputs) == servers.tokens
    assert sum(output > 1 for output in outputs) == len(engine.recorder.last_token_ns)
    assert 0 < servers.steps <= servers.tokens
    assert 0 < servers.busy_ns <= 2 * engine.now_ns
    assert [] == [gpu for gpu in servers.gpus if gpu.batch or gpu.job or gpu.cached]


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize("gpus", [1, 3])
def test_one_slot_is_the_kiefer_wolfowitz_recursion(gpus: int, chunk: int | None) -> None:
    """With one sequence per GPU a request holds it for prefill and steps: each wait is that of a plain queue."""
    rng = np.random.default_rng(5)
    arrivals = poisson(rng, 600, 2.2 * MS / gpus) // US * US
    prompts, outputs = rng.integers(1, 200, 600), rng.integers(1, 20, 600)
    services = prompts * 10 * US + (outputs - 1) * 100 * US
    trace = generating(prompts.tolist(), outputs.tolist(), (arrivals // US).tolist())
    engine = generate(trace, decoding(1, chunk), gpus=gpus, check=None)
    waited = [row.queue for row in rows(engine)]
    assert kiefer_wolfowitz(arrivals, services, gpus).tolist() == waited
    assert max(waited) > MS


def test_md1_with_output() -> None:
    """Equal requests at Poisson times, one slot: the mean wait is rho S / (2 (1 - rho)), S being prefill and steps."""
    service, load, means = 2 * MS, 0.7, []
    for seed in range(8):
        arrivals = poisson(np.random.default_rng([seed, 4]), 4_000, service / load) // US
        trace = generating([100] * 4_000, [11] * 4_000, arrivals.tolist())
        waited = [row.queue for row in rows(generate(trace, decoding(1), check=None))]
        means.append(float(np.mean(waited[300:])))
    assert load * service / (2 * (1 - load)) == pytest.approx(np.mean(means), rel=0.06)


def test_unbounded_batch_with_constant_steps() -> None:
    """Nothing to prefill, steps of 0.1 ms whatever the batch: every token takes exactly one step.

    Arrivals lie on the steps' grid, so that nobody waits for the end of one.
    """
    rng = np.random.default_rng(6)
    at_us = (np.sort(rng.integers(0, 200, 100)) * 100).tolist()
    outputs = rng.integers(2, 40, 100).tolist()
    engine = generate(generating([0] * 100, outputs, at_us), decoding(1000))
    assert [0] * 100 == [row.ttft for row in rows(engine)]
    assert [100 * US * (output - 1) for output in outputs] == [last - first for first, last in tokens_at(engine)]


def test_saturated_throughput() -> None:
    """Always more requests than slots, hardly any prefill: 16 tokens per step of 0.1 + 16 x 0.01 ms, within 2 %."""
    count, output = 400, 200
    engine = generate(generating([1] * count, [output] * count, [0] * count), decoding(16, sequence_us=10))
    rate = count * (output - 1) / engine.now_ns
    assert 16 / (260 * US) == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize("chunk", [None, 64])
def test_slots_bound_the_batch_and_prefills_do_not_starve(chunk: int | None) -> None:
    """A burst twice as large as two batches is served to the end, in order of arrival."""
    engine = generate(generating([50] * 32, [20] * 32, [0] * 32), decoding(8, chunk))
    firsts = [first for first, _ in tokens_at(engine)]
    assert sorted(firsts) == firsts
