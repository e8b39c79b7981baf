"""How much engines that share a host's cores slow each other, learned from the replicas' pace.

Each reply tells the pace of the replica's last batch: its time over what the profile says. What is
remembered is the pace by the number of engines that were busy when the call was sent. Until it is
learned, `n` busy engines on `cores` cores run at `n / cores`. The cost of a call beside queue and engine
(the hop) grows with the same number, as the router shares the cores too.
"""

from __future__ import annotations

WEIGHT = 0.05  # of the newest observation
FIRST_WEIGHTS = 1.0  # until there are 1 / WEIGHT of them: a plain mean
MOST_BUSY = 32
OUTLIER = 3.0  # a hop this many times the usual one is a stall of the router, see `Brain.lag_ms`
LEAST_PACE, MOST_PACE = 0.25, 16.0


class Contention:
    """The pace and the hop of calls by how many engines are busy."""

    def __init__(self, *, cores: float) -> None:
        self._pace = [max(1.0, busy / cores) for busy in range(MOST_BUSY + 1)]
        self._hop_ms = [0.0] * (MOST_BUSY + 1)
        self._told_by = list(range(MOST_BUSY + 1))  # whose hop to take: the nearest that is known
        self._paces_seen = [0] * (MOST_BUSY + 1)
        self.least_pace = 1.0  # of those that were seen
        self._hops_seen = [0] * (MOST_BUSY + 1)

    def at(self, busy: int) -> tuple[float, float]:
        """When `busy` engines are at work.

        Returns:
            How many times longer than its profile a batch takes; what a call costs beside queue and
            engine, in milliseconds. Where nobody knows, as much as with fewer busy engines.
        """
        number = busy if busy < MOST_BUSY else MOST_BUSY
        return self._pace[number], self._hop_ms[self._told_by[number]]

    def _nearest_known(self, number: int) -> int:
        known = [i for i, seen in enumerate(self._hops_seen) if seen]
        return max((i for i in known if i <= number), default=known[0])

    def learn(self, busy: int, *, pace: float, hop_ms: float) -> None:
        """Take one reply to a call that was sent when `busy` engines, its own included, were at work."""
        number = min(busy, MOST_BUSY)
        self._paces_seen[number] += 1
        weight = max(WEIGHT, FIRST_WEIGHTS / (1 + self._paces_seen[number]))
        self._pace[number] += weight * (min(max(pace, LEAST_PACE), MOST_PACE) - self._pace[number])
        self.least_pace = min(
            pace for pace, seen in zip(self._pace, self._paces_seen, strict=True) if seen
        )
        self._hops_seen[number] += 1
        known = self._hop_ms[number]
        if self._hops_seen[number] == 1:
            self._hop_ms[number] = hop_ms
            self._told_by = [self._nearest_known(other) for other in range(MOST_BUSY + 1)]
        else:
            weight = max(WEIGHT, FIRST_WEIGHTS / self._hops_seen[number])
            self._hop_ms[number] = known + weight * (min(hop_ms, OUTLIER * known + 1) - known)
