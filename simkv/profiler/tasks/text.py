"""The five task families in text, for any tokenizer: the same names and latents as the token-space tasks.

``text_tasks`` is the table; ``text_base`` says what a text task is.
"""

from collections.abc import Callable

from simkv.profiler.tasks.text_base import TextTask, Tokenizer
from simkv.profiler.tasks.text_code import TextCode
from simkv.profiler.tasks.text_facts import TextAggregation, TextNeedle, TextRetrieval, TextTracking

__all__ = ["TEXT_TASKS", "TextTask", "Tokenizer", "text_tasks"]

TEXT_TASKS: dict[str, Callable[[Tokenizer], TextTask]] = {
    "qa": TextRetrieval,
    "needle": TextNeedle,
    "tracking": TextTracking,
    "aggregation": TextAggregation,
    "code": TextCode,
}


def text_tasks(tokenizer: Tokenizer) -> dict[str, TextTask]:
    """The task families in a tokenizer's text, by name."""
    return {name: family(tokenizer) for name, family in TEXT_TASKS.items()}
