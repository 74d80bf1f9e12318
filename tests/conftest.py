"""Fixtures shared by all tests: where the real traces are, and small hand-made ones."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from simkv.traces.trace import Trace, build_trace

REPOSITORY = Path(__file__).resolve().parents[1]

settings.register_profile("simkv", deadline=None)  # a busy machine is no failure
settings.load_profile("simkv")


@pytest.fixture(scope="session")
def shared_traces() -> Path:
    """Folder of real public traces beside the checkout; tests that need it skip without it."""
    folder = REPOSITORY.parent / "shared" / "traces"
    if not folder.is_dir():
        pytest.skip("the real traces (../shared/traces) are not on this machine")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


def make_trace(
    requests: list[list[int]], *, gap_s: float = 1.0, tokens: int = 512, output: int = 10, **meta: object
) -> Trace:
    """A trace whose request r asks for the given block keys, ``gap_s`` apart, all blocks ``tokens`` long."""
    counts = [len(keys) for keys in requests]
    flat = [key for keys in requests for key in keys]
    return build_trace(
        arrival_ns=(np.arange(len(requests)) * round(gap_s * 1e9)).astype(np.int64),
        input_tokens=np.array(counts, dtype=np.int64) * tokens,
        output_tokens=np.full(len(requests), output, dtype=np.int64),
        block_counts=np.array(counts, dtype=np.int64),
        block_keys=np.array(flat, dtype=np.int64),
        occurrence_tokens=np.full(len(flat), tokens, dtype=np.int64),
        meta={"name": "hand-made", "block_size": tokens, **meta},
    )
