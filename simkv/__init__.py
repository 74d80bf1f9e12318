"""simkv: a trace-driven simulator of the storage hierarchy that holds LLM KV caches.

Reading guide
-------------
Inputs:   ``simkv.traces`` (request traces), ``simkv.profiles`` (measured quality, sizes, speeds).
Run:      ``simulate`` in ``simkv.simulator.run``; what a run means is in ``simulator/SPECIFICATION.md``.
Decide:   ``simkv.simulator.policies`` (one file per policy, interface in ``base.py``).
Studies:  ``simkv.config`` (TOML), ``simkv.experiments`` (sweeps), ``simkv.figures`` (plots).
Measure:  ``simkv.profiler`` (profiles from real devices), ``simkv.testbed`` (the simulator beside real replays).

Names below are loaded when first used, so ``import simkv`` itself is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simkv.config import load_config
    from simkv.errors import SimkvError
    from simkv.experiments import run_study
    from simkv.profiles import Profile, load_profile
    from simkv.simulator.metrics import Result
    from simkv.simulator.policies import Policy
    from simkv.simulator.run import run_config, simulate
    from simkv.traces import Trace, load_trace
    from simkv.traces.generate import generate_trace

_HOME = {
    "Policy": "simkv.simulator.policies",
    "Profile": "simkv.profiles",
    "Result": "simkv.simulator.metrics",
    "SimkvError": "simkv.errors",
    "Trace": "simkv.traces",
    "generate_trace": "simkv.traces.generate",
    "load_config": "simkv.config",
    "load_profile": "simkv.profiles",
    "load_trace": "simkv.traces",
    "run_config": "simkv.simulator.run",
    "run_study": "simkv.experiments",
    "simulate": "simkv.simulator.run",
}

__all__ = [
    "Policy",
    "Profile",
    "Result",
    "SimkvError",
    "Trace",
    "generate_trace",
    "load_config",
    "load_profile",
    "load_trace",
    "run_config",
    "run_study",
    "simulate",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'simkv' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """Public names."""
    return sorted(__all__)
