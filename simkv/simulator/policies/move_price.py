"""MovePrice: what a second of reading raw copies costs those who wait, by how busy their channel has been.

    price = at_half x u / (1 - u),   u: seconds of reading asked for per second of late, at most 0.99

A second of work holds up what comes after it as long as the channel is busy, which grows like u / (1 - u) in a queue:
next to nothing on an idle channel, 99 times as much on a full one as on one half full.  What it is: an average over
about as many requests as ``_MEMORY``.  What it is not: the queue at this instant, under which decisions would differ
from request to request for no reason that lasts as long as what they decide.
"""

import math

__all__ = ["MovePrice"]

_MEMORY = 1024.0  # requests
_FULL = 0.99
_STEP = math.sqrt(2.0)  # by which the price must have changed to be changed, so that what was made of it lives


class MovePrice:
    """Price in seconds of delay per second of reading raw copies.

    Args:
        at_half: price where the channel is asked for half of what it can do.

    Attributes:
        now: the price.
    """

    def __init__(self, at_half: float) -> None:
        self._at_half = at_half
        self._asked_s = self._passed_s = 0.0
        self._last = (0.0, 0.0)
        self.now = 0.0

    def observe(self, asked_s: float, now_s: float) -> bool:
        """A request comes to its end when so much has been asked for since the start; True if the price changed."""
        asked_before, before = self._last
        self._last = asked_s, now_s
        kept = 1.0 - 1.0 / _MEMORY
        self._asked_s = self._asked_s * kept + asked_s - asked_before
        self._passed_s = self._passed_s * kept + now_s - before
        if self._passed_s <= 0.0:
            return False
        load = min(_FULL, self._asked_s / self._passed_s)
        price = self._at_half * load / (1.0 - load)
        if self.now / _STEP <= price <= self.now * _STEP:
            return False
        self.now = price
        return True
