"""The command line: the verbs run, sweep, bound, plot and validate, and the groups trace and profile.

What it is: parsing; each verb calls the library and prints.  What it is not: the calls themselves, nor errors
(``cli_verb.py``), printing (``cli_output.py``, ``cli_results.py``), validate (``cli_validate.py``) or the groups
(``cli_trace.py``, ``cli_profile.py``).  Everything heavy is imported inside the verbs, so that ``simkv --help``
answers at once.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simkv.cli_output import print_json, report_notes, request_bar
from simkv.cli_profile import profile_app
from simkv.cli_profile_quality import add_quality
from simkv.cli_profile_speed import add_speed
from simkv.cli_trace import trace_app
from simkv.cli_validate import add_validate
from simkv.cli_verb import Changes, Debug, JsonText, Verb, Verbose, changes, say
from simkv.errors import ConfigError, SimkvError, unknown_name

if TYPE_CHECKING:
    import pandas as pd

    from simkv.config import StudyConfig

__all__ = ["app", "main"]

_LOG = logging.getLogger(__name__)
_FORMATS = ("png", "pdf", "svg")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(trace_app, name="trace")
add_quality(profile_app)
add_speed(profile_app)
app.add_typer(profile_app, name="profile")

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file of a run or study.")]


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        print(f"simkv {version('simkv')}")
    except PackageNotFoundError:
        print("simkv 0 (not installed)")
    raise typer.Exit


@app.callback(epilog="Start here: simkv sweep experiments/first-run/config.toml")
def root(
    verbose: Verbose = False,
    debug: Debug = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Simulate the DRAM/SSD hierarchy that holds LLM KV caches, with lossy compression, on a request trace."""


@app.command(cls=Verb, epilog="Example: simkv run config.toml --policy adaptcache --set policy.alpha=0.5 --out out/")
def run(
    config: Config,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another policy, with its defaults, instead of [policy].")
    ] = None,
    set_: Changes = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the run's tables there, as Parquet.")
    ] = None,
    as_json: JsonText = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Replay a trace once and print the summary."""
    from simkv.cli_results import print_summary
    from simkv.config import StudyConfig, load_config, override, replace_values
    from simkv.simulator.run import run_config

    asked = load_config(config)
    if isinstance(asked, StudyConfig):
        raise ConfigError(f"{config}: this is a study (it has [grid] or [[policies]]); use `simkv sweep {config}`")
    if policy is not None:
        asked = replace_values(asked, {"policy": {"name": policy}}, "--policy")
    asked = override(asked, changes(set_))
    folder = None if out is None else _result_folder(out)
    with request_bar(asked.policy.title) as progress:
        result = run_config(asked, progress=progress)
    report_notes(result.meta["trace"])
    if folder is not None:
        result.save(folder)
    if as_json:
        print_json([result.summary])
    else:
        print_summary(result)
        if folder is not None:
            print(f"\nwritten to {out}")


def _result_folder(out: Path) -> Path:
    """The absolute folder, checked: saving replaces what is there, which may only be an older result."""
    folder = out.absolute()
    is_result = (folder / "meta.json").is_file() and (folder / "requests.parquet").is_file()
    if folder.exists() and not is_result and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"--out {out}: is there already and is not the result of a run; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


@app.command(cls=Verb, epilog="Example: simkv sweep experiments/first-run/config.toml --workers 2")
def sweep(
    config: Config,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where results go.  [default: results/NAME of the study]", show_default=False
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Processes to compute with.")] = 1,
    set_: Changes = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute again what is there.")] = False,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL", help="Compare this policy's curve, or the Bound's, with the others; in JSON too."
        ),
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="Q,...", help="Compare curves at these qualities, not with every setting.")
    ] = None,
    no_plots: Annotated[bool, typer.Option("--no-plots", help="Draw no figures.")] = False,
    as_json: JsonText = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Compute a study and print its policy table.  Runs that are there already are not computed again."""
    from simkv.cli_results import (
        comparison,
        comparison_rows,
        print_comparison,
        print_policies,
        study_rows,
        study_traces,
    )

    study = _study(config, set_)
    qualities = _compared_qualities(study, compare, at)
    folder = _default_folder(study.base.name) if out is None else out
    table, failure = _computed(study, folder, workers, fresh)
    runs = table[table["policy"] != "bound"]
    for facts in study_traces(folder, table):
        report_notes(facts)
    figures = [] if no_plots else _draw_fitting(folder)
    if as_json and compare is not None:
        compared = comparison(table, compare, folder, qualities)
        print_json({"runs": study_rows(table), "comparison": comparison_rows(compared)})
    elif as_json:
        print_json(study_rows(table))
    else:
        print_policies(table, folder)
        print(f"\n{len(runs)} runs in {folder}: summary.parquet, summary.csv")
        if figures:
            print(f"figures in {folder / 'figures'}: {', '.join(path.name for path in figures)}")
        if compare is not None:
            print()
            print_comparison(comparison(table, compare, folder, qualities), compare, folder)
    if failure is not None:
        say(f"error: {failure}")
        raise typer.Exit(1)


def _study(config: Path, texts: Iterable[str] | None) -> "StudyConfig":
    """The study of a file; a single run is a study of one."""
    from simkv.config import PolicyGrid, RunConfig, StudyConfig, load_config, override

    asked: RunConfig | StudyConfig = load_config(config)
    if isinstance(asked, RunConfig):
        alone = PolicyGrid(policy=asked.policy, grid={})
        asked = StudyConfig(base=asked, grid={}, policies=(alone,), source=str(config))
    return override(asked, changes(texts))


def _compared_qualities(study: "StudyConfig", compare: str | None, at: str | None) -> list[float]:
    """The qualities of ``--at``, none if it is not given.  Raises ConfigError for these or a label that cannot be."""
    from simkv.experiment_bounds import bound_label

    labels = [entry.policy.title for entry in study.policies] + ([bound_label(study.bound)] if study.bound else [])
    if compare is not None and compare not in labels:
        raise ConfigError(f"--compare: {unknown_name('label', compare, labels)}")
    if compare is None and at is not None:
        raise ConfigError("--at: says at which qualities to compare; it needs --compare LABEL")
    qualities = _numbers("--at", at) or []
    if wrong := [quality for quality in qualities if not 0 < quality <= 1]:
        raise ConfigError(f"--at {at}: quality {wrong[0]:g} is not allowed; it must be above 0 and at most 1")
    return qualities


def _default_folder(name: str) -> Path:
    if Path(name).name != name or name == "..":
        raise ConfigError(f"name: {name!r} cannot be the name of a folder; say where results go with --out")
    return Path("results") / name


def _computed(
    study: "StudyConfig", folder: Path, workers: int, fresh: bool
) -> "tuple[pd.DataFrame, SimkvError | None]":
    """The table of the study and what failed, if some runs did and others are there."""
    from simkv.experiments import load_summary, run_study

    there = {path.parent.name for path in folder.glob("runs/*/meta.json")}
    summary = folder / "summary.parquet"
    before = summary.stat().st_mtime_ns if summary.is_file() else None
    failure = None
    try:
        table = run_study(study, folder, workers=workers, fresh=fresh)
    except SimkvError as error:
        # Only a sweep of which some runs are there has written its table before it failed.
        if type(error) is not SimkvError or not summary.is_file() or summary.stat().st_mtime_ns == before:
            raise
        table, failure = load_summary(folder), error
    if not fresh:
        runs = table.loc[table["policy"] != "bound", "run"]
        _LOG.info("%d of %d runs were there already", sum(run in there for run in runs), len(runs))
    return table, failure


def _draw_fitting(folder: Path) -> list[Path]:
    from simkv.cli_figures import draw, fitting_figures, open_results

    results = open_results(folder)
    files = {name: folder / "figures" / f"{name}.png" for name in fitting_figures(results.table)}
    return draw(results, files, skip=True)


@app.command(cls=Verb, epilog="Example: simkv bound experiments/first-run/config.toml --alphas 0,0.5,1,2,10")
def bound(
    config: Config,
    alphas: Annotated[
        str | None, typer.Option(metavar="A,...", help="Seconds per unit of quality.  [default: 14 from 0 to 30]")
    ] = None,
    anticipation: Annotated[
        str | None,
        typer.Option(metavar="WHAT", help="What policies may do between two uses: none, prefetch or raise."),
    ] = None,
    set_: Changes = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the rows there: .csv or .parquet.")] = None,
    as_json: JsonText = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Compute what no policy can beat: delay at each quality, for a run or each point of a study's grid."""
    from simkv.cli_bound import bound_corners, write_corners
    from simkv.cli_results import print_bound

    corners = bound_corners(_study(config, set_), _numbers("--alphas", alphas), anticipation)
    if out is not None:
        write_corners(corners, out)
    if as_json:
        print_json(corners.to_dict("records"))
    else:
        print_bound(corners)
        if out is not None:
            print(f"\nwritten to {out}")


def _numbers(option: str, text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text}: write numbers with commas between, e.g. 0,0.5,2") from None


@app.command(cls=Verb, epilog="Example: simkv plot results/first-run --figure delay-quality --out delay.pdf")
def plot(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of a sweep or of a single run.")],
    figure: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A figure, repeatable.  [default: all that fit]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE_OR_FOLDER", help="[default: RESULTS/figures]", show_default=False)
    ] = None,
    file_format: Annotated[str, typer.Option("--format", metavar="KIND", help="png, pdf or svg.")] = "png",
    run: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="Only runs of this label, or whose folder's name begins so; repeatable."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="capacity-sweep: what to draw, e.g. ttft_p99_s.")
    ] = None,
    factor: Annotated[
        str | None, typer.Option(metavar="KEY", help="capacity-sweep: against which key of the grid.")
    ] = None,
    by: Annotated[str | None, typer.Option(metavar="WHAT", help="hit-share: requests or tokens.")] = None,
    log_x: Annotated[bool, typer.Option("--log-x", help="Logarithmic delay or length axis.")] = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Draw results.  Figures of single runs show each policy's middle setting; choose others with --run."""
    from simkv.cli_figures import draw, fitting_figures, open_results
    from simkv.figures import find_figure

    if file_format not in _FORMATS:
        raise ConfigError(f"--format: {unknown_name('format', file_format, _FORMATS)}")
    for name in figure or []:
        find_figure(name)
    found = open_results(results)
    if run:
        found = found.only(run)
    names = figure or fitting_figures(found.table)
    if factor and not figure and "capacity-sweep" not in names:
        names.append("capacity-sweep")
    options = {"metric": metric, "factor": factor, "by": by, "log_x": log_x or None}
    for path in draw(found, _files(names, out or results / "figures", file_format), options, skip=not figure):
        print(path)


def _files(names: list[str], out: Path, file_format: str) -> dict[str, Path]:
    """Where each figure goes: one figure may be given a file, several go into a folder."""
    if out.suffix.lower().removeprefix(".") not in _FORMATS:
        return {name: out / f"{name}.{file_format}" for name in names}
    if len(names) > 1:
        raise ConfigError(f"--out {out}: {len(names)} figures do not go into one file; name a folder or one --figure")
    return {names[0]: out}


add_validate(app)


def main() -> None:
    """Entry point of the console script ``simkv``."""
    # As with `python -m`: a policy "module:Class" may lie in the current folder.
    with contextlib.suppress(OSError):
        sys.path.append(os.getcwd())
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    app(prog_name="simkv")
