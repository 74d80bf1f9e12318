"""The verb ``bound``: the bounds of a study's grid as one table.

What it is: which configurations there are, and their corners put together; imported when the verb needs it, since it
brings compiled code.  What it is not: the bound (``simulator.bounds``) or how it is printed (``cli_results.py``).
"""

import json
from pathlib import Path

import pandas as pd

from simkv.cli_output import waiting
from simkv.config import BoundConfig, StudyConfig, resolved
from simkv.errors import ConfigError
from simkv.experiment_bounds import without_policy
from simkv.experiments import expand
from simkv.simulator.bounds import bound_config

__all__ = ["bound_corners", "write_corners"]


def bound_corners(study: StudyConfig, alphas: list[float] | None, anticipation: str | None) -> pd.DataFrame:
    """``Bound.corners`` of each point of the grid, the factors that vary as columns before them.

    ``alphas`` and ``anticipation`` stand in for the study's own.  Raises SimkvError.
    """
    asked = study.bound or BoundConfig()
    frames = []
    done: set[str] = set()
    for run in expand(study):
        config = without_policy(run.config)
        key = json.dumps(resolved(config), sort_keys=True)
        if key in done:
            continue
        done.add(key)
        factors = {key: str(value) for key, value in run.factors.items() if not key.startswith("policy.")}
        with waiting(", ".join(["bound", *(f"{key} = {value}" for key, value in factors.items())])):
            found = bound_config(
                config,
                alphas=asked.alphas if alphas is None else alphas,
                anticipation=asked.anticipation if anticipation is None else anticipation,
            )
        corners = found.corners()
        for place, (factor, value) in enumerate(factors.items()):
            corners.insert(place, factor, value)
        frames.append(corners)
    return pd.concat(frames, ignore_index=True)


def write_corners(corners: pd.DataFrame, out: Path) -> None:
    """Write the table as CSV or Parquet, by its suffix.  Raises ConfigError for another."""
    if out.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--out {out}: end the name in .csv or .parquet")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".csv":
        corners.to_csv(out, index=False)
    else:
        corners.to_parquet(out, index=False)
