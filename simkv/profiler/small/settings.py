"""How the small model is measured: its committed weights, and compressors fitted to its short contexts.

Published defaults keep 64 to 192 recent tokens raw, a good part of a context of 512; here the windows shrink with the
context, so that a variant's rate is felt.  This model's largest keys matter most, unlike those of large models, so
``knorm`` keeps the tokens of high norm (see ``model_card.md``).
"""

import hashlib
from pathlib import Path
from typing import Any

from simkv.profiler.models import CachedModel
from simkv.profiler.small.checkpoint import load_small

__all__ = ["LENGTH", "NAME", "PARAMETERS", "PUBLISHED_RATES", "WEIGHTS", "load_cached", "weights_hash"]

NAME = "small"
LENGTH = 512
WEIGHTS = Path(__file__).with_name("weights")
PARAMETERS: dict[str, dict[str, Any]] = {
    "kivi": {"residual": 32},
    "kvcomp": {"buffer": 64},
    "packkv": {"buffer": 64},
    "snapkv": {"window": 16},
    "pyramidkv": {"window": 16},
    "pyramidinfer": {"window": 16},
    "knorm": {"keep": "high"},
}
PUBLISHED_RATES: dict[str, tuple[str, ...]] = {
    "streamingllm": ("0.7286", "0.4857", "0.3714"),
    "keydiff": ("0.9", "0.8", "0.6", "0.4", "0.2"),
    "knorm": ("0.9", "0.8", "0.6", "0.4", "0.2"),
    "snapkv": ("0.9", "0.8", "0.6", "0.4", "0.2"),
}
"""Rates of the published AdaptCache and EvicPress tables, so that their speeds fit this model's profile."""


def load_cached(folder: Path = WEIGHTS, outliers: bool = True, device: str = "cpu") -> CachedModel:
    """The committed model, or one trained like it, behind the profiler's wrapper.  Raises ModelError."""
    model: Any = load_small(folder, outliers)
    name = NAME if folder == WEIGHTS else folder.resolve().name
    return CachedModel(model.to(device), f"simkv-{name}")


def weights_hash(folder: Path = WEIGHTS) -> str:
    """SHA-256 of the weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
