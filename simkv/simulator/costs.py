"""Trace + profile + tiers -> integer tables of bytes and nanoseconds: the only place durations are computed.

Every engine reads these tables and adds their entries; none multiplies, divides or rounds a duration of
its own, so that two engines can agree bit for bit.  Rules (SPECIFICATION.md section 2): bytes are rounded
up, transfer times are rounded up per block, fitted lines are rounded to the nearest ns per block.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simkv.errors import ProfileError, TraceError
from simkv.profiles import RAW, Line, PrefillFit, Profile, TierSpec
from simkv.simulator.quality import QualityTables, quality_tables
from simkv.traces.trace import Trace
from simkv.units import NS_PER_S, seconds_to_ns

__all__ = ["UNLIMITED", "ByClass", "CostTables", "block_starts", "build_costs", "transfer_ns"]

UNLIMITED = 2**62
_PPB = 1_000_000_000
_MAX_PREFILL_TOKENS = 50_000_000

ByClass = list[int]  # indexed by size class


@dataclass(frozen=True)
class CostTables:
    """Everything an engine needs to know about durations and sizes; all integers, ns and bytes.

    Index names: t tier, v variant, c size class (distinct token counts of blocks), b block.

    Attributes:
        tiers: fast to slow.
        variants: text of each variant; index 0 is raw.
        capacity: [t] bytes, ``UNLIMITED`` for none.
        block_class: [b] size class; ``class_tokens``: [c] tokens.
        size: [v][c] stored bytes.
        read_fixed, read: [t][v] and [t][v][c] time on the read channel per transfer and per block.
        link_fixed, link: same on the host link towards the GPU; both 0 without one.
        link_write: [v][c] on the host link from the GPU, where new and recoded entries come from.
        write_fixed, write: [t] and [t][v][c] time on the write channel.
        decode_fixed, decode: [t][v], [t][v][c] decompression on the compute server.
        encode_fixed, encode: [v], [v][c] compression, added to background moves.
        prefill_base, prefill_floor, prefill: prefilling tokens m..n takes
            max(floor, base + prefill[n] - prefill[m]) when n > m, else 0.
        recompute: [b] time to prefill this block alone, at its place in its chain.
        whole_contexts: True when every request is one block, so that a block's own load and recompute
            estimates include the fixed parts.
        layers: layers of the model (for layerwise overlap).
        mean_prompt_tokens: mean prompt length of the trace, a workload statistic that policies may know.
        quality: see ``quality.py``.
    """

    tiers: tuple[TierSpec, ...]
    variants: tuple[str, ...]
    capacity: tuple[int, ...]
    block_class: list[int]
    class_tokens: list[int]
    size: list[ByClass]
    read_fixed: list[list[int]]
    read: list[list[ByClass]]
    link_fixed: int
    link: list[ByClass]
    link_write: list[ByClass]
    write_fixed: list[int]
    write: list[list[ByClass]]
    decode_fixed: list[list[int]]
    decode: list[list[ByClass]]
    encode_fixed: list[int]
    encode: list[ByClass]
    prefill_base: int
    prefill_floor: int
    prefill: list[int]
    recompute: list[int]
    whole_contexts: bool
    layers: int
    mean_prompt_tokens: float
    quality: QualityTables

    def prefill_ns(self, cached_tokens: int, total_tokens: int) -> int:
        """Time to prefill tokens ``cached_tokens`` to ``total_tokens`` of a prompt; 0 when there are none."""
        if total_tokens <= cached_tokens:
            return 0
        grown = self.prefill[total_tokens] - self.prefill[cached_tokens]
        return max(self.prefill_floor, self.prefill_base + grown)


def transfer_ns(count: int, bytes_per_s: int) -> int:
    """Nanoseconds for ``count`` bytes at a bandwidth, rounded up, in exact arithmetic."""
    return -(-count * NS_PER_S // bytes_per_s)


def build_costs(
    trace: Trace,
    profile: Profile,
    tiers: tuple[TierSpec, ...],
    *,
    host_link: TierSpec | None = None,
    seed: int = 0,
    quality_view: str = "mean",
    quality_queries: int = 50,
) -> CostTables:
    """All tables of one run.

    Args:
        trace: with tasks assigned (every task known to the profile) if the profile's quality is to be used.
        profile: with complete speeds.
        tiers: fast to slow; capacities and channels override the profile's.
        host_link: channel between host memory and the GPU, None for none.
        seed: assigns each context one measured sample row of its task.
        quality_view: "mean" or "sampled", what policies see; see ``quality.py``.
        quality_queries: training queries behind a sampled estimate.

    Raises:
        ProfileError: when the profile lacks a number, TraceError when the trace lacks tasks.
    """
    profile.require_speeds()
    tokens, block_class = np.unique(trace.block_tokens, return_inverse=True)
    class_tokens = tokens.tolist()
    size = [_sizes(class_tokens, profile, variant) for variant in profile.variants]
    whole = bool((np.diff(trace.block_offsets) <= 1).all())
    reads = [_reads(class_tokens, profile, tier, size, whole) for tier in tiers]
    starts = block_starts(trace)
    prefill = _prefill_table(profile.prefill, trace, starts)
    base = seconds_to_ns(max(profile.prefill.base_s, 0.0))
    floor = seconds_to_ns(profile.prefill.floor_s)
    grown = prefill[starts + trace.block_tokens] - prefill[starts]
    recompute = np.maximum(grown + base, floor) if whole else grown
    encode = [_line(class_tokens, profile.encode_lines.get(variant), whole) for variant in profile.variants]
    return CostTables(
        tiers=tiers,
        variants=tuple(str(variant) for variant in profile.variants),
        capacity=tuple(UNLIMITED if t.capacity_bytes is None else t.capacity_bytes for t in tiers),
        block_class=block_class.tolist(),
        class_tokens=class_tokens,
        size=size,
        read_fixed=[[fixed for fixed, _, _ in rows] for rows in reads],
        read=[[per_block for _, per_block, _ in rows] for rows in reads],
        link_fixed=seconds_to_ns(host_link.latency_s) if host_link else 0,
        link=[_transfers(row, host_link.read_bytes_per_s) if host_link else [0] * len(row) for row in size],
        link_write=[_transfers(row, host_link.write_bytes_per_s) if host_link else [0] * len(row) for row in size],
        write_fixed=[seconds_to_ns(tier.latency_s) for tier in tiers],
        write=[[_transfers(row, tier.write_bytes_per_s) for row in size] for tier in tiers],
        decode_fixed=[[decode[0] for _, _, decode in rows] for rows in reads],
        decode=[[decode[1] for _, _, decode in rows] for rows in reads],
        encode_fixed=[fixed for fixed, _ in encode],
        encode=[per_block for _, per_block in encode],
        prefill_base=base,
        prefill_floor=floor,
        prefill=prefill.tolist(),
        recompute=recompute.tolist(),
        whole_contexts=whole,
        layers=profile.layers,
        mean_prompt_tokens=float(trace.input_tokens.mean()) if len(trace) else 0.0,
        quality=quality_tables(trace, profile, seed=seed, view=quality_view, queries=quality_queries),
    )


def block_starts(trace: Trace) -> NDArray[np.int64]:
    """int64[B]: tokens before each block in its chain, where it first occurs."""
    lengths = trace.block_tokens[trace.block_ids].astype(np.int64)
    ends = np.cumsum(lengths)
    counts = np.diff(trace.block_offsets)
    before = np.concatenate([[0], ends])[trace.block_offsets[:-1]]
    starts = ends - lengths - np.repeat(before, counts)
    first = np.zeros(trace.n_blocks, dtype=np.int64)
    first[trace.block_ids[::-1]] = starts[::-1]
    return first


def _sizes(class_tokens: list[int], profile: Profile, variant: object) -> ByClass:
    ratio_ppb = round(profile.size_ratio[variant] * _PPB)  # type: ignore[index]
    return [-(-tokens * profile.kv_bytes_per_token * ratio_ppb // _PPB) for tokens in class_tokens]


def _transfers(sizes: ByClass, bytes_per_s: int) -> ByClass:
    return [transfer_ns(size, bytes_per_s) for size in sizes]


def _line(class_tokens: list[int], line: Line | None, whole: bool) -> tuple[int, ByClass]:
    """Fixed and per block; measured points are interpolated where a block is a whole context, as lines add up."""
    if line is None:
        return 0, [0] * len(class_tokens)
    if whole and line.points:
        return 0, [seconds_to_ns(line.seconds(tokens)) for tokens in class_tokens]
    return seconds_to_ns(line.fixed_s), [seconds_to_ns(line.per_token_s * tokens) for tokens in class_tokens]


def _reads(
    class_tokens: list[int], profile: Profile, tier: TierSpec, size: list[ByClass], whole: bool
) -> list[tuple[int, ByClass, tuple[int, ByClass]]]:
    """Per variant: (fixed, per block) on the read channel, and decompression.

    A measured load line of this tier covers transfer and decompression together; without one the load is
    latency + bytes / bandwidth, and decompression is charged to the compute server.
    """
    rows = []
    for index, variant in enumerate(profile.variants):
        line = profile.load_lines.get((tier.name, variant))
        if line is not None:
            rows.append((*_line(class_tokens, line, whole), _line(class_tokens, None, whole)))
            continue
        if variant != RAW and variant not in profile.decode_lines:
            raise ProfileError(
                f"profile {profile.name}: no load line for tier {tier.name!r} and no decode line for {variant}"
            )
        per_block = _transfers(size[index], tier.read_bytes_per_s)
        decode = _line(class_tokens, profile.decode_lines.get(variant), whole)
        rows.append((seconds_to_ns(tier.latency_s), per_block, decode))
    return rows


def _prefill_table(fit: PrefillFit, trace: Trace, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    longest = int(trace.input_tokens.max()) if len(trace) else 0
    if trace.n_blocks:
        longest = max(longest, int((starts + trace.block_tokens).max()))
    if longest > _MAX_PREFILL_TOKENS:
        raise TraceError(f"{trace.meta['name']}: a prompt of {longest} tokens is longer than {_MAX_PREFILL_TOKENS}")
    x = np.arange(longest + 1, dtype=np.float64)
    if fit.points:
        seconds = fit.interpolated(x)
    else:
        seconds = min(fit.base_s, 0.0) + fit.per_token_s * x + fit.per_token2_s * x * x
    return np.maximum(np.rint(seconds * NS_PER_S), 0).astype(np.int64)
