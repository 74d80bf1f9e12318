"""A bench of six short contexts of the small model, measured once, with two tiers on real memory and disk."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from simkv.profiler.sources import Source, open_source
from simkv.profiles import Profile
from simkv.testbed.bench import Bench, make_bench
from simkv.testbed.calibration import Sizes, StoredTier, measured_quality, with_speeds
from simkv.testbed.payloads import DiskPayloads, DramPayloads
from simkv.testbed.plan import Plan, parse_plan
from simkv.testbed.server import Server
from simkv.testbed.serving import OwnClock
from simkv.testbed.storing import settings_of_plan

TINY = {
    "variants": ["kivi:4", "kivi:2"],
    "dram": 400_000,
    "disk": 300_000,
    "rounds": 3,
    "requests": 24,
    "repeats": 1,
    "workload": {"tasks": ["qa", "code"], "contexts": 6, "shortest": 64, "longest": 128, "step": 64, "questions": 4},
}


@dataclass
class Rig:
    """What a replay needs."""

    plan: Plan
    source: Source
    bench: Bench
    server: Server
    profile: Profile
    sizes: Sizes
    tiers: list[StoredTier]
    clock: OwnClock

    def clear(self) -> None:
        """Forget all payloads."""
        for tier in self.tiers:
            for key in list(tier.payloads.sizes):
                tier.payloads.drop(key)


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """The rig, measured once."""
    plan = parse_plan(TINY)
    source = open_source(plan.model, plan.device)
    bench = make_bench(source, plan.workload, plan.contexts, plan.seed)
    server = Server(source.model, settings_of_plan(plan, source))
    folder: Path = tmp_path_factory.mktemp("payloads")
    tiers = [StoredTier("dram", plan.dram, DramPayloads()), StoredTier("ssd", plan.disk, DiskPayloads(folder))]
    clock = OwnClock()
    quality, sizes = measured_quality(plan, bench, server, lambda done, of: None)
    profile = with_speeds(quality, plan, bench, server, tiers, clock, lambda done, of: None)
    return Rig(plan, source, bench, server, profile, sizes, tiers, clock)


@pytest.fixture
def rig(measured: Rig) -> Iterator[Rig]:
    """The rig, with empty tiers."""
    measured.clear()
    yield measured
    measured.clear()
