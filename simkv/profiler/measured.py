"""A profile from measured rows: what the simulator uses as it is.

What it is: sizes, per-sample quality and provenance put into a Profile.  Speeds are measured elsewhere and joined with
``simkv profile compose``.  What it is not: measuring.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from simkv.errors import SimkvError
from simkv.profile_types import RAW, UNMEASURED_PREFILL, Profile, Variant
from simkv.profiler.models import CachedModel
from simkv.profiler.rows import Row

__all__ = ["profile_of"]

_COLUMNS = ["task", "sample", "variant", "quality", "quality_train", "truth", "nll", "kl", "top1", "stored_bytes"]


def profile_of(
    name: str, model: CachedModel, variants: Sequence[Variant], rows: Sequence[Row], facts: Mapping[str, Any]
) -> Profile:
    """The profile of some measured variants, RAW first, from rows that hold all of them for every context.

    A size ratio is stored bytes / raw bytes over all contexts.  Variants that are never smaller than raw are left
    out, and named in the provenance, since nobody would store them.

    Raises:
        SimkvError: no rows.
    """
    if not rows:
        raise SimkvError(f"profile {name}: there are no measured rows")
    frame = pd.DataFrame([asdict(row) for row in rows])
    frame = frame[frame["variant"].isin([str(variant) for variant in (RAW, *variants)])]
    sums = frame.groupby("variant")[["stored_bytes", "raw_bytes"]].sum()
    ratios = (sums["stored_bytes"] / sums["raw_bytes"]).to_dict()
    kept = (RAW, *(variant for variant in variants if ratios[str(variant)] < 1))
    left_out = [str(variant) for variant in variants if variant not in kept]
    frame = frame[frame["variant"].isin([str(variant) for variant in kept])]
    columns = [column for column in _COLUMNS if not frame[column].isna().any()]
    source = f"simkv profile quality, {facts.get('date', '')}, {facts.get('device', '')}"
    origin = {"status": "measured", "source": source}
    sizes = {variant: float(ratios[str(variant)]) if variant != RAW else 1.0 for variant in kept}
    return Profile(
        name=name,
        model=model.name,
        kv_bytes_per_token=model.kv_bytes_per_token,
        layers=model.layers,
        variants=kept,
        size_accounting="measured",
        size_ratio=sizes,
        load_lines={},
        decode_lines={},
        encode_lines={},
        prefill=UNMEASURED_PREFILL,
        tiers=(),
        host_link=None,
        quality=frame[columns].reset_index(drop=True),
        provenance={
            **facts,
            **({"left_out": left_out} if left_out else {}),
            "numbers": {"model": origin, "sizes.measured": origin, "quality": origin},
        },
        sha256="",
        size_ratios={"measured": sizes},
    )
