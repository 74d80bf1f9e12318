"""Events with an explicit order: (time, kind, request, part), never the order of insertion.

SimPy pops events by (time, priority, insertion).  ``At`` puts kind, request and part into the priority, so
that insertion order only separates events that are the same in all four, which the engine never makes.
"""

from collections.abc import Callable

from simpy import Environment
from simpy.events import Event

__all__ = ["ARRIVE", "COMPUTE", "FIRST_TOKEN", "LINK", "READ", "READY", "REBALANCE", "TRANSFER", "At"]

# At one instant, what ends comes before what begins.
TRANSFER, LINK, READ, READY, COMPUTE, FIRST_TOKEN, ARRIVE, REBALANCE = range(8)
_REQUEST_BITS = 40
_PART_BITS = 16


class At(Event):
    """Call ``callback(now_ns)`` at ``time_ns`` (int, not before now)."""

    def __init__(
        self, env: Environment, time_ns: int, kind: int, request: int, part: int, callback: Callable[[int], None]
    ) -> None:
        self.env = env
        self.callbacks = [self._call]
        self._ok = True
        self._value = time_ns
        self._target = callback
        priority = (kind << _REQUEST_BITS | request) << _PART_BITS | part
        env.schedule(self, priority, time_ns - env.now)  # type: ignore[arg-type]

    def _call(self, _event: Event) -> None:
        self._target(self._value)
