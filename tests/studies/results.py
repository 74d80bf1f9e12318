"""Results of a sweep as operating points, and published figures as frames: the parts that comparisons are made of."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from simkv.comparison import delay_at_quality, quality_at_delay

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "experiments" / "evicpress" / "published"

LABELS = {"keydiff": "KeyDiff + LRU", "knorm": "Knorm + LRU", "snapkv": "SnapKV + LRU"}


class Row(NamedTuple):
    """One comparison."""

    figure: str
    what: str
    published: str
    ours: str
    tolerance: str
    passed: bool


def within(figure: str, what: str, wanted: float, found: float, relative: float, digits: int = 3) -> Row:
    """A figure that should be within a relative tolerance of the published one."""
    good = bool(abs(found / wanted - 1) <= relative)
    ours = f"{found:.{digits}f} ({found / wanted - 1:+.1%})"
    return Row(figure, what, f"{wanted:.{digits}f}", ours, f"{relative:.0%}", good)


def inside(figure: str, what: str, wanted: str, found: float, low: float, high: float, digits: int = 3) -> Row:
    """A figure that should lie in an interval."""
    return Row(
        figure, what, wanted, f"{found:.{digits}f}", f"{low:g} to {high:g}", bool(low - 1e-9 <= found <= high + 1e-9)
    )


def published(figure: str) -> pd.DataFrame:
    """The digitised points of a figure."""
    return pd.read_csv(PUBLISHED / f"{figure}.csv", comment="#")


@dataclass(frozen=True)
class Study:
    """A finished sweep."""

    folder: Path

    @property
    def table(self) -> pd.DataFrame:
        """One row per run."""
        return pd.read_parquet(self.folder / "summary.parquet")

    def curve(self, label: str) -> pd.DataFrame:
        """Runs of a label, by rising alpha where it has one."""
        rows = self.table[self.table["label"] == label]
        return rows.sort_values("policy.alpha") if rows["policy.alpha"].notna().all() else rows

    def points(self, label: str) -> np.ndarray:
        """float[n, 2] of (mean TTFT in s, mean quality)."""
        return self.curve(label)[["ttft_mean_s", "quality_mean"]].to_numpy(dtype=float)

    def requests(self, run: str) -> pd.DataFrame:
        """Measured requests of a run."""
        frame = pd.read_parquet(self.folder / "runs" / run / "requests.parquet")
        return frame[frame["measured"]]

    def quality_at(self, label: str, ttft_s: float) -> float:
        """Quality on the label's operating curve."""
        return quality_at_delay(self.points(label), ttft_s)

    def ttft_at(self, label: str, quality: float) -> float:
        """Seconds on the label's operating curve."""
        return delay_at_quality(self.points(label), quality)

    def moves(self, run: str) -> pd.DataFrame:
        """All moves of a run, in time order."""
        return pd.read_parquet(self.folder / "runs" / run / "moves.parquet")

    def fixed(self, method: str, removed: float) -> pd.Series:
        """The run of a static baseline; ``removed`` is the paper's fraction."""
        variant = "raw" if removed == 0 else f"{method}:{round(1 - removed, 1)}"
        rows = self.table[(self.table["policy"] == "lru") & (self.variants() == variant)]
        return rows.iloc[0]

    def variants(self) -> pd.Series:
        """Variant of each run of a static baseline."""
        return self.table["params"].map(lambda text: json.loads(text).get("variant", ""))


def between(values: np.ndarray, goal: float) -> tuple[int, int, float]:
    """Neighbours (i, j) in rising ``values`` and the share of j that gives ``goal``; ends are not passed."""
    j = int(np.clip(np.searchsorted(values, goal), 1, len(values) - 1))
    share = (goal - values[j - 1]) / (values[j] - values[j - 1])
    return j - 1, j, float(np.clip(share, 0.0, 1.0))


def crossing(rates: np.ndarray, ttft_s: np.ndarray, limit_s: float = 1.0) -> float:
    """Rate at which the TTFT passes a limit, linear between measured rates; infinity if never, 0 if always."""
    above = np.flatnonzero(ttft_s > limit_s)
    if not len(above) or above[0] == 0:
        return 0.0 if len(above) else float("inf")
    j = int(above[0])
    share = (limit_s - ttft_s[j - 1]) / (ttft_s[j] - ttft_s[j - 1])
    return float(rates[j - 1] + share * (rates[j] - rates[j - 1]))
