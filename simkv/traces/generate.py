"""Synthetic traces by name: Zipf contexts, multi-turn chats, retrieval prompts, the papers' workloads.

What it is: the table of generators, ``generate_trace``, and the two smallest of them; the same seed
(and numpy) gives the same bytes.  What it is not: a model of any real service.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simkv.errors import ConfigError, unknown_name
from simkv.traces.adaptcache import adaptcache
from simkv.traces.arrivals import (
    MAX_BLOCKS,
    MAX_REQUESTS,
    MAX_TOKENS,
    arrival_times_ns,
    generated_meta,
    number,
    positions,
    streams,
    token_lengths,
    whole,
    zipf_shares,
)
from simkv.traces.chats import sessions
from simkv.traces.evicpress import evicpress
from simkv.traces.trace import Trace, build_trace

__all__ = ["GENERATORS", "generate_trace", "generator_options", "rag", "zipf"]

_DRAWS_AT_ONCE = 4_000_000


def generate_trace(name: str, *, seed: int, **options: Any) -> Trace:
    """Make the trace ``name`` of GENERATORS; ``meta["source"]`` records every option, defaults included.

    Raises:
        ConfigError: for an unknown name or option (naming the nearest known one) or a value out of range.
        TraceError: when nothing can be made of the options, or a shipped file is missing.
    """
    known = generator_options(name)
    for option in options:
        if option not in known:
            raise ConfigError(unknown_name(f"option of generator {name}:", option, known))
    used = "".join(f", {key}={value!r}" for key, value in {**known, **options}.items())
    return GENERATORS[name](seed=seed, **options).with_meta(source=f"generated: {name}(seed={seed!r}{used})")


def generator_options(name: str) -> dict[str, Any]:
    """Options of a generator, besides the seed, with their defaults.  Raises ConfigError for an unknown name."""
    if name not in GENERATORS:
        raise ConfigError(unknown_name("generator", str(name), GENERATORS))
    parameters = inspect.signature(GENERATORS[name]).parameters.values()
    return {option.name: option.default for option in parameters if option.name != "seed"}


def zipf(
    *,
    seed: int = 0,
    requests: int = 1000,
    contexts: int = 100,
    exponent: float = 1.0,
    tokens: float = 8192,
    sd_tokens: float = 0,
    block_tokens: int = 0,
    output_tokens: int = 100,
    rate_per_s: float = 1.0,
    arrivals: str = "poisson",
    burstiness: float = 3.0,
) -> Trace:
    """Requests for whole contexts whose popularity falls as rank^-exponent (0 is uniform).

    ``tokens`` and ``sd_tokens`` are the mean and sd of log-normal context lengths (sd 0: all alike).
    ``block_tokens`` = 0 makes a context one block, else blocks of that many tokens, the last one shorter.
    ``rate_per_s`` requests arrive per second, by the process ``arrivals`` ("poisson", "bursty", "uniform").

    Raises ConfigError when an option is out of range.
    """
    requests = whole("requests", requests, 1, MAX_REQUESTS)
    contexts = whole("contexts", contexts, 1, MAX_REQUESTS)
    block_tokens = whole("block_tokens", block_tokens, 0, MAX_TOKENS)
    popularity, sizes, clock = streams(seed, 3)
    lengths = token_lengths(sizes, contexts, tokens, sd_tokens)
    chosen = popularity.choice(contexts, requests, p=zipf_shares(contexts, number("exponent", exponent, 0, 10)))
    step = block_tokens or MAX_TOKENS
    blocks = -(-lengths // step)  # [contexts]
    request, within = positions(blocks[chosen])
    context = chosen[request]
    return build_trace(
        arrival_ns=arrival_times_ns(clock, requests, rate_per_s=rate_per_s, arrivals=arrivals, burstiness=burstiness),
        input_tokens=lengths[chosen],
        output_tokens=_outputs(output_tokens, requests),
        block_counts=blocks[chosen],
        block_keys=(np.cumsum(blocks) - blocks)[context] + within,
        occurrence_tokens=np.minimum(step, lengths[context] - within * step),
        meta=generated_meta("zipf", block_tokens, arrivals, rate_per_s),
    )


def rag(
    *,
    seed: int = 0,
    requests: int = 1000,
    documents: int = 200,
    documents_per_request: int = 4,
    exponent: float = 1.0,
    tokens: float = 1500,
    sd_tokens: float = 800,
    system_tokens: int = 500,
    question_tokens: int = 50,
    output_tokens: int = 100,
    rate_per_s: float = 1.0,
    arrivals: str = "poisson",
    burstiness: float = 3.0,
) -> Trace:
    """Retrieval prompts: a system prompt, some documents in the order drawn, a question.

    A block is one document *behind one prefix*: the same document after other documents is another block.
    The question is prompt tokens without a block.  Documents are drawn without replacement, a popular one
    (rank^-exponent) likely earlier; ``tokens`` and ``sd_tokens`` are the mean and sd of their log-normal lengths.
    ``rate_per_s`` requests arrive per second, by the process ``arrivals`` ("poisson", "bursty", "uniform").

    Raises ConfigError when an option is out of range.
    """
    requests = whole("requests", requests, 1, MAX_REQUESTS)
    documents = whole("documents", documents, 1, _DRAWS_AT_ONCE)
    per_request = whole("documents_per_request", documents_per_request, 1, min(documents, MAX_BLOCKS // requests - 1))
    choice, sizes, clock = streams(seed, 3)
    lengths = token_lengths(sizes, documents, tokens, sd_tokens)
    shares = zipf_shares(documents, number("exponent", exponent, 0, 10))
    drawn = _without_replacement(choice, requests, per_request, shares)
    keys, sizes_of = _prefix_keys(drawn), lengths[drawn]  # [requests, per_request] each
    if system := whole("system_tokens", system_tokens, 0, MAX_TOKENS):
        keys = np.column_stack([np.zeros(requests, dtype=np.int64), keys])
        sizes_of = np.column_stack([np.full(requests, system), sizes_of])
    return build_trace(
        arrival_ns=arrival_times_ns(clock, requests, rate_per_s=rate_per_s, arrivals=arrivals, burstiness=burstiness),
        input_tokens=sizes_of.sum(axis=1) + whole("question_tokens", question_tokens, 0, MAX_TOKENS),
        output_tokens=_outputs(output_tokens, requests),
        block_counts=np.full(requests, keys.shape[1]),
        block_keys=keys.ravel(),
        occurrence_tokens=sizes_of.ravel(),
        meta=generated_meta("rag", 0, arrivals, rate_per_s),
    )


def _outputs(tokens: int, requests: int) -> NDArray[np.int64]:
    return np.full(requests, whole("output_tokens", tokens, 0, MAX_TOKENS))


def _without_replacement(
    rng: np.random.Generator, rows: int, picks: int, shares: NDArray[np.float64]
) -> NDArray[np.int64]:
    """int64[rows, picks]: per row, successive draws without replacement (the Gumbel top-k trick)."""
    step = max(1, _DRAWS_AT_ONCE // len(shares))
    drawn = []
    weights = np.log(shares)
    for start in range(0, rows, step):
        scores = weights + rng.gumbel(size=(min(step, rows - start), len(shares)))
        best = np.argpartition(-scores, picks - 1, axis=1)[:, :picks]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        drawn.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(drawn)


def _prefix_keys(drawn: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[rows, depth], from 1: equal keys for equal leading documents, and only for those."""
    keys = np.zeros_like(drawn)
    prefix = np.zeros(len(drawn), dtype=np.int64)
    seen = 1
    for depth in range(drawn.shape[1]):
        pairs, codes = np.unique(prefix * (int(drawn.max()) + 1) + drawn[:, depth], return_inverse=True)
        keys[:, depth] = seen + codes
        prefix = codes.astype(np.int64)
        seen += len(pairs)
    return keys


GENERATORS: dict[str, Callable[..., Trace]] = {
    "zipf": zipf,
    "sessions": sessions,
    "rag": rag,
    "adaptcache-coding": partial(adaptcache, "coding"),
    "adaptcache-qa": partial(adaptcache, "qa"),
    "adaptcache-summarization": partial(adaptcache, "summarization"),
    "evicpress": evicpress,
}
