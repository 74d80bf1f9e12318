"""Studies: a grid of runs, executed by any number of processes, resumable, as one table.

What it is: expansion of a study into runs in grid order, and their execution.  A run's identity is the
hash of its configuration, trace, profile and simkv version; ``results/runs/<identity>/`` appears whole
or not at all, so a run whose folder exists is not computed again and a killed sweep resumes.  What it is
not: the simulation (``simulator.run``) or the figures.  Flow: ``config.py`` -> here -> ``figures``.
"""

import concurrent.futures
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from simkv.config import BoundConfig, RunConfig, StudyConfig, config_hash, replace_values, resolved, with_profile_tiers
from simkv.errors import ConfigError, SimkvError
from simkv.experiment_bounds import BOUND, bound_identity, bound_rows, bound_runner, uncovered_moves, without_policy
from simkv.experiment_files import discard, remove_stale, staged
from simkv.experiment_jobs import Bar, Job, Runner, run_jobs
from simkv.preparation import prepare_trace, trace_fingerprint
from simkv.simulator.metrics import Result
from simkv.simulator.run import prepare_profile, run_config
from simkv.traces.storage import save_arrow
from simkv.version import code_identity

__all__ = ["StudyRun", "expand", "load_runs", "load_summary", "run_study"]

_LOG = logging.getLogger(__name__)
_MAX_RUNS = 100_000
_NAME_CHARACTERS = 16
_SUMMARY = "summary"
_FIRST_COLUMNS = ("run", "policy", "label", "params", "seed")


@dataclass(frozen=True)
class StudyRun:
    """One run of a study; ``factors`` are the values that set it apart, by dotted key, as the study gives them."""

    config: RunConfig
    factors: dict[str, Any]

    @property
    def title(self) -> str:
        """The policy and the factors, for messages."""
        return _title(self.config.policy.title, self.factors)


def _title(name: str, factors: dict[str, Any]) -> str:
    return ", ".join([name, *(f"{key} = {value}" for key, value in factors.items())])


def expand(study: StudyConfig) -> list[StudyRun]:
    """The runs of a study in grid order.

    The factors of ``[grid]`` vary slowest, the first one slowest of all; then come the policies; then the
    own grid of each policy.  Equal runs are kept once, with a note in the log.  Raises ConfigError naming
    the point of the grid that is not allowed.
    """
    base = study.base
    if any(key.startswith("tiers.") for key in study.grid) and not any(key.startswith("profile") for key in study.grid):
        base = with_profile_tiers(base)
    points = _size(study.grid) * sum(_size(entry.grid) for entry in study.policies)
    if points > _MAX_RUNS:
        raise ConfigError(f"{study.source}: grid: {points} runs, more than {_MAX_RUNS}")
    runs: dict[str, StudyRun] = {}
    for policy, factors in _points(study):
        at = ", ".join(f"{key} = {value!r}" for key, value in factors.items())
        where = f"{study.source}: at {at}" if at else study.source
        config = replace_values(base, {"policy": policy, **factors}, where)
        runs.setdefault(json.dumps(resolved(config), sort_keys=True), StudyRun(config, factors))
    if points > len(runs):
        _LOG.warning("%s: %d of %d runs equal another one and are left out", study.source, points - len(runs), points)
    return list(runs.values())


def _size(grid: dict[str, list[Any]]) -> int:
    return math.prod(len(values) for values in grid.values())


def _points(study: StudyConfig) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The table of the policy and the factors by dotted key, for each point of the grid."""
    for shared in _product(study.grid):
        for entry in study.policies:
            policy = resolved(study.base.model_copy(update={"policy": entry.policy}))["policy"]
            for own in _product(entry.grid):
                yield policy, {**shared, **{f"policy.{key}": value for key, value in own.items()}}


def _product(grid: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def run_study(
    study: StudyConfig,
    results: str | Path,
    *,
    workers: int = 1,
    executor: concurrent.futures.Executor | None = None,
    progress: bool = True,
    fresh: bool = False,
    runner: Runner = run_config,
) -> pd.DataFrame:
    """Compute the runs of a study that do not exist yet, and write the table of all.

    Args:
        study: base, grid and policies.
        results: folder of ``runs/``, ``traces/`` (prepared once, mapped by all workers) and ``summary.*``.
        workers: processes; 1 computes in this one.
        executor: computes the runs instead, for example that of a Dask cluster that sees the same folders.
        progress: show a bar on stderr if that is a terminal.
        fresh: forget the runs that exist.
        runner: computes one run; called as ``runner(config, trace=trace, progress=callback or None)``.

    Returns:
        The summary table, one row per run, in grid order whatever the number of workers: column ``run`` (the
        folder's name), the run's summary, and its factors by dotted key as the study gives them.

    Raises:
        ConfigError: when a point of the grid is not allowed; nothing is computed then.
        SimkvError: at the end, when runs failed; the others are kept, and in the table.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}; it must be at least 1")
    results = Path(results).absolute()
    runs = expand(study)
    remove_stale(results)
    inputs = _Inputs(results)
    folders, jobs, failed = _plan(runs, inputs, runner, fresh)
    bounds = _plan_bounds(study, runs, inputs, jobs, failed, fresh)
    there = {folder for folder in [*folders, *(folder for folder, _ in bounds)] if folder}
    try:
        with Bar(len(there), len(there) - len(jobs), progress) as bar:
            failed += run_jobs(jobs, workers=workers, executor=executor, errors=results / "errors", bar=bar)
    except KeyboardInterrupt:
        _LOG.warning("%s: interrupted; what is finished is kept, and the same sweep goes on from there", study.source)
        raise
    table = _write_table(runs, folders, bounds, results)
    _warn_of_uncovered(study, runs, folders)
    if failed:
        raise SimkvError(f"{study.source}: {len(failed)} of {len(runs)} runs failed; the first: {failed[0]}")
    return table


def load_summary(results: str | Path) -> pd.DataFrame:
    """The table that ``run_study`` wrote, one row per run in grid order.  Raises SimkvError."""
    path = Path(results) / f"{_SUMMARY}.parquet"
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise SimkvError(f"{path}: cannot read the table of a study: {error}") from error


def load_runs(results: str | Path) -> Iterator[tuple[dict[str, Any], Result]]:
    """Each run's row of the table with its frames, loaded one after the other.  Raises SimkvError."""
    table = load_summary(results)
    for row in table[table["policy"] != BOUND].to_dict("records"):
        named: dict[str, Any] = {str(key): value for key, value in row.items()}
        yield named, Result.load(Path(results) / "runs" / str(named["run"]))


class _Inputs:
    """Traces and profiles of a study: what they hash to, and where the prepared traces are."""

    def __init__(self, results: Path) -> None:
        self._results = results
        self._traces: dict[str | None, str] = {}
        self._profiles: dict[str, str] = {}

    def folder(self, config: RunConfig) -> Path:
        """Where the run's result belongs: named by the hash of all that it depends on.  Raises SimkvError."""
        key = json.dumps(resolved(config)["profile"])
        if key not in self._profiles:
            self._profiles[key] = prepare_profile(config).sha256
        identity = config_hash(config, self._trace_sha256(config), self._profiles[key], code_identity())
        return self._results / "runs" / identity[:_NAME_CHARACTERS]

    def bound_folder(self, config: RunConfig, asked: BoundConfig) -> Path:
        """Where the bound belongs that ``config`` (of no particular policy) has.  Raises SimkvError."""
        name = bound_identity(self.folder(config).name, asked)
        return self._results / "bounds" / name[:_NAME_CHARACTERS]

    def trace(self, config: RunConfig) -> Path:
        """The prepared trace as a file to map; made now unless it is there.  Raises SimkvError."""
        table = resolved(config)
        table["trace"].pop("file", None)
        asked = config.trace
        drawn = asked.generate or asked.sample < 1 or asked.jitter_ns or isinstance(config.tasks, dict)
        depends = {
            "trace": table["trace"],
            "tasks": config.tasks,
            "seed": config.seed if drawn else None,
            "sha256": self._trace_sha256(config),
            "version": code_identity(),
        }
        name = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:_NAME_CHARACTERS]
        path = self._results / "traces" / f"{name}.arrow"
        if not path.is_file():
            trace = prepare_trace(config)
            with staged(path) as temporary:
                save_arrow(trace, temporary)
        return path

    def _trace_sha256(self, config: RunConfig) -> str:
        file = config.trace.file
        if file not in self._traces:
            self._traces[file] = trace_fingerprint(config)
        return self._traces[file]


def _plan(
    runs: list[StudyRun], inputs: _Inputs, runner: Runner, fresh: bool
) -> tuple[list[Path | None], list[Job], list[str]]:
    """The folder of each run (None if its inputs are bad), the jobs that are left to do, and what failed already."""
    folders: list[Path | None] = []
    jobs: list[Job] = []
    failed: list[str] = []
    for run in runs:
        folder = None
        try:
            folder = inputs.folder(run.config)
            if folder not in folders and (fresh or not _is_complete(folder)):
                discard(folder)
                jobs.append(Job(run.title, run.config, inputs.trace(run.config), folder, runner))
        except SimkvError as error:
            failed.append(f"{run.title}: {error}")
            _LOG.warning("%s", failed[-1])
        folders.append(folder)
    return folders, jobs, failed


def _plan_bounds(
    study: StudyConfig, runs: list[StudyRun], inputs: _Inputs, jobs: list[Job], failed: list[str], fresh: bool
) -> list[tuple[Path, dict[str, Any]]]:
    """Folder and factors of each bound that the study asks for; adds to the jobs and to what failed already."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for run in runs if study.bound is not None else ():
        assert study.bound is not None
        factors = {key: value for key, value in run.factors.items() if not key.startswith("policy.")}
        config = without_policy(run.config)
        key = json.dumps(resolved(config), sort_keys=True)
        if key in found:
            continue
        title = _title("Bound", factors)
        try:
            folder = inputs.bound_folder(config, study.bound)
            found[key] = (folder, factors)
            if fresh or not _is_complete(folder):
                discard(folder)
                jobs.append(Job(title, config, inputs.trace(config), folder, bound_runner(study.bound)))
        except SimkvError as error:
            failed.append(f"{title}: {error}")
            _LOG.warning("%s", failed[-1])
    return list(found.values())


def _warn_of_uncovered(study: StudyConfig, runs: list[StudyRun], folders: list[Path | None]) -> None:
    """One warning when runs made moves that the bound beside them does not allow a policy."""
    if study.bound is None:
        return
    counts = {
        run.title: uncovered_moves(folder, study.bound)
        for run, folder in zip(runs, folders, strict=True)
        if folder and (folder / "moves.parquet").is_file()
    }
    broken = {title: count for title, count in counts.items() if count}
    if broken:
        first, count = next(iter(broken.items()))
        _LOG.warning(
            "%s: %d of %d runs raised entries between two uses, which their bound does not cover (%s: %d times); "
            'give [bound] anticipation = "raise"',
            *(study.source, len(broken), len(runs), first, count),
        )


def _write_table(
    runs: list[StudyRun], folders: list[Path | None], bounds: list[tuple[Path, dict[str, Any]]], results: Path
) -> pd.DataFrame:
    """The table of the runs and bounds that are there, written as Parquet and CSV."""
    rows = [_row(run, folder) for run, folder in zip(runs, folders, strict=True) if folder and _is_complete(folder)]
    for folder, at in bounds:
        for row in bound_rows(folder) if _is_complete(folder) else ():
            rows.append({"run": folder.name, **row, "params": json.dumps(row["params"]), **at})
    factors = list(dict.fromkeys(key for run in runs for key in run.factors))
    found = dict.fromkeys(key for row in rows for key in row)
    table = pd.DataFrame(
        rows, columns=[key for key in dict.fromkeys([*_FIRST_COLUMNS, *factors, *found]) if key in found]
    )
    for key in table.columns.intersection(factors):
        kinds = {type(value) for value in table[key].dropna()}
        if len(kinds) > 1 and not kinds <= {int, float}:
            table[key] = table[key].map(str, na_action="ignore")
    if rows:
        with staged(results / f"{_SUMMARY}.parquet") as temporary:
            table.to_parquet(temporary, index=False)
        with staged(results / f"{_SUMMARY}.csv") as temporary:
            table.to_csv(temporary, index=False)
    return table


def _row(run: StudyRun, folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))["summary"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SimkvError(f"{path}: a damaged result; remove its folder: {error}") from error
    row = {"run": folder.name, **summary, "label": run.config.policy.title, **run.factors}
    return {
        key: json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else value
        for key, value in row.items()
    }


def _is_complete(folder: Path) -> bool:
    return (folder / "meta.json").is_file()
