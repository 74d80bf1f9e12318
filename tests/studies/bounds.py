"""How far every policy is from the bound: the table of ``experiments/bounds/README.md``.

    python -m tests.studies.bounds results

What it is: the sweeps of ``experiments/bounds``, each policy's settings against the bound at their own quality.  What
it is not: a comparison of policies (``simkv.comparison``), which would be at one quality.
"""

import sys
from pathlib import Path

import pandas as pd

from simkv.comparison import compare_curves
from simkv.experiment_bounds import BOUND

STUDIES = ("bounds-adaptcache", "bounds-evicpress", "bounds-mooncake", "bounds-weka")
WORKLOAD = "trace.generate"


def gaps(results: Path) -> pd.DataFrame:
    """A row per setting: workload, policy, params, ratio (its mean TTFT / the bound's at its quality), table order."""
    frames = []
    for name in STUDIES:
        path = results / name / "summary.parquet"
        if not path.exists():
            continue
        table = pd.read_parquet(path)
        by = [WORKLOAD] if WORKLOAD in table else []
        label = table.loc[table["policy"] == BOUND, "label"].iloc[0]
        found = compare_curves(table, label, by=by)
        workload = found[WORKLOAD] if by else name.removeprefix("bounds-")
        frames.append(found.assign(workload=workload).rename(columns={"baseline": "policy", "delay_ratio": "ratio"}))
    return pd.concat(frames, ignore_index=True)[["workload", "policy", "params", "quality_mean", "ratio"]]


def cell(ratios: pd.Series) -> str:
    """Least and median ratio of a policy's settings."""
    if len(ratios) == 1:
        return f"{ratios.iloc[0]:.2f}"
    return f"{ratios.min():.2f} / {ratios.median():.2f}"


def main() -> None:
    """Print the table as Markdown, a row per policy, a column per workload."""
    found = gaps(Path(sys.argv[1] if len(sys.argv) > 1 else "results"))
    workloads = list(dict.fromkeys(found["workload"]))
    print("| policy | " + " | ".join(workloads) + " |\n|---|" + "---|" * len(workloads))
    for policy in dict.fromkeys(found["policy"]):
        own = found[found["policy"] == policy]
        cells = [cell(own.loc[own["workload"] == name, "ratio"]) for name in workloads]
        print(f"| `{policy}` | " + " | ".join(cells) + " |")
    print(f"\nsettings: {len(found)}, beaten: {int((found['ratio'] < 1).sum())}")


if __name__ == "__main__":
    main()
