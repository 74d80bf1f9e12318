"""Synthetic multi-turn chats behind one shared system prompt: the ``sessions`` generator.

As in real prefix-hash traces a full block keeps its identity from turn to turn, while the partial
block at a prompt's end is a block of its own: it changes identity when it fills, and is never reused.
What it is not: a model of any real service; ``generate.py`` lists this generator with the others.
"""

import numpy as np
from numpy.typing import NDArray

from simkv.errors import TraceError
from simkv.traces.arrivals import (
    MAX_REQUESTS,
    MAX_TOKENS,
    arrival_times_ns,
    generated_meta,
    lognormal,
    number,
    positions,
    streams,
    token_lengths,
    whole,
)
from simkv.traces.trace import Trace, build_trace
from simkv.units import NS_PER_S

__all__ = ["sessions"]


def sessions(
    *,
    seed: int = 0,
    sessions: int = 100,
    turns: float = 5.0,
    think_s: float = 30.0,
    think_sd_s: float = 30.0,
    system_tokens: int = 1024,
    user_tokens: float = 200,
    user_sd_tokens: float = 200,
    output_tokens: float = 300,
    output_sd_tokens: float = 200,
    block_tokens: int = 512,
    window_tokens: int = 131_072,
    rate_per_s: float = 0.1,
    arrivals: str = "poisson",
    burstiness: float = 3.0,
) -> Trace:
    """Chats whose every prompt is the system prompt, the whole history and a new message.

    ``turns`` is the mean of a geometric number of turns; ``think_s`` and ``think_sd_s`` (seconds from one turn's
    arrival to the next), ``user_*`` (messages) and ``output_*`` (answers, part of the next prompt) are log-normal.
    A chat ends before the turn whose prompt would exceed ``window_tokens``; what that leaves out is in the notes.
    ``rate_per_s`` chats start per second, by the process ``arrivals`` ("poisson", "bursty", "uniform").

    Raises ConfigError when an option is out of range, TraceError when no prompt fits the window.
    """
    sessions = whole("sessions", sessions, 1, MAX_REQUESTS)
    window_tokens = whole("window_tokens", window_tokens, 1, MAX_TOKENS)
    clock, lengths, users, outputs, thinking = streams(seed, 5)
    turn_counts = lengths.geometric(1 / number("turns", turns, 1, 10_000), sessions)
    chat, turn = positions(turn_counts, MAX_REQUESTS, "requests")
    think_ns = np.rint(_think_s(thinking, len(chat), think_s, think_sd_s) * NS_PER_S).astype(np.int64)
    start = arrival_times_ns(clock, sessions, rate_per_s=rate_per_s, arrivals=arrivals, burstiness=burstiness)
    user = token_lengths(users, len(chat), user_tokens, user_sd_tokens, "user_")
    output = token_lengths(outputs, len(chat), output_tokens, output_sd_tokens, "output_")
    system_tokens = whole("system_tokens", system_tokens, 0, MAX_TOKENS)
    prompt = system_tokens + _running(user + output, turn_counts) - output
    keep = prompt <= window_tokens
    if not keep.any():
        raise TraceError(f"sessions: no prompt fits window_tokens = {window_tokens}")
    counts, keys, tokens = _blocks(
        prompt[keep], chat[keep], system_tokens, whole("block_tokens", block_tokens, 1, MAX_TOKENS)
    )
    left_out = len(keep) - int(keep.sum())
    return build_trace(
        arrival_ns=(start[chat] + _running(np.where(turn == 0, 0, think_ns), turn_counts))[keep],
        input_tokens=prompt[keep],
        output_tokens=output[keep],
        block_counts=counts,
        block_keys=keys,
        occurrence_tokens=tokens,
        session=chat[keep],
        meta={
            **generated_meta("sessions", block_tokens, arrivals, rate_per_s),
            "notes": [f"{left_out} turns of more than {window_tokens} prompt tokens left out"] if left_out else [],
        },
    )


def _think_s(rng: np.random.Generator, count: int, mean: float, sd: float) -> NDArray[np.float64]:
    return lognormal(rng, count, number("think_s", mean, 1e-6, 1e6), number("think_sd_s", sd, 0, 1e6))


def _running(values: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Inclusive running sums that start anew in every group of ``counts``."""
    sums = np.concatenate([[0], np.cumsum(values)])
    starts = np.cumsum(counts) - counts
    return sums[1:] - np.repeat(sums[starts], counts)


def _blocks(
    prompt: NDArray[np.int64], chat: NDArray[np.int64], system_tokens: int, block_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Blocks per request, and key and tokens of every requested block."""
    counts = -(-prompt // block_tokens)
    request, within = positions(counts)
    end = (within + 1) * block_tokens
    size = np.minimum(end, prompt[request]) - within * block_tokens
    most = int(counts.max())
    # Keys: [0, most) blocks of the system prompt, then `most` per chat, then one per partial block.
    of_chat = most * (1 + chat[request]) + within
    partial = most * (2 + int(chat.max())) + request
    keys = np.where(end <= system_tokens, within, np.where(size == block_tokens, of_chat, partial))
    return counts, keys, size
