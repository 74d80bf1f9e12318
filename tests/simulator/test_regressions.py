"""Faults that reviewers found, each kept from coming back."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from simkv.config import config_hash, parse_run
from simkv.errors import ConfigError, ProfileError
from simkv.profiles import TierSpec, compose, load_profile
from simkv.simulator.entries import Move
from simkv.simulator.policies.base import Policy
from simkv.simulator.run import simulate
from simkv.traces.trace import Trace, build_trace

TASK = {"task_names": ["qmsum"]}


def contexts(requests: list[int], tokens: dict[int, int], gap_s: float = 10.0) -> Trace:
    """A trace of whole contexts: request i asks for context ``requests[i]``."""
    lengths = [tokens.get(key, 1000) for key in requests]
    return build_trace(
        arrival_ns=(np.arange(len(requests)) * round(gap_s * 1e9)).astype(np.int64),
        input_tokens=lengths,
        output_tokens=[1] * len(requests),
        block_counts=[1] * len(requests),
        block_keys=requests,
        occurrence_tokens=lengths,
        task=[0] * len(requests),
        meta={"name": "contexts", **TASK},
    )


@dataclass
class Shrinker(Policy):
    """Stores raw; when room is needed, shrinks every entry in one list of moves."""

    name = "shrinker"

    def start(self, view):  # type: ignore[no-untyped-def]
        self.raw, self.small = view.placement(0, "raw"), view.placement(0, "kivi:4")
        self.entries = []
        self.calls = 0

    def admit(self, entry, view):  # type: ignore[no-untyped-def]
        self.entries.append(entry)
        return self.raw

    def make_room(self, tier, need_bytes, view):  # type: ignore[no-untyped-def]
        self.calls += 1
        return iter([Move(e, self.small) for e in self.entries if e.placement == self.raw])


def test_a_list_of_shrinks_is_carried_out_once() -> None:
    """One request for room is one call of the policy: three thousand shrinks neither recurse nor start it anew."""
    count = 3000
    trace = contexts([*range(count), count], {**dict.fromkeys(range(count), 10), count: 20_000}, gap_s=1.0)
    profile = load_profile("llama-3.1-8b-a100")
    policy = Shrinker()
    room = (count * 10 + 1000) * profile.kv_bytes_per_token
    result = simulate(trace, profile, policy, tiers={"dram": room}, arrivals="closed")
    assert 1 == policy.calls
    assert 0 == result.summary["refused"]
    assert 2000 < (result.moves["kind"] == "recompression").sum()


def test_warm_up_counts_from_when_requests_were_sent() -> None:
    """In a closed loop, one second of warm-up leaves out what was sent in the first second, not by trace time."""
    trace = contexts([0] * 20, {0: 10_000}, gap_s=1000.0)
    profile = load_profile("llama-3.1-8b-a100")
    result = simulate(trace, profile, "recompute", arrivals="closed", warmup="5 s")
    sent = result.requests["arrival_s"]
    assert (sent >= 5.0).tolist() == result.requests["measured"].tolist()
    assert 0 < result.requests["measured"].sum() < 20


def test_measured_loads_include_the_link() -> None:
    """Load times measured from end to end cannot have a host link, or another latency, added."""
    profile = load_profile("adaptcache-a100-1gbps")
    link = TierSpec("host_link", None, 16 * 10**9, 16 * 10**9)
    with pytest.raises(ConfigError, match="host_link: profile adaptcache-a100-1gbps has load times"):
        simulate(contexts([0], {}), profile, host_link=link)
    slower = [replace(tier, latency_s=0.5) for tier in profile.tiers]
    with pytest.raises(ConfigError, match=r"tiers\.dram\.latency"):
        simulate(contexts([0], {}), profile, tiers=slower)


def test_load_lines_of_other_sizes_are_told() -> None:
    """A run on sizes of one profile and load lines of another names the variants, and one on bandwidths does not."""
    small = load_profile("small-model-cpu")
    for speeds, told in (
        ("adaptcache-a100-1gbps", "kivi:2 at 0.213 of raw (loads as at 0.188)"),
        ("llama-3.1-8b-a100", ""),
    ):
        profile = compose(small, load_profile(speeds)).with_tasks({"qmsum": "aggregation"})
        assert told == "".join(simulate(contexts([0], {}), profile).summary["warnings"]).rpartition(", ")[2]


def test_a_profile_without_quality_is_named() -> None:
    """Speeds alone are not enough to replay a trace, and the error says so."""
    profile = load_profile("llama-3.1-8b-a100")
    bare = replace(profile, quality=profile.quality.iloc[:0])
    with pytest.raises(ProfileError, match="has no quality rows"):
        simulate(contexts([0], {}), bare)


def test_every_tier_must_hold_the_smallest_entry() -> None:
    """A capacity written without its unit is refused instead of being passed through."""
    with pytest.raises(ConfigError, match=r"tiers\.dram\.capacity: 64 B cannot hold even the smallest entry"):
        simulate(contexts([0], {}), load_profile("llama-3.1-8b-a100"), tiers={"dram": 64})


def test_a_saturated_write_channel_is_told() -> None:
    """Demotions faster than the SSD takes them give a warning with the wait; an idle one gives none."""
    profile = load_profile("llama-3.1-8b-a100")
    slow = [profile.tiers[0], replace(profile.tiers[1], write_bytes_per_s=10**7)]
    slow[0] = replace(slow[0], capacity_bytes=2000 * profile.kv_bytes_per_token)
    result = simulate(contexts(list(range(30)), {}, gap_s=1.0), profile, tiers=slow)
    (warning,) = result.summary["warnings"]
    assert warning.startswith("ssd: writes waited up to")
    assert result.summary["write_wait_max_s_ssd"] > 30
    assert [] == simulate(contexts([0, 1], {}), profile).summary["warnings"]


def test_ssd_bytes_are_counted_whatever_the_tier_is_called() -> None:
    """A tier with an endurance counts as SSD; without any such tier the figure is absent, not zero."""
    profile = load_profile("llama-3.1-8b-a100")
    small = replace(profile.tiers[0], capacity_bytes=1500 * profile.kv_bytes_per_token)
    flash = replace(profile.tiers[1], name="flash")
    written = simulate(contexts([0, 1, 2], {}), profile, tiers=[small, flash]).summary
    assert 2 * 1000 * profile.kv_bytes_per_token == written["ssd_written_bytes"]
    assert simulate(contexts([0], {}), profile, tiers=[profile.tiers[0]]).summary["ssd_written_bytes"] is None


def test_identity_of_a_run_knows_the_layers(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Two models of equal bytes and different layers are different runs: overlap depends on the layers."""
    hashes = set()
    for layers, heads in ((32, 8), (64, 4)):
        shape = f'"num_hidden_layers": {layers}, "num_key_value_heads": {heads}, "num_attention_heads": 32'
        path = tmp_path / f"{layers}.json"
        path.write_text(f'{{{shape}, "hidden_size": 4096, "max_position_embeddings": 8192}}')
        table = {"model": str(path), "trace": {"generate": "zipf"}, "profile": {"name": "p"}, "policy": {"name": "lru"}}
        hashes.add(config_hash(parse_run(table), "t", "p", "1"))
    assert 2 == len(hashes)


def test_what_was_computed_is_stored_exactly() -> None:
    """A stored lossy copy behind a hole, recomputed and put away raw, has raw quality and costs no decoding."""
    from tests.simulator.helpers import make_trace, run, two_tiers

    engine = run(make_trace([[0, 1], [0, 1]]), Rewriter(), tiers=two_tiers(9, 9))
    entry = engine.store.residents[1]
    assert entry is not None and entry.placement is not None
    raw = engine.costs.quality.score_ppb[engine.costs.quality.block_row[1]][0]
    assert (0, raw, 0) == (entry.placement.variant, entry.quality_ppb, engine.mover.counts.recodings)


@dataclass
class Rewriter(Policy):
    """Leaves out block 0; stores block 1 lossy at first, raw when it is asked for again."""

    name = "rewriter"

    def start(self, view):  # type: ignore[no-untyped-def]
        self.raw, self.small = view.placement(0, 0), view.placement(0, 1)

    def admit(self, entry, view):  # type: ignore[no-untyped-def]
        return None if entry.key == 0 else self.small

    def on_hit(self, entry, view):  # type: ignore[no-untyped-def]
        return self.raw
