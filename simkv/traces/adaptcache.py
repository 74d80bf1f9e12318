"""The three workloads of the AdaptCache paper: coding, question answering, summarisation.

Every context is one block and is requested exactly twice.  Contexts first appear Poisson(1) seconds
apart and come back Poisson(360) seconds later, so nearly all first visits precede all second ones.
The coding lengths are the published ones; those of the other two tasks are assumed and say so.
What it is not: the authors' text data; only lengths and the rule of arrival are reproduced.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simkv.errors import ConfigError, TraceError, unknown_name
from simkv.traces.arrivals import number, streams, token_lengths, whole
from simkv.traces.shipped import shipped_file
from simkv.traces.trace import Trace, build_trace
from simkv.units import NS_PER_S

__all__ = ["LENGTHS_FILE", "adaptcache", "read_lengths"]

LENGTHS_FILE = "adaptcache_coding_lengths.csv"
_MAX_LENGTHS_BYTES = 1 << 20
_WINDOW_TOKENS = 131_072
_LCC_CONTEXTS = 156
_CODING_CONTEXTS = 300
_DATASETS = {
    "coding": ("lcc", "repobench-p"),
    "qa": ("triviaqa", "hotpotqa"),
    "summarization": ("qmsum", "samsum"),
}
# contexts, mean tokens, sd tokens
_ASSUMED = {
    "qa": {"triviaqa": (200, 12_500, 6_000), "hotpotqa": (200, 13_300, 4_200)},
    "summarization": {"qmsum": (200, 11_500, 5_500), "samsum": (200, 5_500, 2_700)},
}
_STREAMS = ("clock", "lengths", "shuffle")
_Contexts = tuple[NDArray[np.int64], NDArray[np.int64], str]


def adaptcache(
    task: str,
    *,
    seed: int = 42,
    shuffle_seed: int = 42,
    share: float = 1.0,
    visits: int = 2,
    gap_s: float = 1.0,
    revisit_s: float = 360.0,
    output_tokens: int = 100,
) -> Trace:
    """One of AdaptCache's workloads; ``meta["task_names"]`` are the data sets it mixes.

    Args:
        task: "coding" (300 contexts of the published lengths), "qa" or "summarization" (400, assumed lengths).
        seed: of the arrival times and of assumed lengths.
        shuffle_seed: of the order in which contexts first appear.
        share: share of the shuffled contexts that is kept, in (0, 1].
        visits: requests per context.
        gap_s: mean of the Poisson gaps between first visits, in whole seconds.
        revisit_s: mean of the Poisson time from one visit of a context to the next, in whole seconds.
        output_tokens: of every request.

    Raises:
        TraceError: when the file of published lengths is missing or malformed.
        ConfigError: when an option is out of range or the task is unknown.
    """
    if task not in _TASKS:
        raise ConfigError(unknown_name("AdaptCache task", task, _TASKS))
    share = number("share", share, 1e-6, 1)
    visits = whole("visits", visits, 1, 10_000)
    gap_s = number("gap_s", gap_s, 0, 1e6)
    revisit_s = number("revisit_s", revisit_s, 0, 1e6)
    output_tokens = whole("output_tokens", output_tokens, 0, 2**31 - 1)
    lengths, labels, note = _TASKS[task](seed)
    shuffle_seed = whole("shuffle_seed", shuffle_seed, 0, 2**63 - 1)
    order = _stream(shuffle_seed, "shuffle").permutation(len(lengths))[: max(1, round(share * len(lengths)))]
    clock = _stream(seed, "clock")
    first = np.cumsum(clock.poisson(gap_s, len(order)))
    later = np.cumsum(clock.poisson(revisit_s, (len(order), visits - 1)), axis=1)
    # Context by context, so that among equal times the context that appeared first is served first.
    seconds = np.column_stack([first, first[:, None] + later]) - first[0]  # [contexts, visits]
    contexts = np.repeat(order, visits)
    return build_trace(
        arrival_ns=seconds.ravel() * NS_PER_S,
        input_tokens=lengths[contexts],
        output_tokens=np.full(len(contexts), output_tokens),
        block_counts=np.ones(len(contexts), dtype=np.int64),
        block_keys=contexts,
        occurrence_tokens=lengths[contexts],
        task=labels[contexts],
        meta={
            "name": f"adaptcache-{task}",
            "format": "generated",
            "clock": f"generated: Poisson({gap_s:g}) s between contexts, Poisson({revisit_s:g}) s to the next visit",
            "task_names": list(_DATASETS[task]),
            "notes": [note],
        },
    )


def read_lengths(path: Path) -> NDArray[np.int64]:
    """int64[n] context lengths in tokens from a file of ``#`` comments, the header ``tokens``, one number a line.

    Raises TraceError naming file and line.
    """
    try:
        if path.stat().st_size > _MAX_LENGTHS_BYTES:
            raise TraceError(f"{path}: larger than {_MAX_LENGTHS_BYTES} bytes; not a file of context lengths")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot read context lengths: {error}") from error
    rows = [(at, line.strip()) for at, line in enumerate(lines, start=1) if line.strip() and not line.startswith("#")]
    if not rows or rows[0][1] != "tokens":
        raise TraceError(f"{path}: the first line after the comments must be the header 'tokens'")
    for at, text in rows[1:]:
        if not (text.isascii() and text.isdigit() and 1 <= int(text) < 2**31):
            raise TraceError(f"{path}, line {at}: {text[:40]!r} is not a length in tokens (1 to 2^31 - 1)")
    return np.array([int(text) for _, text in rows[1:]], dtype=np.int64)


def _stream(seed: int, purpose: str) -> np.random.Generator:
    return streams(seed, len(_STREAMS))[_STREAMS.index(purpose)]


def _published(seed: int) -> _Contexts:
    """The coding contexts; the seed changes nothing."""
    path = shipped_file(LENGTHS_FILE)
    lengths = read_lengths(path)
    if len(lengths) != _CODING_CONTEXTS:
        raise TraceError(f"{path}: holds {len(lengths)} lengths, expected {_CODING_CONTEXTS}")
    labels = np.ones(len(lengths), dtype=np.int64)
    labels[np.argsort(lengths, kind="stable")[:_LCC_CONTEXTS]] = 0
    note = (
        "dataset label by length: which context is from which dataset is not published; "
        f"the {_LCC_CONTEXTS} shortest are called lcc, since LCC contexts are the shorter ones"
    )
    return lengths, labels, note


def _assumed(task: str, seed: int) -> _Contexts:
    """Contexts of log-normal lengths, clipped to the model's window."""
    datasets = _ASSUMED[task]
    rng = _stream(seed, "lengths")
    lengths = [token_lengths(rng, count, mean, sd, most=_WINDOW_TOKENS) for count, mean, sd in datasets.values()]
    labels = np.repeat(np.arange(len(datasets)), [count for count, _, _ in datasets.values()])
    facts = ", ".join(f"{name} {mean} +/- {sd}" for name, (_, mean, sd) in datasets.items())
    note = f"context lengths are assumed, not published: log-normal tokens ({facts}), at most {_WINDOW_TOKENS}"
    return np.concatenate(lengths), labels, note


_TASKS: dict[str, Callable[[int], _Contexts]] = {
    "coding": _published,
    "qa": partial(_assumed, "qa"),
    "summarization": partial(_assumed, "summarization"),
}
