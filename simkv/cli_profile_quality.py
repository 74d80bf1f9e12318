"""``simkv profile quality``: measure compressors on a model.

What it is: parsing, a progress bar and a table of what came out.  What it is not: measuring (``simkv.profiler``).
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from simkv.cli_output import duration, fixed, print_json, print_pairs, print_table, request_bar
from simkv.cli_verb import Debug, JsonText, Verb, Verbose, changes, say
from simkv.errors import SimkvError

__all__ = ["add_quality", "needs_profiler", "rates_of"]

_Model = Annotated[
    str,
    typer.Option(
        help='"small" (comes with simkv), "small-plain" (no key outliers), "small:FOLDER", or a Hugging Face name.'
    ),
]
_Names = Annotated[str | None, typer.Option(metavar="A,B", help="Compressors, default all built-in ones.")]


def add_quality(app: typer.Typer) -> None:
    """Add the verb to ``simkv profile``."""
    app.command(cls=Verb, epilog="Example: simkv profile quality --model small --quick --out profiles/mine")(quality)


def quality(
    out: Annotated[Path, typer.Option(help="Folder of the new profile; its name becomes the profile's.")],
    model: _Model = "small",
    tasks: Annotated[str | None, typer.Option(metavar="A,B", help="Generated tasks, default all.")] = None,
    file: Annotated[
        list[Path] | None, typer.Option(help="LongBench-format JSON lines, a task of its own; repeatable.")
    ] = None,
    compressors: _Names = None,
    variants: Annotated[str | None, typer.Option(metavar="A,B", help="Further variants, like kivi:5.")] = None,
    contexts: Annotated[int, typer.Option(min=1, help="Contexts per task.")] = 64,
    questions: Annotated[int, typer.Option(min=1, help="Questions per context; half are for policies.")] = 16,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a context.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the contexts.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    query_aware: Annotated[bool, typer.Option("--query-aware", help="Compress after the question is known.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Four contexts and two knobs per compressor.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME.PARAMETER=VALUE", help="E.g. kivi.residual=32.")
    ] = None,
    as_json: JsonText = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure quality and true size of every compressor and knob, and write a profile; a killed run resumes."""
    with needs_profiler():
        from simkv.profiler.measurement import QualityPlan, measure_quality
        from simkv.profiler.plan import parsed_parameters

    plan = QualityPlan(
        model=model,
        device=device,
        tasks=_listed(tasks),
        files=file or [],
        compressors=_listed(compressors),
        rates=rates_of(variants),
        parameters=parsed_parameters(changes(set_)),
        contexts=contexts,
        questions=questions,
        length=tokens,
        seed=seed,
        query_aware=query_aware,
        quick=quick,
    )
    with request_bar("rows") as progress:
        profile = measure_quality(plan, out, progress)
    _print(profile, out, as_json)


@contextlib.contextmanager
def needs_profiler() -> Iterator[None]:
    """Importing the profiler within it raises SimkvError that says how to install what is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SimkvError(f"measuring needs the extra 'profile' (pip install 'simkv[profile]'): {error}") from error


def rates_of(variants: str | None) -> dict[str, list[str]]:
    """Knobs by compressor of "kivi:5,kivi:6"."""
    rates: dict[str, list[str]] = {}
    for text in _listed(variants):
        name, _, knob = text.partition(":")
        rates.setdefault(name, []).append(knob)
    return rates


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _print(profile: Any, out: Path, as_json: bool) -> None:
    from simkv.profiles import describe

    rows = describe(profile)
    facts = {key: profile.provenance[key] for key in ("device", "commit", "wall_time_s")}
    refused = profile.provenance.get("refused", {})
    if as_json:
        print_json({"profile": str(out), "tasks": list(profile.tasks), "variants": rows, "refused": refused, **facts})
        return
    table = [
        [row["variant"], fixed(row["size_ratio"], 4), *(fixed(row["quality"][task]) for task in profile.tasks)]
        for row in sorted(rows, key=lambda row: -row["size_ratio"])
    ]
    print_table(["variant", "size ratio", *profile.tasks], table)
    print_pairs([("measured in", duration(facts["wall_time_s"])), ("on", facts["device"]), ("profile", str(out))])
    for name, why in refused.items():
        say(f"left out, since it cannot take this model: {name} ({why})")
    print(f"see more with: simkv profile show {out}")
