"""Results as people read them: the summary of a run, the policy table of a sweep, a comparison of curves.

What it is: text made from summaries and tables; it is imported when a verb needs it, since it brings pandas and
matplotlib.  What it is not: a computation; averages over seeds, knobs and factors come from ``figures.tables``.
"""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from simkv.cli_output import duration, fixed, percent, print_pairs, print_table, records
from simkv.comparison import COMPARED_DELAYS, compared_results
from simkv.experiment_bounds import BOUND
from simkv.experiment_files import staged
from simkv.figures.style import tier_title
from simkv.figures.tables import average_seeds, factor_columns, interval_columns, interval_note, knob_texts
from simkv.resampling import resampled_seeds
from simkv.simulator.metrics import Result
from simkv.units import format_bytes

__all__ = [
    "comparison",
    "comparison_rows",
    "print_bound",
    "print_comparison",
    "print_policies",
    "print_summary",
    "study_rows",
    "study_traces",
]

_LOG = logging.getLogger(__name__)
_TIMES = ("ttft_mean_s", "ttft_p50_s", "ttft_p90_s", "ttft_p99_s")
_MOVED = {
    "ssd_written_bytes_per_request": "SSD written",
    "pristine_read_bytes_per_request": "pristine read",
    "recodings_per_request": "recoded",
}
_MARKS = {"": "", "long chord": "*", "outside": "+"}
_SERVICE = {"tpot_mean_s": "TPOT (s)", "slo_share": "in SLO (%)", "goodput_per_s": "goodput (1/s)"}
_RANGES = ("[TTFT]", "[quality]")
_REQUESTS, _TOKENS = "request_share_", "token_share_"


def print_summary(result: Result) -> None:
    """The summary of one run, a line per number, with units."""
    summary, meta = result.summary, result.meta
    given = {key: value for key, value in meta["config"]["policy"].items() if key not in ("name", "label")}
    params = ", ".join(f"{key} = {value}" for key, value in given.items())
    pairs = [
        ("policy", summary["label"] + (f" ({params})" if params else "")),
        ("trace", f"{meta['trace']['name']}, {meta['trace']['requests']:,} requests"),
        ("profile", f"{meta['profile']['name']} ({meta['profile']['model']}, {meta['profile']['sizes']} sizes)"),
        ("requests measured", f"{summary['requests']:,}"),
        ("TTFT, mean", duration(summary["ttft_mean_s"]) + _interval(summary, "ttft_mean{}_s", duration)),
        *((f"TTFT, {name}", duration(summary[f"ttft_{name}_s"])) for name in ("p50", "p90", "p99")),
        ("wait for GPU, mean", duration(summary["queue_mean_s"])),
        *_service(summary),
        ("quality, mean", fixed(summary["quality_mean"]) + _interval(summary, "quality_mean{}", fixed)),
        ("hit ratio by token", f"{percent(summary['token_hit_ratio'])} %"),
        *_shares(summary),
        ("SSD written", _per_request(summary, "ssd_written_bytes", _bytes)),
        ("SSD lifetime", _lifetime(summary["ssd_lifetime_years"])),
        ("pristine copies read", _per_request(summary, "pristine_read_bytes", _bytes)),
        ("recompressions", _per_request(summary, "recodings", lambda count: f"{count:,.4g}")),
        ("entries refused", f"{summary['refused']:,}"),
        ("simulated time", duration(summary["makespan_s"])),
        ("computed in", f"{duration(summary['wall_s'])} ({summary['engine']})"),
    ]
    print_pairs(pairs)
    for warning in summary["warnings"]:
        _LOG.warning("%s", warning)


def _service(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a run says beyond the first token, if output was decoded or there was an objective."""
    if "tpot_mean_s" in summary:
        for name, key in (("per output token", "tpot"), ("to the last token", "e2e")):
            parts = [f"{what} {duration(summary[f'{key}_{what}_s'])}" for what in ("mean", "p90", "p99")]
            yield name, ", ".join(parts)
        yield "sequences per step", fixed(summary["decode_batch_mean"], 2)
    if "slo_share" in summary:
        share = f"{percent(summary['slo_share'])} % of requests"
        yield "within the objective", share + _interval(summary, "slo_share{}", percent)
        sent, good = (fixed(summary[key]) for key in ("request_rate_per_s", "goodput_per_s"))
        yield "goodput", f"{good} requests/s, of {sent} sent"


def _interval(summary: dict[str, Any], key: str, shown: Any) -> str:
    low, high = summary[key.format("_low")], summary[key.format("_high")]
    return "" if low is None or low != low else f"  (95 %: {shown(low)} to {shown(high)})"


def _shares(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    kind = _share_kind(summary["blocks_mean"])
    of = "requests" if kind == _REQUESTS else "prompt tokens"
    for key, share in summary.items():
        if key.startswith(kind):
            tier = key.removeprefix(kind)
            name = "recomputed" if tier == "recompute" else f"reused from {tier_title(tier)}"
            yield name, f"{percent(share)} % of {of}"


def _share_kind(blocks_mean: float) -> str:
    """Shares of requests where a request is one block; of tokens where a request may come from many places."""
    return _REQUESTS if blocks_mean <= 1 else _TOKENS


def _per_request(summary: dict[str, Any], key: str, shown: Any) -> str:
    total, each = summary[key], summary[f"{key}_per_request"]
    return f"{shown(total)}, {shown(each)} per request" if total else str(shown(total))


def _bytes(count: float | None) -> str:
    return "-" if count is None or count != count else format_bytes(count)


def _lifetime(years: float | None) -> str:
    return "unknown (needs writes to a tier with an endurance)" if years is None else f"{years:.3g} years"


def print_policies(table: pd.DataFrame, results: Path) -> None:
    """One row per policy, setting and factors of a sweep, averaged over seeds; bounds are for ``print_bound``.

    Intervals over several seeds need the requests of the runs in the folder of results.  Raises SimkvError.
    """
    table = table[table["policy"] != BOUND]
    kind = _share_kind(table["blocks_mean"].max())
    shares = [str(column) for column in table.columns if str(column).startswith(kind)]
    shares.sort(key=f"{kind}recompute".__eq__)
    service = {key: head for key, head in _SERVICE.items() if key in table and table[key].notna().all()}
    metrics = [*_TIMES, "quality_mean", *service, *shares, *_MOVED]
    resampled = resampled_seeds(table, results, [metrics[0], "quality_mean"])
    points = average_seeds(table.fillna(dict.fromkeys([*shares, *_MOVED], 0.0)), metrics, resampled)
    note = interval_note(points)
    points["knob"] = knob_texts(points)
    factors = factor_columns(points)
    seeds = ["seeds"] if (points["seeds"] > 1).any() else []
    tiers = [tier_title(share.removeprefix(kind)).replace("recompute", "recomp.") for share in shares]
    ranges = [*_RANGES] if note else []
    headers = ["policy", "setting", *factors, *seeds, "TTFT (s)", *ranges[:1], "p50 (s)", "p90 (s)", "p99 (s)"]
    headers += ["quality", *ranges[1:]]
    headers += [*service.values(), *(f"{tier} (%)" for tier in tiers), *_MOVED.values()]
    unused = [f"{tier} (%)" for tier, share in zip(tiers, shares, strict=True) if not points[share].any()]
    rows = [
        [
            str(point["label"]),
            str(point["knob"]),
            *(str(point[column]) for column in (*factors, *seeds)),
            fixed(point["ttft_mean_s"]),
            *(_spread(point, "ttft_mean_s") for _ in ranges[:1]),
            *(fixed(point[column]) for column in (*_TIMES[1:], "quality_mean")),
            *(_spread(point, "quality_mean") for _ in ranges[1:]),
            *(percent(point[key]) if head.endswith("(%)") else fixed(point[key]) for key, head in service.items()),
            *(percent(point[column]) for column in shares),
            *(format_bytes(point[column]) for column in list(_MOVED)[:2]),
            fixed(point["recodings_per_request"]),
        ]
        for point in points.to_dict("records")
    ]
    moved = [name for column, name in _MOVED.items() if not points[column].any()]
    spare = [*unused, *reversed(ranges), *moved, "p50 (s)", "p99 (s)", *reversed(_MOVED.values()), "p90 (s)"]
    print_table(headers, rows, text=2 + len(factors), spare=list(dict.fromkeys(spare)))
    of = "requests, by the slowest tier that they loaded from" if kind == _REQUESTS else "prompt tokens"
    print(f"TTFT is the mean; shares are of {of}; the last three columns are per request, over the whole run")
    if note:
        print(f"in brackets: {note}")
    for warning in dict.fromkeys(text for texts in table["warnings"] for text in json.loads(texts)):
        _LOG.warning("%s", warning)


def _spread(point: dict[str, Any], metric: str) -> str:
    low, high = (point[column] for column in interval_columns(metric))
    return f"[{fixed(low)}, {fixed(high)}]" if low == low else ""


def print_bound(corners: pd.DataFrame) -> None:
    """The corners of bounds, a row each: alpha, delay, quality, utility, and any other columns first."""
    last = ("alpha", "ttft_mean_s", "quality_mean", "utility_s")
    others = [str(column) for column in corners.columns if column not in last]
    headers = [*others, "alpha (s)", "TTFT at least (s)", "at quality", "utility at most (s)"]
    rows = [
        [
            *(str(row[column]) for column in others),
            f"{row['alpha']:g}",
            *(fixed(row[column], 4) for column in last[1:]),
        ]
        for row in records(corners)
    ]
    print_table(headers, rows, text=max(1, len(others)))
    print("between two rows the bound is straight; utility is alpha x quality - TTFT, means over the measured requests")


def comparison(table: pd.DataFrame, label: str, results: Path, at: list[float]) -> pd.DataFrame:
    """One policy's operating curve against every setting of the others, or against their curves at given qualities.

    Written to ``comparison.csv`` in the folder of results, too.  Raises SimkvError for an unknown label.
    """
    compared = compared_results(table, label, results, by=factor_columns(table), at=at)
    with staged(results / "comparison.csv") as temporary:
        compared.to_csv(temporary, index=False)
    return compared


def comparison_rows(compared: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a comparison for JSON, with the parameters as an object again (empty for whole curves)."""
    return [{**row, "params": json.loads(row["params"] or "{}")} for row in records(compared)]


def print_comparison(compared: pd.DataFrame, label: str, results: Path) -> None:
    """A ``comparison`` as a table: the mean TTFT and its 90th percentile in one row."""
    factors = [str(column) for column in compared.columns[: compared.columns.get_loc("delay")]]
    at = (compared["params"] == "").all()
    means, tails = (compared[compared["delay"] == delay].reset_index(drop=True) for delay in COMPARED_DELAYS)
    means["knob"] = _settings(means)
    place = ["baseline", "params", *factors, *(["quality_mean"] if at else [])]
    tail_of = {tuple(row[column] for column in place): row for row in records(tails)}
    headers = ["policy", "setting", *factors, "TTFT (s)", "quality", "TTFT ratio", "p90 ratio", "quality gain (%)"]
    rows = [
        [
            str(row["baseline"]),
            str(row["knob"]),
            *(str(row[factor]) for factor in factors),
            fixed(row["delay_s"]),
            fixed(row["quality_mean"]),
            _ranged(row, "delay_ratio", lambda value: fixed(value, 2)),
            _ranged(tail_of.get(tuple(row[column] for column in place)), "delay_ratio", lambda value: fixed(value, 2)),
            _ranged(row, "quality_gain", percent),
        ]
        for row in records(means)
    ]
    print(f"{label} against the others: their TTFT / its own at equal quality, its gain in quality at equal TTFT")
    print_table(headers, rows, text=2 + len(factors))
    print(
        "in brackets 95 % intervals (below, above: a curve does not reach in so many resamples); "
        "* rests on a long chord between operating points, + on a curve's last point"
    )
    print(f"all of it, with what it rests on: {results / 'comparison.csv'}")


def _settings(compared: pd.DataFrame) -> list[str]:
    """What sets each baseline's setting apart; nothing for whole curves."""
    params = [json.loads(text) if text else {} for text in compared["params"]]
    return knob_texts(compared.assign(label=compared["baseline"], params=params))


def _ranged(row: dict[str, Any] | None, name: str, shown: Any) -> str:
    if row is None:
        return str(shown(None))
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    mark = _MARKS[row[f"{name}_flag"]] if row[name] is not None else ""
    ends = "" if low is None else f" ({_end(low, shown)} to {_end(high, shown)})"
    return f"{shown(row[name])}{mark}{ends}"


def _end(value: float, shown: Any) -> str:
    """An end of an interval, which is infinite where a curve does not reach in so many resamples."""
    return str(shown(value)) if math.isfinite(value) else "below" if value < 0 else "above"


def study_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a sweep's table for JSON, with the parameters as an object again."""
    return [{**row, "params": json.loads(row["params"])} for row in records(table)]


def study_traces(results: Path, table: pd.DataFrame) -> list[dict[str, Any]]:
    """The facts of the traces that a sweep replayed, each once."""
    found: dict[str, dict[str, Any]] = {}
    for run in table.loc[table["policy"] != BOUND, "run"]:
        facts = json.loads((results / "runs" / str(run) / "meta.json").read_text(encoding="utf-8"))["meta"]["trace"]
        found.setdefault(json.dumps([facts.get("name"), facts.get("notes")]), facts)
    return list(found.values())
