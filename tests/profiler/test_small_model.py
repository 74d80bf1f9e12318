"""The small model: its lean pass against transformers, its structured start, its trainer, its files, its outliers."""

import hashlib
import json
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache, LlamaForCausalLM

from simkv.profiler.model_calls import cache_argument
from simkv.profiler.small.checkpoint import ModelError, load_small, save_small
from simkv.profiler.small.evaluate import answers_of, held_out, held_out_contexts
from simkv.profiler.small.init import initialise
from simkv.profiler.small.model import Batch, batch_of, logits_of, small_config
from simkv.profiler.small.outliers import add_outliers, remove_outliers
from simkv.profiler.small.recipe import RECIPES, Recipe, Stage, batch_at, batches
from simkv.profiler.small.train import main, train
from simkv.profiler.tasks import TASKS
from simkv.profiler.tasks.base import END, FILLER

torch.set_num_threads(1)

SHORT = Recipe((Stage(48, 1, 2), Stage(64, 1, 2)), places=40, questions=8, warmup=2, look_every=2)


def started(seed: int = 0) -> LlamaForCausalLM:
    model = LlamaForCausalLM(small_config()).eval()
    initialise(model, seed)
    return model


def weights(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, Path]:
    """A model after 60 steps on 64 tokens, a few seconds, and its folder."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = Recipe((Stage(64, 1, 60),), places=80, questions=12)
    return train(0, folder, recipe, contexts=4), folder


@pytest.mark.parametrize("task", TASKS)
@torch.inference_mode()
def test_the_lean_pass_gives_the_logits_of_transformers(task: str) -> None:
    """Each packed question sees the prefix and itself, as if it were the only one."""
    model = started()
    (context,) = held_out_contexts(task, 64, 1, questions=3)
    batch = batch_of([context], [0], 60)
    lean = logits_of(model, batch)[0]
    for number, (query, answer, _) in enumerate(context.questions):
        tokens = torch.tensor([[*context.tokens, *query, *answer[:-1]]])
        whole = model(tokens).logits[0, 64:]
        torch.testing.assert_close(whole, lean[batch.owner[0] == number], atol=1e-4, rtol=1e-4)


def test_packing_keeps_whole_questions_and_aims_at_their_answers() -> None:
    """The targets of each question are its answer; what does not fit is left out."""
    contexts = held_out_contexts("code", 128, 2, questions=9)
    batch = batch_of(contexts, [4, 4], 50)
    for row, context in enumerate(contexts):
        kept = int(batch.owner[row].max()) + 1
        assert 0 < kept < 9
        answers = [token for _, answer, *_ in context.questions[:kept] for token in answer]
        assert answers == batch.targets[row][batch.targets[row] >= 0].tolist()


@torch.inference_mode()
def test_at_the_start_two_heads_look_one_and_two_tokens_back() -> None:
    """The first half of the seeded circuit, before any training."""
    model = started()
    model.set_attn_implementation("eager")
    tokens = torch.from_numpy(held_out_contexts("qa", 128, 1)[0].tokens)[None]
    first = model(tokens, output_attentions=True).attentions[0][0]
    for head, back in ((0, 1), (2, 2)):
        assert 0.9 < first[head].diagonal(-back)[8:].mean()


def test_the_start_is_worth_more_than_chance_and_soon_recalls(trained: tuple[LlamaForCausalLM, Path]) -> None:
    """60 steps solve recall at 64 tokens; a start that lost its circuit is stuck near zero here."""
    figures = held_out(trained[0], 64, 8)
    assert 0.3 < figures["qa"].exact
    assert 0.5 < figures["needle"].score


def test_the_same_seed_trains_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    """And another seed others."""
    first = weights(train(3, tmp_path / "a", SHORT, contexts=1))
    assert same(first, weights(train(3, tmp_path / "b", SHORT, contexts=1)))
    assert not same(first, weights(train(4, tmp_path / "c", SHORT, contexts=1)))


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """Stopped after its first saved state, the run ends where an undisturbed one ends, with the same curves."""

    def stop(row: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(3, tmp_path / "killed", SHORT, contexts=1, progress=stop)
    assert not (tmp_path / "killed" / "figures.json").exists()
    steps: list[float] = []
    resumed = train(3, tmp_path / "killed", SHORT, contexts=1, progress=lambda row: steps.append(row["step"]))
    whole = train(3, tmp_path / "whole", SHORT, contexts=1)
    assert [4] == steps
    assert same(weights(whole), weights(resumed))
    curves = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
        for path in (tmp_path / "whole" / "curves.jsonl", tmp_path / "killed" / "curves.jsonl")
    ]
    assert curves[0] == curves[1]


def test_a_run_in_pieces_gives_the_weights_of_a_whole_one(tmp_path: Path) -> None:
    """Out of time after every step, each call saves weights and state and the next goes on; the last takes figures."""
    folder, whole = tmp_path / "pieces", train(3, tmp_path / "whole", SHORT, contexts=1)
    for step in range(1, 5):
        assert not (folder / "figures.json").exists()
        piece = train(3, folder, SHORT, contexts=1, minutes=0.0)
        assert step == json.loads((folder / "curves.jsonl").read_text().splitlines()[-1])["step"]
        assert same(weights(piece), weights(load_small(folder, outliers=False)))
    assert same(weights(whole), weights(piece))
    assert (folder / "figures.json").exists()


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_what_was_saved(tmp_path: Path) -> None:
    """One line, and the state of before."""
    broken = replace(SHORT, vector_rate=float("inf"))
    with pytest.raises(ModelError, match="nan"):
        train(3, tmp_path, replace(broken, look_every=3), contexts=1)
    assert [] == os.listdir(tmp_path)


def test_worker_processes_make_the_same_batches_in_order() -> None:
    """From any step on, and left early without waiting for the rest."""
    recipe = Recipe((Stage(48, 1, 10), Stage(64, 1, 20)), places=40, questions=8)
    made = batches(recipe, 7, 9, workers=2)
    for step in range(9, 15):
        batch, own = next(made), batch_at(recipe, 7, step)
        assert all(torch.equal(getattr(own, f.name), getattr(batch, f.name)) for f in fields(Batch))
    made.close()
    assert 21 == sum(1 for _ in batches(recipe, 7, 9))


def test_a_folder_of_another_run_is_not_resumed(tmp_path: Path) -> None:
    """Neither with another seed nor with another recipe."""
    train(3, tmp_path, SHORT, contexts=1)
    for seed, recipe in ((4, SHORT), (3, replace(SHORT, warmup=3))):
        with pytest.raises(ModelError, match="another training run"):
            train(seed, tmp_path, recipe, contexts=1)


def test_the_command_writes_weights_config_curves_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Nothing half-written stays behind, and the fp16 weights keep within 8 MB."""
    recipe_steps = RECIPES["small"].scaled(1e-6).steps
    try:
        main(["--seed", "1", "--out", str(tmp_path), "--scale", "1e-6", "--contexts", "1"])
    finally:
        torch.use_deterministic_algorithms(False)
    assert {"config.json", "curves.jsonl", "figures.json", "model.safetensors", "state.safetensors"} == set(
        os.listdir(tmp_path)
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (1, recipe_steps) == (figures["seed"], sum(stage["steps"] for stage in figures["recipe"]["stages"]))
    assert set(TASKS) == set(figures["held_out"]["512"])
    assert (tmp_path / "model.safetensors").stat().st_size <= 8_000_000
    assert "held_out" in capsys.readouterr().out


def test_answers_from_the_cache_are_those_of_the_whole_text(trained: tuple[LlamaForCausalLM, Path]) -> None:
    """Greedy decoding from the shared prefix agrees with decoding the full sequence anew at every token."""
    model = trained[0]
    for task in TASKS:
        (context,) = held_out_contexts(task, 48, 1, questions=3)
        for (query, *_), output in zip(context.questions, answers_of(model, context), strict=True):
            line = [*context.tokens.tolist(), *query]
            for token in output:
                with torch.inference_mode():
                    assert token == model(torch.tensor([line])).logits[0, -1].argmax()
                line.append(token)


def test_held_out_folds_differ_from_each_other_and_from_training() -> None:
    """What is looked at during training is not what the final figures are taken on."""
    seen = {
        tuple(held_out_contexts("qa", 64, 1, fold=0)[0].tokens),
        tuple(held_out_contexts("qa", 64, 1, fold=1)[0].tokens),
        *(tuple(TASKS["qa"].generate(np.random.default_rng([0, step]), 64).tokens) for step in range(3)),
    }
    assert 5 == len(seen)


def test_what_the_committed_weights_and_profile_were_made_on_does_not_change() -> None:
    """Contexts of at most 512 tokens, and the small recipe's batches, are byte for byte those of before."""
    seen = hashlib.sha256()
    for task in TASKS.values():
        for length in (24, 48, 100, 256, 384, 512):
            for seed in range(4):
                context = task.generate(np.random.default_rng([seed, length]), length, 16)
                latents = sorted(context.latents.items())
                seen.update(context.tokens.astype("<i8").tobytes() + f"{context.questions!r}{latents!r}".encode())
    assert "b3aebcc65649a126066e932881013b24fd2cb16cab8e1d143592ed38441677e0" == seen.hexdigest()
    seen = hashlib.sha256()
    for step in (0, 149, 150, 799):
        batch = batch_at(RECIPES["small"], 0, step)
        for field in fields(Batch):
            seen.update(getattr(batch, field.name).numpy().astype("<i8").tobytes())
    assert "277c72944b0f1e24f77aed55eb850a0f8734f290ffdcf2e3d6cf4a8120abf5a6" == seen.hexdigest()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [2048, 4096])
def test_long_contexts_differ_in_what_they_hold(task: str, length: int) -> None:
    """Sixteen questions, all places filled, and latents that vary although the keys are limited."""
    made = held_out_contexts(task, length, 12)
    assert {length} == {len(context.tokens) for context in made}
    assert {16} == {len(set(context.questions)) for context in made}
    counted = {
        "qa": "density",
        "needle": "needles",
        "tracking": "density",
        "aggregation": "redundancy",
        "code": "reuse",
    }
    held = [context.latents[counted[task]] for context in made]
    assert 1.5 * min(held) < max(held)
    noise = [np.mean((c.tokens >= FILLER.first) & (c.tokens < FILLER.first + FILLER.size)) for c in made]
    assert 0.25 < min(noise)


def test_learning_rates_rise_stay_and_fall() -> None:
    """Warm-up, then flat, then linear to the last rate."""
    recipe = Recipe((Stage(64, 1, 1000),), warmup=10, decay_from=0.5, last_rate=0.1)
    assert [0.1, 1.0, 1.0] == [recipe.rate(step) for step in (0, 9, 500)]
    assert pytest.approx(0.55) == recipe.rate(750)
    assert pytest.approx(0.1) == recipe.rate(1000)


def test_stages_follow_one_another_with_earlier_ones_mixed_in() -> None:
    """The stage of a step, and the share of steps that go back."""
    recipe = Recipe((Stage(64, 1, 10), Stage(128, 1, 10)), earlier=0.0)
    rng = np.random.default_rng(0)
    assert [64, 64, 128, 128] == [recipe.stage_at(step, rng).length for step in (0, 9, 10, 19)]
    back = sum(replace(recipe, earlier=0.25).stage_at(15, rng).length == 64 for _ in range(2000))
    assert 0.2 < back / 2000 < 0.3


def test_the_large_model_keeps_within_8_mb_and_has_a_window_for_4096_tokens() -> None:
    """Its fp16 weights, and the room behind its longest context."""
    recipe = RECIPES["large"]
    config = small_config(recipe.hidden, recipe.layers, recipe.window, recipe.base)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in LlamaForCausalLM(config).parameters())
    assert 7_000_000 < 2 * parameters < 8_000_000
    assert (4096, 8192) == (recipe.stages[-1].length, config.max_position_embeddings)


@torch.inference_mode()
def test_outliers_change_keys_and_no_logit(trained: tuple[LlamaForCausalLM, Path]) -> None:
    """Bit-identical logits, key channels far apart, and an exact undo."""
    plain, spread = load_small(trained[1], outliers=False), load_small(trained[1])
    tokens = torch.from_numpy(held_out_contexts("needle", 128, 1)[0].tokens)[None]
    logits, ratios = [], []
    for model in (plain, spread):
        cache = DynamicCache()
        logits.append(model(tokens, use_cache=True, **cache_argument(model, cache)).logits)
        tops = [layer.keys[0].abs().amax(dim=1) for layer in cache.layers]
        ratios.append(min(float((top.amax(1) / top.median(1).values).min()) for top in tops))
    assert torch.equal(*logits)
    assert 1.5 * ratios[0] < ratios[1]
    remove_outliers(spread)
    assert same(weights(plain), weights(spread))


def test_weights_survive_saving_as_half_precision(tmp_path: Path) -> None:
    """What is loaded is the fp16 rounding of what was trained, and only that is in the file."""
    model = started(5)
    save_small(tmp_path, model)
    rounded = {name: value.half().float() for name, value in weights(model).items()}
    assert same(rounded, weights(load_small(tmp_path, outliers=False)))
    assert {torch.float16} == {value.dtype for value in load_file(tmp_path / "model.safetensors").values()}
    add_outliers(model)
    assert torch.bfloat16 == load_small(tmp_path, dtype=torch.bfloat16).dtype


@pytest.mark.parametrize("broken", ["nothing", "weights", "config", "shape"])
def test_a_folder_without_a_fitting_model_is_refused_in_one_line(tmp_path: Path, broken: str) -> None:
    """Missing files, garbage, and weights of another shape."""
    if broken != "nothing":
        save_small(tmp_path, started())
    if broken == "weights":
        (tmp_path / "model.safetensors").write_bytes(b"garbage")
    if broken == "config":
        (tmp_path / "config.json").write_text("{")
    if broken == "shape":
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(ModelError, match=str(tmp_path)) as caught:
        load_small(tmp_path)
    assert 1 == len(str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", 1 << 30),
        ("hidden_size", "x"),
        ("hidden_size", 1 << 20),
        ("intermediate_size", 1 << 30),
        ("num_hidden_layers", 1 << 30),
        ("num_attention_heads", 0),
        ("head_dim", 1 << 20),
        ("max_position_embeddings", 1 << 40),
        ("hidden_act", "nope"),
        ("rope_parameters", {"rope_type": "x"}),
        ("pad_token_id", 9999),
        ("dtype", "nope"),
        ("model_type", "gpt2"),
    ],
)
def test_a_config_that_asks_for_the_impossible_is_refused_before_it_gets_it(
    tmp_path: Path, name: str, value: object
) -> None:
    """Sizes that the weights do not have take neither memory nor time; nonsense is one line."""
    save_small(tmp_path, started())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(ModelError, match=str(tmp_path)) as caught:
        load_small(tmp_path)
    assert 1 == len(str(caught.value).splitlines())


def test_end_is_the_models_end_token() -> None:
    """So that transformers' own generate stops where an answer ends."""
    assert END == started().config.eos_token_id
