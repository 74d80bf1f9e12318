"""Language models as the profiler sees them: prefill to a cache, answer from a decoded cache, score answers.

What it is: a thin wrapper of a transformers causal LM that is built like Llama, with plain (grouped-query or
multi-head) attention; ``supported.py`` refuses others.  What it is not: a serving engine; one context at a time, its
questions as a batch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from simkv.errors import SimkvError
from simkv.profiler.attention import Capture, capturing, masked_to
from simkv.profiler.compressors.base import DecodedCache, KVCache, PrefillContext
from simkv.profiler.model_calls import cache_argument
from simkv.profiler.supported import check_attention, replace_attention

__all__ = ["CachedModel", "load_model", "load_tokenizer"]

_PROBE = 16  # tokens


class CachedModel:
    """A causal LM that continues from decoded caches.

    Args:
        model: a transformers causal LM; its attention implementation is set to the profiler's.
        name: as profiles name it.

    Raises:
        SimkvError: a model that is not built like Llama, or has an unusual cache.
    """

    def __init__(self, model: Any, name: str) -> None:
        _refuse_unusual(model.config, name)
        replace_attention(model, name)
        self.model = model.eval()
        self.name = name
        self.device = next(model.parameters()).device
        config = model.config
        heads = config.num_attention_heads
        self.layers = int(config.num_hidden_layers)
        self.kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        self.head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        self.window_tokens = int(config.max_position_embeddings)
        check_attention(model, name, self.layers, self.kv_heads, self.head_dim)

    @property
    def kv_bytes_per_token(self) -> int:
        """Raw KV bytes per token in 16-bit elements."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    @torch.inference_mode()
    def prefill(
        self, tokens: Sequence[int], needs: frozenset[str] = frozenset(), window: int = 64
    ) -> tuple[KVCache, PrefillContext]:
        """The cache of a context, in 16 bit, and the side information that compressors need.

        Args:
            tokens: the context.
            needs: union of the compressors' ``needs``.
            window: last queries to keep when "queries" is among them.

        Raises:
            SimkvError: when the context is empty or longer than the model's window.
        """
        if not 0 < len(tokens) <= self.window_tokens:
            raise SimkvError(
                f"model {self.name}: a context of {len(tokens)} tokens; allowed: 1 to {self.window_tokens}"
            )
        ids = torch.tensor([list(tokens)], device=self.device)
        cache: Any = DynamicCache()
        capture = Capture(window, "attention" in needs)
        with capturing(capture):
            self.model.model(input_ids=ids, use_cache=True, **cache_argument(self.model.model, cache))
        half = torch.bfloat16 if self.model.dtype == torch.bfloat16 else torch.float16
        kv = KVCache(
            [layer.keys[0].to(half) for layer in cache.layers], [layer.values[0].to(half) for layer in cache.layers]
        )
        context = PrefillContext(
            queries=capture.queries if "queries" in needs else None,
            scalings=capture.scalings if "queries" in needs else None,
            attention=capture.mass if "attention" in needs else None,
        )
        if "pre_rope" in needs:
            self._add_rope(context, tokens)
        return kv, context

    def _add_rope(self, context: PrefillContext, tokens: Sequence[int]) -> None:
        positions = torch.arange(len(tokens), device=self.device)[None]
        like = torch.zeros(1, 1, self.head_dim, device=self.device, dtype=torch.float32)
        cos, sin = self.model.model.rotary_emb(like, positions)
        context.rope_angles = (cos[0], sin[0])
        # The first layer sees nothing but the tokens: of equal ones, its keys differ by RoPE alone.
        cache: Any = DynamicCache()
        same = torch.tensor([[tokens[0]] * min(_PROBE, self.window_tokens)], device=self.device)
        self.model.model(input_ids=same, use_cache=True, **cache_argument(self.model.model, cache))
        context.rope_probe = cache.layers[0].keys[0]

    def _started(self, cache: DecodedCache) -> DynamicCache:
        dtype = self.model.dtype
        pairs = [
            (k.to(self.device, dtype)[None], v.to(self.device, dtype)[None])
            for k, v in zip(cache.keys, cache.values, strict=True)
        ]
        return DynamicCache(ddp_cache_data=pairs)

    @torch.inference_mode()
    def answer(
        self, cache: DecodedCache, queries: Sequence[Sequence[int]], new_tokens: int, stop: int | None
    ) -> list[list[int]]:
        """Greedy answers to each query, each from the same cache, with original positions.

        Args:
            cache: what a compressor decoded.
            queries: token ids of each question, at least one each.
            new_tokens: longest answer.
            stop: token that ends an answer (not part of it), None for none.
        """
        answers: list[list[int]] = [[] for _ in queries]
        rows, past = _Rows(cache.next_position, len(queries)), self._started(cache)
        latest = {row: list(query) for row, query in enumerate(queries)}
        for _ in range(new_tokens if queries else 0):
            ends = [end - 1 for end in accumulate(map(len, latest.values()))]
            chosen = self._step(rows, past, latest, ends).argmax(-1).tolist()
            latest = {row: [token] for row, token in zip(latest, chosen, strict=True) if token != stop}
            for row, (token,) in latest.items():
                answers[row].append(token)
            if not latest:
                break
        return answers

    @torch.inference_mode()
    def answer_logits(
        self, cache: DecodedCache, queries: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Log-probabilities [answer tokens, vocabulary] of each answer's positions, teacher-forced."""
        told = {row: [*query, *answer[:-1]] for row, (query, answer) in enumerate(zip(queries, answers, strict=True))}
        ends = list(accumulate(map(len, told.values())))
        keep = [
            place for end, answer in zip(ends, answers, strict=True) for place in range(end - max(len(answer), 1), end)
        ]
        logits = self._step(_Rows(cache.next_position, len(told)), self._started(cache), told, keep)
        return list(logits.float().log_softmax(-1).split([max(len(answer), 1) for answer in answers]))

    def _step(self, rows: _Rows, past: DynamicCache, tokens: Mapping[int, Sequence[int]], keep: list[int]) -> Tensor:
        """Logits [len(keep), vocabulary] at places of the new tokens, which are packed in order of ``tokens``."""
        positions, seen = rows.extended({row: len(new) for row, new in tokens.items()})
        ids = torch.tensor([[token for new in tokens.values() for token in new]], device=self.device)
        with masked_to(seen[None].to(self.device)):
            out: Tensor = self.model(
                input_ids=ids,
                position_ids=positions[None].to(self.device),
                use_cache=True,
                logits_to_keep=torch.tensor(keep, device=self.device),
                **cache_argument(self.model, past),
            ).logits
        return out[0]


class _Rows:
    """Questions that continue one cache side by side, packed into one sequence: each sees the cache and itself.

    So the cache is held once, however many the questions.
    """

    def __init__(self, start: int, rows: int) -> None:
        self._start = start
        self._lengths = [0] * rows
        self._owner = torch.empty(0, dtype=torch.int64)
        self._place = torch.empty(0, dtype=torch.int64)

    def extended(self, counts: Mapping[int, int]) -> tuple[Tensor, Tensor]:
        """Positions int64[new] and what they see, bool[new, new so far], of ``counts[row]`` more tokens per row."""
        owner = torch.tensor([row for row, count in counts.items() for _ in range(count)])
        place = torch.tensor([self._lengths[row] + step for row, count in counts.items() for step in range(count)])
        for row, count in counts.items():
            self._lengths[row] += count
        self._owner, self._place = torch.cat([self._owner, owner]), torch.cat([self._place, place])
        seen = (owner[:, None] == self._owner) & (self._place <= place[:, None])
        return self._start + place, seen


def load_model(name: str, device: str = "cpu") -> CachedModel:
    """A Hugging Face causal LM by name or folder: bf16 on a GPU, fp32 on the CPU; local files only when offline.

    Raises SimkvError when it cannot be loaded or has an unusual cache.
    """
    local = Path(name).is_dir() or os.environ.get("HF_HUB_OFFLINE") == "1"
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    try:
        _refuse_unusual(AutoConfig.from_pretrained(name, local_files_only=local), name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            name, local_files_only=local, dtype=dtype, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise SimkvError(f"model {name}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    model.to(torch.device(device))
    return CachedModel(model, Path(name).name)


def load_tokenizer(name: str) -> Any:
    """The tokenizer that belongs to a model's name or folder; local files only when offline.

    Code that comes with a model is never run.  Raises SimkvError when there is none.
    """
    local = Path(name).is_dir() or os.environ.get("HF_HUB_OFFLINE") == "1"
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=local, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise SimkvError(f"model {name}: has no tokenizer: {' '.join(str(error).split())[:300]}") from error


def _refuse_unusual(config: Any, name: str) -> None:
    kinds = set(getattr(config, "layer_types", None) or ())
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if kinds - {"full_attention"} or sliding:
        raise SimkvError(f"model {name}: has sliding-window or other special layers; only full attention is supported")
    if getattr(config, "kv_lora_rank", None):
        raise SimkvError(f"model {name}: has a latent (MLA) cache; only plain key-value caches are supported")
