"""Recompute: store nothing, prefill every prompt in full.  The baseline "Prefill" of both papers."""

from dataclasses import dataclass
from typing import ClassVar

from simkv.simulator.policies.base import Policy

__all__ = ["Recompute"]


@dataclass
class Recompute(Policy):
    """Stores nothing."""

    name: ClassVar[str] = "recompute"
