"""``simkv profile speed``, ``tiers`` and ``all``: measure this machine.

What it is: parsing, progress bars and tables of what came out.  What it is not: measuring (``simkv.profiler``).
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simkv.cli_output import duration, fixed, print_json, print_pairs, print_table, request_bar
from simkv.cli_profile_quality import needs_profiler, rates_of
from simkv.cli_verb import Debug, JsonText, Verb, Verbose, changes
from simkv.errors import ConfigError
from simkv.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from simkv.profiles import MeasuredTiers, Profile

__all__ = ["add_speed"]

_Out = Annotated[Path, typer.Option(help="Folder of the new profile; its name becomes the profile's.")]
_Model = Annotated[
    str, typer.Option(help='"small", a known shape like llama-3.1-8b (random weights), or a Hugging Face name.')
]
_Device = Annotated[str, typer.Option(help="cpu or cuda.")]
_Names = Annotated[str | None, typer.Option(metavar="A,B", help="Compressors, default all built-in ones.")]
_Variants = Annotated[str | None, typer.Option(metavar="A,B", help="Further variants, like kivi:5.")]
_Tokens = Annotated[str | None, typer.Option(metavar="N,M", help="Lengths of caches and prompts.")]
_Seed = Annotated[int, typer.Option(min=0, help="Seed of contexts, caches and weights.")]
_Quick = Annotated[bool, typer.Option("--quick", help="Few points of each kind.")]
_Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME.PARAMETER=VALUE", help="E.g. kivi.residual=32.")]
_Ssd = Annotated[Path | None, typer.Option(metavar="FOLDER", help="A folder on the disk to measure.")]
_Size = Annotated[str, typer.Option(help="Size of the one file written there.")]


def add_speed(app: typer.Typer) -> None:
    """Add the verbs to ``simkv profile``."""
    app.command(cls=Verb, epilog="Example: simkv profile speed --model small --quick --out profiles/mine")(speed)
    app.command(cls=Verb, epilog="Example: simkv profile tiers --ssd . --out profiles/tiers/mine.toml")(tiers)
    app.command("all", cls=Verb, epilog="Example: simkv profile all --quick --ssd . --out profiles/mine")(all_)


def speed(
    out: _Out,
    model: _Model = "small",
    device: _Device = "cpu",
    compressors: _Names = None,
    variants: _Variants = None,
    tokens: _Tokens = None,
    batches: Annotated[str | None, typer.Option(metavar="N,M", help="Sequences that generate side by side.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.001, help="About how long to time a point.")] = None,
    seed: _Seed = 0,
    decoders: Annotated[
        str | None, typer.Option(help="fused or reference.  [default: fused on cuda, reference on cpu]")
    ] = None,
    quick: _Quick = False,
    set_: _Set = None,
    as_json: JsonText = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure times of encoding, decoding, prefill and generation, and write a profile; a killed run resumes."""
    with needs_profiler():
        from simkv.profiler.plan import parsed_parameters
        from simkv.profiler.speed_measurement import SpeedPlan, measure_speed

    plan = SpeedPlan(
        model=model,
        device=device,
        compressors=_listed(compressors),
        rates=rates_of(variants),
        parameters=parsed_parameters(changes(set_)),
        lengths=_numbers("--tokens", tokens),
        batches=_numbers("--batches", batches),
        seed=seed,
        seconds=seconds,
        decoders=decoders,
        quick=quick,
    )
    with request_bar("points") as progress:
        profile = measure_speed(plan, out, progress)
    _print_speed(profile, out, as_json)


def tiers(
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="New TOML file.  [default: profiles/tiers/MACHINE.toml]")
    ] = None,
    ssd: _Ssd = None,
    size: _Size = "1 GiB",
    seconds: Annotated[float | None, typer.Option(min=0.001, help="About how long to measure a point.")] = None,
    seed: _Seed = 0,
    quick: _Quick = False,
    as_json: JsonText = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure bandwidth and latency of DRAM and of a disk (direct reads and writes of one file, which is removed)."""
    with needs_profiler():
        from simkv.profiler.tiers import TierPlan, machine_name, measure_tiers

    target = out or Path("profiles") / "tiers" / f"{machine_name()}.toml"
    with request_bar("points") as progress:
        measured = measure_tiers(TierPlan(ssd, parse_bytes(size), seconds, seed, quick), target, progress)
    _print_tiers(measured, target, as_json)


def all_(
    out: _Out,
    model: _Model = "small",
    quality_model: Annotated[
        str | None, typer.Option(help="Model to measure quality with.  [default: small for known shapes, else --model]")
    ] = None,
    device: _Device = "cpu",
    compressors: _Names = None,
    ssd: _Ssd = None,
    size: _Size = "1 GiB",
    contexts: Annotated[int, typer.Option(min=1, help="Contexts per task.")] = 16,
    tokens: _Tokens = None,
    seed: _Seed = 0,
    quick: _Quick = False,
    as_json: JsonText = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure quality, speed and tiers, and write one profile of them; a killed run resumes."""
    with needs_profiler():
        from simkv.profiler.everything import WholePlan, measure_all
        from simkv.profiler.measurement import QualityPlan
        from simkv.profiler.speed_measurement import SpeedPlan
        from simkv.profiler.tiers import TierPlan

    from simkv.models import MODELS

    names = _listed(compressors)
    of = quality_model or ("small" if model in MODELS else model)
    plan = WholePlan(
        QualityPlan(model=of, device=device, compressors=names, contexts=contexts, seed=seed, quick=quick),
        SpeedPlan(
            model=model,
            device=device,
            compressors=names,
            lengths=_numbers("--tokens", tokens),
            seed=seed,
            quick=quick,
        ),
        TierPlan(ssd, parse_bytes(size), None, seed, quick),
    )
    profile = measure_all(plan, out, request_bar)
    _print_speed(profile, out, as_json)


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _numbers(option: str, text: str | None) -> list[int]:
    """Positive whole numbers, separated by commas.  Raises ConfigError."""
    try:
        numbers = [int(part) for part in _listed(text)]
    except ValueError:
        numbers = [0]
    if any(not 0 < number < 2**31 for number in numbers):
        raise ConfigError(f"{option} {text}: it must be positive whole numbers separated by commas, like 256,512")
    return numbers


def _print_speed(profile: "Profile", out: Path, as_json: bool) -> None:
    facts = profile.provenance.get("speeds_of", profile.provenance)
    rows = [_speed_row(profile, facts, variant) for variant in profile.variants[1:]]
    steps = [{"batch": batch, "context": context, "seconds": took} for batch, context, took in profile.decode_steps]
    head = {key: facts[key] for key in ("device", "commit", "residuals", "interpolated", "timed_again", "implausible")}
    if as_json:
        print_json({"profile": str(out), "variants": rows, "decode_steps": steps, **head})
        return
    print_table(
        ["variant", "size ratio", "encode ms", "decode ms", "decode / copy", "decoder"],
        [
            [
                row["variant"],
                fixed(row["size_ratio"], 4),
                fixed(1e3 * row["encode_s"]),
                fixed(1e3 * row["decode_s"]),
                fixed(row["share_of_copy"]),
                row["implementation"],
            ]
            for row in rows
        ],
    )
    longest = int(profile.speed_rows["tokens"].max())
    print("times of 1,000 tokens; decode / copy: bytes moved per second against the device's own copies")
    print_pairs(
        [
            ("prefill", f"{duration(profile.prefill.seconds(longest))} for {longest:,} tokens"),
            ("off by", f"at most {facts['residuals']['prefill']:.1%} of the measured prefills"),
            *[(f"{what} lines", _residuals(facts["residuals"][what])) for what in ("encode", "decode")],
            ("interpolated", _interpolated(facts["interpolated"])),
            ("timed again", f"{facts['timed_again']} of {len(profile.speed_rows)} points"),
            ("implausible", f"{len(stayed)}, named in {out}" if (stayed := facts["implausible"]) else "no point"),
            ("copies", f"{facts['copy_bytes_per_s'] / 1e9:.3g} GB/s read and written within {facts['device']}"),
            ("profile", str(out)),
        ]
    )
    print(f"see more with: simkv profile show {out}")


def _residuals(found: dict[str, float]) -> str:
    """How far lines are from the points that they were fitted to."""
    values = sorted(found.values())
    return f"off by {values[len(values) // 2]:.1%} (median), at most {values[-1]:.1%}" if values else "none"


def _interpolated(places: list[str]) -> str:
    """How many of each kind no line fits; which ones stands in the profile."""
    kinds = Counter(place.partition(" ")[0] for place in places)
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "nothing: lines fit within 10 %"


def _speed_row(profile: "Profile", facts: dict[str, Any], variant: Any) -> dict[str, Any]:
    rows = profile.speed_rows
    kinds = rows.loc[(rows["what"] == "decode") & (rows["variant"] == str(variant)), "implementation"]
    return {
        "variant": str(variant),
        "size_ratio": profile.size_ratio[variant],
        "encode_s": profile.encode_lines[variant].seconds(1000),
        "decode_s": profile.decode_lines[variant].seconds(1000),
        "share_of_copy": facts.get("decode_share_of_copy", {}).get(str(variant)),
        "implementation": str(kinds.iloc[-1]),
    }


def _print_tiers(measured: "MeasuredTiers", out: Path, as_json: bool) -> None:
    if as_json:
        print_json({"file": str(out), "measurements": list(measured.measurements)})
        return
    print_table(
        ["tier", "what", "size", "at once", "bandwidth", "median", "95 %"],
        [
            [
                point["tier"],
                point["what"],
                format_bytes(point["bytes"]),
                str(point["depth"]),
                f"{point['bytes_per_s'] / 1e9:.3g} GB/s",
                duration(point["latency_s"]),
                duration(point["p95_s"]),
            ]
            for point in measured.measurements
        ],
        text=2,
    )
    for name, point in measured.provenance.get("fio", {}).items():
        size, depth = name.split("_")[1], name.rpartition("_")[2]
        seen = f"{point['bytes_per_s'] / 1e9:.3g} GB/s, median {duration(point['latency_s'])}"
        print(f"fio: {name.partition('_')[0]} of {size}, {depth} at once: {seen}")
    print("\nfor a run's configuration:")
    for tier in measured.tiers:
        print(
            f'[[tiers]]\nname = "{tier.name}"\ncapacity = "{format_bytes(tier.capacity_bytes or 0)}"\n'
            f'read = "{tier.read_bytes_per_s / 1e9:.3g} GB/s"\nwrite = "{tier.write_bytes_per_s / 1e9:.3g} GB/s"\n'
            f'latency = "{duration(tier.latency_s)}"\ndiscipline = "{tier.discipline}"'
        )
    print(f"\nfile: {out}; simkv profile compose QUALITY SPEEDS --tiers {out} puts them into a profile")
