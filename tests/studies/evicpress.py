"""EvicPress, published and simulated: every comparison of ``experiments/evicpress/README.md``.

Run ``python -m tests.studies.evicpress [RESULTS]`` after the sweeps to print the table again.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from tests.studies.evicpress_figures import figure_8, figure_9, figure_10, figure_11, figure_12
from tests.studies.results import LABELS, Row, Study, published, within

# Name in the figures -> study, tolerance of fixed-ratio TTFT (and at some fractions removed), of EvicPress' quality.
MODELS: dict[str, tuple[str, float, dict[float, float], tuple[float, float]]] = {
    "Llama-3.1-8B": ("evicpress", 0.10, {0.8: 0.20}, (-0.02, 0.02)),
    "Mistral-7B": ("evicpress-mistral", 0.05, {0.9: 0.10}, (-0.01, 0.045)),
    "Qwen2.5-14B": ("evicpress-qwen2.5-14b", 0.05, {0.9: 0.15}, (-0.03, 0.03)),
    "Qwen3-30B-A3B": ("evicpress-qwen3-30b", 0.05, {0.9: 0.10}, (-0.01, 0.045)),
    "longchat-7b": ("evicpress-longchat", 0.25, {}, (-0.01, 0.045)),
}


# --- Figure 7 -------------------------------------------------------------------------------------------------------


def figure_7(model: str, study: Study) -> Iterator[Row]:
    """Baselines and EvicPress' curve of one model."""
    points = published("fig7")
    points = points[(points["model"] == model) & (points["note"] != "cut_at_figure_edge")]
    _, tolerance, special, (low, high) = MODELS[model]
    for system, label, relative in (("prefill", "Recompute", 0.03), ("eviction_only", "Eviction only", 0.08)):
        for wanted in points.loc[points["system"] == system, "ttft_s"]:
            yield within("7", f"{model}, {system.replace('_', ' ')}: TTFT", wanted, study.points(label)[0, 0], relative)
    yield from _fixed_ratios(model, study, points, tolerance, special)
    ours = points[points["system"] == "evicpress"]
    gaps = [
        study.quality_at("EvicPress", ttft) - quality for ttft, quality in zip(ours.ttft_s, ours.quality, strict=True)
    ]
    reached = [gap for gap in gaps if not np.isnan(gap)]
    text = " ".join(f"{gap:+.3f}" if not np.isnan(gap) else "-" for gap in gaps)
    good = low <= min(reached) and max(reached) <= high
    yield Row(
        "7", f"{model}, EvicPress: quality - published at the published TTFTs", "0", text, f"{low} to {high}", good
    )


def _fixed_ratios(
    model: str, study: Study, points: pd.DataFrame, tolerance: float, special: dict[float, float]
) -> Iterator[Row]:
    worst = {False: (0.0, 1.0, 0.0), True: (0.0, 1.0, 0.0)}  # special fraction? -> (deviation, tolerance, removed)
    quality: tuple[float, str] = (0.0, "")
    for method in LABELS:
        for row in points[points["system"] == f"{method}+lru"].itertuples():
            removed = round(float(row.removed), 1)
            run = study.fixed(method, removed)
            allowed = special.get(removed, tolerance)
            deviation = run["ttft_mean_s"] / row.ttft_s - 1
            if abs(deviation) > abs(worst[removed in special][0]):
                worst[removed in special] = (deviation, allowed, removed)
            gap = run["quality_mean"] - row.quality
            if abs(gap) > abs(quality[0]):
                quality = (gap, f"{method}, removed {removed}")
    for is_special, (deviation, allowed, removed) in worst.items():
        if deviation:
            rest = f"removed {removed}" if is_special else f"worst, at removed {removed}"
            yield Row(
                "7",
                f"{model}, fixed ratio + LRU: TTFT ({rest})",
                "0",
                f"{deviation:+.1%}",
                f"{allowed:.0%}",
                abs(deviation) <= allowed,
            )
    yield Row(
        "7",
        f"{model}, fixed ratio + LRU: quality (worst, {quality[1]})",
        "0",
        f"{quality[0]:+.3f}",
        "0.010",
        abs(quality[0]) <= 0.01,
    )


def shapes(studies: dict[str, Study]) -> Iterator[Row]:
    """Step, line and jump of the static baselines."""
    if "Llama-3.1-8B" in studies:
        ratio = _ttft(studies["Llama-3.1-8B"], 0.8) / _ttft(studies["Llama-3.1-8B"], 0.9)
        yield Row("7", "Llama: step of LRU from removed .9 to .8", "2.67x", f"{ratio:.2f}x", ">= 2", ratio >= 2)
    if "Mistral-7B" in studies:
        kept = np.arange(0.2, 0.95, 0.1)
        times = np.array([_ttft(studies["Mistral-7B"], round(1 - k, 1)) for k in kept])
        fit = np.polyval(np.polyfit(kept, times, 1), kept)
        bend = float(np.abs(times / fit - 1).max())
        yield Row("7", "Mistral: LRU from a straight line in kept bytes", "0", f"{bend:.1%}", "2%", bend <= 0.02)
    if "Qwen2.5-14B" in studies:
        ratio = _ttft(studies["Qwen2.5-14B"], 0.2) / _ttft(studies["Qwen2.5-14B"], 0.3)
        yield Row(
            "7", "Qwen2.5-14B: jump of LRU from removed .3 to .2", "1.83x", f"{ratio:.2f}x", ">= 1.6", ratio >= 1.6
        )


def _ttft(study: Study, removed: float) -> float:
    return float(study.fixed("knorm", removed)["ttft_mean_s"])


# --- speed-ups ------------------------------------------------------------------------------------------------------


def speed_ups(studies: dict[str, Study]) -> Iterator[Row]:
    """Against prefill and eviction only at quality .97, and against the best fixed ratio at its own quality."""
    points = published("fig7")
    ratios = {}
    for model, study in studies.items():
        mine = points[(points["model"] == model) & (points["system"] == "evicpress")].iloc[-1]["ttft_s"]
        for system, label in (("prefill", "Recompute"), ("eviction_only", "Eviction only")):
            for wanted in points.loc[(points["model"] == model) & (points["system"] == system), "ttft_s"]:
                ratio = study.points(label)[0, 0] / study.ttft_at("EvicPress", 0.97)
                ratios[model, system] = ratio
                yield within(
                    "speed-up",
                    f"{model} against {system.replace('_', ' ')}, quality .97",
                    wanted / mine,
                    ratio,
                    0.25,
                    2,
                )
        gains = best_fixed_ratio(study)
        if not len(gains):  # no static setting is as good as the worst point of the curve
            continue
        spread, good = f"{gains.min():.2f} to {gains.max():.2f}", bool(gains.min() >= 1.3)
        yield Row(
            "speed-up",
            f"{model} against the best fixed ratio + LRU, equal quality",
            "1.43 to 3.77 (all)",
            spread,
            ">= 1.3",
            good,
        )
    order = [
        ratios.get((model, "prefill"), np.nan)
        for model in ("Qwen3-30B-A3B", "Qwen2.5-14B", "Llama-3.1-8B", "longchat-7b")
    ]
    if np.isnan(order).any():
        return
    good = bool(np.all(np.diff(order) < 0))
    yield Row(
        "speed-up",
        "order against prefill: Qwen3-30B, Qwen2.5-14B, Llama, longchat",
        "2.19 1.85 1.53 1.29",
        " ".join(f"{r:.2f}" for r in order),
        "falling",
        good,
    )


def best_fixed_ratio(study: Study) -> np.ndarray:
    """TTFT ratios at the quality of every static setting that no other static setting beats."""
    fixed = np.concatenate([study.points(label) for label in LABELS.values()])
    curve = study.points("EvicPress")
    best = [p for p in fixed if not ((fixed[:, 0] <= p[0]) & (fixed[:, 1] > p[1])).any()]
    inside = [p for p in best if curve[:, 1].min() <= p[1] <= curve[:, 1].max()]
    return np.array([ttft / study.ttft_at("EvicPress", quality) for ttft, quality in inside])


# --- the whole table ------------------------------------------------------------------------------------------------


def compare(results: Path) -> list[Row]:
    """All rows that the finished sweeps in ``results`` allow."""

    def found(names: dict[str, str]) -> dict[str, Study]:
        return {
            key: Study(results / name) for key, name in names.items() if (results / name / "summary.parquet").exists()
        }

    studies = found({model: facts[0] for model, facts in MODELS.items()})
    rows = [row for model, study in studies.items() for row in figure_7(model, study)]
    rows += [*shapes(studies), *speed_ups(studies)]
    loads = {
        "Llama-3.1-8B": "evicpress-load-llama",
        "Mistral-7B": "evicpress-load-mistral",
        "Qwen2.5-14B": "evicpress-load-qwen2.5-14b",
    }
    tolerances = {"Llama-3.1-8B": 0.25, "Mistral-7B": 0.35, "Qwen2.5-14B": 3.0}
    rows += [row for model, study in found(loads).items() for row in figure_8(model, study, tolerances[model])]
    rows += [row for study in found({"": "evicpress-reprofile"}).values() for row in figure_10(study)]
    for model, figure in (("Qwen2.5-14B", figure_9), ("Mistral-7B", figure_11), ("Llama-3.1-8B", figure_12)):
        if model in studies:
            rows += figure(studies[model])
    return rows


def main() -> None:
    """Print the table as Markdown."""
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    print("| figure | what | published | ours | tolerance | |\n|---|---|---|---|---|---|")
    for row in compare(results):
        print("|", " | ".join((*row[:5], "pass" if row.passed else "**no**")), "|")


if __name__ == "__main__":
    main()
