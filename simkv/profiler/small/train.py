"""Train the small model from a seed: ``python -m simkv.profiler.small.train --seed 0 --out FOLDER``.

The schedule counts steps, never seconds: the same seed gives the same weights, bit for bit, on the same machine with
the same libraries, also when the run was interrupted and resumed (a second call with the same arguments).  Every
step's data depend on the seed and the step alone.  One thread, fp32.

FOLDER receives ``curves.jsonl`` (loss and held-out accuracy), ``state.safetensors`` (everything needed to resume), and
at the end ``model.safetensors`` (fp16), ``config.json`` and ``figures.json`` (greedy decoding on held-out contexts).
"""

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import LlamaForCausalLM

from simkv.profiler.small.checkpoint import load_small, load_state, save_small, save_state, write_text
from simkv.profiler.small.evaluate import held_out, held_out_contexts
from simkv.profiler.small.init import initialise
from simkv.profiler.small.model import Batch, batch_of, logits_of, small_config
from simkv.profiler.tasks import TASKS

__all__ = ["RECIPE", "Recipe", "Stage", "main", "train"]


@dataclass(frozen=True)
class Stage:
    """So many steps on contexts of one length (tokens), so many contexts of each task per step."""

    length: int
    contexts: int
    steps: int


@dataclass(frozen=True)
class Recipe:
    """The whole schedule.

    Learning rates rise over ``warmup`` steps and fall linearly from the share ``decay_from`` of all steps to
    ``last_rate`` of their value.  ``earlier`` is the share of steps spent on the lengths of earlier stages; ``places``
    and ``questions`` bound what is packed behind each context; every ``look_every`` steps accuracy is looked at and
    the state saved.
    """

    stages: tuple[Stage, ...]
    hidden: int = 128
    layers: int = 3
    places: int = 160
    questions: int = 40
    earlier: float = 0.25
    matrix_rate: float = 0.005
    vector_rate: float = 3e-3
    warmup: int = 20
    decay_from: float = 0.4
    last_rate: float = 0.02
    look_every: int = 100

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int, rng: np.random.Generator) -> Stage:
        """The stage of a step, or, for the share ``earlier`` of steps, one of those before it."""
        ends = np.cumsum([stage.steps for stage in self.stages])
        now = int(np.searchsorted(ends, step, side="right"))
        if now and rng.random() < self.earlier:
            now = int(rng.integers(now))
        return self.stages[now]

    def rate(self, step: int) -> float:
        """Factor on the learning rates."""
        done = step / self.steps
        fall = (
            1.0
            if done < self.decay_from
            else 1 - (1 - self.last_rate) * (done - self.decay_from) / (1 - self.decay_from)
        )
        return min(1.0, (step + 1) / self.warmup) * fall

    def scaled(self, factor: float) -> "Recipe":
        """The same with every stage's steps multiplied, at least one each."""
        stages = (Stage(s.length, s.contexts, max(1, round(s.steps * factor))) for s in self.stages)
        return Recipe(**{**self.__dict__, "stages": tuple(stages)})


RECIPE = Recipe((Stage(256, 2, 150), Stage(512, 1, 650)))

# Slower tasks count for more in the loss.
_WEIGHT = {"aggregation": 2.0, "code": 1.5}


def train(
    seed: int,
    out: Path,
    recipe: Recipe = RECIPE,
    contexts: int = 32,
    progress: Callable[[dict[str, float]], None] = lambda row: None,
) -> LlamaForCausalLM:
    """Train, or resume, and write everything to ``out``; returns the model as loaded back from there.

    Final figures are taken on ``contexts`` contexts per task and length.  ``progress`` is called with every row of the
    curves after the state of that step is on disk.  Bits repeat with one torch thread.  Raises ModelError when ``out``
    holds the state of another seed or recipe.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = LlamaForCausalLM(small_config(recipe.hidden, recipe.layers))
    initialise(model, seed)
    optimizers = _optimizers(model, recipe)
    owner = json.dumps({"seed": seed, "recipe": asdict(recipe)})
    done = load_state(out / "state.safetensors", model, optimizers, owner)
    curves = _kept_curves(out / "curves.jsonl", done)
    losses: list[float] = []
    started = time.monotonic()
    for step in range(done, recipe.steps):
        losses.append(_step(model, optimizers, recipe, seed, step))
        if (step + 1) % recipe.look_every == 0 or step + 1 == recipe.steps:
            row = {"step": step + 1, "loss": float(np.mean(losses)), "seconds": round(time.monotonic() - started, 1)}
            curves.append(row | _look(model, recipe.stages[-1].length))
            losses.clear()
            write_text(out / "curves.jsonl", "".join(json.dumps(row) + "\n" for row in curves))
            save_state(out / "state.safetensors", model, optimizers, owner, step + 1)
            progress(curves[-1])
    save_small(out, model)
    return _with_figures(seed, out, recipe, contexts)


def _with_figures(seed: int, out: Path, recipe: Recipe, contexts: int) -> LlamaForCausalLM:
    """Load the written weights and write what they can do, and where they come from."""
    model = load_small(out, outliers=False)
    lengths = sorted({stage.length for stage in recipe.stages})
    facts = {
        "seed": seed,
        "recipe": asdict(recipe),
        "weights_sha256": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "held_out_contexts": contexts,
        "held_out": {n: {k: asdict(v) for k, v in held_out(model, n, contexts).items()} for n in lengths},
    }
    write_text(out / "figures.json", json.dumps(facts, indent=1) + "\n")
    return model


def _optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms."""
    inside = {id(p) for p in model.model.layers.parameters() if p.dim() == 2}
    matrices = [p for p in model.parameters() if id(p) in inside]
    others = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=recipe.vector_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _step(
    model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], recipe: Recipe, seed: int, step: int
) -> float:
    """One optimiser step; returns the loss."""
    rng = np.random.default_rng([seed, step])
    batch = _training_batch(recipe, recipe.stage_at(step, rng), rng)
    loss = _loss(logits_of(model, batch), batch)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizers[1].param_groups[0]["params"], 1.0)
    for optimizer, rate in zip(optimizers, (recipe.matrix_rate, recipe.vector_rate), strict=True):
        optimizer.param_groups[0]["lr"] = rate * recipe.rate(step)
        optimizer.step()
    return loss.item()


def _training_batch(recipe: Recipe, stage: Stage, rng: np.random.Generator) -> Batch:
    tasks = [i for i in range(len(TASKS)) for _ in range(stage.contexts)]
    makers = list(TASKS.values())
    contexts = [makers[i].generate(rng, stage.length, recipe.questions) for i in tasks]
    return batch_of(contexts, tasks, recipe.places)


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    """Weighted mean over contexts of the mean over their answer tokens: no task drowns another by having more."""
    weights = torch.tensor([_WEIGHT.get(name, 1.0) for name in TASKS])[batch.task]
    wrong = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-1, reduction="none")
    means = wrong.view_as(batch.targets).sum(1) / (batch.targets >= 0).sum(1)
    return (weights * means).sum() / weights.sum()


@torch.inference_mode()
def _look(model: LlamaForCausalLM, length: int, contexts: int = 8) -> dict[str, float]:
    """Share of questions whose every answer token is the most likely one, that is, greedy exact match, per task."""
    shares = {}
    for name in TASKS:
        made = held_out_contexts(name, length, contexts, fold=1)
        batch = batch_of(made, [0] * contexts, 16 * max(len(q) + len(a) for c in made for q, a, _ in c.questions))
        missed = (logits_of(model, batch).argmax(-1) != batch.targets) & (batch.targets >= 0)
        asked = sum(len(context.questions) for context in made)
        row = torch.arange(contexts)[:, None].expand_as(missed)[missed]
        shares[name] = 1 - len(torch.unique(row * 1000 + batch.owner[missed])) / asked
    return shares


def _kept_curves(path: Path, done: int) -> list[dict[str, float]]:
    """Rows of an interrupted run up to the step it is resumed from."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if row["step"] <= done]


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the small model from a seed.")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, curves and figures")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps")
    parser.add_argument("--contexts", type=int, default=32, help="held-out contexts per task in the final figures")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    train(given.seed, given.out, RECIPE.scaled(given.scale), given.contexts, lambda row: print(row, flush=True))
    print((given.out / "figures.json").read_text())


if __name__ == "__main__":
    main()
