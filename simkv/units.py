"""Quantities written by people: "32 GiB", "6.5 GB/s", "40 ms" to and from bytes, bytes/s and ns.

GB is 10^9 and GiB is 2^30, always.  Values become exact integers (bytes, ns) through decimal
arithmetic, so that "0.1 s" is 100,000,000 ns and not one nanosecond more.
"""

import math
import re
from decimal import Decimal

from simkv.errors import ConfigError

__all__ = [
    "NS_PER_S",
    "format_bytes",
    "format_duration",
    "parse_bytes",
    "parse_duration_ns",
    "parse_duration_ps",
    "parse_rate",
    "seconds_to_ns",
]

NS_PER_S = 1_000_000_000

_BYTES = {"B": 1}
for _power, _letter in enumerate("KMGTP", start=1):
    _BYTES[f"{_letter}B"] = 1000**_power
    _BYTES[f"{_letter}iB"] = 1024**_power
_BYTES["kB"] = 1000
_DURATIONS_NS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": NS_PER_S,
    "min": 60 * NS_PER_S,
    "h": 3600 * NS_PER_S,
    "d": 86_400 * NS_PER_S,
}
_DURATIONS_PS = {"ps": 1, **{unit: 1000 * length for unit, length in _DURATIONS_NS.items()}}
_NUMBER = re.compile(r"\s*([0-9][0-9_]*\.?[0-9]*(?:[eE][+-]?[0-9]{1,3})?)\s*([A-Za-z/]*)\s*")
_INT64_MAX = 2**63 - 1


def _split(text: str, what: str, example: str) -> tuple[Decimal, str]:
    match = _NUMBER.fullmatch(text)
    if not match or len(text) > 64:
        raise ConfigError(f"{text[:64]!r} is not {what}; write it like {example!r}")
    return Decimal(match.group(1).replace("_", "")), match.group(2)


def _scaled(value: str | int | float, units: dict[str, int], what: str, example: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ConfigError(f"{value!r} is not {what}; write it like {example!r}")
    if isinstance(value, str):
        number, unit = _split(value, what, example)
        if not unit:
            raise ConfigError(f"{value!r} has no unit; write it like {example!r}")
        if unit not in units:
            raise ConfigError(f"unit {unit!r} in {value!r} is not one of {', '.join(units)}")
        scaled = number * units[unit]
    else:
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{value!r} is not {what}; write it like {example!r}")
        scaled = Decimal(value)
    if not 0 <= scaled <= _INT64_MAX:
        raise ConfigError(f"{value!r} is out of range for {what}: 0 to 2^63 - 1")
    return int(scaled.to_integral_value())


def parse_bytes(value: str | int | float) -> int:
    """Bytes from "32 GiB", "400 GB" or a plain number of bytes.

    Raises ConfigError for anything else, for negative values and above 2^63 - 1.
    """
    return _scaled(value, _BYTES, "a size", "32 GiB")


def parse_rate(value: str | int | float) -> int:
    """Bytes per second from "6.5 GB/s" or a plain number.  Raises ConfigError unless it is positive."""
    rate = _scaled(value, {f"{unit}/s": factor for unit, factor in _BYTES.items()}, "a bandwidth", "6.5 GB/s")
    if rate == 0:
        raise ConfigError(f"{value!r} is not a bandwidth: it must be positive")
    return rate


def parse_duration_ns(value: str | int | float) -> int:
    """Nanoseconds from "40 ms", "2 h" or a plain number of *seconds*."""
    return _duration(value, _DURATIONS_NS)


def parse_duration_ps(value: str | int | float) -> int:
    """Picoseconds from "43 ns", "150 ps" or a plain number of *seconds*, for what is added up many times."""
    return _duration(value, _DURATIONS_PS)


def _duration(value: str | int | float, units: dict[str, int]) -> int:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{value!r} is not a duration; write it like '40 ms'")
        return _scaled(f"{Decimal(str(value)):f} s" if value >= 0 else "-1", units, "a duration", "40 ms")
    return _scaled(value, units, "a duration", "40 ms")


def seconds_to_ns(seconds: float) -> int:
    """Round seconds (float) to the nearest nanosecond, ties to even, exactly for the given float."""
    return round(Decimal(seconds) * NS_PER_S)


def format_bytes(count: int | float) -> str:
    """Bytes as people read them, in powers of 1024: 103079215104 is "96 GiB"."""
    for power in range(5, 0, -1):
        unit = 1024**power
        if count >= unit:
            return f"{count / unit:.4g} {'KMGTP'[power - 1]}iB"
    return f"{count:.4g} B"


def format_duration(seconds: float) -> str:
    """Seconds as people read them: 0.0042 is "4.2 ms", 5400 is "1.5 h"."""
    for name, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds * 1e9:.3g} ns"
