"""The bound on real traces: figures established by an independent prototype, and timed runs of the engine below it.

The prototype is an untimed store: loads add up, lines have no fixed parts, blocks count in full, one look-up at a time.
Its seeds (order of visits, tasks of conversations) are not known, and so the tolerances.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simkv.profiles import Line, Profile, TierSpec, load_profile
from simkv.simulator.bounds import bound
from simkv.simulator.run import simulate
from simkv.traces import Trace, load_trace
from simkv.traces.generate import generate_trace
from simkv.traces.trace import build_trace
from simkv.traces.transform import group_blocks, time_window

GIB = 2**30
ALPHAS = (0.1, 0.5, 2.0, 10.0)


def whole_blocks(trace: Trace, tokens: int) -> Trace:
    """Only blocks of that many tokens, and nothing else in the prompts."""
    lengths = trace.block_tokens[trace.block_ids]
    kept = lengths == tokens
    owner = np.repeat(np.arange(len(trace)), np.diff(trace.block_offsets))[kept]
    counts = np.bincount(owner, minlength=len(trace))
    return build_trace(
        arrival_ns=trace.arrival_ns,
        input_tokens=counts * tokens,
        output_tokens=trace.output_tokens,
        block_counts=counts,
        block_keys=trace.block_ids[kept],
        occurrence_tokens=lengths[kept],
        session=trace.session,
        meta={"name": trace.meta["name"]},
    )


def plain_profile() -> Profile:
    """Bytes / bandwidth, 10 us per token to decode KIVI, and no constants."""
    profile = load_profile("llama-3.1-8b-a100", sizes="measured")
    lines = {v: Line(1e-5) if v.compressor == "kivi" else line for v, line in profile.decode_lines.items()}
    return replace(profile, decode_lines=lines)


def tiers_of(profile: Profile, dram_gib: int, ssd_gib: int) -> tuple[TierSpec, ...]:
    """DRAM and SSD of these sizes, without latency."""
    return tuple(
        replace(tier, capacity_bytes=size * GIB, latency_s=0.0)
        for tier, size in zip(profile.tiers, (dram_gib, ssd_gib), strict=True)
    )


def untimed(trace: Trace, dram_gib: int, ssd_gib: int, **options: Any) -> list[float]:
    """Bounds of the prototype's model at alpha 0.5 and 2."""
    profile = plain_profile()
    mixture = dict.fromkeys(profile.tasks, 1.0)
    found = bound(
        trace,
        profile,
        tiers=tiers_of(profile, dram_gib, ssd_gib),
        tasks=mixture,
        alphas=(0.5, 2.0),
        added=True,
        arrivals="closed",
        **options,
    )
    return found.utilities.tolist()


@pytest.fixture(scope="module")
def mooncake(shared_traces: Path) -> Trace:
    """One hour of conversations, every block counted as full."""
    trace = load_trace(shared_traces / "mooncake" / "conversation_trace.jsonl.gz")
    counts = np.diff(trace.block_offsets)
    return replace(
        trace, input_tokens=(counts * 512).astype(np.int32), block_tokens=np.full(trace.n_blocks, 512, np.int32)
    )


@pytest.fixture(scope="module")
def weka(shared_traces: Path) -> Trace:
    """Agentic sessions, eight blocks of 64 tokens grouped into one, incomplete groups left out."""
    return whole_blocks(group_blocks(load_trace(shared_traces / "weka_agentic"), 8), 512)


def test_coding() -> None:
    """Coding on the 1 GB/s disk: 0.024 and 1.203 at alpha 0.5 and 2, no worse than the prototype's prices."""
    profile = load_profile("adaptcache-a100-1gbps", sizes="measured")
    trace = generate_trace("adaptcache-coding", seed=42)
    options: dict[str, Any] = {"alphas": (0.5, 2.0), "arrivals": "closed", "measure": "revisits", "pristine": True}
    np.testing.assert_allclose([0.024, 1.203], bound(trace, profile, **options).utilities, atol=0.008)
    one = bound(trace, profile, ladder=(1,), **options).utilities[1]
    assert one == pytest.approx(1.440, abs=0.01)
    assert bound(trace, profile, anticipation="prefetch", **options).utilities[1] == pytest.approx(1.64, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("dram", "ssd", "expected"), [(256, 1024, (-0.469, 0.990)), (512, 2048, (-0.465, 0.997))])
def test_mooncake_figures(mooncake: Trace, dram: int, ssd: int, expected: tuple[float, float]) -> None:
    """Mooncake at two sizes of DRAM and SSD."""
    np.testing.assert_allclose(expected, untimed(mooncake, dram, ssd), atol=0.02)


@pytest.mark.slow
def test_weka_figures(weka: Trace) -> None:
    """The agentic sessions at 16, 32 and 64 GiB of DRAM, 256 GiB of SSD, and what prefetch is worth at 32 GiB.

    The draw of tasks over 82 sessions moves all levels together by some 0.04; steps between sizes hardly.
    """
    assert (16_376, 406_412) == (weka.n_blocks, len(weka.block_ids))
    published = np.array([(-0.294, 0.792), (-0.234, 0.940), (-0.215, 1.037)])
    ours = np.array([untimed(weka, dram, 256) for dram in (16, 32, 64)])
    np.testing.assert_allclose(published, ours, atol=0.07)
    np.testing.assert_allclose(np.diff(published, axis=0), np.diff(ours, axis=0), atol=0.02)
    assert untimed(weka, 32, 256, anticipation="prefetch")[1] - ours[1, 1] == pytest.approx(1.08 - 0.94, abs=0.03)


REAL_POLICIES = [
    {"name": "recompute"},
    {"name": "lru"},
    {"name": "lru", "variant": "kivi:4"},
    {"name": "s3fifo", "variant": "kivi:8"},
    {"name": "adaptcache", "alpha": 0.5},
    {"name": "adaptcache", "method": "free", "frequency": "decayed", "alpha": 2.0},
    {"name": "clairvoyant", "variant": "kivi:4"},
]


def never_beaten(trace: Trace, dram: int, ssd: int, **options: Any) -> None:
    """Runs of every policy against the bound, on the profile as it ships."""
    profile = load_profile("llama-3.1-8b-a100")
    tiers = dict(zip([tier.name for tier in profile.tiers], (dram * GIB, ssd * GIB), strict=True))
    tasks = dict.fromkeys(profile.tasks, 1.0)
    limit = bound(trace, profile, tiers=tiers, tasks=tasks, alphas=ALPHAS, **options)
    for policy in REAL_POLICIES:
        summary = simulate(trace, profile, policy, tiers=tiers, tasks=tasks, **options).summary
        got = np.array(ALPHAS) * summary["quality_mean"] - summary["ttft_mean_s"]
        assert (got <= limit.utilities).all(), policy
        assert limit.delay_at(summary["quality_mean"]) <= summary["ttft_mean_s"]


@pytest.mark.slow
@pytest.mark.parametrize("arrivals", ["open", "closed"])
def test_timed_runs_on_mooncake(shared_traces: Path, arrivals: str) -> None:
    """The first 3,000 conversations on eight GPUs, timed, stay below the bound."""
    trace = load_trace(shared_traces / "mooncake" / "conversation_trace.jsonl.gz")
    never_beaten(time_window(trace, 0, int(trace.arrival_ns[3_000])), 128, 512, arrivals=arrivals, gpus=8)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"arrivals": "closed", "overlap": "layerwise", "warmup": "20 %"}], ids=str)
def test_timed_runs_on_weka(shared_traces: Path, options: dict[str, Any]) -> None:
    """The merged agentic sessions, timed, stay below the bound."""
    trace = group_blocks(load_trace(shared_traces / "weka_agentic"), 8)
    never_beaten(trace, 32, 256, gpus=4, **options)
