"""The bounds of a sweep: one for each point of its grid, whatever the policy, as jobs beside the runs.

What it is: which bounds a study asks for, what they are called, and their rows in its table (policy "bound", a row
per alpha, which ``figures.delay_quality`` draws as a line).  What it is not: the bound (``simulator.bounds``).
"""

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from simkv.config import BoundConfig, PolicyConfig, RunConfig
from simkv.errors import SimkvError
from simkv.traces.trace import Trace

__all__ = [
    "BOUND",
    "SavedBound",
    "bound_identity",
    "bound_label",
    "bound_rows",
    "bound_runner",
    "uncovered_moves",
    "without_policy",
]

BOUND = "bound"
_FILE = "meta.json"


@dataclass(frozen=True)
class SavedBound:
    """A computed bound as its rows, to be written like a result: a folder that appears whole or not at all."""

    rows: list[dict[str, Any]]

    def save(self, folder: Path) -> Path:
        """Write ``folder``."""
        folder.mkdir(parents=True)
        (folder / _FILE).write_text(json.dumps({"rows": self.rows}, indent=1) + "\n", encoding="utf-8")
        return folder


def without_policy(config: RunConfig) -> RunConfig:
    """The configuration that a bound depends on."""
    return config.model_copy(update={"policy": PolicyConfig(name="recompute")})


def bound_label(asked: BoundConfig) -> str:
    """What tables and figures call it."""
    return "Bound" if asked.anticipation == "none" else f"Bound ({asked.anticipation})"


def bound_identity(run_identity: str, asked: BoundConfig) -> str:
    """The name of a bound's folder: a hash of the run's identity without its policy, and of what is asked."""
    return hashlib.sha256((run_identity + asked.model_dump_json()).encode()).hexdigest()


def bound_runner(asked: BoundConfig) -> Callable[..., SavedBound]:
    """What computes a bound from a configuration, in any process."""
    return functools.partial(_compute, asked)


def _compute(asked: BoundConfig, config: RunConfig, *, trace: Trace, progress: Any = None) -> SavedBound:
    # By name: compiled code takes half a second to load, which sweeps without a bound need not wait for.
    found = import_module("simkv.simulator.bounds").bound_config(
        config, alphas=asked.alphas, anticipation=asked.anticipation, trace=trace
    )
    rows = [
        {
            "policy": BOUND,
            "label": bound_label(asked),
            "params": {"alpha": row["alpha"]},
            "seed": config.seed,
            "requests": found.requests,
            "ttft_mean_s": row["ttft_mean_s"],
            "quality_mean": row["quality_mean"],
            "utility_s": row["utility_s"],
        }
        for row in found.corners().to_dict("records")
    ]
    return SavedBound(rows)


def bound_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a bound that ``SavedBound`` wrote.  Raises SimkvError."""
    path = folder / _FILE
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SimkvError(f"{path}: a damaged bound; remove its folder: {error}") from error
    return rows


def uncovered_moves(folder: Path, asked: BoundConfig) -> int:
    """How many moves of the run in ``folder``, between two uses of an entry, its bound does not cover.

    Moves in a rebalance are counted, the only ones that belong to no request.  Raises SimkvError.
    """
    path = folder / "moves.parquet"
    try:
        moves = pd.read_parquet(path, columns=["request", "block", "kind", "bytes"])
    except (OSError, ValueError) as error:
        raise SimkvError(f"{path}: cannot read the moves of a run: {error}") from error
    if asked.anticipation == "raise" or not (moves["request"] < 0).any():
        return 0
    return int(import_module("simkv.simulator.bounds").assumption_breaks(moves, asked.anticipation))
