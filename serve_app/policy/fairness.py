"""Who is over its share: where something must be shed, the client that asks for most loses first.

Each client's tokens are summed with an exponential fade. A client is over its share when it has asked
for more than `OVER` times an equal part, and there are others.
"""

from __future__ import annotations

import math

FADES_S = 10.0
OVER = 1.5
MOST_CLIENTS = 4096
GONE_TOKENS = 1.0


class Shares:
    """What each client asked for lately."""

    def __init__(self) -> None:
        self._tokens: dict[str, float] = {}  # as of _at_s
        self._total = 0.0
        self._at_s = 0.0

    def asked(self, client: str, tokens: int, *, now_s: float) -> None:
        """A client asked for so many tokens, whether it got them or not."""
        self._fade(now_s)
        if client not in self._tokens and len(self._tokens) >= MOST_CLIENTS:
            self._drop_smallest()
        self._tokens[client] = self._tokens.get(client, 0.0) + tokens
        self._total += tokens

    def is_over(self, client: str) -> bool:
        """Whether it asked for more than its part. One client alone never does."""
        count = len(self._tokens)
        if count < 2:  # noqa: PLR2004
            return False
        return self._tokens.get(client, 0.0) > OVER * self._total / count

    def _fade(self, now_s: float) -> None:
        """Once a tenth of the fade is enough, and keeps this off most requests."""
        passed_s = now_s - self._at_s
        if passed_s < FADES_S / 10:
            return
        factor = math.exp(-passed_s / FADES_S)
        faded = ((client, tokens * factor) for client, tokens in self._tokens.items())
        self._tokens = {client: tokens for client, tokens in faded if tokens >= GONE_TOKENS}
        self._total = sum(self._tokens.values())
        self._at_s = now_s

    def _drop_smallest(self) -> None:
        smallest = min(self._tokens, key=self._tokens.__getitem__)
        self._total -= self._tokens.pop(smallest)
