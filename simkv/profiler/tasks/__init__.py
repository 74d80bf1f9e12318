"""The tasks that compressors are measured on, one file per family.

``TASKS`` is the table; ``base`` says what a task is.  All five speak the small model's own tokens.
"""

from simkv.profiler.tasks.aggregation import Aggregation
from simkv.profiler.tasks.base import Context, Question, Task, TaskError
from simkv.profiler.tasks.coding import Coding
from simkv.profiler.tasks.needle import Needle
from simkv.profiler.tasks.retrieval import Retrieval
from simkv.profiler.tasks.tracking import Tracking

__all__ = ["TASKS", "Context", "Question", "Task", "TaskError"]

TASKS: dict[str, Task] = {
    "qa": Retrieval(),
    "needle": Needle(),
    "tracking": Tracking(),
    "aggregation": Aggregation(),
    "code": Coding(),
}
