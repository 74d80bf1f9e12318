"""The workload of the EvicPress paper (arXiv 2512.14946): 555 contexts of twelve LongBench data sets.

Every context is one block.  All are asked for once, so that the tiers are warm, and then ``visits`` times each in a
uniformly random order, which is how the published means were taken.  The numbers of contexts follow from the
published figures; mean lengths were fitted to the published prefill and load times (+/- 5 %), their spread is the
published one.  What it is not: the authors' texts or their order of requests, which are not published.
"""

import numpy as np
from numpy.typing import NDArray

from simkv.errors import ConfigError, unknown_name
from simkv.traces.arrivals import MAX_BLOCKS, MAX_TOKENS, arrival_times_ns, number, streams, whole
from simkv.traces.trace import Trace, build_trace
from simkv.units import NS_PER_S

__all__ = ["EVICPRESS_DATASETS", "EVICPRESS_MODELS", "evicpress"]

# Data set: contexts, mean tokens for Llama-3.1, standard deviation / mean of the length (Table 2 of the paper).
EVICPRESS_DATASETS: dict[str, tuple[int, int, float]] = {
    "narrativeqa": (38, 26_157, 0.509),
    "qasper": (53, 4_850, 0.500),
    "multifieldqa_en": (46, 6_860, 0.517),
    "hotpotqa": (58, 13_036, 0.316),
    "2wikimqa": (44, 7_016, 0.500),
    "musique": (36, 15_502, 0.130),
    "gov_report": (43, 10_565, 0.630),
    "qmsum": (48, 12_707, 0.474),
    "multi_news": (47, 2_496, 0.833),
    "trec": (46, 7_386, 0.400),
    "triviaqa": (48, 11_293, 0.532),
    "samsum": (48, 10_062, 0.500),
}
# Model: its tokens per token of Llama-3.1 (fitted), longest context.
EVICPRESS_MODELS: dict[str, tuple[float, int]] = {
    "llama-3.1-8b": (1.00, 131_072),
    "mistral-7b-v0.3": (1.08, 131_072),
    "qwen2.5-14b": (1.03, 131_072),
    "qwen3-30b-a3b": (1.03, 131_072),
    "longchat-7b": (1.18, 31_500),
}
_SHORTEST = 300


def evicpress(
    *,
    seed: int = 0,
    model: str = "llama-3.1-8b",
    visits: int = 50,
    first_gap_s: float = 10.0,
    rate_per_s: float = 1.0,
    arrivals: str = "poisson",
    burstiness: float = 3.0,
    output_tokens: int = 100,
) -> Trace:
    """The 555 contexts, each asked for once and then ``visits`` times; ``meta["task_names"]`` are the data sets.

    Lengths are gamma distributed and scaled so that every data set has its mean exactly before clipping to
    [300, longest of the model].

    Args:
        seed: of lengths, order and arrivals.
        model: whose tokens the lengths are counted in, one of EVICPRESS_MODELS.
        visits: requests per context after the first one (50 in the paper).
        first_gap_s: seconds between the first requests of contexts, during which nothing is measured.
        rate_per_s, arrivals, burstiness: arrivals of the other requests, see ``arrival_times_ns``.
        output_tokens: of every request.

    Raises:
        ConfigError: when an option is out of range or the model is unknown.
    """
    if model not in EVICPRESS_MODELS:
        raise ConfigError(unknown_name("EvicPress model", str(model), EVICPRESS_MODELS))
    visits = whole("visits", visits, 0, MAX_BLOCKS // 1000)
    gap_ns = round(number("first_gap_s", first_gap_s, 0, 1e6) * NS_PER_S)
    sizes, order, clock = streams(seed, 3)
    lengths, labels = _contexts(sizes, model)
    first = order.permutation(len(lengths))
    later = order.permutation(np.repeat(np.arange(len(lengths)), visits))
    contexts = np.concatenate([first, later])
    times = arrival_times_ns(clock, len(later), rate_per_s=rate_per_s, arrivals=arrivals, burstiness=burstiness)
    return build_trace(
        arrival_ns=np.concatenate([np.arange(len(first)) * gap_ns, len(first) * gap_ns + times]),
        input_tokens=lengths[contexts],
        output_tokens=np.full(len(contexts), whole("output_tokens", output_tokens, 0, MAX_TOKENS)),
        block_counts=np.ones(len(contexts), dtype=np.int64),
        block_keys=contexts,
        occurrence_tokens=lengths[contexts],
        task=labels[contexts],
        meta={
            "name": "evicpress",
            "format": "generated",
            "clock": f"generated: first requests {first_gap_s:g} s apart, then {arrivals}, {rate_per_s:g}/s",
            "task_names": list(EVICPRESS_DATASETS),
            "notes": ["mean lengths are fitted to published times and the order of requests is assumed"],
        },
    )


def _contexts(rng: np.random.Generator, model: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """int64[555] tokens and int64[555] data set of every context."""
    tau, longest = EVICPRESS_MODELS[model]
    tokens = []
    for count, mean, spread in EVICPRESS_DATASETS.values():
        drawn = rng.gamma(1 / spread**2, spread**2, count)
        tokens.append(np.clip(np.rint(tau * mean * drawn / drawn.mean()), _SHORTEST, longest).astype(np.int64))
    labels = np.repeat(np.arange(len(tokens)), [len(lengths) for lengths in tokens])
    return np.concatenate(tokens), labels
