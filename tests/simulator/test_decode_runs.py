"""Whole runs with a decode model: what it leaves as it was, columns and figures, goodput, and what is refused."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simkv.errors import ConfigError
from simkv.profiles import PrefillFit, load_profile
from simkv.simulator.metrics import Result
from simkv.simulator.policies.lru import Lru
from simkv.simulator.run import simulate
from simkv.simulator.view import StoreView
from simkv.traces.generate import generate_trace
from simkv.traces.trace import Trace
from tests.simulator.helpers import EVERY_POLICY, MS, make_profile, make_trace, random_trace, rows, run, two_tiers
from tests.simulator.test_batching import decoding
from tests.simulator.test_step_times import stepping

STEPS: dict[str, Any] = {"step_base": "1 ms", "step_per_sequence": "50 us", "step_per_token": "20 ns"}
MODES: list[dict[str, Any]] = [{"decode": "prefill_first"}, {"decode": "chunked", "chunk_tokens": 64}]
WORLDS: dict[str, dict[str, Any]] = {
    "open": {},
    "gpus": {"gpus": 3},
    "closed": {"arrivals": "closed", "concurrency": 3},
    "gpu-loads": {"loading": "gpu"},
    "faster": {"reuse": "when_faster"},
}


@pytest.fixture(scope="module")
def chats() -> Trace:
    """Chats in blocks of 512 tokens, with answers of some hundred tokens."""
    return generate_trace("sessions", seed=1, sessions=20, rate_per_s=2.0)


def served(trace: Trace, **engine: Any) -> Result:
    """A run that decodes, compresses, demotes and evicts."""
    capacities = {"dram": 12 * 512_000, "ssd": 60 * 512_000}
    policy = {"name": "adaptcache", "alpha": 100.0}
    given = {"decode": "prefill_first", **STEPS, "gpus": 2, "check": True, **engine}
    return simulate(trace, make_profile(), policy, tiers=capacities, tasks="qa", seed=3, **given)


# --- what stays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", list(WORLDS))
@pytest.mark.parametrize("chunk", [None, 16])
def test_one_token_each_is_the_run_without_decoding(world: str, chunk: int | None) -> None:
    """With one output token everything is as without the decode model: rows, moves, occupancy, the GPUs' time."""
    for seed, (policy, params) in enumerate(EVERY_POLICY[::4]):
        options = {"params": params, "tiers": two_tiers(6, 12, latency_s=20e-6), **WORLDS[world]}
        trace = random_trace(seed)
        plain = run(trace, policy, **options)
        with_decoding = run(trace, policy, decode=decoding(4, chunk), **options)
        assert rows(plain) == rows(with_decoding)
        assert plain.mover.rows == with_decoding.mover.rows
        assert plain.recorder.samples == with_decoding.recorder.samples
        assert (plain.gpus.busy_ns, plain.profiling_ns) == (with_decoding.gpus.busy_ns, with_decoding.profiling_ns)


@dataclass
class Profiling(Lru):
    """LRU that asks for 2 ms of any idle GPU after every first token, and moves nothing then."""

    def idle_work_s(self, view: StoreView) -> float:
        """Always the same."""
        return 2e-3


def test_the_idle_gpu_is_profiled_on_alike() -> None:
    """A policy's profiling holds a GPU for the same time with and without decoding, and requests wait for it alike."""
    trace = random_trace(3, spread_us=200_000)
    found = [run(trace, Profiling(), decode=decode) for decode in (None, decoding(4))]
    assert rows(found[0]) == rows(found[1])
    assert 10 * 2 * MS < found[0].profiling_ns == found[1].profiling_ns
    assert rows(found[0]) != rows(run(trace, "lru"))


def test_profiling_waits_for_a_gpu_without_sequences() -> None:
    """One GPU that always decodes is never given to a policy."""
    trace = random_trace(3)
    longer = trace.transformed("long answers", output_tokens=np.full(len(trace), 10_000, dtype=np.int32))
    assert 0 == run(longer, Profiling(), decode=decoding(64)).profiling_ns


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["decode"])
@pytest.mark.parametrize("world", list(WORLDS))
def test_ttft_is_load_and_queue_and_compute(chats: Trace, mode: dict[str, Any], world: str) -> None:
    """The identity holds for every request, no part is negative, and all invariants hold after every event."""
    frame = served(chats, **{**mode, **WORLDS[world]}).requests
    parts = frame[["load_s", "queue_s", "compute_s"]]
    assert len(chats) == len(frame) and (parts >= 0).all().all()
    assert frame["ttft_s"].to_numpy() == pytest.approx(parts.sum(axis=1).to_numpy(), abs=2e-9)
    assert (frame["e2e_s"] >= frame["ttft_s"]).all()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["decode"])
def test_same_inputs_same_bytes(chats: Trace, mode: dict[str, Any]) -> None:
    """A run with decoding repeats itself exactly."""
    first, second = (served(chats, **mode) for _ in range(2))
    pd.testing.assert_frame_equal(first.requests, second.requests, check_exact=True)
    pd.testing.assert_frame_equal(first.moves, second.moves, check_exact=True)


# --- columns and figures --------------------------------------------------------------------------------------------


def test_columns_by_hand() -> None:
    """Prefill 1 ms, 10 steps of 0.1 ms: TPOT 0.1 ms, end to end 2 ms; one token or none has no TPOT."""
    trace = make_trace([[], [], []], inputs=[100] * 3, outputs=[11, 1, 0], task=None)
    result = simulate(trace, make_profile(), "recompute", decode="prefill_first", step_base="100 us")
    frame = result.requests
    assert [0.002, 0.001, 0.001] == frame["e2e_s"].tolist()
    assert 1e-4 == frame["tpot_s"][0] and frame["tpot_s"][1:].isna().all()
    decode = result.meta["decode"]
    assert (256, None, "given", 10, 10) == tuple(decode.values())


def test_no_columns_without_decoding(chats: Trace) -> None:
    """Off, there is neither a column nor a figure of decoding."""
    result = simulate(chats, make_profile(), "lru", tasks="qa")
    assert not {"tpot_s", "e2e_s"} & set(result.requests)
    assert [] == [key for key in result.summary if key.startswith(("tpot", "e2e", "slo", "goodput", "decode"))]
    assert "decode" not in result.meta


def test_figures_from_the_rows_alone(chats: Trace) -> None:
    """Means, percentiles, share within both objectives and goodput, recomputed in plain Python."""
    slo = {"slo_ttft": "12 ms", "slo_tpot": "1.15 ms"}
    result = served(chats, **slo, warmup="10 %")
    found = result.requests[result.requests["measured"]].to_dict("records")
    each = sorted(row["tpot_s"] for row in found if not math.isnan(row["tpot_s"]))
    whole = sorted(row["e2e_s"] for row in found)
    good = [row["ttft_s"] <= 0.012 and not row["tpot_s"] > 0.00115 for row in found]
    start, end = min(row["arrival_s"] for row in found), max(row["arrival_s"] + row["e2e_s"] for row in found)
    sent = max(row["arrival_s"] for row in found) - start
    expected = {
        "tpot_mean_s": math.fsum(each) / len(each),
        "tpot_p90_s": float(np.quantile(each, 0.9)),
        "e2e_mean_s": math.fsum(whole) / len(whole),
        "e2e_p50_s": float(np.quantile(whole, 0.5)),
        "e2e_p99_s": float(np.quantile(whole, 0.99)),
        "slo_share": sum(good) / len(good),
        "goodput_per_s": sum(good) / (end - start),
        "request_rate_per_s": (len(found) - 1) / sent,
    }
    assert expected == pytest.approx({key: result.summary[key] for key in expected}, rel=1e-9)
    assert 0 < sum(good) < len(good)
    assert result.summary["slo_share_low"] < result.summary["slo_share"] < result.summary["slo_share_high"]
    assert 1 < result.summary["decode_batch_mean"] < 256
    assert 0 < result.summary["gpu_utilisation"] <= 1


def test_objective_is_met_at_equality() -> None:
    """TTFT of exactly 1 ms and TPOT of exactly 0.1 ms are good enough; a nanosecond less would not be."""
    trace = make_trace([[]], inputs=[100], outputs=[4], task=None)
    share = {
        (ttft, tpot): simulate(
            trace, make_profile(), "recompute", decode="prefill_first", step_base="100 us", slo_ttft=ttft, slo_tpot=tpot
        ).summary["slo_share"]
        for ttft, tpot in [("1 ms", "100 us"), ("999999 ns", "100 us"), ("1 ms", "99999 ns")]
    }
    assert [1.0, 0.0, 0.0] == list(share.values())


def test_goodput_of_first_tokens_alone(chats: Trace) -> None:
    """A TTFT objective needs no decode model."""
    summary = simulate(chats, make_profile(), "lru", tasks="qa", slo_ttft="9 ms").summary
    assert 0 < summary["slo_share"] < 1 and 0 < summary["goodput_per_s"]


def test_measured_steps_are_used() -> None:
    """A profile's steps (1 ms at 100 tokens, 2 ms at 200) give TPOT; the largest measured batch is the limit."""
    profile = stepping([(1, 100, 1.0), (1, 200, 2.0), (4, 100, 1.0), (4, 200, 2.0)])
    trace = make_trace([[]], inputs=[100], outputs=[3], task=None)
    result = simulate(trace, profile, "recompute", decode="prefill_first")
    assert [pytest.approx(1.005e-3)] == result.requests["tpot_s"].tolist()
    assert (4, "measured") == (result.meta["decode"]["max_batch"], result.meta["decode"]["step_times"])


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["decode"])
def test_a_shipped_profile_has_measured_steps(mode: dict[str, Any]) -> None:
    """The profile timed on a CPU decodes as it is, noise and all: TPOT is no less than its shortest step.

    Prompts are as long as the contexts at which it was timed; up to 16 sequences, as many as were timed.
    """
    sizes = {"tokens": 500, "sd_tokens": 150, "block_tokens": 64, "output_tokens": 40}
    trace = generate_trace("zipf", seed=2, requests=120, contexts=20, rate_per_s=20.0, **sizes)
    profile = load_profile("small-model-cpu-timed")
    result = simulate(trace, profile, "lru", tasks="qa", check=True, **mode)
    frame = result.requests
    shortest = min(seconds for _, _, seconds in profile.decode_steps)
    assert (frame[["load_s", "queue_s", "compute_s"]] >= 0).all().all()
    assert shortest <= frame["tpot_s"].min() and frame["tpot_s"].max() < 0.02
    assert (16, "measured") == (result.meta["decode"]["max_batch"], result.meta["decode"]["step_times"])


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "part"),
    [
        ({"decode": "chunked", "overlap": "layerwise"}, "decode.*needs overlap = 'none'"),
        ({"decode": "prefill_first"}, "no measured decode steps; give engine.step_base"),
        ({"decode": "prefill_first", "chunk_tokens": 64}, "chunk_tokens.*without decode = 'chunked'"),
        ({"decode": "prefill_first", "step_per_token": "1 ns"}, "step_per_token.*without step_base"),
        ({"decode": "prefill_first", "step_base": 0}, "step_base"),
        ({"max_batch": 4}, "max_batch.*without decode"),
        ({"step_base": "1 ms"}, "step_base.*without decode"),
        ({"slo_tpot": "1 ms"}, "slo_tpot.*without decode"),
        ({"decode": "prefill", "step_base": "1 ms"}, "decode"),
    ],
)
def test_what_cannot_be_combined(engine: dict[str, Any], part: str) -> None:
    """Keys without effect, decoding with overlap, and decoding without step times get one clear error."""
    with pytest.raises(ConfigError, match=part):
        simulate(make_trace([[0]]), make_profile(), "lru", **engine)


def test_chunks_need_rising_prefill_times() -> None:
    """Where a longer prompt takes less time, chunks of it would take nothing."""
    falling = make_profile(prefill=PrefillFit(0.0, 10e-6, -1e-7))
    with pytest.raises(ConfigError, match="'chunked' needs a prefill time that rises"):
        simulate(make_trace([[0]]), falling, "lru", decode="chunked", step_base="1 ms")
