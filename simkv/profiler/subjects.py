"""What speeds are measured on: a cache's shape, and a model that prefills and steps, real or of random weights.

What it is: a name to both, with fewer layers where memory or patience does not suffice.  **The rule**: a cache of l
of the model's L layers is encoded and decoded, and its times and bytes are multiplied by L / l; a model of l layers
is timed with its head, and of its times less the head's the same multiple is taken.  What it is not: the timing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from simkv.errors import SimkvError
from simkv.models import MODELS
from simkv.profiler.architectures import ARCHITECTURES, random_model, weight_bytes
from simkv.profiler.checkpoints import checkpoint_facts
from simkv.profiler.devices import check_device
from simkv.profiler.models import CachedModel, load_model
from simkv.profiler.random_caches import CacheShape
from simkv.profiler.small import settings as small
from simkv.profiler.sources import open_source
from simkv.profiler.speed_model import SpeedModel

__all__ = ["Subject", "free_bytes", "open_subject"]

_CACHE_COPIES = 12  # a compressor may hold so many times a cache's raw bytes: fp32 copies, codes, products
_CPU_CACHE_BYTES = 64 << 20
_CPU_LAYERS = 2
_MOST_OF_MEMORY = 0.4
_MOST_OF_MEMORY_FOR_CACHES = 0.6  # when the weights are there already
_GIB = 1 << 30


@dataclass(frozen=True)
class Subject:
    """What to time.

    Attributes:
        name, layers, kv_bytes_per_token, window_tokens: of the whole model.
        cache: shape of the caches that are encoded, maybe of fewer layers.
        dtype: of those caches.
        model: to prefill with and to step, maybe of fewer layers.
        random: whether its weights are.
        facts: for the profile.
        parameters, rates: compressor parameters and further knobs that suit the model.
    """

    name: str
    layers: int
    kv_bytes_per_token: int
    window_tokens: int
    cache: CacheShape
    dtype: torch.dtype
    model: SpeedModel
    random: bool
    facts: Mapping[str, Any]
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rates: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def cache_scale(self) -> float:
        """What times and bytes of ``cache`` are multiplied by."""
        return self.layers / self.cache.layers

    @property
    def model_scale(self) -> float:
        """What the model's times, less the head's, are multiplied by."""
        return self.layers / self.model.shape.layers


def open_subject(name: str, device: str, longest: int, seed: int) -> Subject:
    """By name: "small" and its kin, a known model's shape, or a Hugging Face name or folder.

    Args:
        name: of the model.
        device: "cpu" or "cuda".
        longest: tokens of the longest cache, which must fit the memory.
        seed: of random weights and tokens.

    Raises:
        SimkvError: a model that cannot be loaded, or of which not one layer fits the memory.
    """
    check_device(device)
    if name in MODELS:
        return _known(name, device, longest, seed)
    if name == small.NAME or name.startswith((f"{small.NAME}-", f"{small.NAME}:")):
        source = open_source(name, device)
        return _real(source.model, source.facts, source.parameters, source.rates, device, longest, seed)
    try:
        model = load_model(name, device)
        return _real(model, checkpoint_facts(name, model.model.config), {}, {}, device, longest, seed)
    except SimkvError as error:
        known = ", ".join(MODELS)
        raise SimkvError(f"{error}; shapes that need no checkpoint: {small.NAME}, {known}") from error


def free_bytes(device: str) -> int:
    """Memory that is free now, of the device or of the machine."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        (kib,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(kib) * 1024
    except (OSError, ValueError):
        return 4 * _GIB  # not Linux: a cautious guess


def _known(name: str, device: str, longest: int, seed: int) -> Subject:
    shape, built = MODELS[name], ARCHITECTURES[name]
    on_gpu = device.startswith("cuda")
    weights = torch.bfloat16 if on_gpu else torch.float32
    layer, embedding = weight_bytes(name, weights.itemsize)
    room = int(_MOST_OF_MEMORY * free_bytes(device)) - embedding
    layers = _halved(shape.layers, room // layer if on_gpu else min(_CPU_LAYERS, room // layer))
    if layers < 1:
        free = free_bytes(device) / _GIB
        raise SimkvError(
            f"model {name}: one layer and the embedding take {(layer + embedding) / _GIB:.1f} GiB, more than "
            f"{_MOST_OF_MEMORY:.0%} of the {free:.1f} GiB that are free on {device}"
        )
    model = random_model(name, layers, device, weights, seed)
    whole = CacheShape(layers, shape.kv_heads, built.query_heads, shape.head_dim)
    return Subject(
        name=name,
        layers=shape.layers,
        kv_bytes_per_token=shape.kv_bytes_per_token,
        window_tokens=shape.window_tokens,
        cache=_fitting(shape.layers, whole, device, longest, name),
        dtype=torch.bfloat16 if on_gpu else torch.float16,
        model=SpeedModel(model, whole, built.vocabulary, seed),
        random=True,
        facts={"weights": "random", "weights_dtype": str(weights).removeprefix("torch.")},
    )


def _real(
    model: CachedModel,
    facts: Mapping[str, Any],
    parameters: Mapping[str, Mapping[str, Any]],
    rates: Mapping[str, Sequence[str]],
    device: str,
    longest: int,
    seed: int,
) -> Subject:
    config = model.model.config
    whole = CacheShape(model.layers, model.kv_heads, int(config.num_attention_heads), model.head_dim)
    kept = {key: fact for key, fact in facts.items() if key not in ("summary", "label")}
    dtype = str(model.model.dtype).removeprefix("torch.")
    return Subject(
        name=model.name,
        layers=model.layers,
        kv_bytes_per_token=model.kv_bytes_per_token,
        window_tokens=model.window_tokens,
        cache=_fitting(model.layers, whole, device, longest, model.name),
        dtype=torch.bfloat16 if model.model.dtype == torch.bfloat16 else torch.float16,
        model=SpeedModel(model.model, whole, int(config.vocab_size), seed),
        random=False,
        facts={"weights": "of the checkpoint", **kept, "weights_dtype": dtype},
        parameters=parameters,
        rates=rates,
    )


def _fitting(layers: int, shape: CacheShape, device: str, longest: int, name: str) -> CacheShape:
    """The shape with as many of ``layers`` layers as can be encoded at ``longest`` tokens."""
    one = CacheShape(1, shape.kv_heads, shape.query_heads, shape.head_dim)
    layer = one.bytes_per_token * longest
    most = int(_MOST_OF_MEMORY_FOR_CACHES * free_bytes(device)) // (_CACHE_COPIES * layer)
    if not device.startswith("cuda"):
        most = min(most, max(1, _CPU_CACHE_BYTES // layer))
    if most < 1:
        raise SimkvError(
            f"model {name}: encoding one layer of {longest} tokens takes up to {_CACHE_COPIES * layer / _GIB:.1f} GiB; "
            f"{free_bytes(device) / _GIB:.1f} GiB are free on {device}: give shorter --tokens"
        )
    return CacheShape(_halved(layers, most), shape.kv_heads, shape.query_heads, shape.head_dim)


def _halved(layers: int, most: int) -> int:
    """At most so many layers, by halving: a little more or less free memory must not make another measurement."""
    while layers > max(most, 0):
        layers = 0 if layers == 1 else -(-layers // 2)
    return layers
