"""Replay of a block reference string through one untimed cache: one compiled function per policy.

What it is: the inner loops of ``hits.py``.  What it is not: anything that knows requests, tokens or errors;
``hits.py`` prepares the arrays and counts the hits.

Every kernel has the same signature and the same two steps per touch: look blocks up as far as ``due`` says,
then touch one block.

    blocks: int32[N], in touch order.
    due: int64[N], never decreasing, ``due[i] > i``: before touch i, positions below ``due[i]`` are looked up.
    sizes: int64[B], positive.
    capacity: in the unit of ``sizes``.
    returns hit: bool[N], whether the block at that position was resident when it was looked up.

All of them evict *before* they admit, so the newcomer is never the victim, and none admits a block larger
than the capacity.  Ties are broken by the least recent touch.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["clairvoyant", "fifo", "gdsf", "lfu", "lru", "s3fifo"]

_NEVER = np.int64(2**52)  # a next use after every position, still exact as a float64 key


@njit(cache=True)
def _look_up(hit: Any, resident: Any, blocks: Any, looked: int, due: int) -> int:
    for i in range(looked, due):
        hit[i] = resident[blocks[i]]
    return due


@njit(cache=True)
def lru(blocks: Any, due: Any, sizes: Any, capacity: int) -> NDArray[np.bool_]:
    """Evict the least recently touched block."""
    hit, resident = np.zeros(len(blocks), np.bool_), np.zeros(len(sizes), np.bool_)
    before, after = _rings(len(sizes), 1)
    oldest_first = len(sizes)
    looked = used = 0
    for i in range(len(blocks)):
        looked = _look_up(hit, resident, blocks, looked, due[i])
        block, size = blocks[i], sizes[blocks[i]]
        if resident[block]:
            _unlink(before, after, block)
            _append(before, after, oldest_first, block)
        elif size <= capacity:
            while used + size > capacity:
                victim = after[oldest_first]
                _unlink(before, after, victim)
                resident[victim] = False
                used -= sizes[victim]
            _append(before, after, oldest_first, block)
            resident[block] = True
            used += size
    return hit


@njit(cache=True)
def fifo(blocks: Any, due: Any, sizes: Any, capacity: int) -> NDArray[np.bool_]:
    """Evict the block admitted longest ago."""
    hit, resident = np.zeros(len(blocks), np.bool_), np.zeros(len(sizes), np.bool_)
    queue = np.empty(len(sizes) + 1, np.int32)  # circular; every resident block is in it once
    looked = used = head = tail = 0
    for i in range(len(blocks)):
        looked = _look_up(hit, resident, blocks, looked, due[i])
        block, size = blocks[i], sizes[blocks[i]]
        if not resident[block] and size <= capacity:
            while used + size > capacity:
                victim = queue[head]
                head = head + 1 if head < len(sizes) else 0
                resident[victim] = False
                used -= sizes[victim]
            queue[tail] = block
            tail = tail + 1 if tail < len(sizes) else 0
            resident[block] = True
            used += size
    return hit


@njit(cache=True)
def lfu(blocks: Any, due: Any, sizes: Any, capacity: int) -> NDArray[np.bool_]:
    """Evict the block with the fewest touches since its admission."""
    hit, heap = np.zeros(len(blocks), np.bool_), _heap(len(sizes))
    looked = used = 0
    for i in range(len(blocks)):
        looked = _look_up(hit, heap.resident, blocks, looked, due[i])
        block, size = blocks[i], sizes[blocks[i]]
        if heap.resident[block]:
            _rekey(heap, block, heap.key[block] + 1.0, i)
        elif size <= capacity:
            while used + size > capacity:
                used -= sizes[_pop(heap)]
            _push(heap, block, 1.0, i)
            used += size
    return hit


@njit(cache=True)
def clairvoyant(blocks: Any, due: Any, sizes: Any, capacity: int) -> NDArray[np.bool_]:
    """Evict the block whose next touch is farthest away."""
    hit, heap = np.zeros(len(blocks), np.bool_), _heap(len(sizes))
    next_touch = _next_touches(blocks, len(sizes))
    looked = used = 0
    for i in range(len(blocks)):
        looked = _look_up(hit, heap.resident, blocks, looked, due[i])
        block, size = blocks[i], sizes[blocks[i]]
        if heap.resident[block]:
            _rekey(heap, block, -float(next_touch[i]), i)
        elif size <= capacity:
            while used + size > capacity:
                used -= sizes[_pop(heap)]
            _push(heap, block, -float(next_touch[i]), i)
            used += size
    return hit


@njit(cache=True)
def gdsf(blocks: Any, due: Any, sizes: Any, capacity: int) -> NDArray[np.bool_]:
    """Evict the block of least inflation + touches / size; inflation is the key of the last victim."""
    hit, heap = np.zeros(len(blocks), np.bool_), _heap(len(sizes))
    touches = np.zeros(len(sizes), np.int64)
    looked = used = 0
    inflation = 0.0
    for i in range(len(blocks)):
        looked = _look_up(hit, heap.resident, blocks, looked, due[i])
        block, size = blocks[i], sizes[blocks[i]]
        if heap.resident[block]:
            touches[block] += 1
            _rekey(heap, block, inflation + touches[block] / size, i)
        elif size <= capacity:
            while used + size > capacity:
                victim = _pop(heap)
                inflation = heap.key[victim]
                used -= sizes[victim]
            touches[block] = 1
            _push(heap, block, inflation + 1.0 / size, i)
            used += size
    return hit


_SMALL, _MAIN, _GHOST = 0, 1, 2
_MOST_TOUCHES = 3  # S3-FIFO's counter has two bits


@njit(cache=True)
def s3fifo(blocks: Any, due: Any, sizes: Any, capacity: int) -> NDArray[np.bool_]:
    """Evict from a small queue that new blocks must leave with two more touches to reach the main queue.

    The small queue's share is a tenth of the capacity; the main queue's and that of the ghosts (names only) the rest.
    """
    hit, resident = np.zeros(len(blocks), np.bool_), np.zeros(len(sizes), np.bool_)
    state = _three_queues(len(sizes))
    main_share = capacity - capacity // 10
    looked = 0
    for i in range(len(blocks)):
        looked = _look_up(hit, resident, blocks, looked, due[i])
        block, size = blocks[i], sizes[blocks[i]]
        if resident[block]:
            state.touches[block] = min(state.touches[block] + 1, _MOST_TOUCHES)
        elif size <= capacity:
            queue = _SMALL
            if state.queue_of[block] == _GHOST:
                _leave(state, block, size)
                queue = _MAIN
            while state.used[_SMALL] + state.used[_MAIN] + size > capacity:
                if state.used[_MAIN] > main_share or state.used[_SMALL] == 0:
                    victim = _evict_main(state, sizes)
                else:
                    victim = _evict_small(state, sizes, main_share)
                if victim >= 0:
                    resident[victim] = False
            state.touches[block] = 0
            _enter(state, queue, block, size)
            resident[block] = True
    return hit


class _Queues(NamedTuple):
    """The queues of S3-FIFO: three rings over the same links, for a block is in at most one of them."""

    before: Any  # int32[B + 3]
    after: Any  # int32[B + 3]
    queue_of: Any  # int8[B], -1 for none
    touches: Any  # int8[B], since the block entered its queue
    used: Any  # int64[3]


@njit(cache=True)
def _three_queues(n: int) -> Any:
    before, after = _rings(n, 3)
    return _Queues(before, after, np.full(n, -1, np.int8), np.zeros(n, np.int8), np.zeros(3, np.int64))


@njit(cache=True)
def _enter(state: Any, queue: int, block: int, size: int) -> None:
    _append(state.before, state.after, len(state.queue_of) + queue, block)
    state.queue_of[block] = queue
    state.used[queue] += size


@njit(cache=True)
def _leave(state: Any, block: int, size: int) -> None:
    _unlink(state.before, state.after, block)
    state.used[state.queue_of[block]] -= size
    state.queue_of[block] = -1


@njit(cache=True)
def _evict_main(state: Any, sizes: Any) -> int:
    """Take the oldest untouched block out of the main queue; touched ones go round again."""
    while True:
        block = state.after[len(sizes) + _MAIN]
        _leave(state, block, sizes[block])
        if state.touches[block] == 0:
            return block
        state.touches[block] -= 1
        _enter(state, _MAIN, block, sizes[block])


@njit(cache=True)
def _evict_small(state: Any, sizes: Any, ghost_capacity: int) -> int:
    """Move the oldest block of the small queue to the ghosts; -1 if all of them went to the main queue."""
    while state.used[_SMALL] > 0:
        block = state.after[len(sizes) + _SMALL]
        _leave(state, block, sizes[block])
        if state.touches[block] < 2:
            while state.used[_GHOST] > 0 and state.used[_GHOST] + sizes[block] > ghost_capacity:
                ghost = state.after[len(sizes) + _GHOST]
                _leave(state, ghost, sizes[ghost])
            if sizes[block] <= ghost_capacity:
                _enter(state, _GHOST, block, sizes[block])
            return block
        state.touches[block] = 0
        _enter(state, _MAIN, block, sizes[block])
    return -1


@njit(cache=True)
def _rings(n: int, rings: int) -> Any:
    """Links of ``rings`` empty circular lists over blocks 0..n-1; the head of list k is node n + k."""
    before = np.arange(n + rings).astype(np.int32)
    return before, before.copy()


@njit(cache=True)
def _unlink(before: Any, after: Any, node: int) -> None:
    after[before[node]] = after[node]
    before[after[node]] = before[node]


@njit(cache=True)
def _append(before: Any, after: Any, head: int, node: int) -> None:
    last = before[head]
    after[last], before[node] = node, last
    after[node], before[head] = head, node


class _Heap(NamedTuple):
    """A binary heap of blocks, least (key, last touch) first, that knows where each block sits."""

    count: Any  # int64[1]
    order: Any  # int32[B], block at each place
    place: Any  # int32[B], place of each block
    key: Any  # float64[B]
    touched: Any  # int64[B]
    resident: Any  # bool[B], whether the block is in the heap


@njit(cache=True)
def _heap(n: int) -> Any:
    order, place = np.zeros(n, np.int32), np.zeros(n, np.int32)
    return _Heap(np.zeros(1, np.int64), order, place, np.zeros(n), np.zeros(n, np.int64), np.zeros(n, np.bool_))


@njit(cache=True)
def _push(heap: Any, block: int, key: float, now: int) -> None:
    place = heap.count[0]
    heap.order[place], heap.place[block] = block, place
    heap.count[0] += 1
    heap.resident[block] = True
    _rekey(heap, block, key, now)


@njit(cache=True)
def _rekey(heap: Any, block: int, key: float, now: int) -> None:
    heap.key[block], heap.touched[block] = key, now
    _sift_down(heap, _sift_up(heap, heap.place[block]))


@njit(cache=True)
def _pop(heap: Any) -> int:
    least = heap.order[0]
    heap.resident[least] = False
    heap.count[0] -= 1
    moved = heap.order[heap.count[0]]
    heap.order[0], heap.place[moved] = moved, 0
    _sift_down(heap, 0)
    return least


@njit(cache=True)
def _precedes(heap: Any, a: int, b: int) -> bool:
    if heap.key[a] == heap.key[b]:
        return heap.touched[a] < heap.touched[b]
    return heap.key[a] < heap.key[b]


@njit(cache=True)
def _sift_up(heap: Any, place: int) -> int:
    block = heap.order[place]
    while place > 0:
        parent = (place - 1) // 2
        if not _precedes(heap, block, heap.order[parent]):
            break
        heap.order[place] = heap.order[parent]
        heap.place[heap.order[place]] = place
        place = parent
    heap.order[place], heap.place[block] = block, place
    return place


@njit(cache=True)
def _sift_down(heap: Any, place: int) -> None:
    block, count = heap.order[place], heap.count[0]
    while 2 * place + 1 < count:
        child = 2 * place + 1
        if child + 1 < count and _precedes(heap, heap.order[child + 1], heap.order[child]):
            child += 1
        if not _precedes(heap, heap.order[child], block):
            break
        heap.order[place] = heap.order[child]
        heap.place[heap.order[place]] = place
        place = child
    heap.order[place], heap.place[block] = block, place


@njit(cache=True)
def _next_touches(blocks: Any, n: int) -> Any:
    """int64[N]: position of the next touch of the same block, _NEVER after its last."""
    upcoming = np.full(n, _NEVER, np.int64)
    result = np.empty(len(blocks), np.int64)
    for i in range(len(blocks) - 1, -1, -1):
        result[i] = upcoming[blocks[i]]
        upcoming[blocks[i]] = i
    return result
