"""The verbs of ``simkv profile`` on files: list, show, check, compose.

What it is: parsing and printing around ``simkv.profiles``.  What it is not: reading or checking profiles, or the tables
of their quality (``cli_profile_statistics.py``).
"""

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simkv.cli_output import duration, fixed, print_json, print_pairs, print_table
from simkv.cli_verb import Debug, JsonText, Verb, Verbose, say
from simkv.errors import ConfigError, ProfileError
from simkv.units import format_bytes

if TYPE_CHECKING:
    from simkv.profiles import Line, Profile

__all__ = ["profile_app"]

_TOKENS = 10_000
_QUALITIES = (0.99, 0.95, 0.9, 0.8)
_MOST_QUALITY = 1.5
_SIDES = ("quality_of", "speeds_of")
_MEASURING = (
    "seed",
    "contexts",
    "questions",
    "context_tokens",
    "query_aware",
    "parameters",
    "shared_bytes",
    "left_out",
    "refused",
)

profile_app = typer.Typer(no_args_is_help=True, help="Measure, show, check and combine profiles.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A profile of `simkv profile list`, or a path.")]


@profile_app.callback()
def profile(verbose: Verbose = False, debug: Debug = False) -> None:
    """Measure, show, check and combine profiles."""


@profile_app.command("list", cls=Verb, epilog="Example: simkv profile list")
def list_(as_json: JsonText = False, verbose: Verbose = False, debug: Debug = False) -> None:
    """Show the profiles that can be used by name."""
    from simkv.profiles import list_profiles

    rows = [_listed(name) for name in list_profiles()]
    if as_json:
        print_json(rows)
        return
    headers = ["name", "model", "variants", "tasks", "tiers", "sizes", "what"]
    print_table(headers, [[str(row[key]) for key in headers] for row in rows], text=7, spare=["what", "sizes", "tiers"])


def _listed(name: str) -> dict[str, Any]:
    from simkv.profiles import load_profile

    row: dict[str, Any] = {"name": name, "model": "-", "variants": "-", "tasks": "-", "tiers": "-", "sizes": "-"}
    try:
        found = load_profile(name)
    except ProfileError as error:
        return {**row, "what": f"cannot be read: {error}"}
    return {
        "name": name,
        "model": found.model,
        "variants": len(found.variants),
        "tasks": len(found.tasks),
        "tiers": "/".join(tier.name for tier in found.tiers) or "-",
        "sizes": "/".join(found.size_ratios),
        "what": found.provenance.get("summary", ""),
    }


@profile_app.command(cls=Verb, epilog="Example: simkv profile show adaptcache-a100-1gbps --plot quality.png")
def show(
    name: Name,
    sizes: Annotated[str | None, typer.Option(help="Size accounting: measured or nominal.")] = None,
    at_quality: Annotated[
        list[float] | None,
        typer.Option(
            metavar="Q", help="Which compressor wins at this quality, repeatable.  [default: 0.99 0.95 0.9 0.8]"
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw quality over size: .png, .pdf, .svg.")] = None,
    log_x: Annotated[bool, typer.Option("--log-x", help="With --plot: logarithmic size axis.")] = False,
    plot_from: Annotated[
        float | None, typer.Option(metavar="Q", help="With --plot: quality at which the axis begins.")
    ] = None,
    as_json: JsonText = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Show a profile: sizes and quality, which compressor wins where, speeds, and where the numbers come from."""
    from simkv.cli_profile_statistics import print_quality, print_statistics, statistics, variant_rows
    from simkv.profile_statistics import quality_points
    from simkv.profiles import load_profile

    targets = _targets(at_quality)
    if plot is None and (log_x or plot_from is not None):
        raise ConfigError(f"{'--log-x' if log_x else '--plot-from'} has an effect with --plot only")
    found = load_profile(name, sizes)
    points = quality_points(found)
    if plot is not None:
        from simkv.figures import save_figure
        from simkv.figures.quality_size import quality_size

        save_figure(quality_size(points, log_x=log_x, lowest=plot_from), plot)
    variants = variant_rows(found, points)
    if as_json:
        print_json({**_facts(found, variants), "statistics": statistics(found, targets)})
        return
    print_pairs(_head(found))
    print_quality(found, variants)
    print_statistics(found, targets)
    _print_speeds(found)
    _print_tiers(found)
    print("\nWhere the numbers come from (count of numbers by status)")
    print_pairs(_origins(found))
    if plot is not None:
        print(f"\nfigure: {plot}")


def _targets(qualities: list[float] | None) -> list[float]:
    """Qualities to compare sizes at.  Raises ConfigError for one that is no quality."""
    for quality in qualities or []:
        if not 0 < quality <= _MOST_QUALITY:
            allowed = f"above 0 and at most {_MOST_QUALITY}, since quality is relative to raw (1.0; not percent)"
            raise ConfigError(f"--at-quality {quality:g}: it must be {allowed}")
    return qualities or list(_QUALITIES)


def _head(found: "Profile") -> list[tuple[str, str]]:
    facts = [(key, str(value)) for key, value in found.provenance.items() if isinstance(value, str)]
    facts += [(key.replace("_", " "), _side(found.provenance[key])) for key in _SIDES if key in found.provenance]
    facts += [(key.replace("_", " "), _plain(found.provenance[key])) for key in _MEASURING if key in found.provenance]
    return [
        ("profile", found.name),
        (
            "model",
            f"{found.model}, {found.layers} layers, {format_bytes(found.kv_bytes_per_token)} of raw KV per token",
        ),
        ("sizes", f"{found.size_accounting} (of {', '.join(found.size_ratios)})"),
        ("prefill", _prefill(found)),
        *facts,
        ("sha256", found.sha256),
    ]


def _plain(fact: Any) -> str:
    """A setting of the measurement; of a table its entries, a text's own name not repeated."""
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    if not isinstance(fact, dict):
        return str(fact)
    return ", ".join(f"{key}: {value}" for key, value in fact.items()) or "-"


def _side(facts: Any) -> str:
    """One of the two profiles that a composed one was made of."""
    known = facts.get("profile", {}) if isinstance(facts, dict) else {}
    return f"{known.get('name', 'unknown')} ({known.get('model', 'unknown')})"


def _prefill(found: "Profile") -> str:
    if math.isnan(found.prefill.per_token_s):
        return "unknown: combine with the speeds of another profile"
    return f"{duration(found.prefill.seconds(_TOKENS))} for {_TOKENS:,} tokens"


def _print_speeds(found: "Profile") -> None:
    if not (found.decode_lines or found.encode_lines or found.load_lines):
        return
    tiers = [tier.name for tier in found.tiers] if found.load_lines else []
    print(f"\nMilliseconds for a context of {_TOKENS:,} tokens")
    print_table(
        ["variant", "decode", "encode", *(f"load from {tier}" for tier in tiers)],
        [
            [
                str(variant),
                _milliseconds(found.decode_lines.get(variant)),
                _milliseconds(found.encode_lines.get(variant)),
                *(_milliseconds(found.load_lines.get((tier, variant))) for tier in tiers),
            ]
            for variant in found.variants
        ],
    )
    if found.load_lines:
        print("loads are from end to end, decoding included")
    elif found.decode_lines:
        print("loads take latency + stored bytes / bandwidth of the tier, then decoding")


def _milliseconds(line: "Line | None") -> str:
    return fixed(None if line is None else 1e3 * line.seconds(_TOKENS), 1)


def _print_tiers(found: "Profile") -> None:
    if not found.tiers:
        print("\nNo tiers: a run brings its own as [[tiers]]")
        return
    links = [found.host_link] if found.host_link else []
    print("\nTiers (bandwidths per channel)")
    print_table(
        ["tier", "capacity", "read", "write", "latency", "channels", "order", "endurance"],
        [
            [
                tier.name,
                "unlimited" if tier.capacity_bytes is None else format_bytes(tier.capacity_bytes),
                f"{tier.read_bytes_per_s / 1e9:.4g} GB/s",
                f"{tier.write_bytes_per_s / 1e9:.4g} GB/s",
                duration(tier.latency_s),
                str(tier.channels),
                tier.discipline,
                "-" if tier.endurance_bytes is None else format_bytes(tier.endurance_bytes),
            ]
            for tier in [*found.tiers, *links]
        ],
    )


def _origins(found: "Profile") -> list[tuple[str, str]]:
    sections: dict[str, Counter[str]] = {}
    for place, origin in found.provenance.get("numbers", {}).items():
        sections.setdefault(place.split(".")[0], Counter())[origin["status"]] += 1
    return [
        (section, ", ".join(f"{status} {count}" for status, count in counts.items()))
        for section, counts in sections.items()
    ]


def _facts(found: "Profile", variants: list[dict[str, Any]]) -> dict[str, Any]:
    from simkv.profile_saving import fit_row

    def line(entry: "Line | None") -> dict[str, Any] | None:
        return None if entry is None else fit_row(entry)

    for row, variant in zip(variants, found.variants, strict=True):
        row["decode"] = line(found.decode_lines.get(variant))
        row["encode"] = line(found.encode_lines.get(variant))
        row["load"] = {tier: line(entry) for (tier, of), entry in found.load_lines.items() if of == variant}
    return {
        "name": found.name,
        "model": found.model,
        "kv_bytes_per_token": found.kv_bytes_per_token,
        "layers": found.layers,
        "sizes": found.size_accounting,
        "tasks": list(found.tasks),
        "variants": variants,
        "prefill": fit_row(found.prefill),
        "tiers": [dataclasses.asdict(tier) for tier in found.tiers],
        "host_link": None if found.host_link is None else dataclasses.asdict(found.host_link),
        "provenance": found.provenance,
        "sha256": found.sha256,
    }


@profile_app.command(cls=Verb, epilog="Example: simkv profile check profiles/my-profile")
def check(name: Name, verbose: Verbose = False, debug: Debug = False) -> None:
    """Check a profile; prints OK, or the first mistake and ends with 2."""
    from simkv.profile_checks import check_sizes
    from simkv.profiles import load_profile

    found = load_profile(name)
    check_sizes(found)
    speeds = "no speeds" if math.isnan(found.prefill.per_token_s) else "with speeds"
    parts = [f"{len(found.variants)} variants", f"{len(found.tasks)} tasks", f"{len(found.tiers)} tiers", speeds]
    print(f"OK: {found.name}: {', '.join(parts)}")


@profile_app.command(
    cls=Verb, epilog="Example: simkv profile compose measured adaptcache-a100-1gbps --out profiles/both"
)
def compose(
    quality: Annotated[str, typer.Argument(metavar="QUALITY", help="Profile whose sizes and quality are taken.")],
    speeds: Annotated[str, typer.Argument(metavar="SPEEDS", help="Profile whose model, speeds and tiers are taken.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="New folder of the profile.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name.  [default: QUALITY+SPEEDS]", show_default=False)
    ] = None,
    tiers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Tiers of this file of `simkv profile tiers` instead.")
    ] = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Put the quality and sizes of one profile and the model, KV bytes, speeds and tiers of another together."""
    from simkv import profiles

    quality_of, speeds_of = profiles.load_profile(quality), profiles.load_profile(speeds)
    both = profiles.compose(quality_of, speeds_of)
    if tiers is not None:
        both = profiles.with_tiers(both, profiles.load_tiers(tiers))
    if name is not None:
        both = dataclasses.replace(both, name=name)
    profiles.save_profile(both, out)
    print(f"{out}: {both.name}, {both.provenance['summary']}; {len(both.variants)} variants, {len(both.tasks)} tasks")
    if "warning" in both.provenance:
        say(f"warning: {both.provenance['warning']}")
    for side, without in ((quality_of, "speeds"), (speeds_of, "quality")):
        left_out = [str(variant) for variant in side.variants if variant not in both.variants]
        if left_out:
            say(f"left out of {side.name}, for want of {without}: {', '.join(left_out)}")
