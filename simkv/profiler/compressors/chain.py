"""chain: drop tokens, then quantise (and entropy-code) those that are left.

What it is: the composition of any dropper with any compressor that keeps every token, over the kept keys and
values.  Their size ratios multiply; positions are counted once.  What it is not: a composition of two quantisers,
or of two droppers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import ClassVar, cast

import torch
from torch import Tensor

from simkv.errors import unknown_name
from simkv.profiler.compressors.base import Compressor, CompressorError, DecodedCache, KVCache, PrefillContext
from simkv.profiler.compressors.dropping import Dropper, gather, kept_cache
from simkv.profiler.compressors.kivi import Kivi
from simkv.profiler.compressors.payload import Encoded, PayloadError, pack
from simkv.profiler.compressors.positions import pack_positions, unpack_positions
from simkv.profiler.compressors.snapkv import SnapKV

__all__ = ["Chain", "chain"]


@dataclass(frozen=True)
class Chain(Compressor):
    """A dropper and then a coder, after the transform x quantiser x codec composition of KVServe
    (https://arxiv.org/abs/2605.13734).

    The coder sees a shorter cache: its windows and groups count kept tokens.  Layers that keep unequally many tokens
    are coded apart, so a coder that treats deeper layers differently does so within each run of equal layers.
    Coders that need positions or attention are refused.

    Knob: the dropper's and the coder's, joined by "+", after the names of both, "snapkv+kivi:0.5+4", so that variants
    of several chains can stand in one profile; or without the names, "0.5+4".
    """

    name: ClassVar[str] = "chain"
    knobs: ClassVar[Sequence[str]] = tuple(f"snapkv+kivi:{kept}+{Kivi.knobs[1]}" for kept in SnapKV.knobs)
    needs: ClassVar[frozenset[str]] = SnapKV.needs
    most_ratio: ClassVar[int] = Dropper.most_ratio  # the coder refuses what its own bytes cannot hold

    dropper: Dropper = field(default_factory=SnapKV)
    coder: Compressor = field(default_factory=Kivi)

    def __post_init__(self) -> None:
        """Ladder (the dropper's, at the coder's second rate) and needs follow from the parts.

        Raises CompressorError for parts that cannot be joined.
        """
        if not isinstance(self.dropper, Dropper):
            raise CompressorError(
                f"compressor chain: {self.dropper.name} does not drop tokens, so it cannot come first"
            )
        if isinstance(self.coder, Dropper | Chain) or not self.coder.needs <= {"calibration"}:
            raise CompressorError(f"compressor chain: {self.coder.name} cannot code what another compressor has kept")
        rate = self.coder.knobs[:2][-1]
        object.__setattr__(self, "knobs", tuple(f"{self.parts}:{kept}+{rate}" for kept in self.dropper.knobs))
        object.__setattr__(self, "needs", self.dropper.needs | self.coder.needs)

    @property
    def parts(self) -> str:
        """Names of the dropper and the coder: "snapkv+kivi"."""
        return f"{self.dropper.name}+{self.coder.name}"

    @property
    def format(self) -> str:
        """Name of the payload format: both parts and the version."""
        return f"{self.name}:{self.parts}/{self.version}"

    def encode(self, cache: KVCache, context: PrefillContext, knob: str) -> Encoded:
        """See Compressor."""
        parts, named, rates = knob.rpartition(":")
        retention, joined, rate = rates.partition("+")
        if not joined or (named and parts != self.parts):
            raise CompressorError(f'compressor chain: knob {knob!r} is not of the form "{self.knobs[0]}"')
        kept = self.dropper.choose(cache, context, retention)
        facts, positions = pack_positions(kept, cache.shape.tokens)
        keys, values = gather(cache.keys, kept), gather(cache.values, kept)
        sections: dict[str, Tensor | bytes] = {"positions": positions}
        for first, last, _ in _runs(facts["counts"]):
            part = KVCache(keys[first:last], values[first:last])
            sections[f"coded_{first}"] = self.coder.encode(part, PrefillContext(), rate).payload
        return pack(self.format, cache.shape.facts() | facts, sections)

    def decode(self, payload: bytes, device: torch.device | str = "cpu") -> DecodedCache:
        """See Compressor."""
        facts, sections, shape = self.opened(payload)
        kept = unpack_positions(facts, sections.get("positions"), shape)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for first, last, count in _runs([positions.shape[-1] for positions in kept]):
            coded = sections.get(f"coded_{first}")
            if coded is None or coded.dtype != torch.uint8:
                raise PayloadError(f"an encoded cache without the coded tokens of layer {first}")
            part = self.coder.decode(coded.numpy().tobytes(), device)
            whole = (shape.heads, count, shape.head_dim)
            fits = all(side.shape == whole and side.dtype == shape.torch_dtype for side in (*part.keys, *part.values))
            if not fits or len(part.keys) != last - first or len(part.values) != last - first:
                raise PayloadError(f"the coded tokens of layers {first} to {last - 1} are of another shape")
            keys += part.keys
            values += part.values
        return kept_cache(keys, values, kept, shape.tokens)

    def fit(self, caches: Sequence[KVCache]) -> "Chain":
        """With a coder calibrated on whole caches."""
        return replace(self, coder=self.coder.fit(caches))

    def fused(self, device: str) -> "Chain":
        """With the coder's fused decoder, if there is one."""
        return replace(self, coder=self.coder.fused(device))

    def shared_bytes(self) -> int:
        """The coder's."""
        return self.coder.shared_bytes()


def chain(parts: str, known: Mapping[str, type[Compressor]]) -> Chain:
    """The chain that a text like "snapkv+kivi" names, its parts with their default parameters.

    Raises CompressorError for unknown names and for parts that cannot be joined.
    """
    names = parts.split("+")
    if len(names) != 2:
        raise CompressorError(f'chain {parts!r} is not two compressors joined by "+", like "snapkv+kivi"')
    for name in names:
        if name not in known:
            raise CompressorError(unknown_name("compressor", name, known))
    return Chain(cast(Dropper, known[names[0]]()), known[names[1]]())  # which Chain checks


def _runs(counts: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first layer, layer after the last, tokens) of every run of layers that keep equally many."""
    first = 0
    for count, layers in groupby(counts):
        last = first + len(list(layers))
        yield first, last, count
        first = last
