"""Shapes of known LLMs: what the bytes of a KV cache follow from, and nothing else.

A shape comes from the table below by name or from a Hugging Face ``config.json``.  Sliding-window and latent-attention
models are refused, since their caches are not 2 x layers x KV heads x head dim.

The table was checked against the models' published files on 2026-11-26 (sources: ``simkv/profiler/architectures.py``).
Three windows are not their ``max_position_embeddings``: qwen3-8b's 40,960 are 131,072 with the YaRN scaling of its
model card, longchat's 4,096 are stretched eightfold (``rope_condense_ratio``), and qwen3-30b-a3b's are those of its
revision 2507 (the first had 40,960).
"""

import json
from dataclasses import dataclass
from pathlib import Path

from simkv.errors import ConfigError, unknown_name

__all__ = ["MODELS", "ModelShape", "find_model", "model_from_config"]

_MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelShape:
    """Shape of a decoder-only model.  ``window_tokens`` is the longest context it accepts."""

    name: str
    layers: int
    kv_heads: int
    head_dim: int
    window_tokens: int
    bytes_per_element: int = 2

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of raw KV cache per token: 2 x layers x KV heads x head dim x bytes per element."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_element


MODELS = {
    shape.name: shape
    for shape in (
        ModelShape("llama-3.1-8b", 32, 8, 128, 131_072),
        ModelShape("llama-3.1-70b", 80, 8, 128, 131_072),
        ModelShape("llama-3.2-1b", 16, 8, 64, 131_072),
        ModelShape("llama-3.2-3b", 28, 8, 128, 131_072),
        ModelShape("mistral-7b-v0.3", 32, 8, 128, 32_768),
        ModelShape("qwen2.5-7b", 28, 4, 128, 131_072),
        ModelShape("qwen2.5-14b", 48, 8, 128, 131_072),
        ModelShape("qwen2.5-32b", 64, 8, 128, 131_072),
        ModelShape("qwen3-8b", 36, 8, 128, 131_072),
        ModelShape("qwen3-30b-a3b", 48, 4, 128, 262_144),
        ModelShape("longchat-7b", 32, 32, 128, 32_768),
    )
}


def find_model(name: str) -> ModelShape:
    """The shape of a known model, or of a ``config.json`` when ``name`` is a path to one.

    Raises ConfigError naming the nearest known model.
    """
    if name in MODELS:
        return MODELS[name]
    if name.endswith(".json"):
        return model_from_config(Path(name))
    raise ConfigError(unknown_name("model", name, MODELS))


def model_from_config(path: Path) -> ModelShape:
    """Read a Hugging Face ``config.json``.

    Raises ConfigError when the file is missing, too large, malformed, lacks a key, or describes a
    cache that is not plain (grouped-query or multi-head) attention.
    """
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than {_MAX_CONFIG_BYTES} bytes; not a model config")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot read a model config: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: a model config is a JSON object, found {type(config).__name__}")
    if config.get("kv_lora_rank") or (config.get("sliding_window") and config.get("use_sliding_window", True)):
        raise ConfigError(f"{path}: latent and sliding-window caches are not supported")
    values = {}
    for key in ("num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings"):
        values[key] = _positive(path, config, key, None)
    heads = values["num_attention_heads"]
    return ModelShape(
        name=str(config.get("_name_or_path") or path.parent.name or path.stem),
        layers=values["num_hidden_layers"],
        kv_heads=_positive(path, config, "num_key_value_heads", heads),
        head_dim=_positive(path, config, "head_dim", values["hidden_size"] // heads),
        window_tokens=values["max_position_embeddings"],
    )


def _positive(path: Path, config: dict[str, object], key: str, default: int | None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ConfigError(f"{path}: {key} is {value!r}; it must be a positive whole number")
    return value
