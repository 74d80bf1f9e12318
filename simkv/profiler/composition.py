"""How quality composes: prompts whose blocks are stored in different variants, measured on the small model.

What it is: a context's cache cut into blocks, each encoded and decoded as an entry of its own, joined again, and
questioned.  Every assignment of variants is measured in all its rotations over the places, so that which block a
question happens to ask for cancels out.  The store compresses at the end of the prefill: compressors that look at
queries see the prompt's last ones, those that look at attention the mass that a block's tokens received from the whole
prompt.  What it is not: rules (``composition_rules.py``) or their errors (``composition_report.py``).

    python -m simkv.profiler.composition --out FOLDER
"""

import argparse
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import DynamicCache

from simkv.errors import SimkvError
from simkv.profiler.attention import masked_to
from simkv.profiler.composition_plan import RECOMPUTED, prompts, stores
from simkv.profiler.composition_report import Row, summary
from simkv.profiler.compressors.base import DecodedCache, KVCache, PrefillContext
from simkv.profiler.model_calls import cache_argument
from simkv.profiler.models import CachedModel
from simkv.profiler.provenance import facts_of_machine
from simkv.profiler.small.settings import LENGTH, load_cached, weights_hash
from simkv.profiler.tasks import TASKS, Question
from simkv.profiler.tasks.base import END
from simkv.profiler.workloads import Workload, generated

__all__ = ["Subject", "cut", "joined", "main", "measured", "recomputed"]

_QUESTIONS = 16
_QUICK_CONTEXTS = 2
_WINDOW = 16


def cut(cache: KVCache, side: PrefillContext, blocks: int) -> list[tuple[KVCache, PrefillContext]]:
    """A cache in ``blocks`` equal blocks, each with the side information that is its own.

    Attention mass is the block's tokens', from all queries of the prefill.  Queries are the prefill's last for all, and
    see the keys before and behind the block, so that a block's tokens have the weights that they have in the prompt.

    Raises:
        SimkvError: tokens that cannot be cut into so many equal blocks.
    """
    tokens = cache.shape.tokens
    if blocks < 1 or tokens % blocks:
        raise SimkvError(f"{tokens} tokens cannot be cut into {blocks} equal blocks")
    size = tokens // blocks
    pieces = []
    for start in range(0, tokens, size):
        places = slice(start, start + size)
        mass = None if side.attention is None else [layer[:, places] for layer in side.attention]
        piece = KVCache([keys[:, places] for keys in cache.keys], [values[:, places] for values in cache.values])
        before = [keys[:, :start] for keys in cache.keys]
        behind = [keys[:, start + size :] for keys in cache.keys]
        pieces.append((piece, replace(side, attention=mass, earlier_keys=before, later_keys=behind)))
    return pieces


def joined(blocks: Sequence[DecodedCache]) -> DecodedCache:
    """Decoded blocks one after the other: tokens in order, kept positions counted from the first block's start.

    Keys carry the positions they were made with, so they are taken as they are.

    Raises:
        SimkvError: no blocks.
    """
    if not blocks:
        raise SimkvError("no blocks to join")
    starts = [0, *accumulate(block.next_position for block in blocks)]
    layers = range(len(blocks[0].keys))
    kept = None
    if any(block.kept is not None for block in blocks):
        placed = zip(blocks, starts, strict=False)
        by_block = [[_kept(block, layer) + start for layer in layers] for block, start in placed]
        kept = [torch.cat([positions[layer] for positions in by_block], dim=1) for layer in layers]
    return DecodedCache(
        [torch.cat([block.keys[layer] for block in blocks], dim=1) for layer in layers],
        [torch.cat([block.values[layer] for block in blocks], dim=1) for layer in layers],
        starts[-1],
        kept,
    )


def _kept(block: DecodedCache, layer: int) -> Tensor:
    """Positions [H, T_l] of a layer's tokens within their block."""
    heads, tokens, _ = block.keys[layer].shape
    positions = torch.arange(tokens) if block.kept is None else block.kept[layer]
    return positions.expand(heads, -1)


@torch.inference_mode()
def recomputed(model: CachedModel, before: DecodedCache, tokens: Sequence[int]) -> DecodedCache:
    """The cache of a prompt whose first part was loaded as ``before``; its further ``tokens`` are prefilled on that."""
    count, start, dtype = len(tokens), before.next_position, model.model.dtype
    pairs = [(k.to(dtype)[None], v.to(dtype)[None]) for k, v in zip(before.keys, before.values, strict=True)]
    past: Any = DynamicCache(ddp_cache_data=pairs)
    with masked_to(torch.ones(1, count, count, dtype=torch.bool).tril()):
        model.model.model(
            input_ids=torch.tensor([list(tokens)]),
            position_ids=torch.arange(start, start + count)[None],
            use_cache=True,
            **cache_argument(model.model.model, past),
        )
    half = before.keys[0].dtype
    new = [(layer.keys[0, :, -count:].to(half), layer.values[0, :, -count:].to(half)) for layer in past.layers]
    return joined([before, DecodedCache([k for k, _ in new], [v for _, v in new], count)])


class Subject:
    """One context: its cache in entries, encoded when asked for, and its uncompressed cache's answers.

    Args:
        model: answers.
        workload: of which this is context ``sample``.
        sample: number of the context.
    """

    def __init__(self, model: CachedModel, workload: Workload, sample: int) -> None:
        context = workload.context(sample)
        self._model, self._workload = model, workload
        self._questions, self._tokens = context.questions, context.tokens.tolist()
        self._longest = max(len(question.answer) for question in self._questions)
        self._stores = stores()
        self._cache, self._side = model.prefill(self._tokens, frozenset({"queries", "attention"}), _WINDOW)
        self._entries: dict[tuple[int, int, str], DecodedCache] = {}
        self._known: dict[tuple[str, ...], float] = {}
        self._raw = self._answers(DecodedCache(self._cache.keys, self._cache.values, len(self._tokens)))

    def quality(self, variants: Sequence[str]) -> float:
        """Mean score of the answers against the uncompressed cache's, from equal blocks in these variants."""
        key = tuple(variants)
        if key not in self._known:
            answers = zip(self._answers(self.cache(key)), self._raw, self._questions, strict=True)
            self._known[key] = float(np.mean([self._score(*answer) for answer in answers]))
        return self._known[key]

    def cache(self, variants: Sequence[str]) -> DecodedCache:
        """The cache of equal blocks in these variants; a tail of ``RECOMPUTED`` is prefilled on what is before it."""
        stored = [variant for variant in variants if variant != RECOMPUTED]
        before = joined([self._entry(len(variants), place, variant) for place, variant in enumerate(stored)])
        if len(stored) == len(variants):
            return before
        return recomputed(self._model, before, self._tokens[before.next_position :])

    def _entry(self, blocks: int, place: int, variant: str) -> DecodedCache:
        key = (blocks, place, variant)
        if key not in self._entries:
            compressor, knob = self._stores[variant]
            cache, side = cut(self._cache, self._side, blocks)[place]
            self._entries[key] = compressor.decode(compressor.encode(cache, side, knob).payload)
        return self._entries[key]

    def _answers(self, cache: DecodedCache) -> list[list[int]]:
        queries = [question.query for question in self._questions]
        return self._model.answer(cache, queries, self._longest, self._workload.stop)

    def _score(self, output: list[int], raw: list[int], question: Question) -> float:
        if not raw:  # an empty answer is matched by nothing but an empty one, whatever the metric
            return float(not output)
        return self._workload.score(output, question._replace(answer=tuple(raw), references=()))


def measured(model: CachedModel, workload: Workload, seed: int, progress: Callable[[int], None]) -> Iterator[Row]:
    """Rows of all prompts of all contexts; ``progress`` takes the number of finished contexts."""
    for sample in range(workload.count):
        subject = Subject(model, workload, sample)
        for prompt in prompts(np.random.default_rng([seed, zlib.crc32(workload.task.encode()), sample])):
            yield Row(
                task=workload.task,
                sample=sample,
                kind=prompt.kind,
                pool=prompt.pool,
                blocks=len(prompt.variants),
                group=prompt.group,
                turn=prompt.turn,
                variants=" ".join(prompt.variants),
                quality=round(subject.quality(prompt.variants), 5),
            )
        progress(sample + 1)


def main(arguments: list[str] | None = None) -> None:
    """The command line: writes ``results.csv``, ``errors.csv`` and ``summary.json`` into a folder."""
    parser = argparse.ArgumentParser(description="Measure how the qualities of a prompt's entries compose.")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.csv, errors.csv and summary.json")
    parser.add_argument("--contexts", type=int, default=32, help="per task, at least 2")
    parser.add_argument("--seed", type=int, default=0, help="of contexts and of random mixtures")
    parser.add_argument("--quick", action="store_true", help=f"at most {_QUICK_CONTEXTS} contexts per task")
    given = parser.parse_args(arguments)
    contexts = min(given.contexts, _QUICK_CONTEXTS) if given.quick else given.contexts
    if contexts < 2:
        parser.error(f"--contexts {contexts}: at least 2 are needed, one to fit rules to and one to test them on")
    torch.set_num_threads(1)
    start = perf_counter()
    rows = _all_rows(contexts, given.seed)
    facts = {
        "contexts": contexts,
        "questions": _QUESTIONS,
        "tokens": LENGTH,
        "seed": given.seed,
        "weights_sha256": weights_hash(),
        "wall_time_s": round(perf_counter() - start, 1),
        "processor_time_s": round(process_time(), 1),
        **facts_of_machine("cpu"),
    }
    _write(given.out, pd.DataFrame([asdict(row) for row in rows]), facts)


def _all_rows(contexts: int, seed: int) -> list[Row]:
    model, start = load_cached(), perf_counter()
    rows: list[Row] = []
    for number, task in enumerate(TASKS.values()):

        def tell(finished: int, name: str = task.name, before: int = number * contexts) -> None:
            done, total = before + finished, len(TASKS) * contexts
            left = (perf_counter() - start) / done * (total - done) / 60
            print(f"\r{name}: {done}/{total} contexts, {left:.1f} min left   ", end="", file=sys.stderr, flush=True)

        rows += measured(model, generated(task, contexts, _QUESTIONS, LENGTH, seed, END), seed, tell)
    print(file=sys.stderr)
    return rows


def _write(out: Path, rows: pd.DataFrame, facts: Mapping[str, Any]) -> None:
    errors, tables = summary(rows)
    out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(out / "results.csv", index=False)
    errors.to_csv(out / "errors.csv", index=False)
    (out / "summary.json").write_text(json.dumps({**facts, **tables}, indent=1) + "\n", encoding="utf-8")
    print(errors[(errors["task"] == "all") & (errors["rule"] == "mean")].to_string(index=False))


if __name__ == "__main__":
    main()
