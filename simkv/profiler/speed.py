"""Seconds of encoding, decoding, prefilling and generating, point by point.

What it is: the loops that measure one row per point of the grid, from a subject and compressors, shortest first, so
that a point that would take too long is told from the one before it and left out.  What it is not: the rows' file
(``rows.py``), the lines fitted to them (``fits.py``), or quality.

A decode is timed from a payload in memory to the cache on the device.  On a GPU the payload's parts are on the device
already, since the transfer is the host link's; decoders that work on the host start from host memory there too, copy
included.  An encode ends with the payload in host memory.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from simkv.profiler.compressors.base import Compressor, KVCache, PrefillContext, staged
from simkv.profiler.link import Known, link_rows
from simkv.profiler.quality import Setting
from simkv.profiler.random_caches import random_cache
from simkv.profiler.rows import Key, SpeedRow
from simkv.profiler.subjects import Subject, free_bytes
from simkv.profiler.timing import Clock, Patience, Timing, timed

__all__ = ["Grid", "SpeedRun"]

_LOG = logging.getLogger(__name__)
_LONGEST_CALLS = 5  # a call may take so many times the patience's seconds
_LONGEST_PREFILLS = 25
_MOST_OF_MEMORY = 0.3
_COPY_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}


@dataclass(frozen=True)
class Grid:
    """Points to measure.

    Attributes:
        lengths: tokens of caches, rising.
        prefills: (new, cached) tokens, the rising whole prompts first.
        steps: (sequences, tokens in each cache).
    """

    lengths: tuple[int, ...]
    prefills: tuple[tuple[int, int], ...]
    steps: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, lengths: Sequence[int], batches: Sequence[int]) -> "Grid":
        """Whole prompts of these lengths, and their last half and last eighth after the rest is cached."""
        rising = tuple(sorted(set(lengths)))
        whole = [(tokens, 0) for tokens in rising]
        parts = [
            (tokens // share, tokens - tokens // share) for share in (2, 8) for tokens in rising if tokens >= share
        ]
        steps = tuple((batch, tokens) for batch in sorted(set(batches)) for tokens in rising)
        return cls(rising, tuple(dict.fromkeys([*whole, *parts])), steps)


@dataclass(frozen=True)
class SpeedRun:
    """One measurement under way.

    Attributes:
        subject: what is timed.
        settings: variants; raw is not among them.
        grid: where.
        device: "cpu" or "cuda".
        clock, patience: how.
        seed: of the caches' values.
        quick: fewer points of the host link.
    """

    subject: Subject
    settings: Sequence[Setting]
    grid: Grid
    device: str
    clock: Clock
    patience: Patience
    seed: int = 0
    quick: bool = False

    @property
    def points(self) -> int:
        """Rows of the whole grid, those that will be left out among them."""
        codecs = 2 * len(self.settings) * len(self.grid.lengths)
        return 1 + codecs + len(self.grid.prefills) + len(self.grid.steps)

    def rows(self, known: Known) -> Iterator[SpeedRow]:
        """The rows that are not known yet, and not hopelessly slow or large.

        Raises:
            CompressorError: a compressor that cannot take a cache.
        """
        if not known(*self._copy_key):
            yield self._copy()
        if self.device.startswith("cuda"):
            yield from link_rows(self.device, self.patience, known, self.quick)
        yield from self._model(known)
        for tokens in self.grid.lengths:
            wanted = [setting for setting in self.settings if self._codec_is_wanted(known, setting, tokens)]
            yield from self._codecs(tokens, wanted)

    def again(self, keys: frozenset[Key]) -> Iterator[SpeedRow]:
        """Rows that are measured already, timed anew; those of the host link are not.

        Raises:
            CompressorError: a compressor that cannot take a cache.
        """
        if self._copy_key in keys:
            yield self._copy()
        yield from self._models(place for place in self._places if _model_key(*place) in keys)
        for tokens in self.grid.lengths:
            of = {key[1] for key in keys if key[0] in ("encode", "decode") and key[2] == tokens}
            rows = self._codecs(tokens, [setting for setting in self.settings if str(setting.variant) in of])
            yield from (row for row in rows if row.key in keys)

    @property
    def _copy_key(self) -> Key:
        return "copy", f"reference {_COPY_BYTES[self.device.partition(':')[0]]}", 0, 0, 1

    @property
    def _places(self) -> list[tuple[str, int, int, int]]:
        """(prefill or step, new tokens or those in the cache, cached tokens, sequences), in the order of measuring."""
        prefills = [("prefill", new, cached, 1) for new, cached in self.grid.prefills]
        return prefills + [("step", tokens, 0, batch) for batch, tokens in self.grid.steps]

    def _copy(self) -> SpeedRow:
        size = _COPY_BYTES[self.device.partition(":")[0]]
        source, target = (torch.ones(size, dtype=torch.uint8, device=self.device) for _ in "st")
        return self._row("copy", "", (0, 0, 1), size, timed(lambda: target.copy_(source), self.clock, self.patience))

    def _codecs(self, tokens: int, wanted: Sequence[Setting]) -> Iterator[SpeedRow]:
        if not wanted:
            return
        subject = self.subject
        cache, context = random_cache(subject.cache, tokens, self.device, subject.dtype, self.seed)
        for setting in wanted:
            try:
                payload, encode = self._encode(setting, cache, context)
                decode = self._decode(setting.compressor, payload)
            except torch.OutOfMemoryError:
                _LOG.warning("%s: %d tokens do not fit the memory of %s", setting.variant, tokens, self.device)
                continue
            name, place, scale = str(setting.variant), (tokens, 0, 1), subject.cache_scale
            size = round(len(payload) * scale)
            yield self._row("encode", name, place, size, encode, scale)
            yield self._row("decode", name, place, size, decode, scale, implementation_of(setting.compressor))

    def _encode(self, setting: Setting, cache: KVCache, context: PrefillContext) -> tuple[bytes, Timing]:
        found: list[bytes] = []

        def call() -> None:
            found[:] = [setting.compressor.encode(cache, context, setting.knob).payload]

        took = timed(call, self.clock, self.patience)
        return found[0], took

    def _decode(self, compressor: Compressor, payload: bytes) -> Timing:
        on_device = self.device.startswith("cuda") and decodes_on_device(compressor, payload, self.device)
        with staged(compressor, payload, self.device) if on_device else nullcontext():
            return timed(lambda: compressor.decode(payload, self.device), self.clock, self.patience)

    def _codec_is_wanted(self, known: Known, setting: Setting, tokens: int) -> bool:
        name = str(setting.variant)
        if known("decode", name, tokens, 0, 1) and known("encode", name, tokens, 0, 1):
            return False
        shorter = [length for length in self.grid.lengths if length < tokens]
        for what in ("encode", "decode") if shorter else ():
            before = known(what, name, shorter[-1], 0, 1)
            if before is None or self._is_hopeless(before, tokens / shorter[-1], self.subject.cache_scale):
                return False
        return True

    def _is_hopeless(self, before: SpeedRow, growth: float, scale: float) -> bool:
        calls = _LONGEST_PREFILLS if before.what == "prefill" else _LONGEST_CALLS
        return before.seconds / scale * growth > calls * self.patience.seconds

    def _model(self, known: Known) -> Iterator[SpeedRow]:
        yield from self._models(  # asked one by one, since what is wanted depends on the rows before
            place for place in self._places if not known(*_model_key(*place)) and self._model_is_wanted(known, *place)
        )

    def _models(self, wanted: Iterable[tuple[str, int, int, int]]) -> Iterator[SpeedRow]:
        subject, head = self.subject, None
        for what, new, cached, batch in wanted:
            try:
                if head is None:
                    head = self._head_s()
                call = subject.model.prefill(new, cached) if what == "prefill" else subject.model.step(batch, new)
                took = timed(call, self.clock, self.patience)
            except torch.OutOfMemoryError:
                _LOG.warning("%s of %d tokens x %d: not enough memory on %s", what, new + cached, batch, self.device)
                continue
            yield self._row(what, "", (new, cached, batch), 0, took, subject.model_scale, head_s=head)

    def _head_s(self) -> float:
        """Seconds of the head alone; nothing when all layers are timed, as nothing is multiplied then."""
        if self.subject.model_scale <= 1:
            return 0.0
        return timed(self.subject.model.head(), self.clock, self.patience).median_s

    def _model_is_wanted(self, known: Known, what: str, new: int, cached: int, batch: int) -> bool:
        shape = self.subject.model.shape
        room = 2 * shape.bytes_per_token * (new + cached) * batch  # up to four bytes an element
        if new + cached > self.subject.window_tokens or room > _MOST_OF_MEMORY * free_bytes(self.device):
            return False
        if what == "step":
            return True
        if cached:
            return known(what, "", new + cached, 0, 1) is not None
        shorter = [length for length in self.grid.lengths if length < new]
        before = known(what, "", shorter[-1], 0, 1) if shorter else None
        growth = (new / shorter[-1]) ** 1.5 if shorter else 1.0
        return not shorter or (before is not None and not self._is_hopeless(before, growth, self.subject.model_scale))

    @staticmethod
    def _row(
        what: str,
        variant: str,
        place: tuple[int, int, int],
        size: int,
        took: Timing,
        scale: float = 1.0,
        implementation: str = "reference",
        head_s: float = 0.0,
    ) -> SpeedRow:
        """A row, scaled to all layers."""
        median, p95 = (head_s + max(0.0, s - head_s) * scale for s in (took.median_s, took.p95_s))
        return SpeedRow(what, variant, *place, size, median, p95, took.repeats, implementation)


def _model_key(what: str, new: int, cached: int, batch: int) -> Key:
    return what, "", new, cached, batch


def implementation_of(compressor: Compressor) -> str:
    """Of its decoder; a chain's is its coder's."""
    return getattr(compressor, "coder", compressor).implementation


def decodes_on_device(compressor: Compressor, payload: bytes, device: str) -> bool:
    """Whether it can decode from parts that are on the device; those that work in NumPy cannot."""
    try:
        with staged(compressor, payload, device):
            found: Any = compressor.decode(payload, device)
    except (TypeError, RuntimeError):
        return False
    return bool(found.keys)
