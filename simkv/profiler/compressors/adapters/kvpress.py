"""Presses of kvpress (https://github.com/NVIDIA/kvpress) as token droppers.

What it is: an adapter.  A press chooses tokens from inside the model, so a dropper is attached to the model before the
prefill, remembers what every attention layer was given, and asks the press when a cache is encoded.  Stored is what
every dropper stores: the kept keys and values, bit for bit, and their positions.  What it is not: a way to measure
presses that free no memory (masks, zeroed channels), change what they keep (merging, rotating again) or act while
answers are generated; those are refused.  kvpress is imported when one of its presses is asked for.

"kvpress:ExpectedAttentionPress" names the compressor of that press with its default parameters.  Others, and presses
around presses, are subclasses of ``KvpressDropper``, named "module:Class".
"""

import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache as remembered
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor

from simkv.errors import unknown_name
from simkv.profiler.compressors.adapters import one_line
from simkv.profiler.compressors.base import CompressorError, KVCache, PrefillContext
from simkv.profiler.compressors.dropping import Dropper, kept_tokens
from simkv.profiler.model_calls import given_cache
from simkv.profiler.models import CachedModel

__all__ = ["KvpressDropper"]

_ROUNDING = 1e-9
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z][a-z])")


@dataclass
class _Layer:
    """What an attention layer was given in a prefill, and its part of the cache, [1, H, T, D]."""

    module: Any
    given: dict[str, Any]
    keys: Tensor
    values: Tensor


class _Prefill:
    """The last prefill of a model, by layer number; filled by hooks that stay as long as the model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.layers: dict[int, _Layer] = {}
        for layer in model.model.layers:
            layer.self_attn.rotary_emb = model.model.rotary_emb  # where presses look for it
            layer.self_attn.register_forward_hook(self._record, with_kwargs=True)

    def _record(self, module: Any, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
        layer = given_cache(given).layers[module.layer_idx]
        if layer.keys.shape[2] == given["hidden_states"].shape[1]:  # not an answer, which continues a cache
            self.layers[module.layer_idx] = _Layer(module, dict(given), layer.keys, layer.values)

    def of(self, cache: KVCache) -> list[_Layer] | None:
        """The layers, if it is their cache."""
        layers = [self.layers[number] for number in sorted(self.layers)]
        found = [part[0] for layer in layers for part in (layer.keys, layer.values)]
        given = [part for pair in zip(cache.keys, cache.values, strict=True) for part in pair]
        same = len(found) == len(given) and all(torch.equal(f.to(g), g) for f, g in zip(found, given, strict=True))
        return layers if same else None


@dataclass(frozen=True)
class KvpressDropper(Dropper):
    """Base of presses: a subclass names itself and makes the press.

    It must be attached to the model whose caches it is to encode, and encodes the cache of that model's last prefill.
    The press sees keys and values as the model computed them, before they are rounded to 16 bits.

    Knob: retention ratio, the fraction of tokens *kept*; the press is given the rest as its ``compression_ratio``.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    _prefill: _Prefill | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises CompressorError for a press that cannot be made, or that does more than drop tokens."""
        try:
            press = self.press()
        except Exception as error:  # a press's code may fail in any way
            raise CompressorError(f"compressor {self.name}: the press cannot be made: {one_line(error)}") from error
        kinds = [kind for kind in type(press).__mro__ if kind.__name__ != "BasePress"]
        for method in ("__call__", "forward_hook"):
            if any(method in vars(kind) for kind in kinds):
                raise CompressorError(
                    f"compressor {self.name}: {type(press).__name__} has a {method} of its own, "
                    "so it does more than drop tokens after the prefill"
                )

    def __repr__(self) -> str:
        """Name and press, with the press's parameters: what a profile records."""
        return f"{self.name}({self.press()!r})"

    @staticmethod
    @abstractmethod
    def press() -> Any:
        """A new press of kvpress, its ``compression_ratio`` still to be set."""

    def attached(self, model: CachedModel) -> "KvpressDropper":
        """A copy that encodes the caches of ``model``, which must be prefilled afterwards."""
        ready = replace(self)
        object.__setattr__(ready, "_prefill", _Prefill(model.model))
        return ready

    def choose(self, cache: KVCache, context: PrefillContext, knob: str) -> list[Tensor]:
        """See Dropper.  Raises CompressorError also when the press fails, or does anything but drop tokens."""
        retention = self.retention(knob)
        layers = None if self._prefill is None else self._prefill.of(cache)
        if self._prefill is None or layers is None:
            raise CompressorError(
                f"compressor {self.name}: not the cache of the last prefill of a model that it was attached to"
            )
        tokens = cache.shape.tokens
        wanted = kept_tokens(tokens, retention)
        removed = 1.0 - retention
        if int(tokens * (1.0 - removed)) < wanted:  # as kvpress counts, which loses a token to the last bit
            removed = max(0.0, removed - _ROUNDING)
        press = self._set(removed, self._prefill.model)
        kept = [self._kept(press, layer) for layer in layers]
        if wanted < tokens and all(rows.shape[1] == tokens for rows in kept):
            raise CompressorError(f"compressor {self.name}: the press drops no tokens, so it frees no memory")
        alike = all(torch.equal(row, rows[0]) for rows in kept for row in rows)
        return [rows[0] for rows in kept] if alike else kept

    def _set(self, removed: float, model: Any) -> Any:
        """The press that removes this fraction, ready for the model."""
        press = self.press()
        try:
            press.compression_ratio = removed
            press.post_init_from_model(model)
        except Exception as error:  # a press's code may fail in any way
            raise CompressorError(f"compressor {self.name}: the press cannot be set: {one_line(error)}") from error
        return press

    def _kept(self, press: Any, layer: _Layer) -> Tensor:
        """Positions [H, n], ascending, that a press keeps of a layer."""
        module, given = layer.module, layer.given
        sides = layer.keys.clone(), layer.values.clone()  # some presses write into them
        try:
            with torch.inference_mode():
                keys, values = press.compress(module, given["hidden_states"], *sides, None, dict(given))
                kept = torch.cat([keys, values], dim=-1)[0].to(sides[0])
        except Exception as error:  # a press's code may fail in any way
            raise CompressorError(f"compressor {self.name}: the press failed: {one_line(error)}") from error
        if getattr(module, "masked_key_indices", None) is not None:
            module.masked_key_indices = None
            raise CompressorError(f"compressor {self.name}: the press masks tokens, so it frees no memory")
        whole = torch.cat([layer.keys, layer.values], dim=-1)[0]
        if kept.ndim != 3 or (len(kept), kept.shape[2]) != (len(whole), whole.shape[2]) or not kept.shape[1]:
            raise CompressorError(f"compressor {self.name}: the press made {list(kept.shape)} of {list(whole.shape)}")
        return torch.stack(list(self._positions(kept, whole)))

    def _positions(self, kept: Tensor, whole: Tensor) -> Iterator[Tensor]:
        """Per head: where the rows of ``kept`` [H, n, 2 D] are, bit for bit, among those of ``whole`` [H, T, 2 D]."""
        bits = _BITS[whole.element_size()]
        tokens = whole.shape[1]
        for some, every in zip(kept.contiguous().view(bits), whole.contiguous().view(bits), strict=True):
            labels = torch.cat([every, some]).unique(dim=0, return_inverse=True)[1]
            counts = labels[:tokens].bincount(minlength=int(labels.max()) + 1)
            place = torch.empty_like(counts).scatter_(0, labels[:tokens], torch.arange(tokens, device=labels.device))
            found = labels[tokens:]
            if not bool((counts[found] == 1).all()) or found.unique().numel() < found.numel():
                raise CompressorError(
                    f"compressor {self.name}: the press keeps what is not exactly one token of the cache: "
                    "it changes keys or values, or two tokens are equal"
                )
            yield place[found].sort().values


def __getattr__(name: str) -> Any:
    """The compressor class of a press by the name that kvpress has for it."""
    if not name.endswith("Press"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _named(name)


@remembered
def _named(name: str) -> type[KvpressDropper]:
    try:
        library = import_module("kvpress")
    except ImportError as error:
        raise CompressorError(
            f"press {name}: kvpress cannot be imported ({one_line(error)}); it is the extra simkv[kvpress], "
            "best in an environment of its own, because it needs an older transformers"
        ) from error
    known = [other for other in library.__all__ if other.endswith("Press")]
    if name not in known:
        raise CompressorError(unknown_name("press", name, known))
    make = getattr(library, name)
    words = _WORDS.sub("-", name.removesuffix("Press")).lower()
    parts = {"name": f"kvpress-{words}", "press": staticmethod(make), "__module__": __name__, "__doc__": make.__doc__}
    return type(name, (KvpressDropper,), parts)
