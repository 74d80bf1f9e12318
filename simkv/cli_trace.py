"""The verbs of ``simkv trace``: list, fetch, stats, convert, generate, hits.

What it is: parsing and printing around ``simkv.traces`` and the untimed hit counts.  What it is not: reading,
changing or counting.  ``convert`` changes a trace exactly as the section ``[trace]`` of a configuration does.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simkv.cli_output import (
    duration,
    fixed,
    percent,
    print_json,
    print_pairs,
    print_table,
    records,
    report_notes,
    waiting,
)
from simkv.cli_verb import Debug, JsonText, Verb, Verbose, changes
from simkv.errors import ConfigError
from simkv.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from simkv.traces import Trace

__all__ = ["trace_app"]

_UNLIMITED = "unlimited"

trace_app = typer.Typer(no_args_is_help=True, help="Fetch, describe, convert and generate request traces.")

TraceFile = Annotated[Path, typer.Argument(metavar="FILE", help="Trace: a file, plain, .gz or .zst, or a folder.")]
Format = Annotated[str, typer.Option("--format", help="Format of the trace, or auto to recognise it.")]
Output = Annotated[Path, typer.Argument(metavar="OUT.parquet", help="Parquet file to write.")]
Model = Annotated[
    str | None, typer.Option(metavar="NAME", help="Model whose KV cache gives sizes in bytes, or its config.json.")
]


@trace_app.callback()
def trace(verbose: Verbose = False, debug: Debug = False) -> None:
    """Fetch, describe, convert and generate request traces."""


@trace_app.command("list", cls=Verb, epilog="Example: simkv trace list")
def list_(as_json: JsonText = False, verbose: Verbose = False, debug: Debug = False) -> None:
    """Show the public traces that `trace fetch` knows."""
    from simkv.traces.fetch import list_traces

    rows = records(list_traces())
    if as_json:
        print_json(rows)
        return
    cells = [
        [
            row["name"],
            row["format"],
            "unknown" if row["size_bytes"] is None else format_bytes(row["size_bytes"]),
            row["licence"],
            "yes" if row["reuse"] else "no",
            row["fetch"],
            row["what"],
        ]
        for row in rows
    ]
    print_table(["name", "format", "size", "licence", "reuse", "fetch", "what"], cells, text=7, spare=["what", "fetch"])


@trace_app.command(cls=Verb, epilog="Example: simkv trace fetch mooncake-conversation --folder traces/")
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A trace of `simkv trace list`.")],
    folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to put it.  [default: the user's cache]")
    ] = None,
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Take files whose checksum is not known.")
    ] = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Download a public trace, check it, and print where it is."""
    from simkv.traces.fetch import fetch_trace

    print(fetch_trace(name, folder, sys.stderr.isatty(), allow_unverified=allow_unverified))


@trace_app.command(cls=Verb, epilog="Example: simkv trace stats trace.jsonl.gz --model llama-3.1-8b")
def stats(
    file: TraceFile,
    trace_format: Format = "auto",
    model: Model = None,
    as_json: JsonText = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw them: .png, .pdf or .svg.")] = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Describe a trace: lengths, arrivals, reuse, working sets."""
    from simkv.models import find_model
    from simkv.traces.stats import trace_stats

    kv_bytes = None if model is None else find_model(model).kv_bytes_per_token
    loaded = _load(file, trace_format)
    with waiting("counting"):
        found = trace_stats(loaded, kv_bytes)
    if plot is not None:
        from simkv.figures import save_figure
        from simkv.figures import trace_stats as draw

        save_figure(draw(found, input_tokens=loaded.input_tokens, output_tokens=loaded.output_tokens), plot)
    if as_json:
        print(found.to_json())
    else:
        print_pairs([("trace", found.name), *((name, _quantity(value, unit)) for name, value, unit in found.rows())])
        if plot is not None:
            print(f"\nfigure: {plot}")


def _load(file: Path, trace_format: str) -> "Trace":
    from simkv.traces import load_trace

    with waiting(f"reading {file}"):
        loaded = load_trace(file, trace_format)
    report_notes(loaded.meta)
    return loaded


def _quantity(value: float, unit: str) -> str:
    if value != value:
        return "unknown"
    if unit == "bytes":
        return format_bytes(value)
    if unit == "s":
        return duration(value)
    number = f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}" if value >= 1000 else f"{value:.4g}"
    return f"{number} {unit}".rstrip()


@trace_app.command(
    cls=Verb, epilog="Example: simkv trace convert trace.jsonl.gz small.parquet --stop '600 s' --sample 0.5"
)
def convert(
    file: TraceFile,
    out: Output,
    trace_format: Format = "auto",
    start: Annotated[str | None, typer.Option(help="Leave out what arrives before, e.g. '10 min'.")] = None,
    stop: Annotated[str | None, typer.Option(help="Leave out what arrives from then on.")] = None,
    sample: Annotated[float | None, typer.Option(help="Share of prefix families to keep, in (0, 1].")] = None,
    rate: Annotated[float | None, typer.Option(help="Factor on the arrival rate.")] = None,
    jitter: Annotated[
        str | None, typer.Option(help="Random delay added to arrivals, at most this, e.g. '3 s'.")
    ] = None,
    window_tokens: Annotated[int | None, typer.Option(help="Longest prompt that the model takes.")] = None,
    window_rule: Annotated[str | None, typer.Option(help="Longer prompts: reject, clip or filter.")] = None,
    group_blocks: Annotated[int | None, typer.Option(help="Merge so many consecutive blocks into one.")] = None,
    unit: Annotated[str | None, typer.Option(help="block, or segment: blocks that occur only together.")] = None,
    seed: Annotated[int, typer.Option(help="Of sample and jitter.")] = 0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the format's reader.")
    ] = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Change a trace and write it as Parquet.  Changes apply in the order in which they are listed here."""
    from simkv.preparation import prepare_trace
    from simkv.traces import save_trace

    steps = {
        "start": start,
        "stop": stop,
        "sample": sample,
        "rate": rate,
        "jitter": jitter,
        "window_tokens": window_tokens,
        "window_rule": window_rule,
        "group_blocks": group_blocks,
        "unit": unit,
    }
    given = {key: value for key, value in steps.items() if value is not None}
    config = _trace_config({"file": str(file), "format": trace_format, **given}, seed, set_, "trace convert")
    _require_parquet(out)
    with waiting(f"reading {file}"):
        converted = prepare_trace(config)
        save_trace(converted, out)
    report_notes(converted.meta)
    _print_written(converted, out)


def _trace_config(section: dict[str, Any], seed: int, texts: list[str] | None, where: str) -> Any:
    """A run's configuration of which only the trace counts, its options from ``--set``."""
    from simkv.config import override, parse_run

    table = {"seed": seed, "trace": section, "profile": {"name": "none"}, "policy": {"name": "recompute"}}
    return override(parse_run(table, where), {f"trace.options.{key}": text for key, text in changes(texts).items()})


def _require_parquet(out: Path) -> None:
    if out.suffix != ".parquet":
        raise ConfigError(f"{out}: traces are written as Parquet; end the name in .parquet")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)


def _print_written(written: "Trace", out: Path) -> None:
    requests, blocks = f"{len(written):,} requests", f"{written.n_blocks:,} distinct blocks"
    print(f"{out}: {requests}, {blocks}, {duration(written.duration_s)}")


@trace_app.command(cls=Verb, epilog="Example: simkv trace generate zipf z.parquet --seed 1 --set requests=500")
def generate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="zipf, sessions, rag, adaptcache-coding, -qa, ...")],
    out: Output,
    seed: Annotated[int, typer.Option(help="The same seed gives the same trace.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="An option of the generator; a wrong one lists them."),
    ] = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Make a synthetic trace and write it as Parquet."""
    from simkv.traces import save_trace
    from simkv.traces.generate import generate_trace

    config = _trace_config({"generate": name}, 0, set_, "trace generate")
    _require_parquet(out)
    made = generate_trace(name, seed=seed, **config.trace.options)
    save_trace(made, out)
    report_notes(made.meta)
    _print_written(made, out)


@trace_app.command(
    cls=Verb, epilog="Example: simkv trace hits trace.jsonl --policy lru,fifo --capacity-blocks 1000,unlimited"
)
def hits(
    file: TraceFile,
    policy: Annotated[
        str, typer.Option(metavar="NAME,...", help="lru, fifo, lfu, s3fifo, gdsf, clairvoyant; several with commas.")
    ] = "lru",
    capacity_blocks: Annotated[
        str | None, typer.Option(metavar="N,...", help="Capacities in blocks; also `unlimited`.")
    ] = None,
    capacity: Annotated[
        str | None, typer.Option(metavar="SIZE,...", help="Capacities in bytes instead, e.g. 64GiB; needs --model.")
    ] = None,
    model: Model = None,
    touch: Annotated[str, typer.Option(help="Order in which a request's blocks are touched: forward or reverse.")] = (
        "forward"
    ),
    lookup: Annotated[str, typer.Option(help="What counts: every resident block, or the resident prefix.")] = "block",
    trace_format: Format = "auto",
    as_json: JsonText = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Count the hits of one untimed cache.  There are no tiers and no compression."""
    from simkv.simulator.hits import count_hits

    capacities = _capacities(capacity_blocks, capacity)
    kv_bytes = _kv_bytes(capacity, model)
    loaded = _load(file, trace_format)
    sizes = None if kv_bytes is None else loaded.block_tokens.astype("int64") * kv_bytes
    with waiting("counting"):
        counts = [
            count_hits(loaded, name.strip(), capacities, touch=touch, lookup=lookup, sizes=sizes)
            for name in policy.split(",")
        ]
    rows = [{"trace": count.trace, **row} for count in counts for row in records(count.frame())]
    if as_json:
        print_json(rows)
        return
    first = counts[0]
    print(f"{first.trace}: cold start, touched {touch}, {lookup} lookup")
    print(
        f"{first.requested_blocks:,} requested blocks (unit: {first.block_unit}), {first.input_tokens:,} input tokens\n"
    )
    print_table(
        ["policy", f"capacity ({first.capacity_unit})", "hits (blocks)", "of blocks (%)", "of tokens (%)"],
        [
            [
                row["policy"],
                _capacity_text(row["capacity"], row["capacity_unit"]),
                f"{row['hits']:,}",
                percent(row["block_hit_ratio"]),
                percent(row["token_hit_ratio"]),
            ]
            for row in rows
        ],
    )


def _capacities(blocks: str | None, sizes: str | None) -> list[int | None]:
    if (blocks is None) == (sizes is None):
        raise ConfigError("give either --capacity-blocks, such as 1000,unlimited, or --capacity, such as 64GiB")
    parse = parse_bytes if blocks is None else _whole
    texts = [text.strip() for text in (blocks or sizes or "").split(",")]
    return [None if text == _UNLIMITED else parse(text) for text in texts]


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--capacity-blocks: {text!r} is neither a whole number nor {_UNLIMITED}") from None


def _kv_bytes(capacity: str | None, model: str | None) -> int | None:
    from simkv.models import find_model

    if capacity is None:
        return None
    if model is None:
        raise ConfigError("--capacity needs --model, which says how many bytes a token takes")
    return find_model(model).kv_bytes_per_token


def _capacity_text(capacity: int | None, unit: str) -> str:
    if capacity is None:
        return _UNLIMITED
    return format_bytes(capacity) if unit == "bytes" else fixed(capacity, 0)
