"""What a profile is once it is in memory: variants, lines, tiers, and the lookups the simulator needs.

What it is: frozen types with their arithmetic, numpy and pandas only.  What it is not: files
(``profile_files.py``), or finding, composing and comparing profiles (``profiles.py``, which
re-exports everything here and is the module to import from).
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simkv.errors import ProfileError, unknown_name

__all__ = ["RAW", "UNMEASURED_PREFILL", "Line", "Points", "PrefillFit", "Profile", "TierSpec", "Variant"]

_COMPRESSOR = re.compile(r"[a-z][a-z0-9_.-]{0,31}")
_KNOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,:=+%-]{0,63}")
_NAMED = 4


@dataclass(frozen=True)
class Variant:
    """One setting of one compressor: an identity, never a size.  ``str()`` gives "raw" or "kivi:2".

    The knob of a quantiser is bits, of a token dropper the retention ratio (fraction *kept*).
    Raises ProfileError for an ill-formed name.
    """

    compressor: str
    knob: str = ""

    def __post_init__(self) -> None:
        """Refuse names that could not be read back from text."""
        if not _COMPRESSOR.fullmatch(self.compressor) or (self.knob and not _KNOB.fullmatch(self.knob)):
            raise ProfileError(f"{str(self)[:96]!r} is not a variant; write it like 'raw', 'kivi:2' or 'keydiff:0.4'")
        if self.compressor == "raw" and self.knob:
            raise ProfileError(f"{str(self)!r} is not a variant: raw has no knob")

    def __str__(self) -> str:
        return f"{self.compressor}:{self.knob}" if self.knob else self.compressor

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """The variant that ``text`` names, "compressor" or "compressor:knob".  Raises ProfileError."""
        compressor, colon, knob = text.partition(":")
        if colon and not knob:
            raise ProfileError(f"{text[:96]!r} is not a variant: the knob after ':' is empty")
        return cls(compressor, knob)


RAW = Variant("raw")

Points = tuple[tuple[int, float], ...]
"""Measured (tokens, seconds), rising in tokens."""


def _interpolated(tokens: Any, points: Points, slope: float) -> Any:
    """Between the points linear, before the first like between the first two, after the last with ``slope``."""
    x, y = (np.array(side, dtype=np.float64) for side in zip(*points, strict=True))
    first = (y[1] - y[0]) / (x[1] - x[0]) if len(x) > 1 else slope
    inside = np.interp(tokens, x, y)
    return inside + np.minimum(tokens - x[0], 0.0) * first + np.maximum(tokens - x[-1], 0.0) * slope


@dataclass(frozen=True)
class Line:
    """A straight cost line: seconds = ``fixed_s`` + ``per_token_s`` * tokens, never below 0.

    Where no line fits what was measured, ``points`` hold the measured (tokens, seconds), rising in tokens: seconds of a
    whole context are interpolated between them, and beyond them follow the line's slope.
    """

    per_token_s: float
    fixed_s: float = 0.0
    points: Points = ()

    def seconds(self, tokens: float) -> float:
        """Seconds for ``tokens`` tokens (of the uncompressed context)."""
        if self.points:
            return max(0.0, float(_interpolated(np.float64(tokens), self.points, self.per_token_s)))
        return max(0.0, self.fixed_s + self.per_token_s * tokens)


@dataclass(frozen=True)
class PrefillFit:
    """Seconds of prefill, from a polynomial fit over whole prompts.

    A positive ``base_s`` is paid by every prefill; a negative one makes the first tokens of the prompt
    cheap, so it belongs to their *positions*: with ``base_s`` <= 0 and no floor, prefilling a prompt in
    two parts costs as much as in one.  Where no polynomial fits what was measured, ``points`` hold (tokens,
    seconds) of the work up to a position, beside ``base_s``, between which a prompt's positions are interpolated.
    """

    base_s: float
    per_token_s: float
    per_token2_s: float = 0.0
    floor_s: float = 0.0
    points: Points = ()

    def seconds(self, new_tokens: int, cached_tokens: int = 0) -> float:
        """Seconds to prefill ``new_tokens`` that follow ``cached_tokens`` already loaded; 0 for no tokens."""
        if new_tokens <= 0:
            return 0.0
        work = self._up_to(cached_tokens + new_tokens) - self._up_to(cached_tokens)
        return max(self.floor_s, max(self.base_s, 0.0) + work)

    def interpolated(self, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds of work up to each position, from ``points``, which must be there."""
        last = self.points[-1][0]
        return _interpolated(tokens, ((0, 0.0), *self.points), self.per_token_s + 2 * self.per_token2_s * last)

    def _up_to(self, tokens: int) -> float:
        if self.points:
            return float(self.interpolated(np.array([tokens], dtype=np.float64))[0])
        return max(0.0, min(self.base_s, 0.0) + tokens * (self.per_token_s + self.per_token2_s * tokens))


UNMEASURED_PREFILL = PrefillFit(math.nan, math.nan)
"""Prefill of a profile without speeds: not a number, so that using it cannot give a plausible time."""


@dataclass(frozen=True)
class TierSpec:
    """One storage level (or link).  Bandwidths are per channel; None means unlimited or not counted."""

    name: str
    capacity_bytes: int | None
    read_bytes_per_s: int
    write_bytes_per_s: int
    latency_s: float = 0.0
    channels: int = 1
    discipline: str = "fifo"
    endurance_bytes: int | None = None


@dataclass(frozen=True, eq=False)
class Profile:
    """Measured or published numbers of one model, its compressors and its tiers.

    Attributes:
        name, model: text; ``model`` is a name of ``simkv.models`` or any other.
        kv_bytes_per_token: bytes of raw KV cache per token.
        layers: number of transformer layers.
        variants: RAW first.
        size_accounting: which of ``size_ratios`` is in ``size_ratio``: "nominal" or "measured".
        size_ratio: stored bytes / raw bytes of every variant, in (0, 1], RAW exactly 1.
        load_lines: end-to-end seconds per (tier name, variant), decoding included; empty means the
            physical model, latency + stored bytes / bandwidth + decode line.
        decode_lines, encode_lines: seconds per *raw* token for loads of the physical model and for moves.
        prefill: cost of recomputing; UNMEASURED_PREFILL without speeds.
        tiers: default tiers, fast to slow; may be empty.
        host_link: link that all loads share on their way to the GPU, or None.
        quality: rows (task, sample, variant, quality[, quality_train, and of measured profiles
            truth, nll, kl, top1, stored_bytes]); one sample is one measured context, its rows are
            joint over variants.
        provenance: free facts, and ``numbers``: place in the file -> {status, source}.
        sha256: hash of the files that the profile was read from ("" if made in memory).
        size_ratios: every size accounting that is known, by name.
        speed_rows: what speeds were measured, one row each (columns in ``profile_speeds.py``); empty when none were.
    """

    name: str
    model: str
    kv_bytes_per_token: int
    layers: int
    variants: tuple[Variant, ...]
    size_accounting: str
    size_ratio: dict[Variant, float]
    load_lines: dict[tuple[str, Variant], Line]
    decode_lines: dict[Variant, Line]
    encode_lines: dict[Variant, Line]
    prefill: PrefillFit
    tiers: tuple[TierSpec, ...]
    host_link: TierSpec | None
    quality: pd.DataFrame
    provenance: dict[str, Any]
    sha256: str
    size_ratios: dict[str, dict[Variant, float]] = field(default_factory=dict)
    speed_rows: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def decode_steps(self) -> tuple[tuple[int, int, float], ...]:
        """Measured steps of generation: (sequences side by side, tokens in the cache of each, median seconds)."""
        if self.speed_rows.empty:
            return ()
        rows = self.speed_rows[self.speed_rows["what"] == "step"]
        found = zip(rows["batch"].tolist(), rows["tokens"].tolist(), rows["seconds"].tolist(), strict=True)
        return tuple(sorted(found))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks with quality rows, in order of first appearance; empty without any."""
        return tuple(self.quality["task"].unique())

    def samples(self, task: str) -> int:
        """Number of measured samples (contexts) of ``task``.  Raises ProfileError for an unknown task."""
        return int(self._rows(task)["sample"].nunique())

    def quality_matrix(self, task: str, *, train: bool = False) -> NDArray[np.float64]:
        """Quality as float64[samples, len(variants)], samples in rising order; missing RAW rows are 1.0.

        ``train`` takes the column of the training queries.  Raises ProfileError when the task, the
        column or a variant other than RAW is missing.
        """
        rows = self._rows(task)
        column = "quality_train" if train else "quality"
        if column not in rows:
            raise ProfileError(f"profile {self.name}: there is no column {column}")
        table = rows.pivot(index="sample", columns="variant", values=column)
        if str(RAW) not in table:
            table[str(RAW)] = 1.0
        names = [str(variant) for variant in self.variants]
        missing = [name for name in names if name not in table]
        if missing:
            raise ProfileError(f"profile {self.name}: task {task} has no quality of {_some(missing)}")
        return table[names].to_numpy(np.float64)

    def mean_quality(self, task: str, variant: Variant) -> float:
        """Mean quality over the samples of ``task``.  Raises ProfileError as ``quality_matrix`` does."""
        rows = self._rows(task)
        values = rows.loc[rows["variant"] == str(variant), "quality"]
        if len(values):
            return float(values.mean())
        if variant == RAW:
            return 1.0
        raise ProfileError(f"profile {self.name}: task {task} has no quality of {variant}")

    def with_tasks(self, names: Mapping[str, str]) -> "Profile":
        """The profile whose tasks go by further names too: {name in a trace: task of this profile}.

        Raises ProfileError for a task that is not there, and for a name that is a task already.
        """
        if not names:
            return self
        parts = [self.quality]
        for name, task in names.items():
            if name in self.tasks:
                raise ProfileError(f"profile {self.name}: {name} is a task of its own and cannot stand for {task}")
            parts.append(self._rows(task).assign(task=name))
        told = hashlib.sha256(f"tasks {self.sha256} {sorted(names.items())}".encode()).hexdigest()
        return replace(self, quality=pd.concat(parts, ignore_index=True), sha256=told)

    def require_speeds(self) -> None:
        """Raise ProfileError naming what is missing unless every variant has its speed numbers.

        Tiers are not asked for, since a run may bring its own.
        """
        coded = [variant for variant in self.variants if variant != RAW]
        missing = ["prefill"] if math.isnan(self.prefill.per_token_s) else []
        missing += [f"decode line of {variant}" for variant in coded if variant not in self.decode_lines]
        missing += [f"encode line of {variant}" for variant in coded if variant not in self.encode_lines]
        if self.load_lines:
            wanted = [(tier.name, variant) for tier in self.tiers for variant in self.variants]
            missing += [
                f"load line of {variant} on {tier}"
                for tier, variant in wanted
                if (tier, variant) not in self.load_lines
            ]
        if missing:
            raise ProfileError(f"profile {self.name}: incomplete speeds, missing {_some(missing)}")

    def _rows(self, task: str) -> pd.DataFrame:
        rows = self.quality[self.quality["task"] == task]
        if rows.empty:
            raise ProfileError(f"profile {self.name}: {unknown_name('task', task, self.tasks)}")
        return rows


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
