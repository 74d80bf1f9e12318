"""What is to be validated: the tables of a validation's TOML file, checked.

What it is: frozen pydantic models and the reader of the file.  What it is not: carrying it out (``validation.py``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from simkv.config_errors import KeyProblem, config_error
from simkv.config_fields import Bytes, Count, Text
from simkv.config_files import read_tables
from simkv.config_models import PolicyConfig, Section

__all__ = ["Plan", "WorkloadPlan", "load_plan", "parse_plan"]

_Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Positive = Annotated[float, Field(gt=0)]
_Capacity = Annotated[Bytes, Field(gt=0)]


class WorkloadPlan(Section):
    """Contexts with questions, and how often each is asked for.

    Lengths are drawn evenly from ``shortest``, ``shortest + step`` ... ``longest`` tokens; popularity falls as
    rank^-``exponent``.  Without ``tasks`` all of the model's are taken.
    """

    tasks: tuple[Text, ...] = Field(default=(), strict=False)
    contexts: Count = 48
    shortest: Annotated[int, Field(ge=64)] = 128
    longest: Count = 512
    step: Count = 64
    questions: Annotated[int, Field(ge=2, le=1024)] = 64
    exponent: Annotated[float, Field(ge=0, le=10)] = 0.8

    @model_validator(mode="after")
    def _check(self) -> "WorkloadPlan":
        if self.longest < self.shortest:
            raise KeyProblem("longest", f"{self.longest} tokens are fewer than shortest, {self.shortest}")
        return self


class Plan(Section):
    """A whole validation.

    Attributes:
        model: "small", or what else ``simkv profile quality --model`` takes.
        variants: what entries may be stored in, besides raw.
        dram, disk: capacities of the two tiers, bytes.
        budget: most bytes that both tiers together may really take; larger tiers are scaled down to it, and the
            number of contexts with them, bandwidths not.
        requests: of each replay.
        repeats: replays of each kind, each with requests of its own.
        loops: "closed" (one request at a time, its background work done before the next), "open" (by arrival times).
        loads: of open loops: share of the compute server's time that the closed loop's prediction would take.
        rates: of open loops instead of loads: requests per second.
        rounds: of calibration; each times every kind of request once, in random order.
    """

    name: Text = "validate"
    seed: _Seed = 0
    model: Text = "small"
    device: Text = "cpu"
    variants: Annotated[tuple[Text, ...], Field(strict=False)] = ("kivi:8", "kivi:4", "kivi:2")
    dram: _Capacity = 4_000_000
    disk: _Capacity = 8_000_000
    budget: _Capacity = 1 << 30
    requests: Count = 300
    repeats: Count = 3
    loops: Annotated[tuple[Literal["closed", "open"], ...], Field(strict=False, min_length=1)] = ("closed", "open")
    loads: Annotated[tuple[_Positive, ...], Field(strict=False)] = (0.3, 0.6)
    rates: Annotated[tuple[_Positive, ...], Field(strict=False)] = ()
    rounds: Annotated[int, Field(ge=3, le=10_000)] = 25
    workload: WorkloadPlan = WorkloadPlan()
    policies: Annotated[tuple[PolicyConfig, ...], Field(strict=False, min_length=1)] = (PolicyConfig(name="lru"),)

    @model_validator(mode="after")
    def _check(self) -> "Plan":
        for key, values in (("variants", self.variants), ("loops", self.loops)):
            if len(set(values)) < len(values):
                raise KeyProblem(key, f"{list(values)!r} names one twice")
        titles = [policy.title for policy in self.policies]
        for title in titles:
            if titles.count(title) > 1:
                raise KeyProblem("policies", f"two policies are called {title!r}; give them labels that differ")
        if "open" in self.loops and not self.loads and not self.rates:
            raise KeyProblem("loads", "an open loop needs loads or rates")
        return self

    @property
    def scale(self) -> float:
        """What capacities and the number of contexts are multiplied by to stay within the budget; at most 1."""
        return min(1.0, self.budget / (self.dram + self.disk))

    @property
    def capacities(self) -> tuple[int, int]:
        """Bytes of DRAM and disk as they are used, scaled."""
        return int(self.dram * self.scale), int(self.disk * self.scale)

    @property
    def contexts(self) -> int:
        """Contexts as they are used, scaled."""
        return max(1, round(self.workload.contexts * self.scale))


def load_plan(path: Path | None, changes: Mapping[str, Any]) -> Plan:
    """The plan of a TOML file, or the default one, with some keys replaced.  Raises ConfigError."""
    tables = read_tables(path) if path is not None else {}
    given = parse_plan(tables, str(path or "validate"))
    if not changes:
        return given
    return parse_plan({**tables, **changes}, "options")


def parse_plan(tables: Mapping[str, Any], where: str = "validate") -> Plan:
    """The plan of some tables; ``where`` opens every message.  Raises ConfigError."""
    try:
        return Plan.model_validate(dict(tables))
    except ValidationError as error:
        raise config_error(error, tables, where) from None
