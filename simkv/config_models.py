"""The tables and keys of a run and of a study, and the rules between them.

What it is: frozen pydantic models.  TOML keys are plain words (``capacity``), Python attributes carry
the unit (``capacity_bytes``).  What it is not: reading, changing or hashing them (``config.py``, which
re-exports the models and is the module to import from).
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from simkv.config_errors import KeyProblem, shown
from simkv.config_fields import (
    INT64_MAX,
    Bytes,
    BytesPerSecond,
    Capacity,
    Count,
    Duration,
    ModelName,
    Param,
    Params,
    Picoseconds,
    TaskMixture,
    Text,
    Warmup,
    WarmupValue,
)
from simkv.errors import unknown_name
from simkv.profiles import TierSpec
from simkv.units import NS_PER_S

__all__ = [
    "BoundConfig",
    "EngineConfig",
    "LinkConfig",
    "PolicyConfig",
    "PolicyGrid",
    "ProfileConfig",
    "RunConfig",
    "Section",
    "StudyConfig",
    "TierConfig",
    "TraceConfig",
]

_TIER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")
_RESERVED_TIERS = ("recompute",)  # the word for "no tier" in result frames


class Section(BaseModel):
    """A table of the configuration: frozen, strictly typed, unknown keys named with their nearest neighbour."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in given:
                if key not in known:
                    raise ValueError(unknown_name("key", str(key)[:80], known))
        return given

    def _refuse_without(self, keys: set[str], needed: str) -> None:
        for key in sorted(keys & self.model_fields_set):
            if getattr(self, key) is not None:
                name = type(self).model_fields[key].alias or key
                raise KeyProblem(name, f"has no effect without {needed}; remove it")


class TraceConfig(Section):
    """Which requests are replayed, and what is done to them first."""

    file: Text | None = None
    generate: Text | None = None
    options: Params = Field(default_factory=dict)
    format: Text = "auto"
    rate: Annotated[float, Field(gt=0)] = 1.0
    start_ns: Duration = Field(default=0, alias="start")
    stop_ns: Duration | None = Field(default=None, alias="stop")
    sample: Annotated[float, Field(gt=0, le=1)] = 1.0
    jitter_ns: Duration = Field(default=0, alias="jitter")
    window_tokens: Count | None = None
    window_rule: Literal["reject", "clip", "filter"] = "reject"
    group_blocks: Count = 1
    unit: Literal["block", "segment"] = "block"

    @model_validator(mode="after")
    def _check(self) -> "TraceConfig":
        if (self.file is None) == (self.generate is None):
            both = "both are given" if self.file else "neither is given"
            raise KeyProblem("file", f"give exactly one of file and generate; {both}")
        for key in sorted({"name", "seed", "path", "format", "limits"} & self.options.keys()):
            raise KeyProblem(f"options.{key}", "is set by the other keys of the config; remove it")
        if not self.file:
            self._refuse_without({"format"}, "file")
        if self.window_tokens is None:
            self._refuse_without({"window_rule"}, "window_tokens")
        if self.stop_ns is not None and self.stop_ns <= self.start_ns:
            raise KeyProblem(
                "stop", f"{self.stop_ns / NS_PER_S:g} s is not after start ({self.start_ns / NS_PER_S:g} s)"
            )
        return self


class ProfileConfig(Section):
    """Whose qualities, sizes and speeds: shipped profiles or paths.  ``sizes`` None is the profile's own choice.

    ``tasks`` says which of the profile's tasks stands for a task of the trace, {trace's: profile's}.
    """

    name: Text
    sizes: Literal["measured", "nominal"] | None = None
    speeds: Text | None = None
    tasks: dict[str, str] = Field(default_factory=dict)


class LinkConfig(Section):
    """The link between host and GPU.  Bandwidths are per channel; ``write`` defaults to ``read``."""

    read_bytes_per_s: BytesPerSecond = Field(alias="read")
    write_bytes_per_s: BytesPerSecond | None = Field(default=None, alias="write")
    latency_ns: Duration = Field(default=0, alias="latency")
    channels: Count = 1
    discipline: Literal["fifo", "fair"] = "fifo"

    def to_spec(self) -> TierSpec:
        """The link as the simulator's record: a tier of unlimited capacity named ``host_link``."""
        return TierSpec(
            name="host_link",
            capacity_bytes=None,
            read_bytes_per_s=self.read_bytes_per_s,
            write_bytes_per_s=self.write_bytes_per_s or self.read_bytes_per_s,
            latency_s=self.latency_ns / NS_PER_S,
            channels=self.channels,
            discipline=self.discipline,
        )


class TierConfig(Section):
    """One storage level.  ``capacity_bytes`` None is unlimited; bandwidths are per channel."""

    name: str
    capacity_bytes: Capacity = Field(alias="capacity")
    read_bytes_per_s: BytesPerSecond = Field(alias="read")
    write_bytes_per_s: BytesPerSecond = Field(alias="write")
    latency_ns: Duration = Field(default=0, alias="latency")
    channels: Count = 1
    discipline: Literal["fifo", "fair"] = "fifo"
    endurance_bytes: Bytes | None = Field(default=None, alias="endurance")

    @model_validator(mode="after")
    def _check(self) -> "TierConfig":
        if not _TIER_NAME.fullmatch(self.name):
            raise KeyProblem("name", f"{shown(self.name)} is not a letter followed by at most 31 letters, digits or _")
        if self.name in _RESERVED_TIERS:
            raise KeyProblem("name", f"{self.name!r} is a word of the results; call the tier otherwise")
        return self

    def to_spec(self) -> TierSpec:
        """The tier as the simulator's record."""
        return TierSpec(
            name=self.name,
            capacity_bytes=self.capacity_bytes,
            read_bytes_per_s=self.read_bytes_per_s,
            write_bytes_per_s=self.write_bytes_per_s,
            latency_s=self.latency_ns / NS_PER_S,
            channels=self.channels,
            discipline=self.discipline,
            endurance_bytes=self.endurance_bytes,
        )


class EngineConfig(Section):
    """How requests are served and what is measured.  ``concurrency`` counts in closed loops only.

    With ``decode``, output tokens are generated; without step times of its own a run takes those of its profile.
    """

    arrivals: Literal["open", "closed"] = "open"
    concurrency: Count = 1
    gpus: Count = 1
    reuse: Literal["always", "when_faster"] = "when_faster"
    loading: Literal["channel", "gpu"] = "channel"
    overlap: Literal["none", "layerwise"] = "none"
    pristine: bool = False
    touch: Literal["forward", "reverse"] = "reverse"
    measure: Literal["all", "revisits"] = "all"
    warmup: WarmupValue = Warmup()
    quality_view: Literal["mean", "sampled"] = "mean"
    quality_queries: Count = 50
    decode: Literal["none", "prefill_first", "chunked"] = "none"
    max_batch: Annotated[int, Field(ge=1, le=65_536)] | None = None
    chunk_tokens: Count = 512
    step_base_ps: Annotated[Picoseconds, Field(gt=0)] | None = Field(default=None, alias="step_base")
    step_per_sequence_ps: Picoseconds | None = Field(default=None, alias="step_per_sequence")
    step_per_token_ps: Picoseconds | None = Field(default=None, alias="step_per_token")
    slo_ttft_ns: Duration | None = Field(default=None, alias="slo_ttft")
    slo_tpot_ns: Duration | None = Field(default=None, alias="slo_tpot")
    check: bool = False

    @model_validator(mode="after")
    def _check(self) -> "EngineConfig":
        if self.arrivals == "open":
            self._refuse_without({"concurrency"}, "arrivals = 'closed'")
        if self.quality_view == "mean":
            self._refuse_without({"quality_queries"}, "quality_view = 'sampled'")
        if self.loading == "gpu" and self.overlap != "none":
            raise KeyProblem("overlap", "needs loading = 'channel': a GPU that loads cannot compute beside it")
        self._check_decode()
        return self

    def _check_decode(self) -> None:
        steps = {"step_base_ps", "step_per_sequence_ps", "step_per_token_ps"}
        if self.decode == "none":
            self._refuse_without({"max_batch", *steps, "slo_tpot_ns"}, "decode")
        if self.decode != "chunked":
            self._refuse_without({"chunk_tokens"}, "decode = 'chunked'")
        if self.step_base_ps is None:
            self._refuse_without(steps, "step_base")
        if self.decode != "none" and self.overlap != "none":
            raise KeyProblem("decode", "needs overlap = 'none': a batch cannot stall for the layers of one request")


class PolicyConfig(Section):
    """A known policy or ``module:Class``; every key but name and label is one of its parameters."""

    name: Text
    label: Text | None = None
    params: Params = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, given: Any) -> Any:
        """Collect the parameters, which stand beside name and label, under ``params``."""
        if not isinstance(given, Mapping) or isinstance(given.get("params"), Mapping):
            return given
        own = {key: given[key] for key in ("name", "label") if key in given}
        return {**own, "params": {key: value for key, value in given.items() if key not in own}}

    @property
    def title(self) -> str:
        """What tables and figures call it: the label, or else the name."""
        return self.label or self.name


class RunConfig(Section):
    """One run: everything that a simulation depends on.  Tiers are ordered from fast to slow."""

    name: Text = "run"
    seed: Annotated[int, Field(ge=0, le=INT64_MAX)] = 0
    tasks: TaskMixture = None
    model: ModelName = None
    trace: TraceConfig
    profile: ProfileConfig
    tiers: Annotated[tuple[TierConfig, ...], Field(strict=False)] = ()
    host_link: LinkConfig | None = None
    engine: EngineConfig = EngineConfig()
    policy: PolicyConfig

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        names = [tier.name for tier in self.tiers]
        for name in names:
            if names.count(name) > 1:
                raise KeyProblem("tiers", f"two tiers are called {name!r}; names must differ")
        if self.engine.pristine and self.tiers and self.tiers[-1].capacity_bytes is not None:
            raise KeyProblem("engine.pristine", f"needs the last tier, {names[-1]!r}, to have capacity = 'unlimited'")
        if self.engine.arrivals == "closed" and self.trace.rate != 1:
            raise KeyProblem("trace.rate", "has no effect with engine.arrivals = 'closed'; remove it")
        return self


class PolicyGrid(Section):
    """One policy of a study with the values that its parameters take."""

    policy: PolicyConfig
    grid: dict[str, list[Param]]


class BoundConfig(Section):
    """The bound of a study, computed once for each point of its grid: at which weights, and for which policies.

    Weight 0 is always among them: without it the curve would end at a quality below which policies may be faster still.
    """

    alphas: tuple[Annotated[float, Field(ge=0, le=1e9)], ...] = Field(
        default=(0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0),
        min_length=1,
        max_length=200,
        strict=False,
    )
    anticipation: Literal["none", "prefetch", "raise"] = "none"

    @field_validator("alphas")
    @classmethod
    def _with_least_delay(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted({0.0, *alphas}))


class StudyConfig(Section):
    """A study: a base run, a grid over dotted keys, policies, a bound.  ``source`` is where it was read from."""

    base: RunConfig
    grid: dict[str, list[Any]]
    policies: tuple[PolicyGrid, ...]
    source: str
    bound: BoundConfig | None = None
