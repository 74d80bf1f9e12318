"""``simkv validate``: replay for real, simulate the same, compare.

What it is: parsing, progress bars and the table of errors.  What it is not: validating (``simkv.testbed``).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from simkv.cli_output import fixed, percent, print_json, print_pairs, print_table, request_bar
from simkv.cli_profile_quality import needs_profiler
from simkv.cli_verb import Debug, JsonText, Verb, Verbose, terminated_as_interrupted
from simkv.units import format_bytes

__all__ = ["add_validate"]

_SOURCE_HEADERS = (
    *("loop", "served by", "requests"),
    *("predicted ms", "measured ms", "error %", "load predicted ms", "load measured ms", "error %"),
)
_POINTS = ("mean", "p50", "p90", "p99")
_HEADERS = (
    *("policy", "loop", "repeat", "hits", "predicted ms", "measured ms"),
    *(f"{point} %" for point in _POINTS),
    *("wall ms", "unwaited ms", "error %", "quality", "error", "placements"),
)


def add_validate(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(cls=Verb, epilog="Example: simkv validate experiments/validate/config.toml --requests 100 --ssd .")(
        validate
    )


def validate(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="TOML file of a validation.  [default: small, LRU]")
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A policy, with its defaults, instead; repeatable.")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests of each replay.")] = None,
    loop: Annotated[list[str] | None, typer.Option(metavar="KIND", help="open or closed; repeatable.")] = None,
    rate: Annotated[
        list[float] | None, typer.Option(metavar="R", help="Requests per second of an open loop; repeatable.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Replays of each kind.")] = None,
    ssd: Annotated[
        Path, typer.Option(metavar="FOLDER", help="A folder on the disk to use; a folder of our own is made in it.")
    ] = Path(),
    dram: Annotated[str | None, typer.Option(metavar="SIZE", help="Bytes of payloads in memory, e.g. 4 MB.")] = None,
    disk: Annotated[str | None, typer.Option(metavar="SIZE", help="Bytes of payloads on the disk, e.g. 8 MB.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of contexts and requests.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the report goes.  [default: results/NAME]")
    ] = None,
    as_json: JsonText = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Keep real caches of the small model in memory and on disk under real policies, and compare with the simulation.

    A profile is measured first; then every replay is predicted and carried out, and both are compared.
    """
    with needs_profiler():
        from simkv.testbed import load_plan
        from simkv.testbed import validate as carried_out

    given = {
        "policies": [{"name": name} for name in policy] if policy else None,
        "requests": requests,
        "loops": loop,
        "rates": rate,
        "repeats": repeats,
        "dram": dram,
        "disk": disk,
        "seed": seed,
        "device": device,
    }
    plan = load_plan(config, {key: value for key, value in given.items() if value is not None})
    folder = out or Path("results") / plan.name
    with terminated_as_interrupted():
        facts = carried_out(plan, ssd, folder, request_bar)
    if as_json:
        print_json({"report": str(folder), **facts})
        return
    _print(facts, folder)


def _print(facts: dict[str, Any], folder: Path) -> None:
    lines = facts["replays"]
    print_table(
        _HEADERS,
        [_row(line) for line in lines],
        text=2,
    )
    print("errors of TTFT: (predicted - measured) / measured; of quality: predicted - measured, 95 % by contexts")
    print("wall: by the clock on the wall; unwaited: less the time in which threads had no processor, queues included")
    print()
    print_table(_SOURCE_HEADERS, _source_rows(lines), text=2)
    scale = "" if facts["scale"] == 1 else f", scaled by {facts['scale']:.3g} with capacities"
    waits = {line["loop"]: line["waits_taken_off"] for line in lines}
    told = [f"{loop} loop: {'taken off' if off else 'part of measured'}" for loop, off in waits.items()]
    print_pairs(
        [
            ("contexts", f"{facts['contexts']}, {format_bytes(facts['working_set_bytes'])} raw{scale}"),
            ("disk reads", "direct" if facts["direct_reads"] else "through the page cache"),
            ("waits for a processor", ", ".join(told)),
            ("report", str(folder)),
        ]
    )


def _source_rows(lines: Sequence[dict[str, Any]]) -> list[list[str]]:
    """What was measured by source, all replays of a loop together."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        for source, facts in line["by_source"].items():
            found.setdefault((line["loop"], source), []).append(facts)
    rows = []
    for (loop, source), parts in sorted(found.items()):
        requests = sum(part["requests"] for part in parts)
        row = [loop, source, str(requests)]
        for what in ("ttft", "load"):
            predicted, measured = (
                sum(part[f"{side}_{what}_mean_s"] * part["requests"] for part in parts) / requests
                for side in ("predicted", "measured")
            )
            row += [fixed(1e3 * predicted, 2), fixed(1e3 * measured, 2)]
            row.append(percent(predicted / measured - 1) if source != "recompute" or what == "ttft" else "-")
        rows.append(row)
    return rows


def _row(line: dict[str, Any]) -> list[str]:
    half = line["quality_error_half_width"]
    differ = max(line["moves_that_differ"], line["requests_served_otherwise"])
    return [
        line["policy"],
        line["loop"] + (f" {line['rate_per_s']:.3g}/s" if line["rate_per_s"] else ""),
        str(line["repeat"]),
        f"{line['hits']}/{line['requests']}",
        fixed(1e3 * line["predicted_ttft_mean_s"], 2),
        fixed(1e3 * line["measured_ttft_mean_s"], 2),
        *(percent(line[f"error_ttft_{point}"]) for point in _POINTS),
        fixed(1e3 * line["measured_wall_mean_s"], 2),
        fixed(1e3 * line["measured_unwaited_mean_s"], 2),
        percent(line["error_unwaited_mean"]),
        fixed(line["measured_quality"]),
        fixed(line["quality_error"]) + ("" if half is None else f" ± {fixed(half)}"),
        "identical" if line["placements_identical"] else f"{differ} differ",
    ]
