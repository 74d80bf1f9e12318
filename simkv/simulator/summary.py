"""The summary of a run: one flat dict, the row that a sweep's table shows and ``--json`` prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from simkv.errors import ConfigError
from simkv.resampling import mean_intervals

if TYPE_CHECKING:
    from simkv.simulator.engine import Engine

__all__ = ["counting", "measured_rows", "summarize"]

_LONG_WAIT_S = 30.0
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
    measured = np.asarray(_counts(np.arange(len(arrival_s)), arrival_s, revisit, len(arrival_s), measure, warmup))
    if not measured.any():
        raise ConfigError(
            f"engine.warmup and engine.measure = {measure!r} leave none of {len(arrival_s)} requests to report"
        )
    return measured


def counting(revisit: np.ndarray, measure: str, warmup: tuple[str, float]) -> Callable[[int, int], bool]:
    """The rule of ``measured_rows`` for one request, while a run goes on: (request, ns at which it was sent) -> counts.

    Args: as there; whether a request is a revisit depends on earlier requests alone.
    """
    again = revisit.tolist()
    return lambda request, sent_ns: _counts(request, sent_ns / 1e9, again[request], len(again), measure, warmup)


def _counts(request: Any, arrival_s: Any, revisit: Any, total: int, measure: str, warmup: tuple[str, float]) -> Any:
    """Whether a request, or each of an array, is after the warm-up and of the kind that is measured."""
    kind, amount = warmup
    late = request >= amount * total if kind == "share" else arrival_s >= amount
    return late & revisit if measure == "revisits" else late


def summarize(engine: Engine, requests: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Figures of a finished run over its measured requests; byte counts are over the whole run."""
    rows = requests[requests["measured"]]
    ttft = rows["ttft_s"].to_numpy()
    quality = rows["quality"].to_numpy()
    ends = mean_intervals(np.stack([ttft, quality], axis=1), rows["family"].to_numpy(), seed)
    (ttft_low, ttft_high), (quality_low, quality_high) = ends
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
        "token_share_recompute": 1.0 - int(rows["hit_tokens"].sum()) / tokens,
        "blocks_mean": float(rows["blocks"].mean()),
        **_work(engine),
    }


def _work(engine: Engine) -> dict[str, Any]:
    """Bytes moved, endurance, refusals: over the whole run, warm-up included."""
    counts, store = engine.mover.counts, engine.store.counts
    makespan_s = engine.now_ns / 1e9
    written = list(zip(engine.costs.tiers, counts.written, strict=True))
    on_ssd = [count for tier, count in written if tier.endurance_bytes or tier.name.startswith(("ssd", "nvme"))]
    lifetimes = [
        tier.endurance_bytes / (count / makespan_s) / _YEAR_S
        for tier, count in written
        if tier.endurance_bytes and count and makespan_s
    ]
    return {
        "ssd_written_bytes": sum(on_ssd) if on_ssd else None,
        **{f"written_bytes_{tier.name}": count for tier, count in written},
        "pristine_read_bytes": counts.pristine_read_bytes,
        "recodings": counts.recodings,
        "ssd_written_bytes_per_request": sum(on_ssd) / len(engine.trace) if on_ssd else None,
        "pristine_read_bytes_per_request": counts.pristine_read_bytes / len(engine.trace),
        "recodings_per_request": counts.recodings / len(engine.trace),
        "refused": store.refused,
        "duplicate_blocks": store.duplicate_blocks,
        "ssd_lifetime_years": min(lifetimes) if lifetimes else None,
        "makespan_s": makespan_s,
        **_channels(engine),
    }


def _channels(engine: Engine) -> dict[str, Any]:
    """How busy each tier's channels were, how long writes waited for theirs, and a warning where that matters."""
    makespan_ns = max(1, engine.now_ns)
    figures: dict[str, Any] = {}
    warnings = []
    for tier, reader, writer in zip(engine.costs.tiers, engine.readers, engine.writers, strict=True):
        figures[f"read_utilisation_{tier.name}"] = reader.busy_ns / (tier.channels * makespan_ns)
        busy = figures[f"write_utilisation_{tier.name}"] = writer.busy_ns / (tier.channels * makespan_ns)
        wait_s = figures[f"write_wait_max_s_{tier.name}"] = writer.longest_wait_ns / 1e9
        if wait_s > _LONG_WAIT_S:
            warnings.append(
                f"{tier.name}: writes waited up to {wait_s:.0f} s for their channel, which was asked for {busy:.0%} of "
                f"the time; entries on their way take no room on the tier that they leave, and hits on them wait or "
                f"are recomputed: think of more or faster channels (tiers.{tier.name}), or of a policy that writes less"
            )
    return {**figures, "warnings": warnings}
