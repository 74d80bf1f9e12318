"""EvicPress's workload: the published counts, equal visits, fitted means, and totals in bytes per model."""

import numpy as np
import pytest

from simkv.errors import ConfigError
from simkv.models import find_model
from simkv.traces.evicpress import EVICPRESS_DATASETS, EVICPRESS_MODELS, evicpress
from simkv.traces.generate import generate_trace


def test_counts() -> None:
    """555 contexts of 12 data sets; all are asked for once before any comes back, and then 50 times each: 27,750."""
    trace = generate_trace("evicpress", seed=0)
    assert (28_305, 555, 12) == (len(trace), trace.n_blocks, len(trace.task_names))
    assert list(range(555)) == trace.block_ids[:555].tolist()
    assert [50] * 555 == np.bincount(trace.block_ids[555:]).tolist()
    found = np.bincount(trace.task[:555], minlength=12).tolist()
    assert [38, 53, 46, 58, 44, 36, 43, 48, 47, 46, 48, 48] == found
    assert 555 == sum(count for count, _, _ in EVICPRESS_DATASETS.values())


def test_order_is_uniform() -> None:
    """Of the contexts' repeated requests, neighbours are unrelated: the rank correlation of a long lag is near 0."""
    ids = evicpress(seed=1).block_ids[555:].astype(float)
    assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < 0.03


def test_lengths_keep_the_mean_of_their_data_set() -> None:
    """Mean tokens of each data set are the fitted ones to 1 % (clipping at 300 remains), whatever the seed."""
    for seed in (0, 1):
        trace = evicpress(seed=seed, visits=0)
        for index, (_, mean, _) in enumerate(EVICPRESS_DATASETS.values()):
            assert pytest.approx(mean, rel=0.01) == trace.input_tokens[trace.task == index].mean()
        assert trace.input_tokens.min() >= 300


def test_spread_of_lengths() -> None:
    """Over many seeds, sd / mean of a data set approaches Table 2: narrativeqa .509, musique .130 (within 10 %)."""
    lengths = [evicpress(seed=seed, visits=0) for seed in range(30)]
    for name, spread in (("narrativeqa", 0.509), ("musique", 0.130)):
        task = list(EVICPRESS_DATASETS).index(name)
        found = [t.input_tokens[t.task == task] for t in lengths]
        assert pytest.approx(spread, rel=0.1) == np.mean([tokens.std(ddof=1) / tokens.mean() for tokens in found])


@pytest.mark.parametrize(
    ("model", "total_gb"),
    [
        ("llama-3.1-8b", 752),
        ("mistral-7b-v0.3", 812),
        ("qwen2.5-14b", 1162),
        ("qwen3-30b-a3b", 581),
        ("longchat-7b", 3420),
    ],
)
def test_totals(model: str, total_gb: float) -> None:
    """Raw KV of all contexts at each model's bytes per token, within 1 % of the fitted totals."""
    tokens = evicpress(seed=2, visits=0, model=model).block_tokens.astype(np.int64).sum()
    assert pytest.approx(total_gb, rel=0.01) == tokens * find_model(model).kv_bytes_per_token / 1e9
    assert EVICPRESS_MODELS[model][1] >= evicpress(seed=2, visits=0, model=model).input_tokens.max()


def test_first_pass_is_apart_from_the_arrivals() -> None:
    """First requests are ``first_gap_s`` apart; then arrivals have their own rate."""
    trace = evicpress(seed=0, visits=4, first_gap_s=2.0, rate_per_s=10.0, arrivals="uniform")
    assert {2_000_000_000} == set(np.diff(trace.arrival_ns[:556]).tolist())
    assert {100_000_000} == set(np.diff(trace.arrival_ns[555:]).tolist())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"model": "llama-3.1-8"}, "unknown EvicPress model 'llama-3.1-8'.*llama-3.1-8b"),
        ({"visits": -1}, "visits = -1 must be a whole number"),
        ({"first_gap_s": -1.0}, "first_gap_s = -1.0 must be a number"),
        ({"rate_per_s": 0.0}, "rate_per_s = 0.0 must be a number"),
    ],
)
def test_bad_options(option: dict, message: str) -> None:
    """Unknown models and numbers out of range are refused in one line."""
    with pytest.raises(ConfigError, match=message):
        evicpress(**option)
