"""Parameters of a compressor as a user may set them: the fields of its class, checked against their types.

What it is: names and types.  What it is not: ranges, which each class checks when it is made.
"""

import math
import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from simkv.errors import unknown_name
from simkv.profiler.compressors.base import Compressor, CompressorError

__all__ = ["check_parameters"]

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    types.NoneType: "nothing",
}


def check_parameters(name: str, kind: type[Compressor], parameters: Mapping[str, Any]) -> None:
    """Raises CompressorError for a parameter that the class does not have, or a value that is not of its type.

    Fields that are not shown are no parameters: they hold what a calibration found.
    """
    known = [field.name for field in fields(kind) if field.init and field.repr]
    hints = _hints(kind)
    for parameter, value in parameters.items():
        if parameter not in known:
            raise CompressorError(unknown_name(f"parameter of compressor {name}", parameter, known))
        allowed = hints.get(parameter, Any)
        if not _fits(value, allowed):
            raise CompressorError(
                f"compressor {name}: parameter {parameter} is {value!r}; it must be {_described(allowed)}"
            )


def _hints(kind: type) -> dict[str, Any]:
    try:
        return get_type_hints(kind)
    except Exception:  # a plug-in's annotations may name what is not there; then its types are not checked
        return {}


def _fits(value: Any, allowed: Any) -> bool:
    origin = get_origin(allowed)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(allowed))
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in get_args(allowed))
    if allowed is bool or isinstance(value, bool):
        return isinstance(value, bool) and allowed in (bool, Any)
    if allowed is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return not isinstance(allowed, type) or isinstance(value, allowed)


def _described(allowed: Any) -> str:
    origin, choices = get_origin(allowed), get_args(allowed)
    if origin is Literal:
        return " or ".join(map(str, choices))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_described, choices))
    return _WORDS.get(allowed) or f"a {getattr(allowed, '__name__', allowed)}"
