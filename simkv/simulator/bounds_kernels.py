"""The compiled loops of the bound: one pass over a trace, and one evaluation of the dual function.

What it is: plain loops over the arrays of ``bounds_problem.py``.  What it is not: the reason why they bound
anything (``bounds.py``) or the choice of prices (``bounds_dual.py``).  Times are float seconds, sizes float bytes.
"""

import numpy as np
from numba import njit

__all__ = ["evaluate", "flight_bytes", "form_groups", "scan"]

_NEVER = 2**62


@njit(cache=True)
def scan(clock, offsets, ids, tokens, inputs, prefill, base, floor, timed, measured):  # type: ignore[no-untyped-def]
    """Which blocks of each request could be hits, and since when their bytes would have to be held.

    Args:
        clock: int64[R], never decreasing: ns of arrival, or the request's number.
        offsets, ids, tokens, inputs: columns of the trace.
        prefill, base, floor: of the cost tables, ns.
        timed: whether requests overlap in time, so that nothing is a hit before its first copy can exist, and
            what a request outside the summary has touched cannot be charged for.
        measured: bool[R].

    Returns:
        candidates int64[R] (leading blocks that could be hits and hold tokens of the prompt),
        covered int64[R] (their tokens), previous int32[N] (request since which a hit must have been stored; the
        request itself where nothing can be charged).
    """
    requests, blocks = len(inputs), len(tokens)
    ready = np.full(blocks, _NEVER)
    last = np.full(blocks, -1, np.int32)
    spoilt = np.zeros(blocks, np.bool_)
    candidates = np.zeros(requests, np.int64)
    covered = np.zeros(requests, np.int64)
    previous = np.zeros(len(ids), np.int32)
    mark = np.full(blocks, -1, np.int32)
    for t in range(requests):
        start, leading = 0, True
        for i in range(offsets[t], offsets[t + 1]):
            block = ids[i]
            previous[i] = t if mark[block] == t or spoilt[block] else last[block]
            mark[block] = t
            leading = leading and start < inputs[t] and ready[block] <= clock[t]
            if leading:
                start = min(start + tokens[block], inputs[t])
                candidates[t] += 1
        covered[t] = start
        least = 0
        if timed and inputs[t] > start:
            least = max(floor, base + prefill[inputs[t]] - prefill[start])
        for i in range(offsets[t], offsets[t + 1]):
            block = ids[i]
            last[block] = t
            ready[block] = min(ready[block], clock[t] + least)
            spoilt[block] = spoilt[block] or (timed and not measured[t])
    return candidates, covered, previous


@njit(cache=True)
def flight_bytes(offsets, ids, largest, candidates, previous, measured):  # type: ignore[no-untyped-def]
    """float64[R]: bytes of each request's blocks that a later request may find stored and is charged for."""
    requests = len(candidates)
    found = np.zeros(requests)
    later = np.zeros(len(largest), np.bool_)
    mark = np.full(len(largest), -1, np.int32)
    for t in range(requests - 1, -1, -1):
        for i in range(offsets[t], offsets[t + 1]):
            block = ids[i]
            if later[block] and mark[block] != t:
                found[t] += largest[block]
            mark[block] = t
        if measured[t]:
            for i in range(offsets[t], offsets[t] + candidates[t]):
                if previous[i] != t:
                    later[ids[i]] = True
    return found


@njit(cache=True)
def form_groups(  # type: ignore[no-untyped-def]
    offsets, ids, tokens, inputs, prefill, shared, flat, block_class, block_row, candidates, previous, measured
):
    """Runs of neighbouring candidates that differ in nothing but what recomputing them costs.

    Args:
        shared: float64[R], ns of a request's fixed prefill that each candidate bears.
        flat: bool[R], True where recomputing costs the same whatever is missing, so that candidates bear no more.
        (others): see ``scan``; classes and quality rows by block.

    Returns:
        (request offsets int64[R + 1], previous, class, row, counted tokens, member offsets [G + 1], saved seconds of
        the members, largest first, and their running sums).
    """
    requests = len(inputs)
    total = 0
    for t in range(requests):
        total += candidates[t] if measured[t] else 0
    starts = np.zeros(requests + 1, np.int64)
    group = np.zeros((4, total), np.int32)
    own = np.zeros(4, np.int32)
    members = np.zeros(total + 1, np.int64)
    saved = np.zeros(total)
    count, filled = 0, 0
    for t in range(requests):
        start = 0
        first = filled
        for i in range(offsets[t], offsets[t] + (candidates[t] if measured[t] else 0)):
            block = ids[i]
            counted = min(tokens[block], inputs[t] - start)
            own[0], own[1], own[2], own[3] = previous[i], block_class[block], block_row[block], counted
            same = filled > first
            for k in range(4):
                same = same and group[k, count - 1] == own[k]
            if not same:
                for k in range(4):
                    group[k, count] = own[k]
                members[count] = filled
                count += 1
            saved[filled] = shared[t] * 1e-9
            if not flat[t]:
                saved[filled] += (prefill[start + counted] - prefill[start]) * 1e-9
            filled += 1
            start += counted
        starts[t + 1] = count
    members[count] = filled
    sums = _sort_members(saved, members[: count + 1])
    return (
        starts,
        group[0, :count],
        group[1, :count],
        group[2, :count],
        group[3, :count],
        members[: count + 1],
        saved,
        sums,
    )


@njit(cache=True)
def _sort_members(saved, members):  # type: ignore[no-untyped-def]
    """Sorts what the members of each group save, largest first, in place; returns the running sums."""
    sums = np.zeros(len(saved))
    for g in range(len(members) - 1):
        part = np.sort(saved[members[g] : members[g + 1]])[::-1]
        saved[members[g] : members[g + 1]] = part
        sums[members[g] : members[g + 1]] = np.cumsum(part)
    return sums


@njit(cache=True)
def _taken(saved, first, last, weight, gain):  # type: ignore[no-untyped-def]
    """How many of the members first..last (largest first) are worth a hit: weight x saved + gain > 0."""
    if weight * saved[last - 1] + gain > 0.0:
        return last - first
    low, high = first, last - 1
    while low < high:
        middle = (low + high) // 2
        if weight * saved[middle] + gain > 0.0:
            low = middle + 1
        else:
            high = middle
    return low - first


@njit(cache=True)
def _lane_sums(weights, lane_read, lane_link, lane_work, lane_constant, on_read, on_link):  # type: ignore[no-untyped-def]
    """The weighted mean of the lanes: into ``on_read`` and ``on_link`` by option; returns its work and constant."""
    on_read[:] = 0.0
    on_link[:] = 0.0
    on_work, constant = 0.0, 0.0
    for lane in range(len(weights)):
        weight = weights[lane]
        if weight > 0.0:
            on_work += weight * lane_work[lane]
            constant += weight * lane_constant[lane]
            for o in range(len(on_read)):
                on_read[o] += weight * lane_read[lane, o]
                on_link[o] += weight * lane_link[lane, o]
    return on_work, constant


@njit(cache=True)
def _move_weights(weights, slope, step):  # type: ignore[no-untyped-def]
    """One multiplicative step of a request's lane weights towards the lanes with the larger delay."""
    largest = -np.inf
    for lane in range(len(weights)):
        if weights[lane] > 0.0:
            largest = max(largest, slope[lane])
    total = 0.0
    for lane in range(len(weights)):
        if weights[lane] > 0.0:
            weights[lane] = max(weights[lane] * np.exp(step * (slope[lane] - largest)), 1e-12)
            total += weights[lane]
    for lane in range(len(weights)):
        weights[lane] /= total


@njit(cache=True)
def _best(weight, keep, part, on_work, on_read, on_link, of, fixed, charged, quality, cost):  # type: ignore[no-untyped-def]
    """(gain without the prefill that it saves, option) of the best placement of one block; (-inf, -1) if none fits."""
    best, chosen = -np.inf, -1
    o = 0
    for j in range(len(cost)):
        for v in range(len(quality)):
            delay = (
                on_read[o] * (of[0, o] + part * fixed[0, o])
                + on_link[o] * (of[1, o] + part * fixed[1, o])
                + on_work * (of[2, o] + part * fixed[2, o])
            )
            gain = weight * quality[v] - keep * delay - charged[o] * cost[j]
            if gain > best:
                best, chosen = gain, o
            o += 1
    return best, chosen


@njit(cache=True)
def evaluate(  # type: ignore[no-untyped-def]
    alpha, prices, burden, starts, previous, klass, row, share, members, saved, sums, several, count, work, quality,
    charged, times, fixed, lane_read, lane_link, lane_work, lane_constant, weights, step, held, late
):  # fmt: skip
    """The requests' part of the dual function at given prices and lane weights, and its slopes.

    Args:
        alpha: seconds per unit of quality.
        prices: float64[R, T], charged price of holding one byte on a tier, summed up to each request.
        burden: float64[R], the discount of each request's delay for bytes that it stores late.
        starts, previous, klass, row, share, members, saved, sums: the groups; see ``Groups``.
        several: int8[R], 0 where a request has one candidate, 1 where more; count: int64[R], candidates.
        work: float64[R], s of a full prefill; quality: float64[rows, V], relative to a recomputed token's 1.
        charged, times, fixed: per option; see ``Options``.
        lane_*: see ``Lanes``; weights: float64[R, L], changed in place if ``step`` > 0.
        held: float64[R, T], out: bytes that begin to be held at each request, less those that end.
        late: float64[R], out: each request's delay.

    Returns:
        (sum of utilities less alpha per request, sum of quality lost).
    """
    requests, tiers = prices.shape
    lanes, options = lane_read.shape
    variants = options // tiers
    value, lost = 0.0, 0.0
    on_read, on_link, spent_read, spent_link = np.empty((4, options))
    cost, slope = np.empty(tiers), np.empty(lanes)
    held[:] = 0.0
    for t in range(requests):
        keep = 1.0 - burden[t]
        late[t] = work[t]
        if starts[t] == starts[t + 1]:
            value -= keep * work[t]
            continue
        kind = several[t]
        part = kind / count[t]
        on_work, constant = _lane_sums(weights[t], lane_read, lane_link, lane_work, lane_constant, on_read, on_link)
        spent_read[:] = 0.0
        spent_link[:] = 0.0
        left, decoding, gained = work[t], 0.0, 0.0
        for g in range(starts[t], starts[t + 1]):
            since, c = previous[g], klass[g]
            for j in range(tiers):
                cost[j] = prices[t, j] - prices[since, j]
            of, bytes_of, quality_of = times[kind, c], charged[c], quality[row[g]]
            best, chosen = _best(
                alpha * share[g], keep, part, on_work, on_read, on_link, of, fixed, bytes_of, quality_of, cost
            )
            first, last = members[g], members[g + 1]
            if keep * on_work * saved[first] + best <= 0.0:
                continue
            hits = _taken(saved, first, last, keep * on_work, best)
            spared = sums[first + hits - 1]
            gained += keep * on_work * spared + hits * best
            o = chosen
            left -= spared
            spent_read[o] += hits * (of[0, o] + part * fixed[0, o])
            spent_link[o] += hits * (of[1, o] + part * fixed[1, o])
            decoding += hits * (of[2, o] + part * fixed[2, o])
            lost -= hits * share[g] * quality_of[o % variants]
            held[since, o // variants] += hits * bytes_of[o]
            held[t, o // variants] -= hits * bytes_of[o]
        value += gained - keep * (on_work * work[t] - constant)
        late[t] = on_work * (left + decoding) - constant + (on_read * spent_read + on_link * spent_link).sum()
        if step > 0.0 and lanes > 2:
            for lane in range(lanes):
                slope[lane] = lane_work[lane] * (left + decoding) - lane_constant[lane]
                for o in range(options):
                    slope[lane] += lane_read[lane, o] * spent_read[o] + lane_link[lane, o] * spent_link[o]
            _move_weights(weights[t], slope, step / max(work[t], 1e-12))
    return value, lost
