"""A hand-made world with round numbers, so that tests can do their sums in the head.

One token is 1,000 bytes.  DRAM reads and writes a byte in 1 ns; SSD reads one in 2 ns and writes one in 4 ns.
Prefill takes 10 us per token.  ``raw`` keeps all bytes, ``kivi:4`` half, ``kivi:2`` a quarter.
A block of 100 tokens is thus 100,000 bytes: 0.1 ms from DRAM, 0.2 ms from SSD, 1 ms to compute.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from simkv.profiles import RAW, Line, PrefillFit, Profile, TierSpec, Variant
from simkv.simulator.costs import build_costs
from simkv.simulator.engine import Engine, EngineSettings
from simkv.simulator.entries import Entry, Move, Placement
from simkv.simulator.invariants import check_engine
from simkv.simulator.policies import POLICIES, Policy, make_policy
from simkv.simulator.settings import DecodeSettings
from simkv.simulator.view import StoreView
from simkv.traces.trace import Trace, build_trace

KIVI4, KIVI2 = Variant.parse("kivi:4"), Variant.parse("kivi:2")
US, MS = 1_000, 1_000_000
BLOCK = 100  # tokens
SIZE = 100_000  # bytes of a raw block
DRAM_NS, SSD_NS, SSD_WRITE_NS, PREFILL_NS = 100 * US, 200 * US, 400 * US, MS  # one raw block

DRAM = TierSpec("dram", None, 10**9, 10**9)
SSD = TierSpec("ssd", None, 5 * 10**8, 25 * 10**7)
TWO = (DRAM, SSD)


def quality_rows(qualities: Mapping[str, Sequence[float]], task: str = "qa") -> pd.DataFrame:
    """A quality table of one task: variant -> quality of sample 0, 1, ..."""
    rows = [(task, sample, name, q) for name, values in qualities.items() for sample, q in enumerate(values)]
    return pd.DataFrame(rows, columns=["task", "sample", "variant", "quality"])


def make_profile(**changes: Any) -> Profile:
    """The round-number profile, with some fields changed."""
    profile = Profile(
        name="round",
        model="toy",
        kv_bytes_per_token=1000,
        layers=4,
        variants=(RAW, KIVI4, KIVI2),
        size_accounting="nominal",
        size_ratio={RAW: 1.0, KIVI4: 0.5, KIVI2: 0.25},
        load_lines={},
        decode_lines={KIVI4: Line(2e-7), KIVI2: Line(3e-7, 50e-6)},
        encode_lines={KIVI4: Line(3e-6), KIVI2: Line(4e-6, 100e-6)},
        prefill=PrefillFit(0.0, 10e-6),
        tiers=TWO,
        host_link=None,
        quality=quality_rows({"raw": [1.0], "kivi:4": [0.9], "kivi:2": [0.6]}),
        provenance={},
        sha256="",
    )
    return replace(profile, **changes)


def make_trace(
    requests: Sequence[Sequence[int]],
    *,
    at_us: Sequence[int] | None = None,
    gap_us: int = 1_000_000,
    tokens: int | Sequence[int] = BLOCK,
    inputs: Sequence[int] | None = None,
    outputs: Sequence[int] | None = None,
    task: str | None = "qa",
) -> Trace:
    """Requests for blocks (numbered by first appearance), a second apart unless said otherwise.

    ``tokens`` may be one number, or one per distinct block; ``inputs`` are prompt lengths if not the blocks' sum;
    ``outputs`` are output tokens, 1 each unless given.
    """
    flat = np.array([block for blocks in requests for block in blocks], dtype=np.int64)
    sizes = np.full(int(flat.max(initial=0)) + 1, tokens) if isinstance(tokens, int) else np.array(tokens)
    lengths = [int(sizes[list(blocks)].sum()) if blocks else 0 for blocks in requests]
    arrivals = np.arange(len(requests)) * gap_us if at_us is None else np.array(at_us)
    return build_trace(
        arrival_ns=arrivals.astype(np.int64) * US,
        input_tokens=np.array(lengths if inputs is None else inputs, dtype=np.int64),
        output_tokens=np.array([1] * len(requests) if outputs is None else outputs, dtype=np.int64),
        block_counts=np.array([len(blocks) for blocks in requests], dtype=np.int64),
        block_keys=flat,
        occurrence_tokens=sizes[flat] if len(flat) else flat,
        task=None if task is None else np.zeros(len(requests), dtype=np.int64),
        meta={"name": "hand-made", "task_names": [] if task is None else [task]},
    )


def two_tiers(dram_blocks: float | None = None, ssd_blocks: float | None = None, **ssd: Any) -> tuple[TierSpec, ...]:
    """DRAM and SSD with room for so many raw blocks of 100 tokens; other fields of the SSD by name."""

    def room(blocks: float | None) -> int | None:
        return None if blocks is None else round(blocks * SIZE)

    return replace(DRAM, capacity_bytes=room(dram_blocks)), replace(SSD, capacity_bytes=room(ssd_blocks), **ssd)


@dataclass
class Scripted(Policy):
    """A policy that does what the test says.

    Args:
        plan: where blocks go, "dram raw" and so on.  A block's number says where it is admitted; a pair
            (request, block) where it goes in that request, admitted or hit; the rest is left out, or alone.
        room: (tier, victim block, where or None) in the order in which moves are offered when room is needed.
    """

    plan: dict[Any, str] = field(default_factory=dict)
    room: Sequence[tuple[str, int, str | None]] = field(default_factory=list)
    name: ClassVar[str] = "scripted"

    def _place(self, text: str | None, view: StoreView) -> Placement | None:
        return None if text is None else view.placement(*text.split())

    def admit(self, entry: Entry, view: StoreView) -> Placement | None:
        """As planned."""
        return self._place(self.plan.get((view.request, entry.key), self.plan.get(entry.key)), view)

    def on_hit(self, entry: Entry, view: StoreView) -> Placement | None:
        """As planned for this request, else where it is."""
        text = self.plan.get((view.request, entry.key))
        return entry.placement if text is None else self._place(text, view)

    def make_room(self, tier: int, need_bytes: int, view: StoreView) -> Iterator[Move]:
        """As planned; what is not stored there, or pinned, is passed over."""
        for name, block, text in self.room:
            entry = view.resident(block)
            if name == view.tiers[tier] and entry is not None and not entry.pins:
                yield Move(entry, self._place(text, view))


@dataclass
class Ticking(Scripted):
    """Scripted, with a rebalance every 100 us; ``at`` lists (time in us, block, where or None)."""

    at: Sequence[tuple[int, int, str | None]] = field(default_factory=list)
    period_s: ClassVar[float] = 1e-4

    def rebalance(self, view: StoreView) -> Iterable[Move]:
        """What is due now."""
        for time_us, block, text in self.at:
            entry = view.resident(block)
            if time_us * US == view.now_ns and entry is not None:
                yield Move(entry, self._place(text, view))


def make_engine(
    trace: Trace | Sequence[Sequence[int]],
    policy: Policy | str = "lru",
    *,
    tiers: tuple[TierSpec, ...] = TWO,
    profile: Profile | None = None,
    link: TierSpec | None = None,
    params: dict[str, Any] | None = None,
    seed: int = 0,
    check: Callable[[Engine], None] | None = check_engine,
    decode: DecodeSettings | None = None,
    **settings: Any,
) -> Engine:
    """An engine over a trace (or lists of blocks), ready to run; invariants are checked after each event."""
    trace = trace if isinstance(trace, Trace) else make_trace(trace)
    costs = build_costs(trace, profile or make_profile(), tiers, host_link=link, seed=seed)
    chosen = make_policy(policy, params or {}) if isinstance(policy, str) else policy
    given = EngineSettings(**settings)
    return Engine(trace, costs, chosen, given, host_link=link, decode=decode, after_event=check)


def run(trace: Trace | Sequence[Sequence[int]], policy: Policy | str = "lru", **options: Any) -> Engine:
    """``make_engine``, run to the end."""
    engine = make_engine(trace, policy, **options)
    engine.run()
    return engine


@dataclass(frozen=True)
class Row:
    """What the recorder keeps of one request, by name; times in ns."""

    id: int
    arrival: int
    load: int
    queue: int
    work: int
    hit_blocks: int
    hit_tokens: int
    quality: int
    slowest: int
    variant: int
    per_tier: tuple[int, ...]

    @property
    def ttft(self) -> int:
        """Arrival to first token."""
        return self.load + self.queue + self.work


def rows(engine: Engine) -> list[Row]:
    """Recorded requests in trace order."""
    found: list[Any] = sorted(engine.recorder.rows)
    return [Row(*(*row[:10], row[10:])) for row in found]


def times(engine: Engine) -> list[tuple[int, int, int]]:
    """(load, queue, compute) of each request, ns."""
    return [(row.load, row.queue, row.work) for row in rows(engine)]


def stored(engine: Engine) -> dict[int, str]:
    """Where each stored block is, as text."""
    names, variants = [tier.name for tier in engine.costs.tiers], engine.costs.variants
    return {
        entry.key: f"{names[entry.placement.tier]} {variants[entry.placement.variant]}"
        for entry in engine.store.residents
        if entry is not None and entry.placement is not None
    }


def ready_ns(engine: Engine, block: int) -> int:
    """When the bytes of a stored block have arrived."""
    entry = engine.store.residents[block]
    assert entry is not None and entry.transfer is not None and not entry.transfer.pending
    return entry.transfer.ready_ns


def random_trace(seed: int, *, requests: int = 60, families: int = 4, spread_us: int = 30_000) -> Trace:
    """Prompts that share prefixes, overlap in time and differ in length; some are empty, some end in a short block."""
    rng = np.random.default_rng(seed)
    keys: dict[tuple[int, ...], int] = {}
    lengths: list[int] = []
    asked, inputs = [], []
    for _ in range(requests):
        path: tuple[int, ...] = (int(rng.integers(families)),)
        blocks = []
        for _ in range(int(rng.integers(0, 7))):
            path = (*path, int(rng.integers(0, 3) == 0))
            if path not in keys:
                keys[path] = len(lengths)
                lengths.append(int(rng.choice([BLOCK, BLOCK, BLOCK, 37, 250])))
            blocks.append(keys[path])
        asked.append(blocks)
        inputs.append(max(0, sum(lengths[block] for block in blocks) + int(rng.choice([0, 0, 20, -10]))))
    arrivals = np.sort(rng.integers(0, spread_us, requests)).tolist()
    return make_trace(asked, at_us=arrivals, tokens=lengths or [BLOCK], inputs=inputs)


VARIANTS = ("raw", "kivi:4", "kivi:2")
EVERY_POLICY: list[tuple[str, dict[str, Any]]] = [
    ("recompute", {}),
    *((name, {"variant": v}) for name, found in POLICIES.items() if hasattr(found, "variant") for v in VARIANTS),
    ("lru", {"promote": False}),
    ("gdsf", {"cost": "recompute"}),
    ("s3fifo", {"small_share": 0.5}),
    *(("adaptcache", {"preset": p, "alpha": a}) for p in ("code", "paper") for a in (0.001, 1.0, 3000.0)),
    ("adaptcache", {"method": "free", "frequency": "decayed", "window_s": 0.01}),
    ("adaptcache", {"drop_after_uses": 2, "per": "step", "recompute": False}),
    *(("evicpress", {"alpha": a}) for a in (1e-5, 1e-3, 1.0)),
    ("evicpress", {"alpha": 3e-4, "frequency": "none", "per": "byte", "drop_from": "best"}),
    ("evicpress", {"alpha": 3e-3, "insert": "quality", "recompute": False}),
    ("evicpress", {"alpha": 1e-3, "reprofile_below": 0.001, "reprofile_s": 1e-4, "reprofile_queries": 2}),
    ("impress", {}),
    ("impress", {"removed": 0.5, "method": "kivi", "agreement": 0.7, "seed": 1}),
    ("kvserve", {}),
    ("kvserve", {"min_quality": 0.5, "epsilon": 0.5, "encode": True, "seed": 3}),
    *(("hitdensity", {"alpha": a}) for a in (0.001, 0.1, 3.0)),
    ("hitdensity", {"sample": 1, "unit_s": 0.001, "move_price": 0.0}),
    ("hitdensity", {"alpha": 0.01, "quality_floor": 0.8}),
    ("hitdensity", {"alpha": 1.0, "ttft_slo_s": 0.002}),
]
