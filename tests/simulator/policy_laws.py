"""Laws that hold for every policy.  Inherit them:

@pytest.mark.parametrize(("policy", "params"), [("my_package.policies:Mine", {"knob": 3})])
class TestMine(PolicyLaws): ...
"""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from simkv.errors import PolicyError
from simkv.simulator.engine import Engine
from simkv.simulator.entries import Entry, Placement
from simkv.simulator.policies import make_policy
from tests.simulator.helpers import (
    DRAM,
    SSD,
    random_trace,
    rows,
    run,
    stored,
    two_tiers,
)

NOWHERE = (replace(DRAM, capacity_bytes=1), replace(SSD, capacity_bytes=1))


class PinWatch:
    """Fails if an entry moves while somebody uses it."""

    def __init__(self) -> None:
        self.before: dict[int, tuple[Entry, Placement | None]] = {}
        self.watched = 0

    def __call__(self, engine: Engine) -> None:
        """After each event: what was in use before, and still is, has not moved."""
        for key, (entry, placement) in self.before.items():
            if entry.pins:
                assert engine.store.residents[key] is entry
                assert placement == entry.placement
                self.watched += 1
        used = [entry for entry in engine.store.residents if entry is not None and entry.pins]
        self.before = {entry.key: (entry, entry.placement) for entry in used}


class PolicyLaws:
    """Laws over ``policy`` (a name) and ``params``, which a subclass provides by parametrisation."""

    @pytest.mark.parametrize("touch", ["reverse", "forward"])
    @pytest.mark.parametrize("capacities", [(1, 2), (4, 6)], ids=str)
    def test_serves_everything_within_capacity(
        self, policy: str, params: dict[str, Any], capacities: tuple[float, float], touch: str
    ) -> None:
        """Every request is answered, and the ledgers, checked after each event, never exceed a tier."""
        engine = run(random_trace(11), policy, params=params, tiers=two_tiers(*capacities), touch=touch)
        assert len(engine.trace) == len(rows(engine))

    def test_same_run_same_bytes(self, policy: str, params: dict[str, Any]) -> None:
        """Two runs give the same rows and moves, also with one policy object for both: ``start`` starts afresh."""
        trace, reused = random_trace(12), make_policy(policy, params)
        runs = [
            run(trace, reused, tiers=two_tiers(3, 5), check=None),
            run(trace, reused, tiers=two_tiers(3, 5), check=None),
            run(trace, policy, params=params, tiers=two_tiers(3, 5), check=None),
        ]
        assert runs[0].recorder.rows == runs[1].recorder.rows == runs[2].recorder.rows
        assert runs[0].mover.rows == runs[1].mover.rows == runs[2].mover.rows

    def test_never_moves_what_is_in_use(self, policy: str, params: dict[str, Any]) -> None:
        """Under heavy overlap no entry moves, or is named in a move, between a request's pin and its release."""
        watch = PinWatch()
        trace = random_trace(13, requests=120, families=2, spread_us=200_000)
        run(trace, policy, params=params, tiers=two_tiers(3, 4, read_bytes_per_s=2 * 10**7), gpus=4, check=watch)
        assert watch.watched > 0 or policy == "recompute"

    def test_unlimited_room_misses_first_touches_only(self, policy: str, params: dict[str, Any]) -> None:
        """With room for everything, one request at a time, a request reuses its longest prefix asked for before."""
        trace = random_trace(14)
        engine = run(trace, policy, params=params, arrivals="closed")
        seen: set[int] = set()
        for row in rows(engine):
            blocks = trace.blocks_of(row.id).tolist()
            prefix = list(itertools.takewhile(seen.__contains__, blocks))
            assert (0 if policy == "recompute" else len(prefix)) == row.hit_blocks
            seen.update(blocks)
        assert 0 == engine.mover.counts.kinds[4]

    def test_no_room_at_all_means_recompute(self, policy: str, params: dict[str, Any]) -> None:
        """Where nothing fits, nothing is stored or written, and every prompt is computed in full."""
        engine = run(random_trace(15), policy, params=params, tiers=NOWHERE)
        assert {} == stored(engine)
        assert [0, 0] == engine.mover.counts.written
        assert {0} == {row.hit_blocks for row in rows(engine)}

    def test_quality_is_within_bounds(self, policy: str, params: dict[str, Any]) -> None:
        """A request's quality lies between that of its worst variant and 1."""
        engine = run(random_trace(16), policy, params=params, tiers=two_tiers(4, 9), arrivals="closed")
        worst = min(engine.costs.quality.score_ppb[0])
        for row, tokens in zip(rows(engine), engine.trace.input_tokens.tolist(), strict=True):
            assert worst * tokens <= row.quality <= 10**9 * tokens

    def test_unknown_parameter_names_the_nearest(self, policy: str, params: dict[str, Any]) -> None:
        """A misspelt parameter is an error in one line, with the known names."""
        with pytest.raises(PolicyError, match="unknown parameter of policy .* 'variantt'.*known: ") as caught:
            make_policy(policy, {**params, "variantt": "raw"})
        assert "\n" not in str(caught.value)

    def test_keeps_its_arguments(self, policy: str, params: dict[str, Any]) -> None:
        """The constructor stores its arguments unchanged, so that results can say what ran."""
        made = make_policy(policy, params)
        assert params == {key: getattr(made, key) for key in params}
