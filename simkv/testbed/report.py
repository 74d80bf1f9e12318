"""Predicted beside measured: one row per request, one line per replay, and the figures.

What it is: frames and JSON-able facts from predictions and replays, written into a folder.  What it is not: judging
them; an error is a number here.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simkv.figures import save_figure, validation_cdf, validation_scatter
from simkv.simulator.costs import CostTables
from simkv.testbed.bench import Bench, Requests
from simkv.testbed.prediction import Decision, Prediction
from simkv.testbed.replay import Timed

__all__ = [
    "NAMES",
    "PROFILES",
    "REPORT",
    "Replay",
    "moves_frame",
    "quality_half_width",
    "replay_frame",
    "replay_line",
    "write_report",
]

REPORT = "report.json"
_REQUESTS, _MOVES = "requests.parquet", "moves.parquet"
PROFILES = "profiles"
_FIGURES = {"scatter": validation_scatter, "cdf": validation_cdf}
NAMES = (
    PROFILES,
    _REQUESTS,
    _MOVES,
    *(f"{loop}*-{name}.png" for loop in ("closed", "open") for name in _FIGURES),
    REPORT,
)
"""Patterns of everything that a report's folder may hold."""

_PARTS = ("load", "queue", "decode", "prefill")
_NORMAL_95 = 1.96
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class Replay:
    """Which replay: loop, policy's label, repeat, load (0 when rates are given), and requests per second.

    The last two are 0 in a closed loop.
    """

    loop: str
    policy: str
    repeat: int
    load: float = 0.0
    rate_per_s: float = 0.0


def replay_frame(
    replay: Replay,
    bench: Bench,
    requests: Requests,
    costs: CostTables,
    prediction: Prediction,
    rows: Sequence[Timed],
    scores: Sequence[tuple[float, float]],
) -> pd.DataFrame:
    """One row per request; columns in ``experiments/validate/README.md``."""
    predicted = prediction.requests
    tiers = [tier.name for tier in costs.tiers]
    places = [row.placement for row in rows]
    frame = {
        **{key: [value] * len(rows) for key, value in vars(replay).items()},
        "request": [row.request for row in rows],
        "context": requests.context,
        "task": predicted["task"].to_numpy(),
        "context_tokens": [len(bench.contexts[number].tokens) for number in requests.context],
        "prompt_tokens": requests.trace.input_tokens,
        "served_by": ["recompute" if place is None else tiers[place.tier] for place in places],
        "variant": ["none" if place is None else costs.variants[place.variant] for place in places],
        "predicted_served_by": predicted["served_by"].to_numpy(),
        "predicted_variant": predicted["variant"].to_numpy(),
        "predicted_ttft_s": predicted["ttft_s"].to_numpy(),
        "measured_ttft_s": [row.ttft_s for row in rows],
        "measured_wall_s": [row.wall_s for row in rows],
        "measured_waited_s": [row.waited_s for row in rows],
        "measured_unwaited_s": [row.unwaited_s for row in rows],
    }
    for part in _PARTS:
        frame[f"predicted_{part}_s"] = predicted[f"{part}_s"].to_numpy()
        frame[f"measured_{part}_s"] = [getattr(row, f"{part}_s") for row in rows]
    frame["predicted_quality"] = predicted["quality"].to_numpy()
    frame["measured_quality"] = [quality for quality, _ in scores]
    frame["answer_quality"] = [quality for _, quality in scores]
    return pd.DataFrame(frame)


def moves_frame(
    replay: Replay, costs: CostTables, predicted: Sequence[Decision], made: Sequence[Decision]
) -> pd.DataFrame:
    """One row per predicted and per real move; "" is no placement."""
    tiers = [*(tier.name for tier in costs.tiers), ""]
    variants = [*costs.variants, ""]
    rows = []
    for side, decisions in (("predicted", predicted), ("measured", made)):
        for request, block, old, new in decisions:
            places = [place or (-1, -1) for place in (old, new)]
            names = [name for tier, variant in places for name in (tiers[tier], variants[variant])]
            rows.append((*vars(replay).values(), side, request, block, *names))
    columns = [*vars(replay), "side", "request", "block", "from_tier", "from_variant", "to_tier", "to_variant"]
    return pd.DataFrame(rows, columns=columns)


def replay_line(
    replay: Replay, frame: pd.DataFrame, predicted: Sequence[Decision], made: Sequence[Decision], most: dict[str, int]
) -> dict[str, Any]:
    """What one replay comes to: errors are (predicted - measured) / measured, of quality the plain difference.

    Args:
        replay: which.
        frame: its requests.
        predicted, made: its moves.
        most: most real bytes by tier.
    """
    line: dict[str, Any] = {**vars(replay), "requests": len(frame)}
    line["hits"] = int((frame["served_by"] != "recompute").sum())
    line["moves"] = len(made)
    line["moves_that_differ"] = _differing(replay, predicted, made)
    elsewhere = (frame["served_by"] != frame["predicted_served_by"]) | (frame["variant"] != frame["predicted_variant"])
    line["requests_served_otherwise"] = int(elsewhere.sum())
    line["placements_identical"] = not line["moves_that_differ"] and not line["requests_served_otherwise"]
    for name in ("mean", *_QUANTILES):
        line |= _error(f"ttft_{name}_s", *(_point(frame[f"{side}_ttft_s"], name) for side in ("predicted", "measured")))
    for name in ("mean", *_QUANTILES):
        measured = _point(frame["measured_unwaited_s"], name)
        line |= {f"measured_unwaited_{name}_s": measured}
        line |= {f"error_unwaited_{name}": line[f"predicted_ttft_{name}_s"] / measured - 1}
    for what in ("wall", "waited"):
        line[f"measured_{what}_mean_s"] = float(frame[f"measured_{what}_s"].mean())
    for part in _PARTS:
        line |= _error(f"{part}_mean_s", *(float(frame[f"{s}_{part}_s"].mean()) for s in ("predicted", "measured")))
    for side in ("predicted", "measured"):
        line[f"{side}_quality"] = float(frame[f"{side}_quality"].mean())
    line["quality_error"] = line["predicted_quality"] - line["measured_quality"]
    line["quality_error_half_width"] = quality_half_width(
        frame["predicted_quality"] - frame["measured_quality"], frame["context"]
    )
    line["answer_quality"] = float(frame["answer_quality"].mean())
    line["by_source"] = {str(source): _of_source(rows) for source, rows in frame.groupby("served_by")}
    line["most_bytes"] = most
    return line


def _differing(replay: Replay, predicted: Sequence[Decision], made: Sequence[Decision]) -> int:
    """In a closed loop moves at the same place of both lists that differ; in an open one those that only one has."""
    if replay.loop == "closed":
        return sum(left != right for left, right in zip_longest(predicted, made))
    left, right = Counter(predicted), Counter(made)
    return (left - right).total() + (right - left).total()


def quality_half_width(errors: pd.Series, contexts: pd.Series) -> float | None:
    """Half of the mean error's 95 % interval, contexts being what is drawn, not requests; None for one context."""
    sums = (errors - errors.mean()).groupby(contexts.to_numpy()).sum()
    groups = len(sums)
    if groups < 2:
        return None
    return _NORMAL_95 * float(np.sqrt(groups / (groups - 1) * (sums**2).sum())) / len(errors)


def _of_source(rows: pd.DataFrame) -> dict[str, Any]:
    """Means over the requests that were really served from one place."""
    facts: dict[str, Any] = {"requests": len(rows)}
    for what in ("ttft", *_PARTS):
        facts |= _error(f"{what}_mean_s", *(float(rows[f"{s}_{what}_s"].mean()) for s in ("predicted", "measured")))
    return facts


def _point(values: pd.Series, name: str) -> float:
    return float(values.mean() if name == "mean" else np.quantile(values, _QUANTILES[name]))


def _error(name: str, predicted: float, measured: float) -> dict[str, Any]:
    error = predicted / measured - 1 if measured else None
    return {f"predicted_{name}": predicted, f"measured_{name}": measured, f"error_{name.removesuffix('_s')}": error}


def write_report(
    folder: Path, frames: Sequence[pd.DataFrame], moves: Sequence[pd.DataFrame], facts: dict[str, Any]
) -> None:
    """Requests, moves, figures, and facts, which are ``report.json``."""
    requests = pd.concat(frames, ignore_index=True)
    requests.to_parquet(folder / _REQUESTS, index=False, compression="zstd")
    pd.concat(moves, ignore_index=True).to_parquet(folder / _MOVES, index=False, compression="zstd")
    given = requests["rate_per_s"].where(requests["load"] == 0, 0.0)
    for (loop, load, rate), rows in requests.groupby(["loop", "load", given]):
        stem = loop + (f"-load-{load:g}" if load else f"-{rate:g}-per-s" if rate else "")
        for name, draw in _FIGURES.items():
            save_figure(draw(rows), folder / f"{stem}-{name}.png")
    (folder / REPORT).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
