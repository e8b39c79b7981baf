"""What each variant is wanted for: engine-seconds a second, by each request's first choice.

The first choice is the variant that the request would get if all were up and idle. So a variant that
is overrun, and loses requests to cheaper ones, is still wanted, and so is one without any replica.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

WINDOW_S = 5.0


class Demand:
    """Faded sums of engine time by variant, of what was wanted and of what was sent."""

    def __init__(self, variants: Sequence[str]) -> None:
        self._wanted_ms = dict.fromkeys(variants, 0.0)
        self._sent_ms = dict.fromkeys(variants, 0.0)
        self._at_s = 0.0

    def wanted(self, variant: str, engine_ms: float, *, now_s: float) -> None:
        """A request would have had so much engine time of this variant in an idle cluster."""
        self._fade(now_s)
        self._wanted_ms[variant] += engine_ms

    def sent(self, variant: str, engine_ms: float, *, now_s: float) -> None:
        """A request goes to this variant."""
        self._fade(now_s)
        self._sent_ms[variant] += engine_ms

    def busy(self, variant: str, *, now_s: float) -> float:
        """Engines that the variant's demand keeps busy: the larger of wanted and sent."""
        self._fade(now_s)
        return max(self._wanted_ms[variant], self._sent_ms[variant]) / (1000 * WINDOW_S)

    def _fade(self, now_s: float) -> None:
        factor = math.exp(min(self._at_s - now_s, 0.0) / WINDOW_S)
        self._at_s = now_s
        for sums in (self._wanted_ms, self._sent_ms):
            for variant in sums:
                sums[variant] *= factor
