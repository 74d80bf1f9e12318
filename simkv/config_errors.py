"""Turns what pydantic found wrong with a configuration into one readable line.

What it is: the translation from a list of validation errors to a single ConfigError that names where
it stands, the dotted key, the value and what is allowed.  What it is not: the rules themselves
(``config.py``).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from simkv.errors import ConfigError, unknown_name

__all__ = ["KeyProblem", "config_error", "shown", "shown_key"]

_SHOWN_CHARACTERS = 80
_TABLES = {"model_type", "model_attributes_type", "dict_type"}
_LISTS = {"tuple_type", "list_type"}


class KeyProblem(ValueError):
    """A rule that a key breaks; raised inside validators, where ``key`` is relative to the model."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(problem)
        self.key = key


def shown(value: object) -> str:
    """``value`` as Python writes it, on one line and cut to a readable length."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # whole numbers of thousands of digits, endless nesting
        text = f"<{type(value).__name__}>"
    text = text.replace("\n", " ")
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def shown_key(key: object) -> str:
    """A key, which may be any text, on one line and without quotes."""
    return shown(str(key))[1:-1]


def config_error(error: ValidationError, given: object, where: str, within: str = "") -> ConfigError:
    """The first of pydantic's findings as one line, with the number of the others.

    Args:
        error: what pydantic raised for ``given``.
        given: the table that was validated; tiers in it are called by their names.
        where: the file, or what else the table came from.
        within: dotted key of the table itself, if it is not the whole file.
    """
    found = error.errors(include_url=False)
    first = found[0]
    key = _dotted(first["loc"], given, absent=first["type"] == "missing")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, KeyProblem) and cause.key:
        key = ".".join(part for part in (key, shown_key(cause.key)) if part)
    key = ".".join(part for part in (within, key) if part)
    others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return ConfigError(": ".join(part for part in (where, key, _problem(first) + others) if part))


def _problem(finding: Any) -> str:
    kind, context = finding["type"], finding.get("ctx", {})
    value = shown(finding["input"])
    if kind == "value_error":
        return " ".join(str(context["error"]).split())
    if kind == "missing":
        return "this key is missing"
    if kind == "literal_error":
        return unknown_name("value", str(finding["input"])[:_SHOWN_CHARACTERS], _quoted(context["expected"]))
    if kind in _TABLES:
        return f"{value} is not a table"
    if kind in _LISTS:
        return f"{value} is not a list"
    message = finding["msg"].replace("Input should be", "it must be").replace("\n", " ")
    return f"{value}: {message}"


def _quoted(expected: str) -> list[str]:
    return re.findall(r"'([^']*)'", expected)


def _dotted(location: Sequence[int | str], given: object, absent: bool) -> str:
    """``("tiers", 0, "read")`` as ``tiers.dram.read``; steps not in ``given`` count only if ``absent``."""
    parts: list[str] = []
    node = given
    for step in location:
        if isinstance(node, Mapping) and (step in node or absent):
            node = node.get(step)
        elif isinstance(node, (list, tuple)) and isinstance(step, int) and step < len(node):
            node = node[step]
        else:
            break
        name = node.get("name") if isinstance(step, int) and isinstance(node, Mapping) else None
        parts.append(shown_key(name if isinstance(name, str) else step))
    return ".".join(parts)
