"""What is measured on: a model with the tasks that it can be asked.

What it is: the small model with its token-space tasks and its compressors' parameters, or a Hugging Face model with
tasks in its tokenizer's text.  What it is not: contexts (``workloads.py``) or their files (``tasks/longbench.py``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simkv.errors import SimkvError, unknown_name
from simkv.profiler.checkpoints import checkpoint_facts
from simkv.profiler.devices import check_device
from simkv.profiler.models import CachedModel, load_model, load_tokenizer
from simkv.profiler.small import settings as small
from simkv.profiler.tasks import TASKS, Task
from simkv.profiler.tasks.base import END
from simkv.profiler.tasks.longbench import read_longbench
from simkv.profiler.tasks.text import Tokenizer, text_tasks
from simkv.profiler.tasks.text_base import stop_token
from simkv.profiler.workloads import Workload

__all__ = ["Source", "open_source"]

_LENGTH = 4096
_SPARE_TOKENS = 32
_SMALL = f"{small.NAME}:"
_PLAIN = f"{small.NAME}-plain"


@dataclass(frozen=True)
class Source:
    """A model and what it can be asked.

    Attributes:
        model: behind the profiler's wrapper.
        tasks: generated tasks by name.
        stop: token that ends an answer.
        spare_tokens: how much longer than the right answer an answer may be.
        length: tokens of a context unless asked otherwise.
        tokenizer: for files of contexts; None for the small model, which has no text.
        facts: what the profile says of the model.
        parameters, rates: compressor parameters and further knobs that suit the model.
    """

    model: CachedModel
    tasks: Mapping[str, Task]
    stop: int | None
    spare_tokens: int
    length: int
    tokenizer: Tokenizer | None
    facts: Mapping[str, str]
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rates: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def chosen(self, names: Sequence[str]) -> dict[str, Task]:
        """Tasks by name, all without names.  Raises SimkvError for an unknown one."""
        for name in names:
            if name not in self.tasks:
                raise SimkvError(unknown_name("task", name, self.tasks))
        return {name: self.tasks[name] for name in names or self.tasks}

    def of_file(self, path: Path, contexts: int, questions: int, length: int) -> tuple[Workload, str]:
        """The first ``contexts`` contexts of a file, cut to ``length`` tokens, and the hash of what was read.

        Raises:
            SimkvError: a file that cannot be read, or a model without a tokenizer.
        """
        if self.tokenizer is None:
            raise SimkvError(f"{path}: model {self.model.name} knows its own tokens only; text needs another model")
        file = read_longbench(path, self.tokenizer, length, limit=contexts, questions=questions)
        count = min(contexts, len(file))
        return Workload(file.name, count, file.context, file.score, file.stop, _SPARE_TOKENS), file.sha256


def open_source(name: str, device: str) -> Source:
    """By name: "small", "small-plain" (without key outliers), "small:FOLDER", or a Hugging Face name or folder.

    Raises:
        SimkvError: a device that is not there, or a model that cannot be loaded or has an unusual cache.
    """
    check_device(device)
    if name in (small.NAME, _PLAIN) or name.startswith(_SMALL):
        folder = Path(name.removeprefix(_SMALL)) if name.startswith(_SMALL) else small.WEIGHTS
        return _small(folder, device, outliers=name != _PLAIN)
    model = load_model(name, device)
    tokenizer: Tokenizer = load_tokenizer(name)
    length = min(_LENGTH, model.window_tokens * 3 // 4)
    facts = {
        "summary": f"measured quality and sizes of {model.name}",
        "label": "generated tasks in text",
        **checkpoint_facts(name, model.model.config),
    }
    return Source(model, text_tasks(tokenizer), stop_token(tokenizer), _SPARE_TOKENS, length, tokenizer, facts)


def _small(folder: Path, device: str, outliers: bool) -> Source:
    model = small.load_cached(folder, outliers, device)
    facts = {
        "summary": "measured quality and sizes of the project's small model, trained on synthetic tasks",
        "label": "synthetic, small model",
        "weights_sha256": small.weights_hash(folder),
        "key_outliers": "put in" if outliers else "none, as trained",
    }
    return Source(model, TASKS, END, 0, model.window_tokens // 2, None, facts, small.PARAMETERS, small.PUBLISHED_RATES)
