"""What the simulator says of a replay, from the measured profile, before the replay.

What it is: the simulator's own tables and engine.  Two things that a profile can only give on average are known here
and put in: each context's own row of qualities, and the payloads' bytes at each length.  What it is not: real.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from simkv.errors import SimkvError
from simkv.profiles import Profile
from simkv.simulator.costs import CostTables, build_costs, transfer_ns
from simkv.simulator.engine import Engine
from simkv.simulator.entries import Placement
from simkv.simulator.metrics import requests_frame
from simkv.simulator.policies.base import Policy
from simkv.simulator.settings import EngineSettings
from simkv.testbed.bench import Bench, Requests
from simkv.testbed.calibration import Sizes
from simkv.traces.trace import Trace

__all__ = ["Decision", "Prediction", "check_policy", "exact_costs", "predict", "spaced"]

_PAUSES = 10
_NS_PER_S = 1_000_000_000

Decision = tuple[int, int, Placement | None, Placement | None]
"""One move: request, block, where it was, where it is."""


@dataclass(frozen=True)
class Prediction:
    """Requests as in SPECIFICATION.md section 8, with decode_s and prefill_s, which compute_s is the sum of."""

    requests: pd.DataFrame
    decisions: list[Decision]


def exact_costs(bench: Bench, requests: Requests, profile: Profile, sizes: Sizes) -> CostTables:
    """The simulator's tables, with each context's own qualities and each length's own bytes."""
    trace = requests.trace
    costs = build_costs(trace, profile, profile.tiers)
    first = np.zeros(trace.n_blocks, dtype=np.int64)
    first[trace.block_ids[::-1]] = requests.context[::-1]
    offsets = np.cumsum([0, *(workload.count for workload in bench.workloads)])
    places = [bench.places[number] for number in first.tolist()]
    size = [[sizes[variant, tokens] for tokens in costs.class_tokens] for variant in range(len(costs.variants))]
    return replace(
        costs,
        size=size,
        read=[[[transfer_ns(n, tier.read_bytes_per_s) for n in row] for row in size] for tier in costs.tiers],
        write=[[[transfer_ns(n, tier.write_bytes_per_s) for n in row] for row in size] for tier in costs.tiers],
        quality=replace(costs.quality, block_row=[int(offsets[task]) + sample for task, sample in places]),
    )


def spaced(trace: Trace, costs: CostTables) -> Trace:
    """The trace of a closed loop in which a request is sent when the one before it is over, background work included.

    Arrival times are whole seconds far enough apart for that, so that nothing queues.
    """
    slowest = sum(max(map(max, table)) for table in (costs.encode, costs.decode[-1], costs.write[-1], costs.read[-1]))
    slowest += max(costs.encode_fixed) + costs.prefill_base + costs.prefill[-1]
    pause = _NS_PER_S * (1 + _PAUSES * slowest // _NS_PER_S)
    return trace.transformed("one request at a time", arrival_ns=np.arange(len(trace), dtype=np.int64) * pause)


def check_policy(policy: Policy) -> None:
    """Raises SimkvError for a policy that acts by the clock, which a replay does not follow."""
    if policy.period_s > 0 or type(policy).idle_work_s is not Policy.idle_work_s:
        raise SimkvError(f"policy {policy.name}: acts between requests, which validate does not replay")


def predict(trace: Trace, costs: CostTables, policy: Policy) -> Prediction:
    """One run of the simulator's engine.

    Raises:
        SimkvError: see ``check_policy``.
    """
    check_policy(policy)
    engine = Engine(trace, costs, policy, EngineSettings(reuse="always"))
    engine.run()
    frame = requests_frame(engine)
    decode = np.zeros(len(frame))
    variants = {name: number for number, name in enumerate(costs.variants)}
    tiers = {tier.name: number for number, tier in enumerate(costs.tiers)}
    for row, (tier, variant) in enumerate(zip(frame["served_by"], frame["variant"], strict=True)):
        if tier in tiers:
            size_class = costs.block_class[int(trace.block_ids[row])]
            t, v = tiers[tier], variants[variant]
            decode[row] = (costs.decode_fixed[t][v] + costs.decode[t][v][size_class]) / 1e9
    frame["decode_s"] = decode
    frame["prefill_s"] = frame["compute_s"] - decode
    moves = np.array(engine.mover.rows, dtype=np.int64).reshape(-1, 10)[:, [1, 2, 4, 5, 6, 7]].tolist()
    return Prediction(frame, [(r, b, _placement(t, v), _placement(u, w)) for r, b, t, v, u, w in moves])


def _placement(tier: int, variant: int) -> Placement | None:
    return None if tier < 0 else Placement(tier, variant)
