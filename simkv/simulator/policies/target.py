"""Target: finds online the weight of quality at which a run meets a quality floor or a limit on time to first token.

After each measured request the logarithm of alpha moves a little (Robbins and Monro 1951): down by what its quality had
to spare over the floor; or up when it was answered in time and down when late, in the proportion that balances when the
wanted share is in time.  What it is: an integral controller on what users see.  What it is not: a forecast.
"""

import math

import numpy as np

from simkv.errors import PolicyError

__all__ = ["Target"]

_QUALITY_STEP = 0.04  # per request, times quality missing over quality that the floor lets pass
_TTFT_STEP = 0.1
_NOTCH = 1.0 / math.log(1.1)  # alpha is used on a grid of 10 %, so that tables of gains live for many requests
_MOST_STEP = 0.5  # of the logarithm at once: one bad answer is little evidence, however near 1 the floor is
_DELAY = 25.0  # requests between uses from which the steps are smaller: they show in answers only after so many
_LEAST, _MOST = 1e-6, 1e6
_SLACK = 0.05  # a target is missed when more than this share above what it lets pass (quality lost, late requests) does


class Target:
    """Alpha under control.

    Args:
        alpha: to begin with.
        quality_floor: mean quality to keep, None for none.
        ttft_slo_s: seconds within which ``slo_share`` of the requests shall have their first token, None for none.
        slo_share: that share, between 0 and 1.

    Raises:
        PolicyError: when both or neither is given, or one is out of range.
    """

    def __init__(self, alpha: float, quality_floor: float | None, ttft_slo_s: float | None, slo_share: float) -> None:
        if (quality_floor is None) == (ttft_slo_s is None):
            raise PolicyError("policy hitdensity: give quality_floor or ttft_slo_s, not both")
        if quality_floor is not None and not 0 < quality_floor < 1:
            raise PolicyError(f"policy hitdensity: quality_floor is {quality_floor!r}; it must be between 0 and 1")
        if ttft_slo_s is not None and not 0 < ttft_slo_s < math.inf:
            raise PolicyError(f"policy hitdensity: ttft_slo_s is {ttft_slo_s!r}; it must be positive seconds")
        self._floor = quality_floor
        self._slo_s = ttft_slo_s
        self._share = slo_share
        self._log = math.log(min(max(alpha, _LEAST), _MOST))

    @property
    def alpha(self) -> float:
        """Seconds that one unit of quality is worth at present, on the grid."""
        return math.exp(round(self._log * _NOTCH) / _NOTCH)

    def answered(self, ttft_s: float, quality: float, delay: float = 0.0) -> None:
        """One more request had its first token after so long, at that quality.

        ``delay``: requests between two uses of an entry, about: so much later a change of alpha shows, and an
        integral controller whose step is not smaller the longer that takes swings ever wider.
        """
        damping = _DELAY / (_DELAY + delay)
        if self._floor is not None:
            step = _QUALITY_STEP * (self._floor - quality) / (1.0 - self._floor)
            self._log += damping * min(max(step, -_MOST_STEP), _MOST_STEP)
        else:
            assert self._slo_s is not None
            self._log += damping * _TTFT_STEP * ((ttft_s <= self._slo_s) - self._share)
        self._log = min(max(self._log, math.log(_LEAST)), math.log(_MOST))

    def missed(self, ttft_s: np.ndarray, quality: np.ndarray) -> str | None:
        """One line if requests with these delays and qualities do not meet the target, within a little; else None."""
        if self._floor is not None:
            what, wanted, reached = "mean quality", self._floor, float(quality.mean())
        else:
            assert self._slo_s is not None
            what, wanted = f"share in time ({self._slo_s:g} s)", self._share
            reached = float((ttft_s <= self._slo_s).mean())
        if 1 - reached <= (1 + _SLACK) * (1 - wanted):
            return None
        return (
            f"target not met: {what} {reached:.4g}, wanted {wanted:g} (over the measured requests; alpha ended at "
            f"{self.alpha:.3g} s): out of reach here, or the search for alpha was still under way"
        )
