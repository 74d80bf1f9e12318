"""The committed measured profile: what the simulator charges at every measured point, against what was measured."""

import pytest

from simkv.profiles import Profile, Variant, load_profile
from simkv.simulator.costs import CostTables, build_costs
from simkv.simulator.step_times import measured_steps
from tests.simulator.helpers import make_trace

MOST = 0.1


@pytest.fixture(scope="module")
def profile() -> Profile:
    """Speeds, tiers and quality of the small model."""
    return load_profile("small-model-cpu-timed")


@pytest.fixture(scope="module")
def costs(profile: Profile) -> CostTables:
    """Of whole contexts as long as the measured ones."""
    lengths = sorted(set(profile.speed_rows.loc[profile.speed_rows["what"] == "decode", "tokens"].tolist()))
    contexts = [[number] for number in range(len(lengths))]
    return build_costs(make_trace(contexts, tokens=lengths, task="qa"), profile, profile.tiers)


def test_decoding_is_within_ten_percent_of_every_measured_point(profile: Profile, costs: CostTables) -> None:
    """Lines where they fit, measured points elsewhere: as the tables of a run have them, from either tier."""
    rows = profile.speed_rows[profile.speed_rows["what"] == "decode"]
    assert len(rows) == 4 * (len(profile.variants) - 1)
    for name, tokens, seconds in zip(rows["variant"], rows["tokens"], rows["seconds"], strict=True):
        variant, size = profile.variants.index(Variant.parse(name)), costs.class_tokens.index(tokens)
        for fixed, blocks in zip(costs.decode_fixed, costs.decode, strict=True):
            assert abs(fixed[variant] + blocks[variant][size] - seconds * 1e9) <= MOST * seconds * 1e9 + 2, (
                name,
                tokens,
            )


def test_prefill_is_within_ten_percent_of_every_measured_point(profile: Profile, costs: CostTables) -> None:
    """Whole prompts and those behind cached tokens, from the table of positions."""
    rows = profile.speed_rows[profile.speed_rows["what"] == "prefill"]
    assert {0} < set(rows["cached"])
    for new, cached, seconds in zip(rows["tokens"], rows["cached"], rows["seconds"], strict=True):
        found = costs.prefill_ns(cached, cached + new)
        assert abs(found - seconds * 1e9) <= MOST * seconds * 1e9, (new, cached)


def test_steps_are_the_measured_ones(profile: Profile) -> None:
    """At every measured batch and context, to the rounding of picoseconds."""
    steps = measured_steps(profile, None)
    assert profile.decode_steps
    for batch, context, seconds in profile.decode_steps:
        assert pytest.approx(seconds * 1e12, abs=1) == steps.elapsed_ps(batch, batch * context, 1)


def test_steps_rise_in_batch_and_context(profile: Profile) -> None:
    """To ten percent: more sequences, longer ones, or both never take less time, as an outlier would make them."""
    for batch, context, seconds in profile.decode_steps:
        for fewer, shorter, before in profile.decode_steps:
            if fewer <= batch and shorter <= context:
                assert before * (1 - MOST) <= seconds, ((fewer, shorter), (batch, context))


def test_no_step_rises_beyond_its_work(profile: Profile) -> None:
    """Doubling batch or context at most doubles a step's time, and a quarter more: the largest has none above it."""
    steps = {(batch, context): seconds for batch, context, seconds in profile.decode_steps}
    for (batch, context), seconds in steps.items():
        for half in ((batch / 2, context), (batch, context / 2)):
            if half in steps:
                assert seconds <= 2.5 * steps[half], (batch, context)
