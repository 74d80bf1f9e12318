"""How an engine serves requests: what of a run's ``[engine]`` the engine itself needs, in the units it works in.

What it is: two frozen records.  What it is not: the keys of a config (``config_models.py``) or the tables of durations
(``costs.py``, ``step_times.py``).
"""

from dataclasses import dataclass

from simkv.simulator.step_times import StepTimes

__all__ = ["DecodeSettings", "EngineSettings"]


@dataclass(frozen=True)
class EngineSettings:
    """How requests are sent and served; the defaults are an open loop on one GPU.

    Attributes:
        arrivals: "open" (arrival times count) or "closed" (``concurrency`` requests in flight, times give order).
        concurrency: requests in flight in a closed loop.
        gpus: compute servers.
        reuse: "always" load the stored prefix, or "when_faster" than recomputing.
        loading: "channel" (loads run beside compute) or "gpu" (the compute server carries all but their fixed part).
        overlap: "none", or "layerwise" (load of layer l + 1 beside compute of layer l).
        pristine: keep a raw copy of every stored block on the last tier.
        touch: "reverse" or "forward", order in which a request's blocks are offered to the policy.
        record_moves: keep one row per move.
    """

    arrivals: str = "open"
    concurrency: int = 1
    gpus: int = 1
    reuse: str = "always"
    loading: str = "channel"
    overlap: str = "none"
    pristine: bool = False
    touch: str = "reverse"
    record_moves: bool = True


@dataclass(frozen=True)
class DecodeSettings:
    """How output tokens are generated; an engine without it ends a request at its first token.

    Attributes:
        max_batch: most sequences of a GPU, being prefilled or decoded.
        chunk_tokens: most prompt tokens in a step that decodes too; None prefills whole prompts while decoding pauses.
        steps: time of a step, at least up to ``max_batch`` sequences.
    """

    max_batch: int
    chunk_tokens: int | None
    steps: StepTimes
