"""Recorder -> Result: one row per request, one per move, occupancy over time, and the summary of a run.

The recorder listens and never decides.  ``Result`` is what users get: pandas frames, saved as Parquet with the
metadata that makes the run repeatable, whole or not at all.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from simkv.errors import SimkvError
from simkv.simulator.transfers import KINDS
from simkv.traces.transform import families

if TYPE_CHECKING:
    from simkv.simulator.engine import Engine, Request

__all__ = ["Recorder", "Result", "moves_frame", "occupancy_frame", "requests_frame", "revisits"]

_PPB = 1_000_000_000
_OCCUPANCY_SAMPLES = 2000
_FRAMES = ("requests", "moves", "occupancy")


class Recorder:
    """Collects rows during a run.

    Args:
        requests: how many there will be.
        tiers: how many tiers.
    """

    def __init__(self, requests: int, tiers: int) -> None:
        self.rows: list[tuple[int, ...]] = []
        self.samples: list[tuple[int, ...]] = []
        self.last_token_ns: dict[int, int] = {}  # of requests of two tokens or more, where decoding is modelled
        self._tiers = tiers
        self._stride = max(1, -(-requests // (_OCCUPANCY_SAMPLES - 1)))  # the last sample is at the end

    def request(self, request: Request, input_tokens: int, load: int, queue: int, work: int) -> None:
        """One finished request; times in ns."""
        per_tier = [0] * self._tiers
        slowest = -1
        variants: dict[int, int] = {}
        left = request.hit_tokens
        for entry in request.loaded:
            tier, variant = entry.placement  # type: ignore[misc]
            counted = min(entry.tokens, left)
            left -= counted
            per_tier[tier] += counted
            variants[variant] = variants.get(variant, 0) + counted
            if tier > slowest:
                slowest = tier
        variant = min(variants, key=lambda v: (-variants[v], v)) if variants else -1
        recomputed = input_tokens - request.hit_tokens
        quality = request.quality + recomputed * _PPB
        self.rows.append(
            (
                request.id,
                request.arrival_ns,
                load,
                queue,
                work,
                len(request.loaded),
                request.hit_tokens,
                quality,
                slowest,
                variant,
                *per_tier,
            )
        )

    def due(self, finished: int) -> bool:
        """Whether occupancy should be sampled after this many requests."""
        return finished % self._stride == 0

    def sample(self, now: int, used: list[int], count: list[int]) -> None:
        """Bytes and entries per tier at ``now``."""
        self.samples.append((now, *used, *count))


@dataclass
class Result:
    """Outcome of one run.

    Attributes:
        requests, moves, occupancy: frames; columns are listed in SPECIFICATION.md section 8.
        meta: resolved config, hashes, versions, seed, channel use, counts.
        summary: one flat dict of figures.
    """

    requests: pd.DataFrame
    moves: pd.DataFrame
    occupancy: pd.DataFrame
    meta: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> Path:
        """Write ``folder`` (three Parquet files and meta.json), whole or not at all; replaces an older result.

        Raises SimkvError when the folder holds something else.
        """
        folder = Path(folder)
        if folder.exists() and not (folder / "meta.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise SimkvError(f"{folder}: holds something that is no result; name another folder")
        staging = folder.parent / f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}"
        staging.mkdir(parents=True)
        try:
            for name in _FRAMES:
                getattr(self, name).to_parquet(staging / f"{name}.parquet", index=False, compression="zstd")
            text = json.dumps({"meta": self.meta, "summary": self.summary}, indent=1)
            (staging / "meta.json").write_text(text + "\n", encoding="utf-8")
            _swap(staging, folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """Read what ``save`` wrote.  Raises SimkvError naming what is missing or broken."""
        folder = Path(folder)
        try:
            facts = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            frames = {name: pd.read_parquet(folder / f"{name}.parquet") for name in _FRAMES}
            return cls(**frames, meta=facts["meta"], summary=facts["summary"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SimkvError(f"{folder}: not a complete result: {error}") from error


def _swap(staging: Path, folder: Path) -> None:
    """Put ``staging`` in the place of ``folder``; what was there is deleted only once that has worked."""
    older = staging.with_name(staging.name + ".old")
    if folder.exists():
        os.replace(folder, older)
    try:
        os.replace(staging, folder)
    except BaseException:
        if older.exists():
            os.replace(older, folder)
        raise
    shutil.rmtree(older, ignore_errors=True)


def requests_frame(engine: Engine) -> pd.DataFrame:
    """One row per request in trace order; see SPECIFICATION.md section 8.

    Args:
        engine: after its run.  Every row is marked as measured here.
    """
    trace, costs = engine.trace, engine.costs
    rows = sorted(engine.recorder.rows)
    table = np.array(rows, dtype=np.int64).reshape(len(rows), 10 + len(costs.tiers))
    tiers = [tier.name for tier in costs.tiers]
    total = trace.input_tokens.astype(np.int64)
    revisit = revisits(trace.block_ids, trace.block_offsets)
    names = np.array([*tiers, "recompute"])
    variants = np.array([*costs.variants, "none"])
    tasks = np.array([*trace.task_names, ""])
    frame = {
        "request": table[:, 0],
        "arrival_s": table[:, 1] / 1e9,
        "ttft_s": table[:, 2:5].sum(axis=1) / 1e9,
        "load_s": table[:, 2] / 1e9,
        "queue_s": table[:, 3] / 1e9,
        "compute_s": table[:, 4] / 1e9,
        **_token_times(engine, table),
        "input_tokens": trace.input_tokens,
        "output_tokens": trace.output_tokens,
        "blocks": np.diff(trace.block_offsets),
        "hit_blocks": table[:, 5],
        "hit_tokens": table[:, 6],
        **{f"tokens_{name}": table[:, 10 + index] for index, name in enumerate(tiers)},
        "quality": np.where(total > 0, table[:, 7] / np.maximum(total, 1) / _PPB, 1.0),
        "served_by": names[table[:, 8]],
        "variant": variants[table[:, 9]],
        "revisit": revisit,
        "measured": True,
        "session": trace.session,
        "family": families(trace),
        "task": tasks[trace.task],
    }
    return pd.DataFrame(frame)


def _token_times(engine: Engine, table: np.ndarray) -> dict[str, np.ndarray]:
    """Where decoding is modelled: seconds to the last token, and per token after the first (NaN if there is none)."""
    if engine.decode is None:
        return {}
    ttft = table[:, 2:5].sum(axis=1)
    first = table[:, 1] + ttft
    ends = engine.recorder.last_token_ns
    last = np.array([ends.get(row, end) for row, end in enumerate(first.tolist())], dtype=np.int64)
    tokens = engine.trace.output_tokens.astype(np.int64)
    each = np.where(tokens > 1, (last - first) / np.maximum(tokens - 1, 1) / 1e9, np.nan)
    return {"tpot_s": each, "e2e_s": (last - table[:, 1]) / 1e9}


def revisits(block_ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """bool[R]: the request asks for some block that an earlier request asked for."""
    requests = len(offsets) - 1
    owner = np.repeat(np.arange(requests), np.diff(offsets))
    first = np.full(int(block_ids.max(initial=-1)) + 1, -1, dtype=np.int64)
    first[block_ids[::-1]] = owner[::-1]
    again = first[block_ids] < owner
    revisit = np.zeros(requests, dtype=bool)
    revisit[owner[again]] = True
    return revisit


def moves_frame(engine: Engine) -> pd.DataFrame:
    """One row per net change of an entry, in time order; empty when moves were not recorded."""
    rows = engine.mover.rows
    table = np.frombuffer(rows, dtype=np.int64).reshape(-1, 10) if rows else np.zeros((0, 10), dtype=np.int64)
    tiers = np.array([*(tier.name for tier in engine.costs.tiers), ""])
    variants = np.array([*engine.costs.variants, ""])

    def text(names: Any, codes: np.ndarray) -> pd.Categorical:
        return pd.Categorical.from_codes(np.where(codes < 0, len(names) - 1, codes), list(names))

    return pd.DataFrame(
        {
            "time_s": table[:, 0] / 1e9,
            "request": table[:, 1],
            "block": table[:, 2],
            "kind": text(KINDS, table[:, 3]),
            "from_tier": text(tiers, table[:, 4]),
            "from_variant": text(variants, table[:, 5]),
            "to_tier": text(tiers, table[:, 6]),
            "to_variant": text(variants, table[:, 7]),
            "tokens": table[:, 8],
            "bytes": table[:, 9],
        }
    )


def occupancy_frame(engine: Engine) -> pd.DataFrame:
    """Bytes and entries per tier over time, at most some 2,000 samples."""
    tiers = engine.costs.tiers
    table = np.array(engine.recorder.samples, dtype=np.int64).reshape(-1, 1 + 2 * len(tiers))
    parts = [
        pd.DataFrame(
            {
                "time_s": table[:, 0] / 1e9,
                "tier": tier.name,
                "used_bytes": table[:, 1 + index],
                "capacity_bytes": np.nan if tier.capacity_bytes is None else float(tier.capacity_bytes),
                "entries": table[:, 1 + len(tiers) + index],
            }
        )
        for index, tier in enumerate(tiers)
    ]
    return pd.concat(parts, ignore_index=True)
