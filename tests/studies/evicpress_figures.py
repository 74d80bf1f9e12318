"""EvicPress' Figures 8 to 12, published and simulated: one function per figure, each a few rows of the table.

What it is: comparisons that need more than a curve.  Figure 7 and the whole table are in ``evicpress.py``.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from tests.studies.results import LABELS, Row, Study, between, crossing, inside, published, within

__all__ = ["figure_8", "figure_9", "figure_10", "figure_11", "figure_12", "final_places", "placements"]


def figure_8(model: str, study: Study, relative: float) -> Iterator[Row]:
    """Requests per second at which the mean TTFT passes 1 s, at quality .80."""
    table = study.table
    rate = "trace.options.rate_per_s"
    found = {}
    for label in ("EvicPress", *LABELS.values(), "Eviction only", "Recompute"):
        runs = table[table["label"] == label].sort_values(rate)
        knees = [
            (float(group["quality_mean"].mean()), crossing(group[rate].to_numpy(), group["ttft_mean_s"].to_numpy()))
            for _, group in runs.groupby(runs["params"])
        ]
        knees.sort()
        found[label] = float(np.interp(0.8, *zip(*knees, strict=True))) if len(knees) > 1 else knees[0][1]
    points = published("fig8")
    systems = {"EvicPress": "evicpress", "Eviction only": "eviction_only", "Recompute": "prefill"}
    systems |= {label: f"{method}+lru" for method, label in LABELS.items()}
    for label, knee in found.items():
        yield _knee(
            model, label, knee, points[(points["model"] == model) & (points["system"] == systems[label])], relative
        )
    lead = found["EvicPress"] / max(knee for label, knee in found.items() if label != "EvicPress")
    yield Row("8", f"{model}: EvicPress over the best other", "1.7, 3.6, 2.9", f"{lead:.2f}x", ">= 1.3", lead >= 1.3)


def _knee(model: str, label: str, knee: float, points: pd.DataFrame, relative: float) -> Row:
    """A published knee is an interval where the next measured rate is far away or the first is above 1 s already."""
    what = f"{model}, {label}: requests/s at 1 s"
    drawn = points[points["note"] != "ttft_extrapolated_from_cut_segment"].sort_values("qps")
    measured = points[points["note"] != "cut_at_figure_edge"].sort_values("qps")
    above = measured[measured["ttft_s"] > 1.0]
    below = measured[measured["ttft_s"] <= 1.0]
    if not len(below):
        low, high = 0.0, float(above["qps"].iloc[0])
        return Row("8", what, f"< {high:g}", f"{knee:.1f}", "interval", bool(knee <= high * (1 + relative)))
    if (
        len(above)
        and above["qps"].iloc[0] - below["qps"].iloc[-1] > 2.5
        and "extrapolated" in str(above["note"].iloc[0])
    ):
        low, high = float(below["qps"].iloc[-1]), float(above["qps"].iloc[0])
        return Row("8", what, f"{low:g} to {high:g}", f"{knee:.1f}", "interval", bool(low <= knee <= high))
    wanted = crossing(drawn["qps"].to_numpy(), drawn["ttft_s"].to_numpy())
    if relative < 1:
        return within("8", what, wanted, knee, relative, 1)
    ratio = knee / wanted
    return Row(
        "8",
        what,
        f"{wanted:.1f}",
        f"{knee:.1f} ({ratio:.1f}x)",
        f"factor {relative:g}",
        1 / relative <= ratio <= relative,
    )


def figure_9(study: Study, overall: float = 0.818) -> Iterator[Row]:
    """Qwen2.5-14B: shares of requests and their quality by tier, between the alphas around an overall quality."""
    curve = study.curve("EvicPress")
    first, second, share = between(curve["quality_mean"].to_numpy(), overall)
    values = []
    for index in (first, second):
        requests = study.requests(curve.iloc[index]["run"])
        by = requests.groupby("served_by")["quality"]
        tiers = by.size() / len(requests)
        values.append([*(tiers.get(t, 0.0) for t in ("dram", "ssd", "recompute")), by.mean()["dram"], by.mean()["ssd"]])
    dram, ssd, rest, q_dram, q_ssd = (1 - share) * np.array(values[0]) + share * np.array(values[1])
    yield inside("9", "share of requests from DRAM", "0.474", dram, 0.30, 0.64)
    yield inside("9", "share of requests from SSD", "0.240", ssd, 0.08, 0.40)
    yield inside("9", "share of the rest", "0.287", rest, 0.23, 0.35)
    yield Row(
        "9",
        "quality on DRAM < on SSD < 1",
        "0.718 < 0.797",
        f"{q_dram:.3f}, {q_ssd:.3f}",
        "order",
        bool(q_dram < q_ssd < 1),
    )


def figure_10(study: Study) -> Iterator[Row]:
    """What a profile of one query loses, and what profiling anew gives back over time."""
    table = study.table.set_index(["label", "engine.quality_queries", "policy.alpha"])["quality_mean"]
    runs = study.table.set_index(["label", "engine.quality_queries", "policy.alpha"])["run"]
    never, anew = "EvicPress, never profiled anew", "EvicPress"
    for alpha in (0.5, 1.0):
        loss = float(table[never, 50, alpha] - table[never, 1, alpha])
        yield inside("10", f"loss of a 1-query profile, alpha {alpha}", "0.11 to 0.12", loss, 0.06, 0.16)
    for alpha in (0.3, 0.5, 1.0):
        frames = [study.requests(runs[label, 1, alpha]).sort_values("request") for label in (anew, never)]
        gains = [
            float(np.mean(a) - np.mean(b))
            for a, b in zip(*(np.array_split(frame["quality"].to_numpy(), 5) for frame in frames), strict=True)
        ]
        text = " ".join(f"{gain:.3f}" for gain in gains)
        good = gains[-1] > gains[0] > 0 and gains[-1] >= 0.05
        yield Row(
            "10",
            f"gain of profiling anew in fifths of the run, alpha {alpha}",
            ".055 rising to .12",
            text,
            "rising, >= .05",
            good,
        )


def figure_11(study: Study) -> Iterator[Row]:
    """Mistral at alpha 1: contexts by tier, how much of them is removed, and by which method."""
    curve = study.curve("EvicPress")
    moves = study.moves(curve[curve["policy.alpha"] == 1.0].iloc[0]["run"])
    yield from placements(final_places(moves, 555))


def final_places(moves: pd.DataFrame, contexts: int) -> pd.DataFrame:
    """(tier, variant) of every context after all moves, "" where it is not stored."""
    last = moves.groupby("block")[["to_tier", "to_variant"]].last().astype(str)
    return last.reindex(range(contexts), fill_value="").rename(columns={"to_tier": "tier", "to_variant": "variant"})


def placements(places: pd.DataFrame) -> Iterator[Row]:
    """Rows of Figure 11 from the places of all contexts."""
    tier, variant = places["tier"], places["variant"]
    removed = variant.map(lambda name: 0.0 if name in ("raw", "") else 1 - float(name.partition(":")[2]))
    on_dram, on_ssd = tier == "dram", tier == "ssd"
    yield inside("11", "contexts on DRAM", "53", int(on_dram.sum()), 40, 110, 0)
    yield inside("11", "contexts on SSD", "296", int(on_ssd.sum()), 230, 310, 0)
    yield inside("11", "contexts on neither", "206", int((~on_dram & ~on_ssd).sum()), 190, 245, 0)
    gap = float(removed[on_ssd].mean() - removed[on_dram].mean())
    yield Row("11", "mean removed, SSD minus DRAM", "0.44", f"{gap:.2f}", ">= 0.25", gap >= 0.25)
    raw = float((variant[on_dram] == "raw").mean())
    yield Row("11", "uncompressed share of DRAM", "0.47", f"{raw:.2f}", ">= 0.20", raw >= 0.20)
    method = variant[(on_dram | on_ssd) & (variant != "raw")].str.partition(":")[0].value_counts(normalize=True)
    shares = [float(method.get(name, 0.0)) for name in ("keydiff", "snapkv", "knorm")]
    text = " / ".join(f"{share:.0%}" for share in shares)
    yield Row(
        "11",
        "keydiff / snapkv / knorm among compressed",
        "73 / 26 / 0.3 %",
        text,
        "falling",
        shares == sorted(shares, reverse=True),
    )


def figure_12(study: Study) -> Iterator[Row]:
    """Llama by data set, at the overall TTFTs of the seven published points."""
    overall = published("fig7")
    overall = overall[(overall["model"] == "Llama-3.1-8B") & (overall["system"] == "evicpress")]["ttft_s"].to_numpy()
    points = published("fig12")
    wanted = points[points["system"] == "evicpress"]
    curve = study.curve("EvicPress")
    per_run = [study.requests(run).groupby("task")[["ttft_s", "quality"]].mean() for run in curve["run"]]
    errors, gains, ends = [], {}, {}
    prefill = study.requests(study.curve("Recompute").iloc[0]["run"]).groupby("task")["ttft_s"].mean()
    for task in sorted(set(wanted["dataset"])):
        drawn = wanted[wanted["dataset"] == task][["ttft_s", "quality"]].to_numpy()
        ours = []
        for goal in overall:
            first, second, share = between(curve["ttft_mean_s"].to_numpy(), goal)
            ours.append(
                (1 - share) * per_run[first].loc[task].to_numpy() + share * per_run[second].loc[task].to_numpy()
            )
        errors.append(np.array(ours) - drawn)
        fixed = _task_curve(study, task)
        gains[task] = float(np.mean([q - np.interp(t, fixed[:, 0], fixed[:, 1]) for t, q in ours]))
        ends[task] = float(ours[-1][0] / prefill[task])
    rms = np.sqrt((np.array(errors) ** 2).mean(axis=(0, 1)))
    yield Row("12", "12 data sets x 7 points: RMS of TTFT", "0", f"{rms[0]:.3f} s", "0.05 s", rms[0] <= 0.05)
    yield Row("12", "12 data sets x 7 points: RMS of quality", "0", f"{rms[1]:.3f}", "0.06", rms[1] <= 0.06)
    better = sum(gain > 0 for gain in gains.values())
    yield Row("12", "data sets better than KeyDiff + LRU at equal TTFT", "11", str(better), ">= 10", better >= 10)
    top = sorted(gains, key=lambda task: -gains[task])[:2]
    yield Row(
        "12",
        "largest gains",
        "multi_news, qasper",
        ", ".join(f"{t} {gains[t]:+.2f}" for t in top),
        "the same two",
        set(top) == {"multi_news", "qasper"},
    )
    at_end = " ".join(f"{ends[task]:.2f}" for task in ("multi_news", "qasper"))
    good = all(abs(ends[task] - 1) <= 0.05 for task in ("multi_news", "qasper"))
    yield Row("12", "multi_news and qasper end on the prefill point (TTFT ratio)", "1.00 1.00", at_end, "5%", good)
    yield _per_task_lru(study)


def _task_curve(study: Study, task: str) -> np.ndarray:
    runs = study.curve(LABELS["keydiff"])["run"]
    means = [study.requests(run).groupby("task")[["ttft_s", "quality"]].mean().loc[task].to_numpy() for run in runs]
    return np.array(sorted(means, key=lambda row: row[0]))


def _per_task_lru(study: Study) -> Row:
    drawn = published("fig12_lru")
    drawn = drawn[drawn["method"] == "keydiff"]
    squares: dict[str, list[float]] = {}
    for removed, group in drawn.groupby("removed"):
        run = study.fixed("keydiff", round(float(removed), 1))["run"]  # type: ignore[arg-type]
        means = study.requests(run).groupby("task")["ttft_s"].mean()
        for row in group.itertuples():
            squares.setdefault(str(row.dataset), []).append((means[row.dataset] / row.ttft_s - 1) ** 2)
    worst = max(squares, key=lambda task: np.mean(squares[task]))
    value = float(np.sqrt(np.mean(squares[worst])))
    return Row(
        "12", f"KeyDiff + LRU by data set: RMS of TTFT (worst, {worst})", "0", f"{value:.1%}", "20%", value <= 0.20
    )
