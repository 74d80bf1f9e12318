"""What users of a serving system feel beyond the first token: time per token, time to the last, and goodput.

What it is: figures of a finished run beside those of ``summary.py``; none without a decode model or a service-level
objective.  What it is not: the rows (``metrics.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from simkv.resampling import mean_intervals
from simkv.simulator.batching import BatchingServers
from simkv.units import NS_PER_S

if TYPE_CHECKING:
    from simkv.simulator.engine import Engine

__all__ = ["Slo", "decode_facts", "service"]

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class Slo:
    """Service-level objective: the longest TTFT and time per output token that are good enough; None for any."""

    ttft_ns: int | None = None
    tpot_ns: int | None = None


def decode_facts(engine: Engine) -> dict[str, Any]:
    """What the decode model did, for a result's metadata; nothing without one."""
    servers = engine.gpus
    if not isinstance(servers, BatchingServers):
        return {}
    decode = servers.decode
    facts = {
        "max_batch": decode.max_batch,
        "chunk_tokens": decode.chunk_tokens,
        "step_times": decode.steps.source,
        "steps": servers.steps,
        "decoded_tokens": servers.tokens,
    }
    return {"decode": facts}


def service(engine: Engine, requests: pd.DataFrame, slo: Slo, seed: int) -> dict[str, Any]:
    """Figures over the measured requests: TPOT and end-to-end time with decoding, goodput with an objective.

    The summary's ``decode_batch_mean`` (sequences per step) and ``gpu_utilisation`` are over the whole run.
    """
    rows = requests[requests["measured"]]
    figures: dict[str, Any] = {}
    servers = engine.gpus
    if isinstance(servers, BatchingServers):
        figures |= _spread("tpot", rows["tpot_s"].dropna().to_numpy())
        figures |= _spread("e2e", rows["e2e_s"].to_numpy())
        figures["decode_batch_mean"] = servers.tokens / servers.steps if servers.steps else float("nan")
        figures["gpu_utilisation"] = servers.busy_ns / (len(servers.gpus) * max(1, engine.now_ns))
    return figures | _goodput(rows, slo, seed)


def _spread(name: str, values: np.ndarray) -> dict[str, float]:
    """Mean and percentiles, NaN of no values."""
    if not len(values):
        return dict.fromkeys([f"{name}_{what}_s" for what in ("mean", *_QUANTILES)], float("nan"))
    at = np.quantile(values, list(_QUANTILES.values()))
    quantiles = {f"{name}_{what}_s": float(value) for what, value in zip(_QUANTILES, at, strict=True)}
    return {f"{name}_mean_s": float(values.mean()), **quantiles}


def _goodput(rows: pd.DataFrame, slo: Slo, seed: int) -> dict[str, float]:
    """Share of requests within the objective, and how many of them per second from first sent to last finished."""
    if slo.ttft_ns is None and slo.tpot_ns is None:
        return {}
    good = np.ones(len(rows), dtype=bool)
    if slo.ttft_ns is not None:
        good &= rows["ttft_s"].to_numpy() <= slo.ttft_ns / NS_PER_S
    if slo.tpot_ns is not None:
        good &= ~(rows["tpot_s"].to_numpy() > slo.tpot_ns / NS_PER_S)
    sent = rows["arrival_s"].to_numpy()
    ends = sent + rows["e2e_s" if "e2e_s" in rows else "ttft_s"].to_numpy()
    [(low, high)] = mean_intervals(good[:, np.newaxis].astype(np.float64), rows["family"].to_numpy(), seed)
    sending, lasting = float(np.ptp(sent)), float(ends.max() - sent.min())
    return {
        "slo_share": float(good.mean()),
        "slo_share_low": low,
        "slo_share_high": high,
        "goodput_per_s": int(good.sum()) / lasting if lasting > 0 else float("nan"),
        "request_rate_per_s": (len(rows) - 1) / sending if sending > 0 else float("nan"),
    }
