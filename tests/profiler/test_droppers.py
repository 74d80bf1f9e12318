"""Token droppers: their choices against naive references and against kvpress, budgets, and what is stored."""

import math
import os
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from simkv.profiler.compressors.base import CompressorError, KVCache, PrefillContext, Shape
from simkv.profiler.compressors.dropping import Dropper
from simkv.profiler.compressors.h2o import H2O
from simkv.profiler.compressors.keydiff import KeyDiff
from simkv.profiler.compressors.knorm import Knorm
from simkv.profiler.compressors.payload import PayloadError, pack, unpack
from simkv.profiler.compressors.pyramidinfer import PyramidInfer
from simkv.profiler.compressors.pyramidkv import PyramidKV
from simkv.profiler.compressors.snapkv import SnapKV
from simkv.profiler.compressors.streamingllm import StreamingLLM
from simkv.profiler.compressors.tova import TOVA
from tests.profiler.prefills import prefill

KVPRESS_PYTHON = os.environ.get("SIMKV_KVPRESS_PYTHON", "")
ORACLE = Path(__file__).with_name("kvpress_oracle.py")
UNIFORM = [StreamingLLM(), Knorm(), KeyDiff(), SnapKV(window=8), H2O(), TOVA()]
ALL = [*UNIFORM, PyramidKV(window=8), PyramidInfer()]


def named(dropper: Dropper) -> str:
    return dropper.name


def per_head(kept: Tensor, heads: int) -> list[list[int]]:
    return kept.expand(heads, -1).tolist()


def highest(scores: list[float], count: int) -> list[int]:
    """Positions of the ``count`` highest scores, ascending; of equal ones the earlier."""
    return sorted(sorted(range(len(scores)), key=lambda token: (-scores[token], token))[:count])


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(logit - max(logits)) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


def dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def snapkv_scores(queries: list[list[list[float]]], keys: list[list[float]], window: int, kernel: int) -> list[float]:
    """SnapKV's scores of the tokens before the window for one KV head, by loops over its query heads."""
    tokens, earlier = len(keys), len(keys) - window
    total = [0.0] * earlier
    for head in queries:
        mean = [0.0] * earlier
        for place in range(tokens - window, tokens):
            logits = [dot(head[place], key) / math.sqrt(len(key)) for key in keys[: place + 1]]
            for token, weight in enumerate(softmax(logits)[:earlier]):
                mean[token] += weight / window
        for token in range(earlier):
            near = range(max(0, token - kernel // 2), min(earlier, token + kernel // 2 + 1))
            total[token] += sum(mean[other] for other in near) / kernel
    return [score / len(queries) for score in total]


@pytest.mark.parametrize("dropper", UNIFORM, ids=named)
@pytest.mark.parametrize(("tokens", "knob", "count"), [(1, "0.1", 1), (9, "0.1", 1), (100, "0.29", 29), (50, "1", 50)])
def test_kept_is_the_share_of_tokens_but_at_least_one(dropper: Dropper, tokens: int, knob: str, count: int) -> None:
    """max(1, int(T r)) tokens stay in every layer; the last bit of a product like 100 * 0.29 = 28.99... costs none."""
    cache, context = prefill(tokens)
    assert [count] * 3 == [kept.shape[-1] for kept in dropper.choose(cache, context, knob)]


def test_streamingllm_keeps_sinks_and_the_recent() -> None:
    """By hand: 12 tokens, half kept, 4 sinks: 0 1 2 3 and the last two."""
    cache, context = prefill(12)
    assert [0, 1, 2, 3, 10, 11] == StreamingLLM().choose(cache, context, "0.5")[0].tolist()
    assert [0, 11] == StreamingLLM(sinks=1).choose(cache, context, "0.17")[2].tolist()
    assert [0, 1] == StreamingLLM().choose(cache, context, "0.17")[0].tolist()


def test_knorm_keeps_the_lowest_norms_as_loops_do() -> None:
    """Per head the quarter of keys with the smallest norm; the highest with keep="high"."""
    cache, context = prefill(61)
    for layer, keys in enumerate(cache.keys):
        norms = [[math.sqrt(dot(key, key)) for key in head] for head in keys.tolist()]
        low = Knorm().choose(cache, context, "0.25")[layer].tolist()
        high = Knorm(keep="high").choose(cache, context, "0.25")[layer].tolist()
        assert [highest([-norm for norm in head], 15) for head in norms] == low
        assert [highest(head, 15) for head in norms] == high


def test_keydiff_keeps_keys_unlike_the_mean_as_loops_do() -> None:
    """Per head the keys of lowest cosine to the mean of the normalised keys."""
    cache, context = prefill(61)
    for layer, keys in enumerate(cache.keys):
        expected = []
        for head in keys.tolist():
            unit = [[x / math.sqrt(dot(key, key)) for x in key] for key in head]
            anchor = [sum(column) / len(unit) for column in zip(*unit, strict=True)]
            expected.append(highest([-dot(key, anchor) for key in unit], 30))
        assert expected == KeyDiff().choose(cache, context, "0.5")[layer].tolist()


@pytest.mark.parametrize("group", [1, 3])
def test_snapkv_keeps_what_loops_keep(group: int) -> None:
    """Causal softmax of the window's queries, pooled, averaged over the group; the window stays: MHA and GQA."""
    cache, context = prefill(61, layers=2, group=group, head_dim=8)
    assert context.queries is not None
    for layer, kept in enumerate(SnapKV(window=7).choose(cache, context, "0.5")):
        queries = context.queries[layer].unflatten(0, (2, group)).tolist()
        expected = [
            highest(snapkv_scores(queries[head], keys, 7, 5), 30 - 7) + list(range(54, 61))
            for head, keys in enumerate(cache.keys[layer].tolist())
        ]
        assert expected == kept.tolist()


def test_snapkv_within_its_window_keeps_the_most_recent() -> None:
    """A budget of 6 tokens under a window of 8, and contexts of a window and less: the last tokens."""
    for tokens, knob, count in ((61, "0.1", 6), (8, "0.5", 4), (5, "0.5", 2), (1, "0.5", 1)):
        cache, context = prefill(tokens)
        expected = list(range(tokens - count, tokens))
        assert [expected, expected] == SnapKV(window=8).choose(cache, context, knob)[0].tolist()


def test_h2o_keeps_heavy_hitters_and_the_recent_as_loops_do() -> None:
    """Half of the kept tokens are the last ones, the rest received the most attention per visible query."""
    cache, context = prefill(61)
    assert context.attention is not None
    for layer, kept in enumerate(H2O().choose(cache, context, "0.5")):
        mass = context.attention[layer].tolist()
        mean = [[(mass[2 * head][token] + mass[2 * head + 1][token]) / 2 for token in range(46)] for head in range(2)]
        assert [highest(scores, 15) + list(range(46, 61)) for scores in mean] == kept.tolist()


@pytest.mark.parametrize("group", [1, 3])
def test_tova_keeps_what_the_last_query_attends_to_as_loops_do(group: int) -> None:
    """One choice for all heads: the last query's weights, mean over all query heads; the last token stays."""
    cache, context = prefill(61, layers=2, group=group, head_dim=8)
    assert context.queries is not None
    for layer, kept in enumerate(TOVA().choose(cache, context, "0.5")):
        keys, queries = cache.keys[layer].tolist(), context.queries[layer].tolist()
        total = [0.0] * 61
        for head, query in enumerate(queries):
            logits = [dot(query[-1], key) / math.sqrt(8) for key in keys[head // group]]
            total = [sum(pair) for pair in zip(total, softmax(logits), strict=True)]
        assert [*highest(total[:60], 29), 60] == kept.tolist()


def test_tova_keeps_the_last_token_though_nothing_attends_to_it() -> None:
    """A last key that points away from the last query gets no weight, and still is the one token that stays."""
    cache, context = prefill(20)
    assert context.queries is not None
    for layer, keys in enumerate(cache.keys):
        keys[:, -1] = -100 * context.queries[layer][:, -1].mean(dim=0)
    assert [[19], [19], [19]] == [kept.tolist() for kept in TOVA().choose(cache, context, "0.05")]


def test_pyramidkv_budgets_are_an_arithmetic_sequence() -> None:
    """By hand: 1000 tokens, r = 0.3, window 50, beta 5, 5 layers: B = 250: 450 down to 50, and the window."""
    shape = Shape(5, 2, 1000, 16, "f16")
    assert [500, 400, 300, 200, 100] == PyramidKV(window=50, beta=5).counts(shape, 0.3)
    assert [1000, 950, 900, 850, 800] == PyramidKV(window=50, beta=5).counts(shape, 0.9)
    assert [50] * 5 == PyramidKV(window=50, beta=5).counts(shape, 0.05)


def test_pyramidkv_makes_snapkvs_choice_within_its_budget() -> None:
    """Each layer keeps what SnapKV would keep with that layer's count."""
    cache, context = prefill(80)
    pyramid = PyramidKV(window=8).choose(cache, context, "0.5")
    counts = [kept.shape[-1] for kept in pyramid]
    assert 3 * 40 == sum(counts)
    assert counts[0] > counts[1] > counts[2]
    for layer, kept in enumerate(pyramid):
        same = SnapKV(window=8).choose(cache, context, str(counts[layer] / 80))[layer]
        assert torch.equal(same, kept)


def test_pyramidinfer_at_its_published_point() -> None:
    """At the schedule's own mean, 32 layers keep 0.2 + 0.8 c, c the product of factors 0.9 + 0.1 (1 + cos) / 2."""
    context, shares = 1.0, []
    for layer in range(32):
        shares.append(0.2 + 0.8 * context)
        context *= 0.9 + 0.1 * (1 + math.cos(math.pi * layer / 32)) / 2
    found = PyramidInfer().counts(Shape(32, 8, 100_000, 128, "f16"), sum(shares) / 32)
    assert 0.767 == pytest.approx(sum(shares) / 32, abs=5e-4)
    np.testing.assert_allclose([100_000 * share for share in shares], found, atol=2)


@pytest.mark.parametrize("layers", [1, 2, 3, 32])
@pytest.mark.parametrize("knob", ["1", "0.75", "0.5", "0.25", "0.1"])
def test_pyramidinfer_reaches_the_wanted_mean(layers: int, knob: str) -> None:
    """Counts fall from layer to layer and their mean is the retention ratio, to a token."""
    counts = PyramidInfer().counts(Shape(layers, 2, 512, 16, "f16"), float(knob))
    assert sorted(counts, reverse=True) == counts
    assert float(knob) * 512 == pytest.approx(sum(counts) / layers, abs=1)


def test_pyramidinfer_nests_its_sets() -> None:
    """Every layer keeps a subset of the layer before, the sinks, and a fifth of the first layer's count as recent."""
    cache, context = prefill(200, layers=5)
    sets = [set(kept.tolist()) for kept in PyramidInfer().choose(cache, context, "0.5")]
    assert all(later < earlier for earlier, later in pairwise(sets))
    recent = len(sets[0]) // 5
    assert all({0, 1, 2, 3, *range(200 - recent, 200)} <= kept for kept in sets)


def test_pyramidinfer_ranks_as_loops_do() -> None:
    """Two layers by hand: weights of surviving tokens only, later queries heavier, mean over all heads."""
    cache, context = prefill(40, layers=2, head_dim=8)
    assert context.queries is not None
    dropper = PyramidInfer()
    counts = dropper.counts(cache.shape, 0.5)
    recent = counts[0] // 5
    alive = list(range(40))
    for layer, kept in enumerate(dropper.choose(cache, context, "0.5")):
        keys, queries = cache.keys[layer].tolist(), context.queries[layer].tolist()
        scores = dict.fromkeys(alive, 0.0)
        for head in range(4):
            for place in range(40 - recent, 40):
                seen = [token for token in alive if token <= place]
                logits = [dot(queries[head][place], keys[head // 2][token]) / math.sqrt(8) for token in seen]
                ramp = 1 + 0.2 * (place - 40 + recent) / (recent - 1)
                for token, weight in zip(seen, softmax(logits), strict=True):
                    scores[token] += ramp * weight
        fixed = [0, 1, 2, 3, *range(40 - recent, 40)]
        rest = sorted((token for token in alive if token not in fixed), key=lambda token: -scores[token])
        alive = sorted(fixed + rest[: counts[layer] - len(fixed)])
        assert alive == kept.tolist()


@pytest.mark.parametrize("dropper", ALL, ids=named)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 65])
def test_kept_tokens_come_back_bit_for_bit(dropper: Dropper, dtype: torch.dtype, tokens: int) -> None:
    """Decoded keys and values are those at the kept positions; the next position is the original length."""
    cache, context = prefill(tokens, dtype=dtype)
    for knob in dropper.knobs:
        decoded = dropper.decode(dropper.encode(cache, context, knob).payload)
        assert tokens == decoded.next_position
        chosen = dropper.choose(cache, context, knob)
        for layer, kept in enumerate(chosen if decoded.kept is None else decoded.kept):
            assert torch.equal(chosen[layer], kept)
            for head, positions in enumerate(kept.expand(2, -1)):
                assert torch.equal(cache.keys[layer][head, positions], decoded.keys[layer][head])
                assert torch.equal(cache.values[layer][head, positions], decoded.values[layer][head])


@pytest.mark.parametrize("dropper", ALL, ids=named)
def test_everything_kept_is_the_cache(dropper: Dropper) -> None:
    """At a retention of 1 all tokens come back and no positions are named."""
    cache, context = prefill(70)
    decoded = dropper.decode(dropper.encode(cache, context, "1").payload)
    assert decoded.kept is None
    assert all(torch.equal(a, b) for a, b in zip(cache.keys, decoded.keys, strict=True))


def test_bytes_are_kept_tokens_and_a_bit_or_less_per_token() -> None:
    """Keys and values take their share of the raw bytes; positions at most one bit per token, layer and head."""
    cache, context = prefill(400, dtype=torch.float16)
    for dropper in UNIFORM:
        for knob in dropper.knobs:
            sections = dropper.encode(cache, context, knob).sections
            assert int(400 * float(knob)) * 3 * 2 * 16 * 2 == sections["keys"] == sections["values"]
            assert 0 < sections["positions"] <= 3 * 2 * 400 // 8
    assert 40 * 9 // 8 == StreamingLLM().encode(cache, context, "0.1").sections["positions"]  # one set, 9-bit gaps


@pytest.mark.parametrize("name", ["positions", "keys", "values"])
def test_sections_of_another_size_are_refused(name: str) -> None:
    """A section that is missing, short or of another dtype raises PayloadError."""
    dropper = StreamingLLM()
    cache, context = prefill(33)
    facts, sections = unpack(dropper.encode(cache, context, "0.5").payload, dropper.format)
    short = {**sections, name: sections[name][:-1]}
    other = {**sections, name: sections[name].to(torch.int16)}
    for wrong in (short, other, {key: value for key, value in sections.items() if key != name}):
        with pytest.raises(PayloadError):
            dropper.decode(pack(dropper.format, facts, {**wrong}).payload)


def test_missing_side_information_is_one_clear_line() -> None:
    """Without queries or attention, with too few, or of other heads, encoding raises CompressorError saying so."""
    cache, context = prefill(40)
    assert context.queries is not None and context.attention is not None
    for dropper in (SnapKV(), PyramidKV(), PyramidInfer(), TOVA()):
        with pytest.raises(CompressorError, match=f"{dropper.name} needs .* not captured: queries"):
            dropper.encode(cache, PrefillContext(), "0.5")
    with pytest.raises(CompressorError, match="h2o needs .* not captured: attention"):
        H2O().encode(cache, PrefillContext(), "0.5")
    with pytest.raises(CompressorError, match="the last 40 of the prefill are needed"):
        SnapKV().encode(cache, PrefillContext(queries=[q[:, -20:] for q in context.queries]), "0.5")
    with pytest.raises(CompressorError, match="do not fit 3 layers of 2 heads"):
        SnapKV().encode(cache, PrefillContext(queries=[q[:3] for q in context.queries]), "0.5")
    with pytest.raises(CompressorError, match="does not fit 40 tokens"):
        H2O().encode(cache, PrefillContext(attention=[a[:, 1:] for a in context.attention]), "0.5")


@pytest.mark.parametrize("knob", ["0", "1.01", "-0.5", "nan", "half", ""])
def test_impossible_knobs_are_refused(knob: str) -> None:
    """A retention outside (0, 1] or not a number raises CompressorError naming the compressor."""
    cache, context = prefill(9)
    with pytest.raises(CompressorError, match="knorm"):
        Knorm().encode(cache, context, knob)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SnapKV(window=0),
        lambda: SnapKV(kernel=4),
        lambda: PyramidKV(beta=0.5),
        lambda: H2O(recent=1.5),
        lambda: PyramidInfer(decay=2.0),
        lambda: PyramidInfer(depth=1),
    ],
)
def test_impossible_parameters_are_refused(make: Callable[[], Dropper]) -> None:
    """Windows, kernels and shares that make no sense raise CompressorError."""
    with pytest.raises(CompressorError):
        make()


@pytest.mark.slow
@pytest.mark.skipif(not KVPRESS_PYTHON, reason="SIMKV_KVPRESS_PYTHON names no interpreter that has kvpress")
def test_choices_are_those_of_kvpress(tmp_path: Path) -> None:
    """Same kept positions in all layers and heads as kvpress, which runs in its own environment on a random Llama."""
    out = tmp_path / "kept.npz"
    subprocess.run([KVPRESS_PYTHON, str(ORACLE), str(out)], check=True, capture_output=True, timeout=600)
    with np.load(out) as arrays:
        found = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    cache = KVCache(list(found["keys"]), list(found["values"]))
    context = PrefillContext(queries=list(found["queries"]), attention=list(found["attention"]))
    compared = 0
    for dropper in (SnapKV(), Knorm(), KeyDiff(), H2O(recent=0.0), StreamingLLM(), TOVA()):
        for knob in ("0.75", "0.5", "0.25"):
            for layer, kept in enumerate(dropper.choose(cache, context, knob)):
                assert found[f"{dropper.name}:{knob}"][layer].tolist() == per_head(kept, 2)
                compared += 1
    assert 6 * 3 * 4 == compared
