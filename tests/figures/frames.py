"""Small result frames for the tests of figures, written out by hand or by simple rules."""

import json
from typing import Any

import numpy as np
import pandas as pd

GIB = 2**30


def summary_row(label: str, ttft_s: float, quality: float, **changes: Any) -> dict[str, Any]:
    """One row of a sweep's summary table with intervals of 5 % of the delay and 0.01 of the quality."""
    params = changes.pop("params", {})
    return {
        "policy": label.lower(),
        "label": label,
        "params": params if isinstance(params, str) else json.dumps(params),
        "seed": 0,
        "requests": 100,
        "ttft_mean_s": ttft_s,
        "ttft_mean_low_s": ttft_s * 0.95,
        "ttft_mean_high_s": ttft_s * 1.05,
        "quality_mean": quality,
        "quality_mean_low": quality - 0.01,
        "quality_mean_high": quality + 0.01,
        "token_hit_ratio": 0.6,
        "request_share_dram": 0.5,
        "request_share_ssd": 0.2,
        "request_share_recompute": 0.3,
        "token_share_dram": 0.4,
        "token_share_ssd": 0.2,
        **changes,
    }


def sweep() -> pd.DataFrame:
    """AdaptCache at three alphas (rows not ordered by delay), KIVI + LRU at two variants, Prefill once."""
    return pd.DataFrame(
        [
            summary_row("AdaptCache", 1.2, 0.98, params={"alpha": 0.1, "sizes": "measured"}),
            summary_row("AdaptCache", 0.3, 0.60, params={"alpha": 10, "sizes": "measured"}),
            summary_row("AdaptCache", 0.5, 0.84, params={"alpha": 0.5, "sizes": "measured"}),
            summary_row("KIVI + LRU", 0.6, 0.50, params={"variant": "kivi:2"}),
            summary_row("KIVI + LRU", 0.8, 0.78, params={"variant": "kivi:4"}),
            summary_row(
                "Prefill", 1.5, 1.0, request_share_dram=0.0, request_share_ssd=0.0, request_share_recompute=1.0
            ),
        ]
    )


def many_policies(count: int) -> pd.DataFrame:
    """One row for each of ``count`` policies, spread over delay and quality."""
    spread = np.random.default_rng(1).random((count, 2))
    return pd.DataFrame([summary_row(f"policy {n}", 0.2 + a, 0.3 + 0.7 * b) for n, (a, b) in enumerate(spread)])


def requests_frame(count: int = 200, scale: float = 1.0) -> pd.DataFrame:
    """Every context visited twice; revisits below 4,000 tokens recomputed, to 9,000 in DRAM, above on SSD."""
    lengths = np.repeat(np.linspace(1000, 16_000, count // 2).astype(int), 2)
    revisit = np.arange(count) % 2 == 1
    place = np.select([~revisit | (lengths < 4000), lengths < 9000], ["recompute", "dram"], "ssd")
    variant = np.select([place == "recompute", place == "dram"], ["none", "kivi:4"], "kivi:2")
    return pd.DataFrame(
        {
            "request": np.arange(count),
            "ttft_s": scale * lengths * 1e-4,
            "input_tokens": lengths,
            "tokens_dram": np.where(place == "dram", lengths, 0),
            "tokens_ssd": np.where(place == "ssd", lengths, 0),
            "served_by": place,
            "variant": variant,
            "revisit": revisit,
            "measured": np.arange(count) >= 20,
        }
    )


def occupancy_frame(peak_gib: float = 8.0, samples: int = 50) -> pd.DataFrame:
    """DRAM (10 GiB) filling up to ``peak_gib``, an unlimited remote tier growing without end, over 100 s."""
    times = np.linspace(0, 100, samples)
    dram = {"tier": "dram", "used_bytes": np.minimum(times, peak_gib) * GIB, "capacity_bytes": 10.0 * GIB}
    remote = {"tier": "remote", "used_bytes": times * 3 * GIB, "capacity_bytes": np.nan}
    return pd.concat([pd.DataFrame({"time_s": times, **tier, "entries": 1}) for tier in (dram, remote)])
