"""How far a profile's speeds were measured, and how much of a run lies beyond: times there are extrapolated.

What it is: facts and one warning beside a result.  What it is not: a bound on the error, or a refusal.  Published
profiles without single measurements have no range; nothing is said of theirs.
"""

from typing import Any

import numpy as np

from simkv.profiles import Profile
from simkv.simulator.step_times import StepTimes
from simkv.traces.trace import Trace

__all__ = ["beyond_measured", "extrapolation_warning", "longest_prefill"]


def longest_prefill(profile: Profile) -> int | None:
    """Tokens of the longest prompt that was prefilled, cached ones included; None if no single time is known."""
    rows = profile.speed_rows
    if not rows.empty:
        prefills = rows[rows["what"] == "prefill"]
        if len(prefills):
            return int((prefills["tokens"] + prefills["cached"]).max())
    return profile.prefill.points[-1][0] if profile.prefill.points else None


def beyond_measured(trace: Trace, profile: Profile, steps: StepTimes | None) -> dict[str, Any]:
    """Where measurements end, in tokens, and the share of all requests beyond, of prefill and of decode steps.

    A request is beyond prefill's with a longer prompt, whether or not a part of it is loaded, and beyond the steps' if
    the last step that it takes part in finds more tokens in its cache.

    Args:
        steps: step times of the run, None without a decode model.

    Returns:
        ``prefill_tokens`` and ``prefill_beyond``, ``step_tokens`` and ``step_beyond``; pairs of what was not measured
        are left out.
    """
    prompts, outputs = trace.input_tokens.astype(np.int64), trace.output_tokens.astype(np.int64)
    facts: dict[str, Any] = {}
    longest = longest_prefill(profile)
    if longest is not None:
        facts |= {"prefill_tokens": longest, "prefill_beyond": float((prompts > longest).mean())}
    if steps is not None and steps.longest is not None:
        beyond = (outputs > 1) & (prompts + outputs - 2 > steps.longest)
        facts |= {"step_tokens": steps.longest, "step_beyond": float(beyond.mean())}
    return facts


def extrapolation_warning(name: str, facts: dict[str, Any]) -> str | None:
    """One line on the requests beyond what profile ``name`` measured; None if there are none."""
    parts = [
        f"{100 * facts[f'{kind}_beyond']:.3g} % of the requests {verb} beyond {facts[f'{kind}_tokens']:,} tokens"
        for kind, verb in (("prefill", "have prompts"), ("step", "decode"))
        if facts.get(f"{kind}_beyond")
    ]
    if not parts:
        return None
    return f"{' and '.join(parts)}, the longest that profile {name} measured: times there are extrapolated"
