"""Back test: figures of fixed runs, in integers.  Run ``python -m tests.golden.regenerate`` to write them anew.

A changed file is a changed model: it goes into a commit of its own that says why.
The trace is in the repository (``trace.csv``), so that a new numpy cannot change it.
"""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from simkv.simulator.engine import Engine
from simkv.traces.generate import generate_trace
from simkv.traces.trace import Trace, build_trace
from tests.simulator.helpers import DRAM, SSD, make_engine, make_profile, quality_rows, rows, two_tiers

FOLDER = Path(__file__).parent
PROFILE = make_profile(quality=quality_rows({"raw": [1, 1], "kivi:4": [0.95, 0.75], "kivi:2": [0.7, 0.2]}))
BLOCKS = (60, 150)  # of 100 tokens, on DRAM and SSD

# Name -> policy, its parameters, and what is not default in the engine.
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "recompute": ("recompute", {}, {}),
    "lru": ("lru", {}, {}),
    "lru-kivi": ("lru", {"variant": "kivi:4"}, {"discipline": "fair", "gpus": 2}),
    "fifo": ("fifo", {"promote": False}, {"arrivals": "closed", "concurrency": 4}),
    "lfu": ("lfu", {}, {"touch": "forward", "overlap": "layerwise"}),
    "s3fifo": ("s3fifo", {}, {"link": True}),
    "gdsf": ("gdsf", {"cost": "recompute"}, {"reuse": "when_faster", "link": True, "discipline": "fair"}),
    "clairvoyant": ("clairvoyant", {}, {}),
    "adaptcache": ("adaptcache", {"alpha": 300.0}, {}),
    "adaptcache-paper": (
        "adaptcache",
        {"preset": "paper", "alpha": 0.003, "frequency": "decayed", "method": "free"},
        {"pristine": True, "link": True, "discipline": "fair"},
    ),
}


def read_trace() -> Trace:
    """The 200 requests of ``trace.csv``: arrival in ns, prompt tokens, "block:tokens" in prefix order."""
    with (FOLDER / "trace.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    blocks = [[tuple(map(int, pair.split(":"))) for pair in line["blocks"].split()] for line in lines]
    flat = [pair for pairs in blocks for pair in pairs]
    return build_trace(
        arrival_ns=[int(line["arrival_ns"]) for line in lines],
        input_tokens=[int(line["input_tokens"]) for line in lines],
        output_tokens=[1] * len(lines),
        block_counts=[len(pairs) for pairs in blocks],
        block_keys=np.array([block for block, _ in flat]),
        occurrence_tokens=np.array([tokens for _, tokens in flat]),
        task=[0] * len(lines),
        meta={"name": "golden", "task_names": ["qa"]},
    )


def write_trace() -> None:
    """Make ``trace.csv``: chats whose prompts share prefixes, close enough in time to overlap."""
    trace = generate_trace(
        "sessions", seed=42, sessions=50, turns=5, think_s=0.4, think_sd_s=0.4, rate_per_s=20.0, block_tokens=100
    )
    lines = []
    for request in range(200):
        pairs = " ".join(f"{block}:{trace.block_tokens[block]}" for block in trace.blocks_of(request))
        lines.append((int(trace.arrival_ns[request]), int(trace.input_tokens[request]), pairs))
    _write("trace.csv", ["arrival_ns", "input_tokens", "blocks"], lines)


def replay(trace: Trace, name: str) -> Engine:
    """One run of RUNS, ended."""
    policy, params, given = RUNS[name]
    options = dict(given)
    discipline = options.pop("discipline", "fifo")
    link = replace(DRAM, name="link", discipline=discipline) if options.pop("link", False) else None
    tiers = two_tiers(*BLOCKS, latency_s=20e-6, discipline=discipline)
    if options.get("pristine"):
        tiers = (*tiers, replace(SSD, name="cold"))
    engine = make_engine(
        trace, policy, params=params, tiers=tiers, profile=PROFILE, link=link, seed=7, check=None, **options
    )
    engine.run()
    return engine


def figures(engine: Engine) -> dict[str, int]:
    """Whole numbers of a run: sums over requests (ns, tokens, 1e-9 quality), counts of moves, bytes."""
    found, mover = rows(engine), engine.mover
    slowest = max(found, key=lambda row: row.ttft)
    return {
        "ttft_ns": sum(row.ttft for row in found),
        "load_ns": sum(row.load for row in found),
        "queue_ns": sum(row.queue for row in found),
        "compute_ns": sum(row.work for row in found),
        "slowest_ns": slowest.ttft,
        "slowest_request": slowest.id,
        "hit_blocks": sum(row.hit_blocks for row in found),
        "hit_tokens": sum(row.hit_tokens for row in found),
        "dram_tokens": sum(row.per_tier[0] for row in found),
        "quality_ppb_tokens": sum(row.quality for row in found),
        **dict(zip(("admissions", "promotions", "demotions", "recompressions"), mover.counts.kinds, strict=False)),
        "evictions": mover.counts.kinds[4],
        "refusals": mover.counts.kinds[5],
        "refused": engine.store.counts.refused,
        "duplicates": engine.store.counts.duplicate_blocks,
        "dram_written": mover.counts.written[0],
        "ssd_written": mover.counts.written[1],
        "recodings": mover.counts.recodings,
        "used_bytes": sum(engine.store.used),
        "end_ns": engine.now_ns,
    }


def all_figures() -> Iterator[tuple[str, str, int]]:
    """(run, figure, value) of every run."""
    trace = read_trace()
    for name in RUNS:
        for figure, value in figures(replay(trace, name)).items():
            yield name, figure, value


def _write(name: str, header: list[str], lines: list[Any]) -> None:
    with (FOLDER / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(lines)


def main() -> None:
    """Write ``runs.csv``; the trace only if it is missing."""
    if not (FOLDER / "trace.csv").exists():
        write_trace()
    _write("runs.csv", ["run", "figure", "value"], list(all_figures()))


if __name__ == "__main__":
    main()
