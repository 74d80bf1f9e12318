"""How entries can be stored: the plan's variants as compressors with their knobs, raw first, checked once.

What it is: text to settings.  What it is not: encoding (``server.py``) or choosing (policies).
"""

from simkv.errors import SimkvError
from simkv.profile_types import RAW, Variant
from simkv.profiler.compressors.base import KVCache, PrefillContext
from simkv.profiler.compressors.identity import Identity
from simkv.profiler.fitting import calibrated
from simkv.profiler.plan import built, parts_of
from simkv.profiler.quality import Setting
from simkv.profiler.sources import Source
from simkv.profiler.workloads import calibration_contexts
from simkv.testbed.plan import Plan

__all__ = ["settings_of_plan"]


def settings_of_plan(plan: Plan, source: Source) -> list[Setting]:
    """Raw, and the plan's variants, fitted to sample caches where they need it.

    Raises:
        SimkvError: an unknown compressor, or one that entries cannot be stored in and recompressed from.
    """
    variants = [Variant.parse(text) for text in plan.variants]
    names = list(dict.fromkeys(variant.compressor for variant in variants))
    parameters = {name: source.parameters[name] for name in parts_of(names) & source.parameters.keys()}
    task = next(iter(source.chosen(plan.workload.tasks).values()))
    samples = calibration_contexts(task, 2, plan.workload.longest, plan.seed)
    caches = [source.model.prefill(sample.tokens.tolist())[0] for sample in samples]
    made = {one.name: one for one in calibrated(built(names, parameters), caches)}
    settings = [Setting.of(made[variant.compressor], variant.knob) for variant in variants if variant != RAW]
    for setting in settings:
        _check(setting, caches[0])
    return [Setting(RAW, Identity(), ""), *settings]


def _check(setting: Setting, cache: KVCache) -> None:
    if setting.compressor.needs - {"calibration"}:
        what = ", ".join(sorted(setting.compressor.needs))
        raise SimkvError(f"variants: {setting.variant} needs {what} of the prefill, which the testbed does not keep")
    payload = setting.compressor.encode(cache, PrefillContext(), setting.knob).payload
    decoded = setting.compressor.decode(payload, cache.keys[0].device)
    if any(keys.shape != cache.keys[0].shape for keys in decoded.keys):
        raise SimkvError(
            f"variants: {setting.variant} drops tokens, and what is stored without them cannot be recompressed; "
            "the testbed takes compressors that keep all tokens"
        )
