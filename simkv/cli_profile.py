"""The verbs of ``simkv profile``: list, show, check.

What it is: parsing and printing around ``simkv.profiles``.  What it is not: reading or checking profiles.
"""

import dataclasses
import math
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simkv.cli_output import duration, fixed, print_json, print_pairs, print_table
from simkv.cli_verb import Debug, JsonText, Verb, Verbose
from simkv.errors import ProfileError
from simkv.units import format_bytes

if TYPE_CHECKING:
    from simkv.profiles import Line, Profile

__all__ = ["profile_app"]

_TOKENS = 10_000

profile_app = typer.Typer(no_args_is_help=True, help="Show and check measured or published profiles.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A profile of `simkv profile list`, or a path.")]


@profile_app.callback()
def profile(verbose: Verbose = False, debug: Debug = False) -> None:
    """Show and check measured or published profiles."""


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


@profile_app.command(cls=Verb, epilog="Example: simkv profile show adaptcache-a100-1gbps --sizes nominal")
def show(
    name: Name,
    sizes: Annotated[str | None, typer.Option(help="Size accounting: measured or nominal.")] = None,
    as_json: JsonText = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Show a profile: variants with size and quality, speeds, tiers, and where the numbers come from."""
    from simkv.profiles import describe, load_profile

    found = load_profile(name, sizes)
    variants = describe(found)
    if as_json:
        print_json(_facts(found, variants))
        return
    print_pairs(_head(found))
    print("\nQuality by task (* on the Pareto front of size ratio and mean quality)")
    print_table(
        ["variant", "", "size ratio", *found.tasks, "mean"],
        [
            [
                row["variant"],
                "*" if row["pareto"] else "",
                fixed(row["size_ratio"], 4),
                *(fixed(row["quality"][task]) for task in found.tasks),
                fixed(row["mean_quality"]),
            ]
            for row in variants
        ],
        text=2,
    )
    _print_speeds(found)
    _print_tiers(found)
    print("\nWhere the numbers come from (count of numbers by status)")
    print_pairs(_origins(found))


def _head(found: "Profile") -> list[tuple[str, str]]:
    facts = [(key, str(value)) for key, value in found.provenance.items() if isinstance(value, str)]
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


def _prefill(found: "Profile") -> str:
    if math.isnan(found.prefill.per_token_s):
        return "unknown: combine with the speeds of another profile"
    return f"{duration(found.prefill.seconds(_TOKENS))} for {_TOKENS:,} tokens"


def _print_speeds(found: "Profile") -> None:
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
    def line(entry: "Line | None") -> dict[str, float] | None:
        return None if entry is None else dataclasses.asdict(entry)

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
        "prefill": dataclasses.asdict(found.prefill),
        "tiers": [dataclasses.asdict(tier) for tier in found.tiers],
        "host_link": None if found.host_link is None else dataclasses.asdict(found.host_link),
        "provenance": found.provenance,
        "sha256": found.sha256,
    }


@profile_app.command(cls=Verb, epilog="Example: simkv profile check profiles/my-profile")
def check(name: Name, verbose: Verbose = False, debug: Debug = False) -> None:
    """Check a profile; prints OK, or the first mistake and ends with 2."""
    from simkv.profiles import load_profile

    found = load_profile(name)
    speeds = "no speeds" if math.isnan(found.prefill.per_token_s) else "with speeds"
    parts = [f"{len(found.variants)} variants", f"{len(found.tasks)} tasks", f"{len(found.tiers)} tiers", speeds]
    print(f"OK: {found.name}: {', '.join(parts)}")
