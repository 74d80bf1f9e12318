"""Errors of composition rules on measured prompts: of a run's mean quality, and of single prompts.

What it is: tables made from rows.  The bias (predicted - measured, mean over prompts) is what the error of a simulated
mean quality is.  The error of one prompt also holds the chance of which blocks its questions ask for; the mean over all
rotations of an assignment ("settled") does not, since each block then had each variant equally often.  Fitted rules are
fitted on the even contexts and tested on the odd ones, and the other way round.  What it is not: measuring.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simkv.profiler.composition_plan import DROPPERS, RECOMPUTED
from simkv.profiler.composition_rules import RULES, Entries, Rule, fitted

__all__ = ["Row", "errors_of", "interval", "predicted", "summary"]

_RESAMPLES = 1000
_ANY = "any"
_ASSIGNMENT = ["task", "sample", "kind", "pool", "blocks", "group"]
_WORTH = {"raw": 1.0, RECOMPUTED: 1.0}
_BANDS = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)  # of the quality of a prompt's worst entry


@dataclass(frozen=True)
class Row:
    """What one prompt of one context came to.

    Attributes:
        task, sample: which context.
        kind, pool, group, turn: see ``composition_plan.Prompt``.
        blocks: how many.
        variants: by place, with blanks between them.
        quality: mean score of the answers against the uncompressed cache's.
    """

    task: str
    sample: int
    kind: str
    pool: str
    blocks: int
    group: int
    turn: int
    variants: str
    quality: float


def predicted(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, dict[str, list[float]]]]:
    """The rows that are not "alike", with a column of predictions per rule, and the exponents of fitted rules.

    Rules take the quality of an entry from the same context's blocks of the same size, all in its variant.  Those named
    "... task rows" take the task's mean of that, those named "... whole rows" the context's cache compressed in one
    piece, as profiles have it.  Exponents are by rule, then task or "all": [of even contexts, of odd contexts] each.
    """
    prompts = rows[rows["kind"] != "alike"].reset_index(drop=True)
    entries = {source: _entries(prompts, look_up) for source, look_up in _sources(rows).items()}
    exponents: dict[str, dict[str, list[float]]] = {}
    columns = {}
    for name, rule in RULES.items():
        if not rule.exponents:
            columns[name] = rule.value(entries["own rows"])
            continue
        for suffix, by_task in (("", False), (" by task", True)):
            columns[name + suffix], exponents[name + suffix] = _held_out(rule, prompts, entries["own rows"], by_task)
    for source in ("task rows", "whole rows"):
        columns[f"mean, {source}"] = RULES["mean"].value(entries[source])
    return prompts.assign(**columns), exponents


def _held_out(
    rule: Rule, prompts: pd.DataFrame, entries: Entries, by_task: bool
) -> tuple[NDArray[np.float64], dict[str, list[float]]]:
    """Predictions of each half of the contexts with exponents from the other half's mixtures, and these exponents."""
    half, task = (prompts["sample"] % 2).to_numpy(), prompts["task"].to_numpy()
    settled = _settled(prompts).to_numpy()
    mixtures = ((prompts["kind"] == "mixed") & (prompts["turn"] == 0)).to_numpy()  # a rule predicts alike for all turns
    values = np.zeros(len(prompts))
    exponents: dict[str, list[float]] = {}
    for name in sorted(set(task)) if by_task else [_ANY]:
        chosen = task == name if by_task else np.ones(len(task), dtype=bool)
        exponents[name] = []
        for learn in (0, 1):
            learnt, tested = chosen & mixtures & (half == learn), chosen & (half != learn)
            best = fitted(rule, entries.of(learnt), settled[learnt])
            values[tested] = rule.value(entries.of(tested), *best)
            exponents[name] += [round(exponent, 3) for exponent in best]
    return values, exponents


def _settled(prompts: pd.DataFrame) -> "pd.Series[float]":
    """Mean quality over the rotations of each prompt's assignment."""
    return prompts.groupby(_ASSIGNMENT)["quality"].transform("mean")


def _sources(rows: pd.DataFrame) -> dict[str, Callable[[str, int, int, str], float]]:
    """Quality of an entry by (task, sample, blocks, variant), as different tables have it."""
    alike = rows[rows["kind"] == "alike"]
    own = {
        (task, sample, blocks, variant): quality
        for task, sample, blocks, variant, quality in zip(
            *(alike[name] for name in ("task", "sample", "blocks", "pool", "quality")), strict=True
        )
    }
    means = alike.groupby(["task", "blocks", "pool"])["quality"].mean().to_dict()
    return {
        "own rows": lambda task, sample, blocks, variant: own[task, sample, blocks, variant],
        "task rows": lambda task, sample, blocks, variant: means[task, blocks, variant],
        "whole rows": lambda task, sample, blocks, variant: own[task, sample, 1, variant],
    }


def _entries(prompts: pd.DataFrame, look_up: Callable[[str, int, int, str], float]) -> Entries:
    most = int(prompts["blocks"].max())
    quality, share = np.ones((len(prompts), most)), np.zeros((len(prompts), most))
    dropped = np.zeros((len(prompts), most), dtype=bool)
    columns = (prompts[name] for name in ("task", "sample", "blocks", "variants"))
    for row, (task, sample, blocks, variants) in enumerate(zip(*columns, strict=True)):
        for place, variant in enumerate(variants.split()):
            worth = _WORTH.get(variant)
            quality[row, place] = look_up(task, sample, blocks, variant) if worth is None else worth
            dropped[row, place] = variant in DROPPERS
        share[row, :blocks] = 1 / blocks
    return Entries(quality, share, dropped)


def interval(
    errors: NDArray[np.float64], tasks: NDArray[np.object_], samples: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean over tasks of the mean errors, and its 95 % interval by resampling contexts within each task.

    Arguments: errors [prompts, rules]; task and context of each prompt.  Returns mean, low and high, [rules] each.
    """
    rng = np.random.default_rng(0)
    points, draws = [], []
    for task in sorted(set(tasks)):
        _, context = np.unique(samples[tasks == task], return_inverse=True)
        member = (np.arange(context.max() + 1)[:, None] == context).astype(float)  # [contexts, prompts of the task]
        sums, counts = member @ errors[tasks == task], member.sum(axis=1)
        picked = rng.integers(len(counts), size=(_RESAMPLES, len(counts)))
        points.append(sums.sum(axis=0) / counts.sum())
        draws.append(sums[picked].sum(axis=1) / counts[picked].sum(axis=1)[:, None])
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975], axis=0)
    return np.mean(points, axis=0), low, high


def errors_of(prompts: pd.DataFrame, rules: Sequence[str]) -> pd.DataFrame:
    """One row per kind of prompt, task ("all": mean over tasks) and rule.

    Columns: prompts (number); bias with low and high (95 % interval over contexts); mae and rmse of single prompts;
    settled_rmse of the mean over an assignment's rotations.
    """
    prompts = prompts.assign(settled=_settled(prompts))
    found = []
    for (kind, pool, blocks), cell in _cells(prompts):
        for task in [*dict.fromkeys(cell["task"]), "all"]:
            part = cell if task == "all" else cell[cell["task"] == task]
            values = part[list(rules)].to_numpy()
            errors = values - part["quality"].to_numpy()[:, None]
            bias, low, high = interval(errors, part["task"].to_numpy(), part["sample"].to_numpy())
            columns = {
                "bias": bias,
                "low": low,
                "high": high,
                "mae": np.abs(errors).mean(axis=0),
                "rmse": _rms(errors),
                "settled_rmse": _rms(values - part["settled"].to_numpy()[:, None]),
            }
            where = {"kind": kind, "pool": pool, "blocks": blocks, "task": task}
            found.append(pd.DataFrame({"rule": list(rules), **where, "prompts": len(part), **columns}))
    return pd.concat(found, ignore_index=True).round(4)


def _rms(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt((errors**2).mean(axis=0))


def _cells(prompts: pd.DataFrame) -> Iterator[tuple[tuple[str, str, Any], pd.DataFrame]]:
    mixed = prompts[prompts["kind"] == "mixed"]
    yield ("mixed", _ANY, _ANY), mixed
    for pool, part in mixed.groupby("pool", sort=False):
        yield ("mixed", str(pool), _ANY), part
    for blocks, part in mixed.groupby("blocks", sort=False):
        yield ("mixed", _ANY, blocks), part
    for key, part in prompts[prompts["kind"] != "mixed"].groupby(["kind", "pool", "blocks"], sort=False):
        yield (str(key[0]), str(key[1]), key[2]), part


def summary(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Errors by rule, and further tables: of exponents, entries, shares, places and predicted quality.

    Args:
        rows: frame of ``Row``.
    """
    prompts, exponents = predicted(rows)
    rules = [column for column in prompts.columns if column not in rows.columns]
    share = prompts[prompts["kind"] == "share"]
    first = share[share["group"] == 1]
    place = first["variants"].map(lambda text: [variant == "raw" for variant in text.split()].index(False))
    alike = rows[rows["kind"] == "alike"]
    prefix = share[share["turn"] == 0].assign(kind="raw after a harsh prefix")
    tails = pd.concat([share, prefix, prompts[prompts["kind"] == "recomputed"]]).rename(columns={"group": "harsh"})
    tables: dict[str, Any] = {
        "exponents": exponents,
        "alike": _table(alike, ["task", "pool", "blocks"], {"quality": "quality"}),
        "shares": _table(tails, ["task", "kind", "pool", "harsh"], {"quality": "measured", "mean": "mean"}),
        "places": _table(first.assign(place=place), ["task", "pool", "place"], {"quality": "measured", "mean": "mean"}),
        "bands": _bands(prompts[prompts["kind"] == "mixed"]),
    }
    return errors_of(prompts, rules), tables


def _table(frame: pd.DataFrame, by: list[str], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    means = frame.groupby(by, sort=False)[list(columns)].mean().round(4).rename(columns=dict(columns))
    return means.reset_index().to_dict("records")


def _bands(mixed: pd.DataFrame) -> list[dict[str, Any]]:
    """Bias of the mean rule by pool, task and the quality of the worst entry."""
    found = []
    band = np.clip(np.digitize(mixed["minimum"], _BANDS, right=True), 1, len(_BANDS) - 1)
    for (pool, number), cell in mixed.groupby(["pool", band], sort=False):
        for task in [*dict.fromkeys(cell["task"]), "all"]:
            part = cell if task == "all" else cell[cell["task"] == task]
            errors = (part[["mean"]] - part[["quality"]].to_numpy()).to_numpy()
            found_here = interval(errors, part["task"].to_numpy(), part["sample"].to_numpy())
            bias, low, high = (round(float(value[0]), 4) for value in found_here)
            where = {"pool": pool, "task": task, "worst_above": _BANDS[number - 1], "worst_up_to": _BANDS[number]}
            found.append({**where, "prompts": len(part), "bias": bias, "low": low, "high": high})
    return found
