"""Language models as the profiler sees them: prefill to a cache, answer from a decoded cache, score answers.

What it is: a thin wrapper of any transformers causal LM with plain (grouped-query or multi-head) attention.  What it
is not: a serving engine; one context at a time, its questions as a batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from simkv.errors import SimkvError
from simkv.profiler.attention import IMPLEMENTATION, Capture, capturing, masked_to
from simkv.profiler.compressors.base import DecodedCache, KVCache, PrefillContext

__all__ = ["CachedModel", "load_model"]


class CachedModel:
    """A causal LM that continues from decoded caches.

    Args:
        model: a transformers causal LM; its attention implementation is set to the profiler's.
        name: as profiles name it.
    """

    def __init__(self, model: Any, name: str) -> None:
        _refuse_unusual(model.config, name)
        model.set_attn_implementation(IMPLEMENTATION)
        self.model = model.eval()
        self.name = name
        self.device = next(model.parameters()).device
        config = model.config
        heads = config.num_attention_heads
        self.layers = int(config.num_hidden_layers)
        self.kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        self.head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        self.window_tokens = int(config.max_position_embeddings)

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
            self.model.model(input_ids=ids, past_key_values=cache, use_cache=True)
        half = torch.bfloat16 if self.model.dtype == torch.bfloat16 else torch.float16
        kv = KVCache(
            [layer.keys[0].to(half) for layer in cache.layers], [layer.values[0].to(half) for layer in cache.layers]
        )
        context = PrefillContext(
            queries=capture.queries if "queries" in needs else None,
            attention=capture.mass if "attention" in needs else None,
        )
        if "pre_rope" in needs:
            self._add_rope(context, len(tokens))
        return kv, context

    def _add_rope(self, context: PrefillContext, tokens: int) -> None:
        positions = torch.arange(tokens, device=self.device)[None]
        probe = torch.zeros(1, 1, self.head_dim, device=self.device, dtype=torch.float32)
        cos, sin = self.model.model.rotary_emb(probe, positions)
        context.rope_angles = (cos[0], sin[0])

    def _started(self, cache: DecodedCache, rows: int) -> DynamicCache:
        dtype = self.model.dtype
        pairs = [
            (
                k.to(self.device, dtype)[None].expand(rows, -1, -1, -1),
                v.to(self.device, dtype)[None].expand(rows, -1, -1, -1),
            )
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
        ids, valid = _left_padded(queries, self.device)
        past = self._started(cache, len(queries))
        positions = cache.next_position + (valid.cumsum(1) - 1).clamp(min=0)
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        logits = self._step(ids, positions, past, causal[None] & valid[:, None, :])
        done = torch.zeros(len(queries), dtype=torch.bool, device=self.device)
        answers: list[list[int]] = [[] for _ in queries]
        for _ in range(new_tokens):
            token = logits[:, -1].argmax(-1)
            for row, (value, over) in enumerate(zip(token.tolist(), done.tolist(), strict=True)):
                if not over and value != stop:
                    answers[row].append(value)
            done |= token == stop if stop is not None else False
            if bool(done.all()):
                break
            valid = torch.cat([valid, torch.ones_like(valid[:, :1])], dim=1)
            positions = positions[:, -1:] + 1
            logits = self._step(token[:, None], positions, past, valid[:, None, :])
        return answers

    @torch.inference_mode()
    def answer_logits(
        self, cache: DecodedCache, queries: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Log-probabilities [answer tokens, vocabulary] of each answer's positions, teacher-forced."""
        joined = [[*query, *answer] for query, answer in zip(queries, answers, strict=True)]
        ids, valid = _left_padded(joined, self.device)
        positions = cache.next_position + (valid.cumsum(1) - 1).clamp(min=0)
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        logits = self._step(ids, positions, self._started(cache, len(joined)), causal[None] & valid[:, None, :])
        return [
            logits[row, length - len(answer) - 1 : length - 1].float().log_softmax(-1)
            for row, answer in enumerate(answers)
        ]

    def _step(self, ids: Tensor, positions: Tensor, past: DynamicCache, seen: Tensor) -> Tensor:
        # A padded query sees nothing; it must see itself, or softmax over nothing gives NaN.
        new = ids.shape[1]
        own = torch.zeros_like(seen)
        own[:, :, -new:] = torch.eye(new, dtype=torch.bool, device=seen.device)
        with masked_to(seen | own):
            out: Tensor = self.model(input_ids=ids, position_ids=positions, past_key_values=past, use_cache=True).logits
        return out


def _left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids [rows, longest] padded on the left with 0, and which are real."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    valid = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows], device=device)
    return ids, valid


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


def _refuse_unusual(config: Any, name: str) -> None:
    kinds = set(getattr(config, "layer_types", None) or ())
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if kinds - {"full_attention"} or sliding:
        raise SimkvError(f"model {name}: has sliding-window or other special layers; only full attention is supported")
    if getattr(config, "kv_lora_rank", None):
        raise SimkvError(f"model {name}: has a latent (MLA) cache; only plain key-value caches are supported")
