"""A profile of speeds from measured rows: lines, cost model, sizes, and how well they fit.

What it is: rows put into a Profile that ``simkv profile compose`` and a run's ``speeds`` take.  What it is not:
measuring, or quality, of which such a profile has none.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from simkv.errors import SimkvError
from simkv.profile_speeds import SPEED_COLUMNS
from simkv.profile_types import RAW, Line, PrefillFit, Profile, Variant
from simkv.profiler.fits import MOST_RESIDUAL, fit_line, fit_prefill
from simkv.profiler.link import host_link_of
from simkv.profiler.rows import SpeedRow
from simkv.profiler.subjects import Subject

__all__ = ["profile_of_speeds"]

_LOG = logging.getLogger(__name__)
_RULE = "caches and models of fewer layers: times (less the head's) and bytes multiplied to all layers"


@dataclass(frozen=True)
class _Fitted:
    lines: dict[Variant, Line]
    residuals: dict[Variant, float]


def profile_of_speeds(
    name: str, subject: Subject, variants: Sequence[Variant], rows: Sequence[SpeedRow], facts: Mapping[str, Any]
) -> Profile:
    """The profile of what was measured, RAW first; ``rows`` must hold prefills, and both ways of every variant.

    A size ratio is that of the longest measured cache.  Variants never smaller than raw are left out, and named.

    Raises:
        SimkvError: no prefill, or a variant without rows.
    """
    sizes = {variant: _size_ratio(subject, variant, rows) for variant in variants}
    kept = tuple(variant for variant in variants if sizes[variant] < 1)
    encode, decode = (_fitted(what, kept, rows) for what in ("encode", "decode"))
    prefill, residual = _prefill(rows)
    measured = f"simkv profile speed, {facts.get('date', '')}, {facts.get('device', '')}"
    _warn(encode, decode, residual)
    shares = _shares(subject, kept, rows)
    notes = {
        "layers": {"model": subject.layers, "cache": subject.cache.layers, "timed": subject.model.shape.layers},
        **({"layers_rule": _RULE} if max(subject.cache_scale, subject.model_scale) > 1 else {}),
        "residuals": {
            "prefill": residual,
            "encode": {str(variant): value for variant, value in encode.residuals.items()},
            "decode": {str(variant): value for variant, value in decode.residuals.items()},
        },
        "interpolated": [
            f"{what} {variant}"
            for what, fitted in (("encode", encode), ("decode", decode))
            for variant, line in fitted.lines.items()
            if line.points
        ]
        + (["prefill"] if prefill.points else []),
        **({"left_out": left} if (left := [str(v) for v in variants if v not in kept]) else {}),
        **shares,
    }
    ratios = {RAW: 1.0, **{variant: sizes[variant] for variant in kept}}
    wanted = {"", *map(str, kept)}
    frame = pd.DataFrame([asdict(row) for row in rows if row.variant in wanted])[list(SPEED_COLUMNS)]
    link = host_link_of(rows)
    return Profile(
        name=name,
        model=subject.name,
        kv_bytes_per_token=subject.kv_bytes_per_token,
        layers=subject.layers,
        variants=(RAW, *kept),
        size_accounting="measured",
        size_ratio=ratios,
        load_lines={},
        decode_lines={RAW: Line(0.0), **decode.lines},
        encode_lines={RAW: Line(0.0), **encode.lines},
        prefill=prefill,
        tiers=(),
        host_link=link,
        quality=pd.DataFrame({"task": [], "sample": [], "variant": [], "quality": []}),
        provenance={**facts, **notes, "numbers": _origins(subject, measured, rows, kept, link is not None)},
        sha256="",
        size_ratios={"measured": ratios},
        speed_rows=frame,
    )


def _size_ratio(subject: Subject, variant: Variant, rows: Sequence[SpeedRow]) -> float:
    found = [row for row in rows if row.what == "decode" and row.variant == str(variant)]
    if not found:
        raise SimkvError(f"variant {variant}: no decode was measured")
    longest = max(found, key=lambda row: row.tokens)
    return longest.bytes / (longest.tokens * subject.kv_bytes_per_token)


def _fitted(what: str, variants: Sequence[Variant], rows: Sequence[SpeedRow]) -> _Fitted:
    fitted = _Fitted({}, {})
    for variant in variants:
        points = {row.tokens: row.seconds for row in rows if row.what == what and row.variant == str(variant)}
        if not points:
            raise SimkvError(f"variant {variant}: no {what} was measured")
        fitted.lines[variant], residual = fit_line(points)
        fitted.residuals[variant] = round(residual, 4)
    return fitted


def _prefill(rows: Sequence[SpeedRow]) -> tuple[PrefillFit, float]:
    grid = {(row.tokens, row.cached): row.seconds for row in rows if row.what == "prefill"}
    if not grid:
        raise SimkvError("no prefill was measured: give shorter --tokens")
    fit, residual = fit_prefill(grid)
    return fit, round(residual, 4)


def _warn(encode: _Fitted, decode: _Fitted, prefill: float) -> None:
    for what, fitted in (("encode", encode), ("decode", decode)):
        if poor := [str(variant) for variant, residual in fitted.residuals.items() if residual > MOST_RESIDUAL]:
            _LOG.warning(
                "%s: no line fits within %.0f %%, so measured points are kept to be interpolated: %s",
                what,
                100 * MOST_RESIDUAL,
                ", ".join(poor),
            )
    if prefill > MOST_RESIDUAL:
        _LOG.warning("prefill: the cost model is off by up to %.0f %% of what was measured", 100 * prefill)


def _shares(subject: Subject, variants: Sequence[Variant], rows: Sequence[SpeedRow]) -> dict[str, Any]:
    """What decoding moves per second, payload read and raw cache written, as a share of the device's own copies."""
    copies = [2 * row.bytes / row.seconds for row in rows if row.what == "copy"]
    if not copies:
        return {}
    shares = {}
    for variant in variants:
        found = [row for row in rows if row.what == "decode" and row.variant == str(variant)]
        longest = max(found, key=lambda row: row.tokens)
        moved = longest.bytes + longest.tokens * subject.kv_bytes_per_token
        shares[str(variant)] = round(moved / max(longest.seconds, 1e-9) / copies[-1], 4)
    return {"copy_bytes_per_s": round(copies[-1]), "decode_share_of_copy": shares}


def _origins(
    subject: Subject, source: str, rows: Sequence[SpeedRow], variants: Sequence[Variant], link: bool
) -> dict[str, dict[str, str]]:
    """Where each section's numbers come from; fused decoders say so row by row."""
    measured = {"status": "measured", "source": source}
    plain = {"status": "measured", "source": f"{source}; reference implementations in plain torch"}
    random = "; random weights" if subject.random else ""
    model = {"status": "published", "source": "model configuration"} if subject.random else measured
    longest = max(row.tokens for row in rows if row.what == "decode") if variants else 0
    origins = {
        "model": model,
        "sizes.measured": {"status": "measured", "source": f"{source}; random cache of up to {longest} tokens"},
        "decode_lines": plain,
        "encode_lines": plain,
        "prefill": {"status": "measured", "source": f"{source}{random}"},
        "speeds": measured,
        **({"host_link": measured} if link else {}),
    }
    for row in rows:
        if row.what == "decode" and row.implementation == "fused" and Variant.parse(row.variant) in variants:
            origins[f"decode_lines.{row.variant}"] = {"status": "measured", "source": f"{source}; fused decoder"}
    return origins
