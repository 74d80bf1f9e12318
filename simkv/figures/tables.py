"""Makes plottable points of a sweep's summary table: checks columns, averages seeds, names what varies.

What it is: the pandas half of the figures that read summaries.  What it is not: drawing.
The table has one row per run; the points that come out have one row per (label, parameters, grid factors).
"""

import json
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from simkv.errors import SimkvError, unknown_name
from simkv.figures.style import tier_title
from simkv.resampling import Resampled, averaged, interval

__all__ = [
    "METRICS",
    "average_seeds",
    "factor_columns",
    "interval_columns",
    "interval_note",
    "knob_texts",
    "metric_label",
    "need_columns",
]

# Column -> (axis label, what one unit of the axis is in units of the column).
METRICS: dict[str, tuple[str, float]] = {
    "ttft_mean_s": ("Mean TTFT (s)", 1.0),
    "ttft_p50_s": ("Median TTFT (s)", 1.0),
    "ttft_p90_s": ("90th percentile of TTFT (s)", 1.0),
    "ttft_p99_s": ("99th percentile of TTFT (s)", 1.0),
    "tpot_mean_s": ("Mean time per output token (s)", 1.0),
    "tpot_p99_s": ("99th percentile of time per output token (s)", 1.0),
    "e2e_mean_s": ("Mean time to the last token (s)", 1.0),
    "e2e_p99_s": ("99th percentile of time to the last token (s)", 1.0),
    "slo_share": ("Share of requests within the objective", 1.0),
    "goodput_per_s": ("Goodput (requests/s)", 1.0),
    "quality_mean": ("Quality", 1.0),
    "token_hit_ratio": ("Token hit ratio", 1.0),
    "block_hit_ratio": ("Block hit ratio", 1.0),
    "ssd_written_bytes": ("Written to SSD (GB)", 1e9),
    "pristine_read_bytes": ("Pristine copies read (GB)", 1e9),
    "ssd_written_bytes_per_request": ("Written to SSD per request (MB)", 1e6),
    "pristine_read_bytes_per_request": ("Pristine copies read per request (MB)", 1e6),
    "recodings_per_request": ("Recompressions per request", 1.0),
    "ssd_lifetime_years": ("SSD lifetime (years)", 1.0),
    "makespan_s": ("Makespan (s)", 1.0),
    "recodings": ("Recompressions", 1.0),
    "refused": ("Refused entries", 1.0),
}
_UNDOTTED_FACTORS = ("tasks", "model")
_SYMBOLS = {"alpha": "\N{GREEK SMALL LETTER ALPHA}"}
_LONGEST_VARIANT = 8
_UNITS = ("contexts", "seeds")


def need_columns(frame: pd.DataFrame, columns: Iterable[str], what: str) -> None:
    """Raise SimkvError unless ``frame`` has rows and all of ``columns``; ``what`` names it in the message."""
    if not isinstance(frame, pd.DataFrame):
        raise SimkvError(f"{what}: expected a table, found {type(frame).__name__}")
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise SimkvError(f"{what}: missing column {', '.join(missing)}")
    if frame.empty:
        raise SimkvError(f"{what}: no rows to draw")


def metric_label(metric: str) -> tuple[str, float]:
    """Axis label of a metric and the factor to divide it by.  Raises SimkvError naming the nearest known metric."""
    if metric not in METRICS:
        raise SimkvError(unknown_name("metric", metric, METRICS))
    return METRICS[metric]


def interval_columns(metric: str) -> tuple[str, str]:
    """Names of the lower and upper end of a metric's interval: ttft_mean_s -> ttft_mean_low_s, ttft_mean_high_s."""
    stem, unit = (metric[:-2], "_s") if metric.endswith("_s") else (metric, "")
    return f"{stem}_low{unit}", f"{stem}_high{unit}"


def factor_columns(table: pd.DataFrame) -> list[str]:
    """The sweep's grid factors (dotted columns, tasks, model) that take more than one value in ``table``."""
    candidates = [
        column
        for column in table.columns
        if column in _UNDOTTED_FACTORS or ("." in str(column) and not str(column).startswith("policy."))
    ]
    return [column for column in candidates if table[column].map(_text).nunique() > 1]


def interval_note(points: pd.DataFrame) -> str:
    """What the intervals of ``average_seeds`` are: "95 % interval: contexts resampled"; "" where there are none."""
    kinds = " ".join(points["interval"].unique())
    units = [unit for unit in _UNITS if unit in kinds]
    return f"95 % interval: {' and '.join(units)} resampled" if units else ""


def average_seeds(table: pd.DataFrame, metrics: Sequence[str], resampled: Resampled | None = None) -> pd.DataFrame:
    """One row per (label, parameters, varying grid factors), in order of first appearance.

    Columns: label, policy, params (dict), the varying factors as text, seeds (rows averaged), and per metric its mean
    and the two columns of ``interval_columns``, NaN where there is no interval: for a single row the 95 % interval
    that the run recorded, over several that of ``simkv.resampling``, seeds resampled and, where ``resampled`` has the
    metric of the rows' runs (column run), families of contexts too.  Column interval says what was resampled for the
    first metric: "contexts", "seeds", "contexts and seeds" or "".

    Raises:
        SimkvError: missing columns, no rows, malformed params, or no row with a number for every metric.
    """
    need_columns(table, ["label", *metrics], "summary table")
    factors = factor_columns(table)
    params = [_params(value) for value in table["params"]] if "params" in table else [{}] * len(table)
    keys: dict[Hashable, list[int]] = {}
    for row, values in enumerate(params):
        place = (
            _text(table["label"].iloc[row]),
            tuple(sorted((name, _text(value)) for name, value in values.items())),
            *(_text(table[factor].iloc[row]) for factor in factors),
        )
        keys.setdefault(place, []).append(row)
    points = []
    for rows in keys.values():
        group = table.iloc[rows]
        point = {"label": _text(group["label"].iloc[0]), "params": params[rows[0]], "seeds": len(rows)}
        point["policy"] = _text(group["policy"].iloc[0]) if "policy" in group else ""
        point |= {factor: _text(group[factor].iloc[0]) for factor in factors}
        for metric in metrics:
            found, kind = _mean_and_interval(group, metric, resampled)
            point |= found
            point.setdefault("interval", kind)
        points.append(point)
    frame = pd.DataFrame(points)
    frame = frame[np.isfinite(frame[list(metrics)].to_numpy(dtype=float)).all(axis=1)].reset_index(drop=True)
    if frame.empty:
        raise SimkvError(f"summary table: no row has a number in {' and '.join(metrics)}")
    return frame


def knob_texts(points: pd.DataFrame) -> list[str]:
    """For each point, what sets it apart from the others of its label: "kivi:2", "window=4", or "" if nothing does."""
    texts = [""] * len(points)
    for _, group in points.groupby("label", sort=False):
        names = list(dict.fromkeys(name for params in group["params"] for name in params))
        varying = [name for name in names if group["params"].map(lambda params: _text(params.get(name))).nunique() > 1]  # noqa: B023
        family = {str(params.get("variant", "raw")).split(":")[0] for params in group["params"]} - {"raw"}
        for row, params in zip(group.index, group["params"], strict=True):
            pieces = [_knob(name, params[name], len(family) == 1) for name in varying if name in params]
            texts[row] = ", ".join(pieces)
    return texts


def _knob(name: str, value: Any, one_family: bool) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else _text(value)
    if name != "variant":
        return f"{_SYMBOLS.get(name, name)}={text}"
    if one_family and len(text) > _LONGEST_VARIANT and ":" in text:
        return text.split(":", 1)[1]
    return text


def _params(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    if value is None or value == "" or (isinstance(value, float) and np.isnan(value)):
        return {}
    try:
        parsed = json.loads(value)
    except (TypeError, ValueError):
        parsed = None
    if not isinstance(parsed, dict):
        raise SimkvError(f"summary table: params {str(value)[:60]!r} is not a JSON object")
    return parsed


def _text(value: Any) -> str:
    """One canonical text per value, so that 1, 1.0 and equal dicts group together."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return str(value).lower()
    if isinstance(value, (int, float, np.integer, np.floating)):
        return f"{value:.12g}"
    if isinstance(value, (dict, list)):
        return json.dumps(value, sort_keys=True, default=str)
    return str(value)


def _mean_and_interval(group: pd.DataFrame, metric: str, resampled: Resampled | None) -> tuple[dict[str, float], str]:
    """The metric's mean and its ends by column, and what was resampled for them."""
    low, high = interval_columns(metric)
    values = pd.to_numeric(group[metric], errors="coerce").to_numpy(dtype=float)
    group, values = group.assign(**{metric: values})[np.isfinite(values)], values[np.isfinite(values)]
    if not len(values):
        return {metric: np.nan, low: np.nan, high: np.nan}, ""
    if len(values) == 1:
        ends = tuple(float(group[column].iloc[0]) if column in group else np.nan for column in (low, high))
        kind = _UNITS[0]
    else:
        drawn = None if resampled is None else resampled.rows(group, metric)
        rows = np.arange(len(values))
        over_families, over_seeds = averaged(values[None, :] if drawn is None else drawn, [rows], rows)
        families = 0 if resampled is None else resampled.families
        ends = interval([(over_families[:, 0], families), (over_seeds[:, 0], len(values))])
        kind = _UNITS[1] if drawn is None else " and ".join(_UNITS)
    known = bool(np.isfinite(ends).all())
    return {metric: float(values.mean()), low: ends[0], high: ends[1]}, kind if known else ""


def panel_groups(points: pd.DataFrame, most: int, apart_from: Sequence[str] = ()) -> list[tuple[str, pd.DataFrame]]:
    """Split points by the grid factors that vary (bar ``apart_from``): (title, points) per panel, in table order.

    Raises:
        SimkvError: more than ``most`` panels.
    """
    factors = [factor for factor in factor_columns(points) if factor not in apart_from]
    if not factors:
        return [("", points)]
    groups = [
        (", ".join(factor_title(factor, value) for factor, value in zip(factors, values, strict=True)), group)
        for values, group in points.groupby(factors, sort=False)
    ]
    if len(groups) > most:
        raise SimkvError(
            f"summary table: {', '.join(factors)} make {len(groups)} panels, more than {most}; pass fewer rows"
        )
    return groups


def factor_title(factor: str, value: str) -> str:
    """A grid factor and its value as people write them: "DRAM capacity 64 GiB", "rate = 2", or "qa" for a task."""
    if factor in _UNDOTTED_FACTORS:
        return value
    parts = factor.split(".")
    if parts[0] == "tiers" and len(parts) == 3:
        return f"{tier_title(parts[1])} {parts[2]} {value}"
    return f"{parts[-1].replace('_', ' ')} = {value}"
