"""From a config's ``[engine]`` to the settings that an engine works with.

What it is: a translation, and the choice of step times: the user's, or else the profile's.  What it is not: the checks
of single keys (``config_models.py``).
"""

from itertools import pairwise

from simkv.config import EngineConfig
from simkv.errors import ConfigError
from simkv.profiles import Profile
from simkv.simulator.costs import CostTables
from simkv.simulator.settings import DecodeSettings, EngineSettings
from simkv.simulator.step_times import given_steps, measured_steps

__all__ = ["decode_settings", "engine_settings"]

_MOST_SEQUENCES = 256


def engine_settings(config: EngineConfig) -> EngineSettings:
    """The part of ``[engine]`` that says how requests are sent and served."""
    return EngineSettings(
        arrivals=config.arrivals,
        concurrency=config.concurrency,
        gpus=config.gpus,
        reuse=config.reuse,
        loading=config.loading,
        overlap=config.overlap,
        pristine=config.pristine,
        touch=config.touch,
    )


def decode_settings(config: EngineConfig, profile: Profile, costs: CostTables) -> DecodeSettings | None:
    """How the run generates output tokens; None if it does not.

    Raises:
        ConfigError: no step times, too few of them, or (in chunks) prefill times that fall with the prompt.
        ProfileError: measured steps that are no table.
    """
    if config.decode == "none":
        return None
    chunk = config.chunk_tokens if config.decode == "chunked" else None
    if chunk is not None and any(after < before for before, after in pairwise(costs.prefill)):
        raise ConfigError(
            f"engine.decode: 'chunked' needs a prefill time that rises with the prompt; that of profile "
            f"{profile.name} falls somewhere"
        )
    if config.step_base_ps is None:
        steps = measured_steps(profile, config.max_batch)
        return DecodeSettings(len(steps.lines) - 1, chunk, steps)
    most = config.max_batch or _MOST_SEQUENCES
    sequence_ps, token_ps = config.step_per_sequence_ps or 0, config.step_per_token_ps or 0
    return DecodeSettings(most, chunk, given_steps(most, config.step_base_ps, sequence_ps, token_ps))
