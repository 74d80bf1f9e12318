"""The kinds of value that a configuration holds: sizes, rates, durations, shares, parameters.

What it is: annotated types that parse a TOML value once and know how to write it back canonically.
What it is not: the keys and the rules between them (``config.py``).
"""

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator

from simkv.config_errors import KeyProblem, shown
from simkv.errors import ConfigError, SimkvError, unknown_name
from simkv.models import MODELS
from simkv.units import NS_PER_S, parse_bytes, parse_duration_ns, parse_duration_ps, parse_rate

__all__ = [
    "INT64_MAX",
    "Bytes",
    "BytesPerSecond",
    "Capacity",
    "Count",
    "Duration",
    "ModelName",
    "Param",
    "Params",
    "Picoseconds",
    "Scalar",
    "TaskMixture",
    "Text",
    "Warmup",
    "WarmupValue",
    "literal",
]

Scalar: TypeAlias = str | int | float | bool
Param: TypeAlias = Scalar | list[Scalar]

INT64_MAX = 2**63 - 1
_UNLIMITED = "unlimited"
_EXACT_NS = 2**51  # below this, seconds as a float and as its shortest decimal are both within half a nanosecond


@dataclass(frozen=True)
class Warmup:
    """The part of a run that summaries leave out: a time in ns, or a share of the requests in [0, 1)."""

    duration_ns: int = 0
    share: float | None = None

    @property
    def amount(self) -> tuple[str, float]:
        """("s", seconds) or ("share", share of the requests)."""
        return ("s", self.duration_ns / NS_PER_S) if self.share is None else ("share", self.share)


def _guarded(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``parse`` as a validator: its ConfigError becomes one of pydantic's findings."""

    def parsed(value: Any) -> Any:
        try:
            return parse(value)
        except SimkvError as error:
            raise ValueError(str(error)) from error

    return parsed


def _seconds(duration_ns: int) -> float | str:
    """Seconds as a number when that loses nothing, otherwise text in ns."""
    return duration_ns / NS_PER_S if duration_ns < _EXACT_NS else f"{duration_ns} ns"


def _capacity(value: Any) -> int | None:
    return None if value is None or value == _UNLIMITED else parse_bytes(value)


def _capacity_text(capacity_bytes: int | None) -> int | str:
    return _UNLIMITED if capacity_bytes is None else capacity_bytes


def _warmup(value: Any) -> Warmup:
    if isinstance(value, Warmup):
        return value
    if not isinstance(value, str) or not value.rstrip().endswith("%"):
        return Warmup(duration_ns=parse_duration_ns(value))
    try:
        share = Decimal(value.rstrip()[:-1].strip()) / 100
    except ArithmeticError:
        share = Decimal(-1)
    if not (share.is_finite() and share >= 0 and float(share) < 1):
        raise ConfigError(f"{shown(value)} is not a share; write it like '20 %', below 100 %")
    return Warmup(share=float(share))


def _warmup_text(warmup: Warmup) -> float | str:
    if warmup.share is None:
        return _seconds(warmup.duration_ns)
    return f"{Decimal(repr(warmup.share)) * 100:f} %"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= INT64_MAX and math.isfinite(value)


def _mixture(value: Any) -> str | dict[str, float] | None:
    if value is None or (isinstance(value, str) and value):
        return value
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"{shown(value)} is neither the name of a task nor a table of shares by task")
    for name, share in value.items():
        if not isinstance(name, str) or not name or not _is_number(share) or share <= 0:
            raise ConfigError(f"the share of {shown(name)} is {shown(share)}; it must be a positive number")
    return {name: float(value[name]) for name in sorted(value)}


def _model(value: Any) -> Any:
    if isinstance(value, str) and not value.endswith(".json") and value not in MODELS:
        raise ConfigError(unknown_name("model", value, MODELS))
    return value


def _params(value: Any) -> dict[str, Param]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{shown(value)} is not a table")
    for name, given in value.items():
        items = given if isinstance(given, list) else [given]
        if not isinstance(name, str) or not all(isinstance(item, (str, bool)) or _is_number(item) for item in items):
            raise KeyProblem(str(name), f"{shown(given)} is not text, a number, true, false, or a list of those")
    return dict(value)


Text: TypeAlias = Annotated[str, Field(min_length=1, max_length=4096)]
Count: TypeAlias = Annotated[int, Field(ge=1, le=2**31 - 1)]
Bytes: TypeAlias = Annotated[int, BeforeValidator(_guarded(parse_bytes))]
BytesPerSecond: TypeAlias = Annotated[int, BeforeValidator(_guarded(parse_rate))]
Capacity: TypeAlias = Annotated[int | None, BeforeValidator(_guarded(_capacity)), PlainSerializer(_capacity_text)]
Duration: TypeAlias = Annotated[int, BeforeValidator(_guarded(parse_duration_ns)), PlainSerializer(_seconds)]
Picoseconds: TypeAlias = Annotated[
    int, BeforeValidator(_guarded(parse_duration_ps)), PlainSerializer(lambda ps: f"{ps} ps")
]
WarmupValue: TypeAlias = Annotated[Warmup, PlainValidator(_guarded(_warmup)), PlainSerializer(_warmup_text)]
TaskMixture: TypeAlias = Annotated[str | dict[str, float] | None, PlainValidator(_guarded(_mixture))]
ModelName: TypeAlias = Annotated[Text | None, BeforeValidator(_guarded(_model))]
Params: TypeAlias = Annotated[dict[str, Param], PlainValidator(_guarded(_params))]


def literal(text: str) -> Any:
    """The TOML value that ``text`` is, or the text itself."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    alone = len(table) == 1 and isinstance(table["value"], (str, int, float, list, dict))
    return table["value"] if alone else text
