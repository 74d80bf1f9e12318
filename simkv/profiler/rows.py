"""Measured rows on disk, one line each, so that a killed measurement goes on where it was.

What it is: a JSON-lines file whose first line says which measurement it belongs to.  A line that was cut short by a
kill is measured again.  What it is not: the profile that is made of the rows at the end (``measured.py``).
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, get_args, get_type_hints

from simkv.errors import SimkvError
from simkv.experiment_files import remove_stale_in
from simkv.profiles import Profile, load_profile

__all__ = ["Key", "Row", "RowFile", "SpeedRow"]

Key = tuple[str, str, int, int, int]
"""What, variant, tokens, cached tokens and batch of a ``SpeedRow``."""

_MOST_BYTES = 1 << 30


class _Keyed(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells the row from all others."""


R = TypeVar("R", bound=_Keyed)


@dataclass(frozen=True)
class Row:
    """What one variant does to one context.

    Attributes:
        task, sample, variant: which.
        quality: score against the uncompressed cache's answers, mean over the scoring questions; raw is 1.
        quality_train: the same over the questions that policies may learn from; None where there are none.
        truth: score against the right answers, scoring questions.
        nll: negative log-likelihood of the right answers, nats per token.
        kl: divergence from the uncompressed cache's predictions along its own answers, nats per token.
        top1: share of those tokens at which both predict the same one.
        stored_bytes: length of the payload (mean over questions when query-aware).
        raw_bytes: of the uncompressed cache.
        seconds: that measuring took.
    """

    task: str
    sample: int
    variant: str
    quality: float
    quality_train: float | None
    truth: float
    nll: float
    kl: float
    top1: float
    stored_bytes: int
    raw_bytes: int
    seconds: float

    @property
    def key(self) -> tuple[str, int, str]:
        """Task, sample and variant."""
        return self.task, self.sample, self.variant


@dataclass(frozen=True)
class SpeedRow:
    """How long one thing took.

    Attributes:
        what, variant, tokens, cached, batch, bytes, implementation: which; see ``simkv.profile_speeds``.
        seconds, p95_s: median and 95th percentile.
        repeats: how many timings.
    """

    what: str
    variant: str
    tokens: int
    cached: int
    batch: int
    bytes: int
    seconds: float
    p95_s: float
    repeats: int
    implementation: str = "reference"

    @property
    def key(self) -> Key:
        """What, variant, tokens, cached tokens and batch; the variant of a copy is its kind and size."""
        sized = f"{self.implementation} {self.bytes}" if self.what in ("copy", "h2d", "d2h") else self.variant
        return self.what, sized, self.tokens, self.cached, self.batch


def _typed(kind: type[R], line: list[Any]) -> R:
    """The row of a line.  Raises TypeError for values that are not of its fields' types."""
    row, hints = kind(*line), get_type_hints(kind)
    for name in kind.__dataclass_fields__:
        value, allowed = getattr(row, name), hints[name]
        given = float if type(value) is int and allowed is not int else type(value)
        if given not in (get_args(allowed) or (allowed,)):
            raise TypeError(f"{name} is {value!r}")
    return row


class RowFile(Generic[R]):
    """Rows that survive a kill.

    Args:
        path: the file; made when there is none.
        identity: what the rows depend on, plain data; under "code" the code that measures them.  A file of another
            identity is refused.
        settings: what made each variant, by variant.  Variants may be added later; the same variant made in another
            way is refused.
        kind: the rows' class.

    Attributes:
        rows: all rows so far, by key, in the order of their measuring; of one that was added again the last.
        times: how often each was added, by key, before a kill too.

    Raises:
        SimkvError: a file that belongs to another measurement, or is no such file.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], settings: Mapping[str, str], kind: type[R]) -> None:
        self._path = path
        self._kind = kind
        self.rows: dict[tuple[Any, ...], R] = {}
        self.times: Counter[tuple[Any, ...]] = Counter()
        known: dict[str, str] = {}
        if path.exists() and path.stat().st_size:
            known = self._read(json.loads(json.dumps(identity)), settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        if not known or not settings.keys() <= known.keys():
            head = {"identity": identity, "settings": {**known, **settings}}
            self._write(head)

    def add(self, row: R) -> None:
        """Keep a row; it is on its way to the disk when this returns."""
        self._write(list(asdict(row).values()))
        self.rows[row.key] = row
        self.times[row.key] += 1

    def has(self, *key: Any) -> bool:
        """Whether the row of this key is measured."""
        return key in self.rows

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def finished(self, out: Path) -> Profile:
        """The profile that was written of these rows when a kill came before they were removed, which is done now."""
        self.remove()
        remove_stale_in(out.parent)
        return load_profile(out)

    def remove(self) -> None:
        """The rows are in a profile now."""
        self.close()
        self._path.unlink()

    def _write(self, line: Any) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _read(self, identity: dict[str, Any], settings: Mapping[str, str]) -> dict[str, str]:
        """Fill ``rows``; what made the variants of the file."""
        if self._path.stat().st_size > _MOST_BYTES:
            raise SimkvError(f"{self._path}: larger than {_MOST_BYTES} bytes, the most that is read")
        whole = self._path.read_bytes()
        lines = whole.split(b"\n")
        try:
            found = [json.loads(line) for line in lines[:-1]]
            heads = [line for line in found if isinstance(line, dict)]
            before, known = heads[-1]["identity"], heads[-1]["settings"]
            if not isinstance(before, dict) or not isinstance(known, dict):
                raise TypeError("identity and settings are tables")
            rows = [_typed(self._kind, line) for line in found if isinstance(line, list)]
        except (ValueError, TypeError, LookupError) as error:
            raise SimkvError(f"{self._path}: not a file of measured rows; remove it to begin anew") from error
        changed = sorted(key for key in {*before, *identity} if before.get(key) != identity.get(key))
        changed += sorted(name for name in known.keys() & settings.keys() if known[name] != settings[name])
        if "code" in changed:
            raise SimkvError(
                f"{self._path}: rows measured by other code ({before.get('code', 'unknown')}; this is "
                f"{identity.get('code', 'unknown')}), and rows of different code never mix; go on with that code, "
                "or give another --out, or remove the file to begin anew"
            )
        if changed:
            raise SimkvError(
                f"{self._path}: rows of another measurement ({', '.join(changed[:5])} differ); give another --out, "
                "or remove the file to begin anew"
            )
        if lines[-1]:  # cut short by a kill: dropped, so that the next line starts afresh
            os.truncate(self._path, len(whole) - len(lines[-1]))
        self.rows = {row.key: row for row in rows}
        self.times = Counter(row.key for row in rows)
        return dict(known)
