"""How quality composes: blocks joined into one cache, rules and their fit, and the tables made of measured prompts."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from simkv.errors import SimkvError
from simkv.profiler import composition
from simkv.profiler.composition import Subject, cut, joined, main, measured, recomputed
from simkv.profiler.composition_plan import DROPPERS, QUANTISERS, RECOMPUTED, prompts, stores
from simkv.profiler.composition_report import Row, errors_of, interval, predicted, summary
from simkv.profiler.composition_rules import RULES, Entries, fitted
from simkv.profiler.compressors import make_compressor
from simkv.profiler.compressors.base import DecodedCache, KVCache, PrefillContext
from simkv.profiler.compressors.dropping import Dropper
from simkv.profiler.compressors.snapkv import SnapKV
from simkv.profiler.models import CachedModel
from simkv.profiler.small.settings import load_cached
from simkv.profiler.tasks import TASKS
from simkv.profiler.tasks.base import END
from simkv.profiler.workloads import Workload, generated
from tests.profiler.prefills import prefill

EXPONENTS = {"power": (2.0,), "loss_power": (1.7,), "families": (1.6, 0.8)}


@pytest.fixture(scope="module")
def model() -> CachedModel:
    """The committed weights."""
    torch.set_num_threads(1)
    return load_cached()


@pytest.fixture(scope="module")
def workload() -> Workload:
    """Short retrieval contexts."""
    return generated(TASKS["qa"], 1, 16, 128, 5, END)


@pytest.fixture(scope="module")
def subject(model: CachedModel, workload: Workload) -> Subject:
    """One context of it."""
    return Subject(model, workload, 0)


def stored(cache: KVCache, side: PrefillContext, variants: Sequence[str]) -> DecodedCache:
    """Blocks encoded and decoded one by one, then joined."""
    made = stores()
    pieces = zip(cut(cache, side, len(variants)), variants, strict=True)
    return joined([made[v][0].decode(made[v][0].encode(*piece, made[v][1]).payload) for piece, v in pieces])


@pytest.mark.parametrize("blocks", [1, 2, 4, 8])
def test_identity_blocks_join_to_the_same_cache(blocks: int) -> None:
    """Cut, stored raw and joined, a cache is bit-equal to what it was, with all its positions."""
    cache, side = prefill(64, dtype=torch.float16)
    again = stored(cache, side, ["raw"] * blocks)
    assert (64, None) == (again.next_position, again.kept)
    for before, after in zip([*cache.keys, *cache.values], [*again.keys, *again.values], strict=True):
        assert torch.equal(before, after)


def test_kept_positions_are_those_of_the_whole_context() -> None:
    """Half of each block of 16: StreamingLLM keeps 4 sinks and the last 4, a raw block keeps all."""
    cache, side = prefill(48)
    found = stored(cache, side, ["streamingllm:0.5", "raw", "streamingllm:0.5"])
    expected = [0, 1, 2, 3, 12, 13, 14, 15, *range(16, 32), 32, 33, 34, 35, 44, 45, 46, 47]
    assert found.kept is not None
    for layer, positions in enumerate(found.kept):
        assert [expected] * 2 == positions.tolist()
        assert torch.equal(cache.keys[layer][:, expected], found.keys[layer])
        assert torch.equal(cache.values[layer][:, expected], found.values[layer])
    assert 48 == found.next_position


def test_heads_keep_their_own_positions_across_blocks() -> None:
    """H2O chooses per head within each block; joined keys are the original ones at the joined positions."""
    cache, side = prefill(64)
    found = stored(cache, side, ["h2o:0.5", "snapkv:0.5"])
    assert found.kept is not None
    for layer, positions in enumerate(found.kept):
        assert (2, 32) == positions.shape
        assert positions[:, :16].max() < 32 <= positions[:, 16:].min()
        index = positions.unsqueeze(-1).expand(-1, -1, cache.shape.head_dim)
        assert torch.equal(cache.keys[layer].gather(1, index), found.keys[layer])


def test_blocks_take_their_own_side_information() -> None:
    """Attention mass is cut with the tokens; the last queries are those of the whole prompt."""
    cache, side = prefill(24)
    assert side.attention is not None
    pieces = cut(cache, side, 3)
    for number, (piece, own) in enumerate(pieces):
        assert own.attention is not None
        assert torch.equal(side.attention[1][:, 8 * number : 8 * number + 8], own.attention[1])
        assert side.queries is own.queries
        assert 8 == piece.shape.tokens


@pytest.mark.parametrize("blocks", [1, 2, 4, 8])
def test_blocks_are_seen_from_the_end_of_the_prompt(blocks: int) -> None:
    """SnapKV gives the tokens of every block the scores that they have in the whole prompt.

    Before, the last queries counted as each block's own: its last tokens were kept unseen, and what stands before and
    behind a block took nothing of the attention.
    """
    cache, side = prefill(64)
    dropper = SnapKV(window=8, kernel=1)
    pieces = cut(cache, side, blocks)
    for layer in range(3):
        scores = [dropper.score(piece, own, layer) for piece, own in pieces]
        assert torch.allclose(dropper.score(cache, side, layer), torch.cat(scores, dim=1), rtol=1e-5, atol=1e-7)
    for number, (_, own) in enumerate(pieces):
        expected = list(range(64 // blocks - 8, 64 // blocks)) if number == blocks - 1 else []
        assert expected == dropper.protected(64 // blocks, 64 // blocks, own.later).tolist()


def test_unequal_blocks_and_no_blocks_are_refused() -> None:
    """One line says what cannot be cut, or that there is nothing to join."""
    with pytest.raises(SimkvError, match="24 tokens cannot be cut into 5 equal blocks"):
        cut(*prefill(24), 5)
    with pytest.raises(SimkvError, match="no blocks"):
        joined([])


def test_recomputing_on_a_raw_prefix_is_the_prefill(model: CachedModel, workload: Workload) -> None:
    """Up to rounding of the prefix to 16 bit, a tail prefilled on it is what the whole prefill had there."""
    tokens = workload.context(0).tokens.tolist()
    cache, _ = model.prefill(tokens)
    before = DecodedCache([k[:, :96] for k in cache.keys], [v[:, :96] for v in cache.values], 96)
    found = recomputed(model, before, tokens[96:])
    assert (128, None) == (found.next_position, found.kept)
    for whole, part in zip([*cache.keys, *cache.values], [*found.keys, *found.values], strict=True):
        assert torch.equal(whole[:, :96], part[:, :96])
        torch.testing.assert_close(whole[:, 96:], part[:, 96:], rtol=0.02, atol=0.05)


def test_recomputing_after_dropping_keeps_original_positions(model: CachedModel, workload: Workload) -> None:
    """The tail follows at the prompt's positions, not at the kept prefix's end."""
    tokens = workload.context(0).tokens.tolist()
    dropper = make_compressor("streamingllm")
    before = dropper.decode(dropper.encode(*model.prefill(tokens[:64]), "0.25").payload)
    found = recomputed(model, before, tokens[64:])
    assert found.kept is not None
    assert [*range(4), *range(52, 64), *range(64, 128)] == found.kept[0][1].tolist()


def test_all_raw_is_one(subject: Subject) -> None:
    """Raw blocks, however many, and a tail recomputed on them answer as the uncompressed cache does."""
    for variants in (["raw"], ["raw"] * 4, ["raw", "raw", RECOMPUTED, RECOMPUTED]):
        assert 1.0 == subject.quality(variants)


def test_one_block_is_the_compressed_context(model: CachedModel, workload: Workload, subject: Subject) -> None:
    """In one block, quality is what the profiler measures of the whole context."""
    context = workload.context(0)
    cache, side = model.prefill(context.tokens.tolist())
    queries = [question.query for question in context.questions]
    whole = DecodedCache(cache.keys, cache.values, len(context.tokens))
    compressor, knob = stores()["streamingllm:0.25"]
    decoded = compressor.decode(compressor.encode(cache, side, knob).payload)
    raw, lossy = (model.answer(given, queries, 3, END) for given in (whole, decoded))
    expected = np.mean([got[:2] == right[:2] for got, right in zip(lossy, raw, strict=True)])
    assert expected < 1
    assert expected == subject.quality(["streamingllm:0.25"])


def test_rows_repeat_and_hold_every_rotation(model: CachedModel, workload: Workload) -> None:
    """The same seed gives the same prompts; each assignment comes in as many turns as it has blocks."""
    listed = list(prompts(np.random.default_rng(3)))
    assert listed == list(prompts(np.random.default_rng(3)))
    frame = pd.DataFrame([asdict(prompt) for prompt in listed if prompt.kind in ("mixed", "share")])
    turns = frame.groupby(["kind", "pool", "group", frame["variants"].map(len)])["turn"].nunique()
    assert turns.index.get_level_values(3).tolist() == turns.tolist()
    assert all(len(set(variants)) > 1 for variants in frame["variants"])


def test_families_are_what_the_compressors_are() -> None:
    """Those called droppers drop tokens, those called quantisers do not."""
    made = stores()
    assert set(DROPPERS) == {name for name, (compressor, _) in made.items() if isinstance(compressor, Dropper)}
    assert {"raw", "kivi:1", *QUANTISERS, *DROPPERS} == set(made)


def entries(quality: Sequence[Sequence[float]], share: Sequence[float], dropped: Sequence[bool]) -> Entries:
    """Prompts of equal shares."""
    rows = np.array(quality, dtype=float)
    return Entries(rows, np.tile(share, (len(rows), 1)), np.tile(dropped, (len(rows), 1)))


@pytest.mark.parametrize("name", RULES)
def test_rules_ignore_order_and_keep_their_ends(name: str) -> None:
    """1 where all are raw, the common value where all are alike (not "product"), the same in any order."""
    rule, exponents = RULES[name].value, EXPONENTS.get(name, ())
    shares, dropped = [0.5, 0.3, 0.2], [False, True, False]
    assert [1.0] == rule(entries([[1, 1, 1]], shares, dropped), *exponents)
    alike = rule(entries([[0.4, 0.4, 0.4]], shares, [False] * 3), *exponents)
    assert (abs(alike[0] - 0.4) < 1e-9) == (name != "product")
    forward = rule(entries([[0.9, 0.2, 0.6]], shares, dropped), *exponents)
    backward = rule(entries([[0.6, 0.2, 0.9]], shares[::-1], dropped[::-1]), *exponents)
    assert forward == pytest.approx(backward)
    assert 0.2 <= forward[0] < 1


def test_split_multiplies_what_families_leave() -> None:
    """Half raw, a quarter quantised to 0.16 and a quarter dropped to 0.2: 0.16^(1/4) x (0.25 x 0.2 + 0.75)."""
    given = entries([[1.0, 0.16, 0.2]], [0.5, 0.25, 0.25], [False, False, True])
    assert [pytest.approx(0.16**0.25 * 0.8)] == RULES["split"].value(given)


def test_rules_by_hand() -> None:
    """A quarter at 0.36 and the rest raw: each formula worked out."""
    given = entries([[0.36, 1.0]], [0.25, 0.75], [True, False])
    expected = {
        "mean": 0.84,
        "geometric": 0.36**0.25,
        "product": 0.84,
        "minimum": 0.36,
        "power": np.sqrt(0.25 * 0.36**2 + 0.75),
        "loss_power": 1 - 0.64 * 0.25 ** (1 / 1.7),
        "split": 0.84,
        "families": (0.25 * 0.36**0.8 + 0.75) ** (1 / 0.8),
    }
    found = {name: float(rule.value(given, *EXPONENTS.get(name, ()))[0]) for name, rule in RULES.items()}
    assert pytest.approx(expected) == found


@pytest.mark.parametrize("name", EXPONENTS)
def test_fit_finds_the_exponents_that_made_the_data(name: str) -> None:
    """From noisy qualities of a known rule, exponents come back within a tenth."""
    rng = np.random.default_rng(0)
    made = Entries(rng.uniform(0.05, 1, (400, 4)), np.full((400, 4), 0.25), rng.random((400, 4)) < 0.5)
    truth = RULES[name].value(made, *EXPONENTS[name])
    found = fitted(RULES[name], made, truth + rng.normal(0, 0.02, 400))
    assert EXPONENTS[name] == pytest.approx(found, rel=0.1)


def test_nothing_is_fitted_to_nothing_or_where_nothing_can_be() -> None:
    """The mean has no exponent; a rule that has one needs prompts."""
    none = entries(np.empty((0, 2)), [0.5, 0.5], [False, False])  # type: ignore[arg-type]
    assert () == fitted(RULES["mean"], none, np.empty(0))
    with pytest.raises(SimkvError, match="no prompts"):
        fitted(RULES["power"], none, np.empty(0))


@pytest.mark.parametrize(
    ("quality", "share", "what"),
    [([[1.2, 1.0]], [0.5, 0.5], "outside 0 to 1"), ([[1.0, 1.0]], [0.5, 0.6], "sum to 1"), ([[1.0]], [1, 0], "shapes")],
)
def test_impossible_entries_are_refused(quality: list[list[float]], share: list[float], what: str) -> None:
    """A quality above 1, shares that are not all of the prompt, arrays that do not belong together."""
    with pytest.raises(SimkvError, match=what):
        entries(quality, share, [False] * len(share))


def made_rows(contexts: int, interference: float, tasks: Sequence[str] = ("qa", "code")) -> pd.DataFrame:
    """Rows of a world in which a question is lost with its own block's variant, or with any other's.

    Each of 12 questions asks for one place of the context and is lost where that place's entry is at least as harsh as
    the question is sensitive.  With ``interference`` 0, quality adds up over blocks exactly.
    """
    harsh = {"raw": 0.0, RECOMPUTED: 0.0} | {v: 0.1 + 0.1 * i for i, v in enumerate((*QUANTISERS, *DROPPERS))}
    harsh["kivi:1"] = 0.7
    rows = []
    for task in tasks:
        for sample in range(contexts):
            rng = np.random.default_rng([sample, len(task)])
            places, bounds = rng.random(12), rng.uniform(0.1, 1.0, 12)
            for prompt in prompts(rng):
                levels = np.array([harsh[variant] for variant in prompt.variants])
                felt = np.maximum(levels[(places * len(levels)).astype(int)], interference * levels.max())
                quality = float(np.mean(felt < bounds))
                rows.append(
                    Row(
                        task,
                        sample,
                        prompt.kind,
                        prompt.pool,
                        len(levels),
                        prompt.group,
                        prompt.turn,
                        " ".join(prompt.variants),
                        quality,
                    )
                )
    return pd.DataFrame([asdict(row) for row in rows])


def test_where_quality_adds_up_the_mean_has_no_error_but_chance() -> None:
    """Single prompts are off by which blocks are asked for; over all rotations nothing is left, and no bias."""
    found, _ = predicted(made_rows(4, 0.0))
    errors = errors_of(found, ["mean"]).set_index(["kind", "pool", "blocks", "task"])
    mixed = errors.loc[("mixed", "any", "any", "all")]
    assert (0.0, 0.0, 0.0) == tuple(mixed[["bias", "low", "high"]])
    assert 0.0 == mixed["settled_rmse"]
    assert 0.05 < mixed["rmse"]


def test_where_blocks_interfere_the_mean_is_too_high_and_a_fitted_rule_is_not() -> None:
    """What a harsh block takes from the others' questions is seen as a bias, and mostly mended on held-out contexts."""
    found, exponents = predicted(made_rows(6, 0.5))
    errors = errors_of(found, ["mean", "loss_power"]).set_index(["rule", "kind", "pool", "blocks", "task"])
    mean, power = (errors.loc[(rule, "mixed", "any", "any", "all")] for rule in ("mean", "loss_power"))
    assert 0.03 < mean["low"] <= mean["bias"] <= mean["high"]
    assert abs(power["bias"]) < mean["bias"] / 2
    assert all(exponent > 1.2 for exponent in exponents["loss_power"]["any"])


def test_interval_resamples_contexts_within_tasks() -> None:
    """Errors that are equal within a context: the width comes from contexts, the mean from tasks in equal parts."""
    tasks, samples = np.array(["a"] * 6 + ["b"] * 2, dtype=object), np.array([0, 0, 0, 0, 1, 1, 0, 1])
    errors = np.array([0.3] * 4 + [0.0] * 2 + [0.1] * 2)[:, None]
    mean, low, high = interval(errors, tasks, samples)
    assert [pytest.approx((0.2 + 0.1) / 2)] == mean
    assert (0.05, 0.2) == pytest.approx((low[0], high[0]))


def test_measured_rows_cover_the_plan(model: CachedModel, workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row per prompt, in order, with the quality of its assignment."""
    few = [
        prompt for prompt in prompts(np.random.default_rng(0)) if prompt.kind != "mixed" and "kvcomp" not in prompt.pool
    ]
    monkeypatch.setattr(composition, "prompts", lambda rng: few[::9])
    finished: list[int] = []
    rows = list(measured(model, workload, 0, finished.append))
    assert [" ".join(prompt.variants) for prompt in few[::9]] == [row.variants for row in rows]
    assert [1] == finished
    assert all(0 <= row.quality <= 1 for row in rows)


def test_command_writes_three_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, errors and a summary with provenance; errors come out the same from the rows read back."""
    frame = made_rows(2, 0.5, tasks=("qa",))
    rows = [Row(*values) for values in frame.itertuples(index=False)]
    monkeypatch.setattr(composition, "_all_rows", lambda contexts, seed: rows)
    main(["--out", str(tmp_path / "out"), "--quick", "--seed", "7"])
    again, tables = summary(pd.read_csv(tmp_path / "out" / "results.csv"))
    assert again.to_csv(index=False) == (tmp_path / "out" / "errors.csv").read_text()
    facts = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (2, 7, 16) == (facts["contexts"], facts["seed"], facts["questions"])
    assert json.loads(json.dumps(tables)) == {name: facts[name] for name in tables}


def test_one_context_is_too_few(capsys: pytest.CaptureFixture[str]) -> None:
    """Rules are fitted to some contexts and tested on others."""
    with pytest.raises(SystemExit):
        main(["--out", "unused", "--contexts", "1"])
    assert "--contexts 1: at least 2" in capsys.readouterr().err
