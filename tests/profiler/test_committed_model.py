"""The committed small model: it answers its tasks, and compressors act on it as they should."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import simkv.profiler.small as small
from simkv.profiler.compressors import make_compressor
from simkv.profiler.models import CachedModel
from simkv.profiler.small.checkpoint import load_small
from simkv.profiler.small.evaluate import held_out_contexts
from simkv.profiler.tasks import TASKS
from simkv.profiler.tasks.base import END

WEIGHTS = Path(small.__file__).parent / "weights"


@pytest.fixture(scope="module")
def model() -> CachedModel:
    """The committed weights with key-channel outliers, as profiles use them."""
    torch.set_num_threads(1)
    return CachedModel(load_small(WEIGHTS), "small")


def quality(model: CachedModel, compressor: str, knob: str, task: str, contexts: int = 3, length: int = 256) -> float:
    """Mean score over held-out contexts of 16 questions, answered from the compressed and decoded cache."""
    chosen = make_compressor(compressor)
    scores = []
    for context in held_out_contexts(task, length, contexts, 16):
        cache, side = model.prefill(context.tokens.tolist(), frozenset({"queries", "attention"}))
        decoded = chosen.decode(chosen.encode(cache, side, knob).payload)
        longest = max(len(question.answer) for question in context.questions)
        answers = model.answer(decoded, [question.query for question in context.questions], longest, END)
        scores += [TASKS[task].score(a, question) for a, question in zip(answers, context.questions, strict=True)]
    return float(np.mean(scores))


def test_weights_are_those_that_the_figures_describe() -> None:
    """The file's hash stands in figures.json, and it stays within 8 MB."""
    content = (WEIGHTS / "model.safetensors").read_bytes()
    recorded = json.loads((WEIGHTS / "figures.json").read_text(encoding="utf-8"))
    assert hashlib.sha256(content).hexdigest() in json.dumps(recorded)
    assert len(content) <= 8 * 2**20


@pytest.mark.parametrize(("task", "least"), [("qa", 0.95), *((task, 0.85) for task in TASKS if task != "qa")])
def test_uncompressed_tasks_are_solved(model: CachedModel, task: str, least: float) -> None:
    """From the uncompressed cache: 95 % on retrieval, 0.85 on the others, on held-out contexts."""
    assert least <= quality(model, "identity", "", task)


def test_tasks_separate_under_token_dropping(model: CachedModel) -> None:
    """At half size, dropping old tokens hurts some task by at least 0.3 more than another."""
    kept = {task: quality(model, "streamingllm", "0.5", task) for task in ("qa", "aggregation")}
    assert 0.3 <= kept["aggregation"] - kept["qa"]


def test_quantisers_barely_hurt_where_dropping_does(model: CachedModel) -> None:
    """KIVI at 4 bits keeps retrieval; per-token scales at the outliers do not ruin it either way."""
    assert 0.95 <= quality(model, "kivi", "4", "qa")


@pytest.mark.parametrize("name", ["snapkv", "pyramidkv", "pyramidinfer", "h2o", "knorm", "keydiff", "lowrank"])
def test_methods_with_side_information_run_on_a_real_prefill(model: CachedModel, name: str) -> None:
    """What a prefill captures is what the compressors can use: a score comes out, between 0 and 1."""
    assert 0.0 <= quality(model, name, make_compressor(name).knobs[1], "needle", contexts=1) <= 1.0
