"""prepare_trace: the order of its steps, its seeds, and what identifies a trace."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simkv.config import RunConfig, parse_run
from simkv.errors import ConfigError, TraceError
from simkv.preparation import prepare_trace, sub_seed, trace_fingerprint

LINES = [
    {"timestamp": 1000 * index, "input_length": 1024, "output_length": 5, "hash_ids": [0, index % 3 + 1]}
    for index in range(12)
]


def config(seed: int = 0, tasks: Any = None, **trace: Any) -> RunConfig:
    """A run that asks for the given trace."""
    table = {"seed": seed, "tasks": tasks, "trace": trace, "profile": {"name": "none"}, "policy": {"name": "lru"}}
    return parse_run(table)


@pytest.fixture
def mooncake(tmp_path: Path) -> str:
    """A small Mooncake trace: a request per second, three families of four requests."""
    path = tmp_path / "small.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    return str(path)


def test_steps_are_recorded_in_the_documented_order(mooncake: str) -> None:
    """Every step that does something leaves its mark in the transforms, in order."""
    trace = prepare_trace(
        config(
            tasks="qa",
            file=mooncake,
            start="1 s",
            stop="11 s",
            sample=0.9,
            rate=2.0,
            jitter="1 ms",
            window_tokens=2048,
            group_blocks=2,
            unit="segment",
        )
    )
    steps = [step.split("(")[0] for step in trace.meta["transforms"]]
    expected = ["time_window", "sample_families", "scale_rate", "jitter", "limit_window", "group_blocks", "to_segments"]
    assert [*expected, "assign_tasks"] == steps


def test_nothing_is_done_unasked(mooncake: str) -> None:
    """A trace with default settings is the file as it is."""
    trace = prepare_trace(config(file=mooncake))
    assert [] == trace.meta["transforms"]
    assert [second * 10**9 for second in range(12)] == trace.arrival_ns.tolist()


def test_window_counts_in_the_original_time(mooncake: str) -> None:
    """Four seconds of the original trace hold four requests, which a doubled rate packs into half the time."""
    trace = prepare_trace(config(file=mooncake, start="2 s", stop="6 s", rate=2))
    assert [0, 500_000_000, 1_000_000_000, 1_500_000_000] == trace.arrival_ns.tolist()


def test_same_seed_same_trace_and_another_seed_another() -> None:
    """Generated traces depend on the run's seed and on nothing else."""
    first, again, other = (
        prepare_trace(config(seed=seed, generate="zipf", options={"requests": 50})) for seed in (1, 1, 2)
    )
    assert np.array_equal(first.arrival_ns, again.arrival_ns)
    assert np.array_equal(first.block_ids, again.block_ids)
    assert not np.array_equal(first.arrival_ns, other.arrival_ns)


def test_task_mixture_does_not_depend_on_its_order(mooncake: str) -> None:
    """A mixture means the same whichever task is written first."""
    one, two = (prepare_trace(config(file=mooncake, tasks=mixture)) for mixture in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert ["a", "b"] == one.task_names == two.task_names
    assert one.task.tolist() == two.task.tolist()


def test_sub_seeds_differ_by_purpose_and_are_fixed() -> None:
    """A purpose has its own seed; the value is the first 63 bits of a SHA-256 and never changes."""
    expected = int.from_bytes(hashlib.sha256(b"7:jitter").digest()[:8], "big") >> 1
    assert expected == sub_seed(7, "jitter")
    assert 4 == len({sub_seed(7, "jitter"), sub_seed(7, "sample"), sub_seed(8, "jitter"), sub_seed(8, "sample")})


def test_fingerprint_is_that_of_the_file(mooncake: str) -> None:
    """A file is known by its content, a generated trace has nothing to hash."""
    assert hashlib.sha256(Path(mooncake).read_bytes()).hexdigest() == trace_fingerprint(config(file=mooncake))
    assert "" == trace_fingerprint(config(generate="zipf"))


def test_bad_inputs_are_simkv_errors(tmp_path: Path) -> None:
    """A missing file, an unknown generator and an unknown option are each told in one line."""
    with pytest.raises(TraceError, match=r"absent\.jsonl"):
        prepare_trace(config(file=str(tmp_path / "absent.jsonl")))
    with pytest.raises(ConfigError, match="did you mean 'zipf'"):
        prepare_trace(config(generate="zpif"))
    with pytest.raises(ConfigError, match="did you mean 'requests'"):
        prepare_trace(config(generate="zipf", options={"request": 5}))
