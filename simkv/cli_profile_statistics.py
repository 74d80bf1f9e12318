"""What a profile's quality rows say, for ``simkv profile show``: tables of text, and the same as plain data.

What it is: printing around ``simkv.profile_statistics``; imported when the verb needs it, since it brings pandas.
What it is not: a computation.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from simkv.cli_output import fixed, print_table, records
from simkv.profile_statistics import (
    MEAN,
    Win,
    compressors,
    context_spread,
    family_of,
    split_name,
    task_gaps,
    wins_at_quality,
    wins_at_size,
)
from simkv.profiles import Profile, Variant, describe

__all__ = ["print_quality", "print_statistics", "statistics", "variant_rows"]

_SIZES = (0.5, 0.25)
_HALF = 0.5
_NOTHING = "-"


def variant_rows(found: Profile, points: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of ``describe`` in the profile's order, with ``interval`` {task or "(mean)": [low, high] or None}."""
    ends: dict[tuple[str, str], dict[str, list[float] | None]] = {}
    for row in points.to_dict("records"):
        interval = None if math.isnan(row["low"]) else [row["low"], row["high"]]
        ends.setdefault((row["compressor"], row["knob"]), {})[row["task"]] = interval
    return [{**row, "interval": ends.get(split_name(Variant.parse(row["variant"])), {})} for row in describe(found)]


def print_quality(found: Profile, rows: Sequence[dict[str, Any]]) -> None:
    """A row per variant, those of a compressor together, large to small."""
    order = {name: place for place, name in enumerate(dict.fromkeys(_compressor(row) for row in rows))}
    rows = sorted(rows, key=lambda row: (order[_compressor(row)], -row["size_ratio"]))
    tasks = found.tasks
    total = MEAN if len(tasks) > 1 else "".join(tasks)
    known = any(row["interval"].get(total) for row in rows)
    print("\nQuality by task (* on the Pareto front of size ratio and mean quality)")
    print_table(
        ["variant", "", "size ratio", *tasks, "mean", *(["95 %"] if known else [])],
        [
            [
                row["variant"],
                "*" if row["pareto"] else "",
                fixed(row["size_ratio"], 4),
                *(fixed(row["quality"][task]) for task in tasks),
                fixed(row["mean_quality"]),
                *([_range(*(row["interval"].get(total) or (math.nan, math.nan)))] if known else []),
            ]
            for row in rows
        ],
        text=2,
    )


def _compressor(row: dict[str, Any]) -> str:
    return split_name(Variant.parse(row["variant"]))[0]


def statistics(found: Profile, qualities: Sequence[float]) -> dict[str, Any]:
    """Wins at qualities and at sizes, gaps between tasks at half size, spread over contexts; plain data."""
    return {
        "at_quality": [dataclasses.asdict(win) for win in wins_at_quality(found, qualities)],
        "at_size": [dataclasses.asdict(win) for win in wins_at_size(found, _SIZES)],
        "task_gaps": [dataclasses.asdict(gap) for gap in task_gaps(found, _HALF)],
        "context_spread": records(context_spread(found)),
    }


def print_statistics(found: Profile, qualities: Sequence[float]) -> None:
    """Which compressor wins where, every compressor's sizes and qualities, and how contexts differ."""
    names = compressors(found)
    if not found.tasks or not names:
        return
    if len(names) > 1:
        _print_all_wins(found, qualities)
    _print_gaps(found)
    _print_spread(found)


def _print_all_wins(found: Profile, qualities: Sequence[float]) -> None:
    wins = wins_at_quality(found, qualities)
    print("\nWhich compressor reaches a quality with the smallest size ratio")
    _print_wins(wins, ("quality", "size", "factor"), _size, 2)
    print("\nWhich compressor keeps the most quality within a size ratio")
    _print_wins(wins_at_size(found, _SIZES), ("size ratio", "quality", "difference"), _quality, 3)
    _print_sizes(found, [win for win in wins if win.task == wins[-1].task])
    print("sizes are linear between the knobs of each compressor's own Pareto front, and never beyond them (-);")
    print("<= where its smallest knob is better still; sure: the whole interval is the winner's, against all others,")
    print("and the runner-up's knobs reach further down")


def _print_wins(wins: Sequence[Win], words: tuple[str, str, str], shown: Callable[..., str], places: int) -> None:
    """A row per win; ``words`` are the headers of target, value and margin.  A task is named where it changes."""
    known = any(not math.isnan(win.margin.low) for win in wins)
    target, value, margin = words
    headers = ["task", target, "winner", value, "runner-up", value, margin, *(["95 %", "sure"] if known else [])]
    rows = []
    for before, win in zip([None, *wins], wins, strict=False):
        row = ["" if before and before.task == win.task else win.task, f"{win.target:g}"]
        for name in (win.winner, win.runner_up):
            row += [name or _NOTHING, shown(win, name)]
        if _tied(win):
            row[2] = f"{win.winner} = {win.runner_up}"
        alone = win.winner is not None and win.runner_up is None
        row.append("alone" if alone else fixed(win.margin.value, places))
        sure = _NOTHING if win.significant is None else "yes" if win.significant else "no"
        interval = _NOTHING if alone else _range(win.margin.low, win.margin.high, places)
        rows.append([*row, *([interval, sure] if known else [])])
    print_table(headers, rows, text=3)


def _tied(win: Win) -> bool:
    """Whether the first two are equally good, so that neither wins."""
    pair = [win.values.get(name) for name in (win.winner, win.runner_up) if name]
    return len(pair) == 2 and pair[0] == pair[1]


def _size(win: Win, name: str | None) -> str:
    return ("<=" if name in win.at_edge else "") + _quality(win, name)


def _quality(win: Win, name: str | None) -> str:
    return fixed(None if name is None else win.values.get(name))


def _range(low: float, high: float, places: int = 3) -> str:
    if math.isnan(low):
        return _NOTHING
    return f"{low:.{places}f} to {high:.{places}f}"


def _print_sizes(found: Profile, wins: Sequence[Win]) -> None:
    where = f"{len(found.tasks)} tasks, mean" if wins[0].task == MEAN else wins[0].task
    print(f"\nSmallest size ratio at a quality ({where})")
    rows = [[name, family_of(name), *(_size(win, name) for win in wins)] for name in _by_family(found)]
    print_table(["compressor", "kind", *(f"at {win.target:g}" for win in wins)], rows, text=2)


def _by_family(found: Profile) -> list[str]:
    families = ("coder", "dropper", "chain")
    return sorted(compressors(found), key=lambda name: families.index(family_of(name)))


def _print_gaps(found: Profile) -> None:
    tasks, order = found.tasks, _by_family(found)
    gaps = sorted(task_gaps(found, _HALF), key=lambda gap: order.index(gap.compressor))
    if len(tasks) < 2 or not gaps:
        return
    known = any(not math.isnan(gap.gap.low) for gap in gaps)
    print("\nQuality at half size by task, and the gap between the best and the worst task")
    rows = [
        [
            gap.compressor,
            family_of(gap.compressor),
            *(fixed(gap.quality.get(task)) for task in tasks),
            fixed(gap.gap.value),
            *([_range(gap.gap.low, gap.gap.high)] if known else []),
        ]
        for gap in gaps
    ]
    print_table(["compressor", "kind", *tasks, "gap", *(["95 %"] if known else [])], rows, text=2)


def _print_spread(found: Profile) -> None:
    """Coefficient of variation over contexts, at the knob of each compressor that is nearest to half size."""
    spread = context_spread(found)
    if not (spread["contexts"] > 1).any():
        return
    halves = bool(spread["split_half"].notna().any())
    cells = {(row["variant"], row["task"]): _spread_cell(row, halves) for row in spread.to_dict("records")}
    rows, tasks = [], found.tasks
    for name in _by_family(found):
        nearest = min(compressors(found)[name], key=lambda variant: abs(found.size_ratio[variant] - _HALF))
        values = [cells.get((str(nearest), task), _NOTHING) for task in tasks]
        rows.append([str(nearest), fixed(found.size_ratio[nearest]), *values])
    print("\nSpread over contexts at the knob nearest to half size: standard deviation / mean in percent")
    print_table(["variant", "size ratio", *tasks], rows)
    if halves:
        print("in brackets the correlation of scoring and training questions: the share that is not query noise")


def _spread_cell(row: dict[str, Any], halves: bool) -> str:
    share = "(-)" if math.isnan(row["split_half"]) else f"({row['split_half']:.2f})"
    return f"{fixed(100 * row['cv'], 1)}{f' {share:>7}' if halves else ''}"
