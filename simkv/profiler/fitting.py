"""Compressors made ready for a model: calibrated where they ask for it, and tried on a cache before any row.

What it is: which compressors can be measured on a model at all.  What it is not: their making (``plan.py``) or the
measuring (``quality.py``).
"""

from collections.abc import Callable, Sequence

from simkv.profiler.compressors.base import Compressor, CompressorError, KVCache
from simkv.profiler.models import CachedModel
from simkv.profiler.quality import Setting, needs_of, round_trip, window_of

__all__ = ["Refused", "calibrated", "calibration_caches", "tried"]

Refused = dict[str, str]
"""Why a compressor is left out, by name."""

_MOST_BYTES = 4 << 30


def calibration_caches(
    model: CachedModel, compressors: Sequence[Compressor], contexts: Callable[[], Sequence[Sequence[int]]]
) -> list[KVCache]:
    """Caches, on the host, of the contexts that compressors are calibrated on; none if none of them asks for it.

    Of contexts whose caches are more than 4 GiB together as many as fit, at least one, evenly spread.
    """
    if not any("calibration" in compressor.needs for compressor in compressors):
        return []
    given = contexts()
    most = max(1, _MOST_BYTES // (model.kv_bytes_per_token * max(map(len, given))))
    chosen = [given[place] for place in range(0, len(given), -(-len(given) // most))]
    return [_on_host(model.prefill(tokens)[0]) for tokens in chosen]


def _on_host(cache: KVCache) -> KVCache:
    return KVCache([key.cpu() for key in cache.keys], [value.cpu() for value in cache.values])


def calibrated(
    compressors: Sequence[Compressor], caches: Sequence[KVCache], refused: Refused | None = None
) -> list[Compressor]:
    """Compressors fitted to sample caches, those that ask for it; the others as they are.

    Those that cannot be fitted are named in ``refused`` and left as they are.

    Raises:
        CompressorError: a compressor that cannot be fitted, where there is no ``refused``.
    """
    ready = []
    for compressor in compressors:
        try:
            ready.append(compressor.fit(caches) if caches and "calibration" in compressor.needs else compressor)
        except CompressorError as error:
            if refused is None:
                raise
            refused[compressor.name] = str(error)
            ready.append(compressor)
    return ready


def tried(
    model: CachedModel, tokens: Sequence[int], settings: Sequence[Setting], refused: Refused | None = None
) -> list[Setting]:
    """The settings that can take a context's cache.

    Compressors that refuse it at the first of their knobs are left out and named in ``refused``; those that are there
    already are left out too.

    Raises:
        CompressorError: a compressor that refuses the cache, where there is no ``refused``, or at a later knob only.
    """
    cache, side = model.prefill(tokens, needs_of(settings), window_of(settings))
    kept: list[Setting] = []
    for setting in settings:
        name = setting.compressor.name
        if refused is not None and name in refused:
            continue
        try:
            round_trip(setting, cache, side)
        except CompressorError as error:
            if refused is None or any(other.compressor is setting.compressor for other in kept):
                raise
            refused[name] = str(error)
            continue
        kept.append(setting)
    return kept
