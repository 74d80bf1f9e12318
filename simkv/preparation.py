"""From a run's configuration to the trace that the simulator replays.

What it is: the documented order of loading and transforming, with a seed of its own for each random
step, so that all policies of a sweep see the same arrivals.  What it is not: the steps themselves
(``simkv.traces``) or the simulation.
"""

import hashlib
from pathlib import Path
from typing import Any

from simkv.config import RunConfig
from simkv.traces.files import Source
from simkv.traces.formats import load_trace
from simkv.traces.generate import generate_trace
from simkv.traces.trace import Trace
from simkv.traces.transform import (
    assign_tasks,
    group_blocks,
    jitter,
    limit_window,
    sample_families,
    scale_rate,
    time_window,
    to_segments,
)

__all__ = ["prepare_trace", "sub_seed", "trace_fingerprint"]


def sub_seed(seed: int, purpose: str) -> int:
    """A seed in [0, 2^63) for one random step of a run, independent of the other steps' seeds."""
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def trace_fingerprint(config: RunConfig) -> str:
    """SHA-256 of the trace's file, or of the files of a folder; "" for a generated trace.  Raises TraceError."""
    return Source(Path(config.trace.file)).sha256 if config.trace.file else ""


def prepare_trace(config: RunConfig) -> Trace:
    """Load or generate the run's trace and transform it.

    In this order: time window (of the original time), sample of prefix families, rate, jitter, context
    window, groups of blocks, segments, tasks.  Raises TraceError or ConfigError.
    """
    asked = config.trace
    options: dict[str, Any] = dict(asked.options)
    if asked.file:
        trace = load_trace(asked.file, asked.format, **options)
    else:
        trace = generate_trace(str(asked.generate), seed=sub_seed(config.seed, "trace"), **options)
    if asked.start_ns or asked.stop_ns is not None:
        trace = time_window(trace, asked.start_ns, asked.stop_ns)
    trace = sample_families(trace, asked.sample, sub_seed(config.seed, "sample"))
    trace = scale_rate(trace, asked.rate)
    trace = jitter(trace, asked.jitter_ns, sub_seed(config.seed, "jitter"))
    if asked.window_tokens is not None:
        trace = limit_window(trace, asked.window_tokens, asked.window_rule)
    trace = group_blocks(trace, asked.group_blocks)
    if asked.unit == "segment":
        trace = to_segments(trace)
    if config.tasks is not None:
        trace = assign_tasks(trace, config.tasks, sub_seed(config.seed, "tasks"))
    return trace
