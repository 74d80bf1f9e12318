"""The summary of a run: one flat dict, the row that a sweep's table shows and ``--json`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from simkv.errors import ConfigError

if TYPE_CHECKING:
    from simkv.simulator.engine import Engine

__all__ = ["bootstrap_mean", "measured_rows", "summarize"]

_RESAMPLES = 1000
_YEAR_S = 365.25 * 86_400


def measured_rows(revisit: np.ndarray, arrival_s: np.ndarray, measure: str, warmup: tuple[str, float]) -> np.ndarray:
    """bool[R]: which requests count.

    Args:
        revisit: bool[R].
        arrival_s: [R] seconds.
        measure: "all" or "revisits".
        warmup: ("s", seconds) or ("share", share of the requests), left out at the start.

    Raises:
        ConfigError: when nothing is left.
    """
    kind, amount = warmup
    if kind == "share":
        measured = np.arange(len(arrival_s)) >= amount * len(arrival_s)
    else:
        measured = arrival_s >= amount
    if measure == "revisits":
        measured &= revisit
    if not measured.any():
        raise ConfigError(
            f"engine.warmup and engine.measure = {measure!r} leave none of {len(arrival_s)} requests to report"
        )
    return measured


def bootstrap_mean(values: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of the mean (seeded; requests resampled independently)."""
    if len(values) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng([seed, 0xB007])
    block = max(1, 4_000_000 // len(values))
    means: list[np.ndarray] = []
    for start in range(0, _RESAMPLES, block):
        rows = min(block, _RESAMPLES - start)
        means.append(values[rng.integers(0, len(values), (rows, len(values)))].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def summarize(engine: Engine, requests: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Figures of a finished run over its measured requests; byte counts are over the whole run."""
    rows = requests[requests["measured"]]
    ttft = rows["ttft_s"].to_numpy()
    quality = rows["quality"].to_numpy()
    ttft_low, ttft_high = bootstrap_mean(ttft, seed)
    quality_low, quality_high = bootstrap_mean(quality, seed + 1)
    tiers = [tier.name for tier in engine.costs.tiers]
    tokens = max(1, int(rows["input_tokens"].sum()))
    p50, p90, p99 = np.quantile(ttft, [0.5, 0.9, 0.99])
    served = rows["served_by"].value_counts(normalize=True)
    return {
        "requests": len(rows),
        "ttft_mean_s": float(ttft.mean()),
        "ttft_mean_low_s": ttft_low,
        "ttft_mean_high_s": ttft_high,
        "ttft_p50_s": float(p50),
        "ttft_p90_s": float(p90),
        "ttft_p99_s": float(p99),
        "queue_mean_s": float(rows["queue_s"].mean()),
        "quality_mean": float(quality.mean()),
        "quality_mean_low": quality_low,
        "quality_mean_high": quality_high,
        "token_hit_ratio": int(rows["hit_tokens"].sum()) / tokens,
        "block_hit_ratio": int(rows["hit_blocks"].sum()) / max(1, int(rows["blocks"].sum())),
        **{f"request_share_{name}": float(served.get(name, 0.0)) for name in tiers},
        "request_share_recompute": float(served.get("recompute", 0.0)),
        **{f"token_share_{name}": int(rows[f"tokens_{name}"].sum()) / tokens for name in tiers},
        **_work(engine),
    }


def _work(engine: Engine) -> dict[str, Any]:
    """Bytes moved, endurance, refusals: over the whole run, warm-up included."""
    counts, store, tiers = engine.mover.counts, engine.store.counts, engine.costs.tiers
    makespan_s = engine.now_ns / 1e9
    lifetimes = [
        tier.endurance_bytes / (written / makespan_s) / _YEAR_S
        for tier, written in zip(tiers, counts.written, strict=True)
        if tier.endurance_bytes and written and makespan_s
    ]
    return {
        "ssd_written_bytes": sum(
            w for tier, w in zip(tiers, counts.written, strict=True) if tier.name.startswith("ssd")
        ),
        **{f"written_bytes_{tier.name}": written for tier, written in zip(tiers, counts.written, strict=True)},
        "pristine_read_bytes": counts.pristine_read_bytes,
        "recodings": counts.recodings,
        "refused": store.refused,
        "duplicate_blocks": store.duplicate_blocks,
        "ssd_lifetime_years": min(lifetimes) if lifetimes else None,
        "makespan_s": makespan_s,
    }
