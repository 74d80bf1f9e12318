"""What a transformers model calls its cache, which changed between versions: ``past_key_values``, later ``cache``.

What it is: one lookup, so that both versions run without warnings.  What it is not: a wrapper around models.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["cache_argument", "given_cache"]

_NAMES = ("cache", "past_key_values")


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """``cache`` as the keyword argument that the ``forward`` of this model takes it by."""
    return {_name(type(model).forward): cache}


def given_cache(given: Mapping[str, Any]) -> Any:
    """The cache among the keyword arguments that an attention layer was given.  Raises KeyError if there is none."""
    return given[next((name for name in _NAMES if name in given), _NAMES[0])]


@functools.cache
def _name(forward: Callable[..., Any]) -> str:
    parameters = inspect.signature(forward).parameters
    return next((name for name in _NAMES if name in parameters), _NAMES[-1])
