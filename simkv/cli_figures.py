"""Figures of a results folder: which ones, of which runs, into which files.

What it is: the way from the folder of a run or a sweep to ``simkv.figures``, for the verbs ``plot`` and ``sweep``;
imported when they need it.  What it is not: drawing.

Figures of single runs show one run per policy, the one in the middle of its settings at the first point of the grid,
unless runs are chosen by name.
"""

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from simkv.errors import ConfigError, SimkvError, unknown_name
from simkv.experiment_bounds import BOUND
from simkv.experiments import load_summary
from simkv.figures import FIGURE_INPUTS, FIGURES, find_figure, save_figure
from simkv.figures.goodput import RATE_FACTORS
from simkv.figures.tables import factor_columns, factor_title, knob_texts
from simkv.resampling import resampled_seeds
from simkv.simulator.metrics import Result

__all__ = ["Results", "draw", "fitting_figures", "open_results"]

_LOG = logging.getLogger(__name__)
_MOST_RUNS = 12
_FRAMES = ("requests", "occupancy")


@dataclass(frozen=True)
class Results:
    """A table with one row per run, and the folder of every run by its name; ``root`` is a sweep's own folder."""

    table: pd.DataFrame
    folders: dict[str, Path]
    chosen: bool = False
    root: Path | None = None

    def only(self, names: Sequence[str]) -> "Results":
        """The runs with one of these labels, or whose name begins so.  Raises ConfigError for one that is not there."""
        keep = pd.Series(False, index=self.table.index)
        for name in names:
            found = (self.table["label"] == name) | self.table["run"].str.startswith(name)
            if not found.any():
                raise ConfigError(unknown_name("run", name, set(self.table["label"])))
            keep |= found
        return replace(self, table=self.table[keep].reset_index(drop=True), chosen=True)

    def frames(self, kind: str) -> dict[str, pd.DataFrame]:
        """The ``requests`` or ``occupancy`` frame by title, of the runs that figures of single runs show."""
        rows = self._titled()
        if len(rows) > _MOST_RUNS:
            raise ConfigError(f"{len(rows)} runs in one figure, more than {_MOST_RUNS}; choose fewer with --run")
        return {
            title: getattr(Result.load(self.folders[run]), kind)
            for title, run in zip(rows["title"], rows["run"], strict=True)
        }

    def _titled(self) -> pd.DataFrame:
        runs = self.table[self.table["policy"] != BOUND].reset_index(drop=True)
        table = runs.assign(params=runs["params"].map(_params))
        knobs = knob_texts(table)
        table["title"] = [
            f"{label} ({knob})" if knob else label for label, knob in zip(table["label"], knobs, strict=True)
        ]
        factors = factor_columns(table)
        if not self.chosen:
            at_first = (table[[*factors, "seed"]].astype(str) == table[[*factors, "seed"]].astype(str).iloc[0]).all(
                axis=1
            )
            groups = [group for _, group in table[at_first].groupby("label", sort=False)]
            return pd.concat([group.iloc[[(len(group) - 1) // 2]] for group in groups])
        if factors:
            points = [[factor_title(key, str(row[key])) for key in factors] for row in table.to_dict("records")]
            table["title"] = [
                f"{title}, {', '.join(point)}" for title, point in zip(table["title"], points, strict=True)
            ]
        again = table["title"].duplicated(keep=False)
        seeded = [f"{title}, seed {seed}" for title, seed in zip(table["title"], table["seed"], strict=True)]
        table["title"] = table["title"].where(~again, pd.Series(seeded, index=table.index))
        return table


def _params(value: Any) -> dict[str, Any]:
    params: dict[str, Any] = json.loads(value) if isinstance(value, str) else dict(value)
    return params


def open_results(path: Path) -> Results:
    """The results of a sweep's folder or of a single run's.  Raises SimkvError when it is neither."""
    if (path / "meta.json").is_file():
        table = pd.DataFrame([{"run": path.name, **Result.load(path).summary}])
        return Results(table, {path.name: path}, chosen=True)
    if not (path / "summary.parquet").is_file():
        raise SimkvError(f"{path}: neither the results of a sweep (no summary.parquet) nor of a run (no meta.json)")
    table = load_summary(path)
    return Results(table, {str(run): path / "runs" / str(run) for run in table["run"]}, root=path)


def fitting_figures(table: pd.DataFrame) -> list[str]:
    """Names of the figures that these runs can fill."""
    names = [name for name, kind in FIGURE_INPUTS.items() if kind != "trace"]
    if len(table) < 2:
        names.remove("delay-quality")
    if _capacity_factor(table) is None:
        names.remove("capacity-sweep")
    if "slo_share" not in table or not set(RATE_FACTORS) & set(factor_columns(table)):
        names.remove("goodput")
    return names


def _capacity_factor(table: pd.DataFrame) -> str | None:
    found = [key for key in factor_columns(table) if key.startswith("tiers.") and key.endswith(".capacity")]
    return found[0] if found else None


def draw(
    results: Results,
    files: Mapping[str, Path],
    options: Mapping[str, Any] | None = None,
    *,
    skip: bool = False,
) -> list[Path]:
    """Draw the figures named by the keys of ``files``; returns the files written.

    Args:
        results: what to draw.
        files: file of every figure by its name; folders are made.
        options: arguments of the figures that have them, such as metric, factor, by.
        skip: leave out, with a warning, a figure that these results cannot fill.

    Raises:
        ConfigError: an option that none of the figures has.
        SimkvError: unknown figure, or one that cannot be drawn.
    """
    given = {key: value for key, value in (options or {}).items() if value is not None}
    known = {name: set(inspect.signature(find_figure(name)).parameters) for name in files}
    for key in given:
        if not any(key in parameters for parameters in known.values()):
            having = [name for name in FIGURES if key in inspect.signature(FIGURES[name]).parameters]
            raise ConfigError(f"--{key.replace('_', '-')} has an effect on figure {' and '.join(having)} only")
    written = []
    for name, path in files.items():
        try:
            chosen = {key: value for key, value in given.items() if key in known[name]}
            chosen = {**_defaults(name, results.table), **chosen}
            if "resampled" in known[name] and results.root is not None:
                metrics = [str(chosen.get("metric", "ttft_mean_s")), "quality_mean"]
                chosen["resampled"] = resampled_seeds(results.table, results.root, metrics)
            figure = FIGURES[name](_input(name, results), **chosen)
            path.parent.mkdir(parents=True, exist_ok=True)
            written.append(save_figure(figure, path))
        except SimkvError as error:
            if not skip:
                raise
            _LOG.warning("figure %s left out: %s", name, error)
    return written


def _defaults(name: str, table: pd.DataFrame) -> dict[str, Any]:
    factor = _capacity_factor(table) if name == "capacity-sweep" else None
    return {"factor": factor} if factor else {}


def _input(name: str, results: Results) -> Any:
    kind = FIGURE_INPUTS[name]
    if kind == "trace":
        raise SimkvError(f"figure {name} is of a trace: draw it with `simkv trace stats FILE --plot {name}.png`")
    return results.frames(kind) if kind in _FRAMES else results.table
