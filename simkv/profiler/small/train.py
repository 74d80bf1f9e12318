"""Train the small model from a seed: ``python -m simkv.profiler.small.train --seed 0 --out FOLDER``.

The schedule (``recipe.py``) counts steps, never seconds.  On the CPU, with one thread and in fp32, the same seed gives
the same weights, bit for bit, on the same machine with the same libraries, also when the run was interrupted and
resumed (a second call with the same arguments).  On a GPU, in bf16 with fp32 weights, data and schedule are the same,
but bits are not promised.

FOLDER receives, again and again as training goes on, ``curves.jsonl`` (loss and held-out accuracy),
``state.safetensors`` (everything needed to resume), ``model.safetensors`` (fp16) and ``config.json``; and last, when
all steps are done, ``figures.json`` (greedy decoding on held-out contexts).
"""

import argparse
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from torch.nn import Module
from transformers import LlamaForCausalLM

from simkv.profiler.small.checkpoint import ModelError, load_small, load_state, save_small, save_state, write_text
from simkv.profiler.small.evaluate import held_out, held_out_contexts
from simkv.profiler.small.init import initialise
from simkv.profiler.small.model import Batch, batch_of, logits_of, small_config
from simkv.profiler.small.recipe import RECIPES, Recipe, batches
from simkv.profiler.tasks import TASKS

__all__ = ["main", "train"]

# Slower tasks count for more in the loss.
_WEIGHT = {"aggregation": 2.0, "code": 1.5}


def train(
    seed: int,
    out: Path,
    recipe: Recipe = RECIPES["small"],
    contexts: int = 32,
    progress: Callable[[dict[str, float]], None] = lambda row: None,
    device: str = "cpu",
    workers: int = 0,
    minutes: float = math.inf,
) -> LlamaForCausalLM:
    """Train, or resume, and write everything to ``out``; returns the model as loaded back from there.

    Args:
        seed: of weights and data.
        out: folder; one that holds the state of a run with these arguments is gone on with.
        recipe: shape and schedule.
        contexts: per task and length, for the final figures.
        progress: called with every row of the curves after the state of that step is on disk.
        device: "cpu" (fp32; bits repeat with one torch thread) or "cuda" (bf16 with fp32 weights).
        workers: processes that make the data, 0 for none; the data do not depend on it.
        minutes: stop after the step in which they are over, with everything saved but no final figures.

    Raises:
        ModelError: ``out`` holds the state of another seed or recipe, or the loss is no longer a number.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    model = LlamaForCausalLM(small_config(recipe.hidden, recipe.layers, recipe.window, recipe.base))
    initialise(model, seed)
    Module.to(model, device)
    optimizers = _optimizers(model, recipe)
    owner = json.dumps({"seed": seed, "recipe": asdict(recipe)})
    done = load_state(out / "state.safetensors", model, optimizers, owner)
    curves = _kept_curves(out / "curves.jsonl", done)
    losses: list[Tensor] = []
    late = False
    with closing(batches(recipe, seed, done, workers)) as made:
        while done < recipe.steps and not late:
            losses.append(_step(model, optimizers, recipe, done, next(made)))
            done += 1
            late = time.monotonic() - started >= 60 * minutes
            if done % recipe.look_every == 0 or done == recipe.steps or late:
                row = {"step": done, "loss": _mean(losses, out), "seconds": round(time.monotonic() - started, 1)}
                curves.append(row | _look(model, recipe.stages[-1].length))
                losses.clear()
                write_text(out / "curves.jsonl", "".join(json.dumps(row) + "\n" for row in curves))
                save_small(out, model)
                save_state(out / "state.safetensors", model, optimizers, owner, done)
                progress(curves[-1])
    save_small(out, model)
    trained = load_small(out, outliers=False)
    if done == recipe.steps:
        _write_figures(Module.to(trained, device), seed, out, recipe, contexts)
    return trained


def _write_figures(model: LlamaForCausalLM, seed: int, out: Path, recipe: Recipe, contexts: int) -> None:
    """What the written weights can do, and where they come from."""
    lengths = sorted({stage.length for stage in recipe.stages})
    facts = {
        "seed": seed,
        "recipe": asdict(recipe),
        "weights_sha256": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine() if model.device.type == "cpu" else torch.cuda.get_device_name(model.device),
        "held_out_contexts": contexts,
        "held_out": {n: {k: asdict(v) for k, v in held_out(model, n, contexts).items()} for n in lengths},
    }
    write_text(out / "figures.json", json.dumps(facts, indent=1) + "\n")


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
    model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], recipe: Recipe, step: int, batch: Batch
) -> Tensor:
    """One optimiser step; returns the loss, which a GPU may still be computing."""
    batch = batch.to(model.device)
    loss = _loss(_logits(model, batch), batch)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizers[1].param_groups[0]["params"], 1.0)
    for optimizer, rate in zip(optimizers, (recipe.matrix_rate, recipe.vector_rate), strict=True):
        optimizer.param_groups[0]["lr"] = rate * recipe.rate(step)
        optimizer.step()
    return loss.detach()


def _logits(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """In fp32, computed in bf16 where that is much faster."""
    kind = model.device.type
    with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
        return logits_of(model, batch).float()


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    """Weighted mean over contexts of the mean over their answer tokens: no task drowns another by having more."""
    weights = torch.tensor([_WEIGHT.get(name, 1.0) for name in TASKS], device=logits.device)[batch.task]
    wrong = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-1, reduction="none")
    means = wrong.view_as(batch.targets).sum(1) / (batch.targets >= 0).sum(1)
    return (weights * means).sum() / weights.sum()


def _mean(losses: list[Tensor], out: Path) -> float:
    mean = float(torch.stack(losses).double().mean())
    if not math.isfinite(mean):
        raise ModelError(f"{out}: training failed: its loss is {mean}; what was saved last is from before")
    return mean


@torch.inference_mode()
def _look(model: LlamaForCausalLM, length: int, contexts: int = 8) -> dict[str, float]:
    """Share of questions whose every answer token is the most likely one, that is, greedy exact match, per task."""
    shares = {}
    for name in TASKS:
        made = held_out_contexts(name, length, contexts, fold=1)
        places = 16 * max(len(q) + len(a) for c in made for q, a, _ in c.questions)
        batch = batch_of(made, [0] * contexts, places).to(model.device)
        missed = (_logits(model, batch).argmax(-1) != batch.targets) & (batch.targets >= 0)
        asked = sum(len(context.questions) for context in made)
        row = torch.arange(contexts, device=missed.device)[:, None].expand_as(missed)[missed]
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
    parser = argparse.ArgumentParser(description="Train the small model from a seed; a second call goes on.")
    parser.add_argument("--recipe", choices=RECIPES, default="small", help="small: one CPU core; large: a GPU")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, curves and figures")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--workers", type=int, help="processes that make data, default 0, with cuda up to 8")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop training then, everything saved")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps")
    parser.add_argument("--contexts", type=int, default=32, help="held-out contexts per task in the final figures")
    given = parser.parse_args(arguments)
    on_cpu = given.device == "cpu"
    if given.workers is None:
        given.workers = 0 if on_cpu else min(8, max(1, (os.cpu_count() or 1) - 1))
    torch.set_num_threads(1)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats only with a fixed workspace
    torch.use_deterministic_algorithms(True, warn_only=not on_cpu)
    recipe = RECIPES[given.recipe].scaled(given.scale)
    rest = (given.device, given.workers, given.minutes)
    train(given.seed, given.out, recipe, given.contexts, lambda row: print(row, flush=True), *rest)
    figures = given.out / "figures.json"
    print(figures.read_text() if figures.exists() else "stopped before the last step; the same command goes on")


if __name__ == "__main__":
    main()
