"""The bound is never beaten: every policy, many settings of the engine, and policies that place at random.

``utilities`` is what a finished run got; a bound that is too low for any alpha fails.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import pytest

from simkv.profiles import RAW, Line, PrefillFit, Profile, TierSpec
from simkv.simulator.bounds import Bound, bound
from simkv.simulator.engine import Engine
from simkv.simulator.entries import Entry, Move, Placement
from simkv.simulator.policies import POLICIES, Policy
from simkv.simulator.view import StoreView
from simkv.traces.generate import generate_trace
from simkv.traces.trace import Trace
from simkv.traces.transform import assign_tasks
from tests.simulator.helpers import (
    EVERY_POLICY,
    KIVI2,
    KIVI4,
    make_profile,
    quality_rows,
    random_trace,
    rows,
    run,
    two_tiers,
)
from tests.simulator.test_batching import decoding

ALPHAS = (0.0, 0.003, 0.1)
LINK = TierSpec("host_link", None, 10**9, 10**9, latency_s=2e-5)
MANY = [(name, params) for name, params in EVERY_POLICY if name in POLICIES]

# Profiles whose lines have positive or negative constants, a quadratic prefill, a floor, spread between contexts.
PROFILES: dict[str, Profile] = {
    "round": make_profile(),
    "spread": make_profile(
        quality=quality_rows({"raw": [1.0, 0.98], "kivi:4": [0.95, 0.7], "kivi:2": [0.9, 0.3]}),
        prefill=PrefillFit(-0.0005, 9e-6, 2e-9),
    ),
    "fixed": make_profile(
        prefill=PrefillFit(0.0008, 5e-6, 0.0, 0.002),
        decode_lines={KIVI4: Line(2e-7, -2e-5), KIVI2: Line(3e-7, 3e-4)},
        load_lines={
            (tier, variant): Line(per_token, fixed if variant != RAW or tier == "dram" else -6e-4)  # two blocks: 0 s
            for tier, per_token, fixed in (("dram", 1e-6, 2e-5), ("ssd", 3e-6, -1e-4))
            for variant in make_profile().variants
        },
    ),
}

SETTINGS: dict[str, dict[str, Any]] = {
    "closed": {"arrivals": "closed"},
    "closed, layerwise": {"arrivals": "closed", "overlap": "layerwise", "reuse": "when_faster"},
    "closed, three at a time": {"arrivals": "closed", "concurrency": 3, "gpus": 2},
    "closed, link": {"arrivals": "closed", "link": LINK},
    "open": {},
    "open, when faster": {"reuse": "when_faster", "gpus": 3, "touch": "forward"},
    "open, layerwise, link": {"overlap": "layerwise", "link": replace(LINK, channels=3), "gpus": 2},
}


def utilities(engine: Engine, alphas: tuple[float, ...] = ALPHAS) -> np.ndarray:
    """Mean of alpha x quality - TTFT (s) over all requests of a finished run, per alpha."""
    done = rows(engine)
    totals = engine.trace.input_tokens.tolist()
    quality = np.mean([row.quality / (total * 1e9) if total else 1.0 for row, total in zip(done, totals, strict=True)])
    delay = np.mean([row.ttft / 1e9 for row in done])
    return np.array(alphas) * quality - delay


def bound_of(trace: Trace, profile: Profile, tiers: tuple[TierSpec, ...], settings: Mapping[str, Any]) -> Bound:
    """The bound for what ``helpers.run`` replays with these settings."""
    options = {"reuse": "always", **settings}
    link = options.pop("link", None)
    return bound(trace, profile, tiers=tiers, host_link=link, alphas=ALPHAS, ladder=(12,), **options)


@lru_cache(maxsize=64)
def _world(kind: str, profile: str, setting: str, channels: int) -> tuple[Trace, tuple[TierSpec, ...], Bound]:
    if kind == "chains":
        trace = random_trace(21, requests=80, spread_us=120_000)
    else:
        made = generate_trace("sessions", seed=3, sessions=25, rate_per_s=40.0, think_s=0.4)
        trace = assign_tasks(made, "qa", 0)
    tiers = two_tiers(6, 14, channels=channels) if kind == "chains" else two_tiers(40, 120, channels=channels)
    return trace, tiers, bound_of(trace, PROFILES[profile], tiers, SETTINGS[setting])


def never_beaten(engine: Engine, best: Bound) -> None:
    """Fails if a run got more than its bound."""
    assert (utilities(engine) <= best.utilities + 1e-9).all()


@pytest.mark.parametrize("setting", list(SETTINGS))
@pytest.mark.parametrize("profile", list(PROFILES))
@pytest.mark.parametrize("kind", ["chains", "chats"])
def test_no_policy_beats_it(kind: str, profile: str, setting: str) -> None:
    """Every policy of the table, in every variant, stays below the bound (on chats a third of them in turn)."""
    if profile == "fixed" and "link" in SETTINGS[setting]:
        pytest.skip("load lines measured from end to end have no link of their own")
    number = list(SETTINGS).index(setting) + list(PROFILES).index(profile)
    trace, tiers, best = _world(kind, profile, setting, 1 + number % 3)
    for name, params in MANY if kind == "chains" else MANY[number % 3 :: 3]:
        made = run(trace, name, params=params, tiers=tiers, profile=PROFILES[profile], check=None, **SETTINGS[setting])
        never_beaten(made, best)


@dataclass
class Dice(Policy):
    """Places at random, under assumption A: raises and promotes at an entry's own accesses only."""

    seed: int = 0
    good: float = 0.5
    name: ClassVar[str] = "dice"

    def start(self, view: StoreView) -> None:
        """Fresh dice."""
        self._dice = np.random.default_rng(self.seed)
        self._places = [view.placement(t, v) for t in range(len(view.tiers)) for v in range(len(view.variants))]
        self._here: list[dict[int, Entry]] = [{} for _ in view.tiers]

    def _any(self) -> Placement:
        if self._dice.random() < self.good:
            return self._places[0]
        return self._places[self._dice.integers(len(self._places))]

    def admit(self, entry: Entry, view: StoreView) -> Placement | None:
        """Anywhere."""
        return self._any()

    def on_hit(self, entry: Entry, view: StoreView) -> Placement | None:
        """Anywhere."""
        return self._any()

    def placed(self, entry: Entry, old: Placement | None) -> None:
        """Keep track."""
        if old is not None:
            del self._here[old.tier][entry.key]
        if entry.placement is not None:
            self._here[entry.placement.tier][entry.key] = entry

    def make_room(self, tier: int, need_bytes: int, view: StoreView) -> Iterator[Move]:
        """A random entry to a random smaller or slower place, or out."""
        while movable := [entry for entry in self._here[tier].values() if not entry.pins]:
            entry = movable[self._dice.integers(len(movable))]
            lower = [
                place
                for place in self._places
                if place.tier >= tier
                and view.size_bytes(entry, place.variant) <= entry.size_bytes
                and (place.tier > tier or view.size_bytes(entry, place.variant) < entry.size_bytes)
            ]
            choice = self._dice.integers(len(lower) + 1)
            yield Move(entry, lower[choice] if choice < len(lower) else None)


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_dice_do_not_beat_it(setting: str) -> None:
    """Random placements, with all the moves that assumption A allows, stay below the bound, crowded or not."""
    for seed in range(4):
        trace = random_trace(seed, requests=60, spread_us=(20_000, 200_000, 2_000_000)[seed % 3])
        tiers = two_tiers(2 + seed, 6, channels=1 + seed % 3)
        profile = PROFILES["spread"]
        best = bound_of(trace, profile, tiers, SETTINGS[setting])
        for dice in range(3):
            policy = Dice(seed=dice, good=0.3 * dice)
            never_beaten(run(trace, policy, tiers=tiers, profile=profile, check=None, **SETTINGS[setting]), best)


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_pristine_copies(setting: str) -> None:
    """With raw copies on an unlimited third tier, which serves no reads, no policy beats the bound of the other two."""
    trace = random_trace(22, requests=80, spread_us=200_000)
    remote = TierSpec("remote", None, 10**8, 10**8)
    tiers = (*two_tiers(4, 8), remote)
    options = {**SETTINGS[setting], "pristine": True}
    best = bound_of(trace, PROFILES["round"], tiers, options)
    for name, params in [*MANY, ("dice", {})]:
        policy: Policy | str = Dice() if name == "dice" else name
        never_beaten(run(trace, policy, params=params, tiers=tiers, check=None, **options), best)


@pytest.mark.parametrize("setting", ["closed", "closed, layerwise", "open"])
def test_roomier_tiers_never_lower_it(setting: str) -> None:
    """More DRAM or more SSD gives at least as much, for every alpha (prices are found to a thousandth of the delay)."""
    trace = random_trace(23, requests=100, spread_us=300_000)
    before = None
    for dram, ssd in [(1, 1), (1, 4), (2, 4), (4, 4), (4, 12), (12, 12), (12, None), (None, None)]:
        found = bound_of(trace, PROFILES["spread"], two_tiers(dram, ssd), SETTINGS[setting])
        if before is not None:
            assert (before.utilities <= found.utilities + 1e-3 * np.abs(found.utilities[0])).all()
        before = found


def test_room_for_everything_is_reached_exactly() -> None:
    """With unlimited DRAM, one request at a time, alpha large: every policy that keeps raw copies gets the bound."""
    trace = random_trace(24)
    tiers = two_tiers()
    for overlap in ("none", "layerwise"):
        settings = {"arrivals": "closed", "overlap": overlap}
        found = bound_of(trace, make_profile(), tiers[:1], settings)
        reached = utilities(run(trace, "lru", tiers=tiers[:1], check=None, **settings))
        assert reached[-1] - 1e-12 <= found.utilities[-1] <= reached[-1] + 1e-4


@pytest.mark.parametrize(("concurrency", "chunk"), [(1, None), (1, 16), (2, 16)])
def test_decoding_only_adds(concurrency: int, chunk: int | None) -> None:
    """As above, with answers of 20 ms and more in steps of 1 us: nothing changes for requests one at a time.

    Two at a time, one always decodes while the other is prefilled in chunks, after it has waited for a step's end.
    """
    answers = 20_000 + 100 * np.arange(60, dtype=np.int32)
    trace = random_trace(24).transformed("answers", output_tokens=answers)
    tiers, settings = two_tiers()[:1], {"arrivals": "closed", "concurrency": concurrency}
    mode = {"decode": "prefill_first"} if chunk is None else {"decode": "chunked", "chunk_tokens": chunk}
    found = bound_of(trace, make_profile(), tiers, {**settings, **mode, "step_base": "1 us"})
    made = run(trace, "lru", tiers=tiers, check=None, decode=decoding(4, chunk, base_us=1), **settings)
    reached = utilities(made)[-1]
    assert 60 == len(made.recorder.last_token_ns)
    assert reached - 1e-12 <= found.utilities[-1] <= reached + 1e-4
