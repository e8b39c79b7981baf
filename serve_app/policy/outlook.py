"""One variant in the decisions of one router, as of the moment of the decision.

What a decision does not ask for is not worked out: most requests need the forecasts of one or two variants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from serve_app.policy.correction import Correction
from serve_app.policy.decision import Candidate, Grounds, Limit, Passed
from serve_app.policy.forecast import LOAD_BINS, SIZE_BINS, Forecast, load_bin, service_of
from serve_app.policy.hint import Hint
from serve_app.policy.load import VariantLoad
from serve_app.policy.options import VariantFacts
from serve_app.policy.pool import Pool
from serve_app.policy.turns import PLACES_MS, turn_s

Told = tuple[float, float, float, int, float, float]  # a Forecast's fields


class Moment:
    """What is the same for all variants in one decision. The brain sets it."""

    __slots__ = (
        "corrects",
        "joiners",
        "lag_ms",
        "left_ms",
        "now_s",
        "number",
        "place",
        "size_bin",
        "texts",
        "tokens",
    )

    def __init__(self, *, corrects: bool, joiners: bool) -> None:
        self.corrects = corrects
        self.joiners = joiners
        self.number = 0  # tells it from others
        self.tokens = self.texts = 0  # of the request
        self.size_bin = 0
        self.left_ms = 0.0  # of its budget; inf without one
        self.place = 0  # the last that it may have, see `turns.py`
        self.now_s = 0.0
        self.lag_ms = 0.0  # of the router, on both legs of a call


class Outlook:
    """See above. What is read of it holds for the moment's request."""

    __slots__ = (
        "_moment",
        "_number",
        "_told",
        "cold",
        "correction",
        "fidelity",
        "load",
        "median",
        "pool",
        "spread",
        "variant",
    )

    def __init__(self, facts: VariantFacts, moment: Moment, pool: Pool) -> None:
        self.variant = facts.variant
        self.fidelity = facts.fidelity
        self.spread = spread = facts.profile.spread
        self.pool = pool
        self.load = VariantLoad(facts.profile, pool, variant=facts.variant, streams=facts.streams)
        self.correction = Correction.of_p95(spread=spread, bins=LOAD_BINS * SIZE_BINS)
        self.median = Correction.of_median(bins=LOAD_BINS * SIZE_BINS)
        self.cold = True
        self._moment = moment
        self._number = -1  # of the moment in which it was forecast
        self._told: Told = (0.0, 0.0, 0.0, 0, 1.0, 0.0)

    @property
    def cost(self) -> float:
        """See `decision.Candidate`."""
        return self.load.cost_ms

    @property
    def price(self) -> float:
        """Rent for the work of one of the request's texts, the mean of them."""
        rent, moment = self.pool.rent, self._moment
        if not rent:
            return 0.0
        return rent * self.load.work_ms(moment.tokens, texts=moment.texts) / moment.texts

    @property
    def wait_ms(self) -> float:
        return self.told()[0]

    @property
    def service_ms(self) -> float:
        return self.told()[1]

    def p95_ms(self) -> float:
        """Of all that the request takes here."""
        return self.told()[2]

    def p50_ms(self) -> float:
        """The learned median of the same."""
        told = self.told()
        return (told[0] + told[1]) * told[4]

    def soonest_ms(self) -> float:
        """p95 at the first place in line."""
        wait_ms, service_ms, p95_ms, number, _, place_ms = self.told()
        starts = number < SIZE_BINS  # else it has the bin of a wait
        if not place_ms or starts or not self._waits_in_line():
            return p95_ms
        pace = self.pool.contention.at(self.pool.busy)[0]
        factor = p95_ms / (wait_ms + service_ms)
        return (self._wait_ms(0, pace) + service_ms) * factor

    @property
    def is_told(self) -> bool:
        """Whether somebody asked for a forecast in this moment."""
        return self._number == self._moment.number

    def told(self) -> Told:
        """The forecast, worked out once.

        At the last place that fits what is left of the budget; where none does, at the last it may have.
        """
        moment = self._moment
        if self._number == moment.number:
            return self._told
        self._number = moment.number
        load, pool, now_s, fit = self.load, self.pool, moment.now_s, self.load.fit
        number, wait_ms, joining, place = moment.size_bin, 0.0, 0.0, moment.place
        starts = load.starts_at_once(now_s)
        pace, hop_ms = pool.contention.at(pool.busy + starts)
        if not starts:
            wait_ms = load.wait_ms(math.inf, now_s=now_s, pace=pace, grows=moment.joiners)
            number += SIZE_BINS * load_bin(wait_ms / (fit[0] + fit[1] * fit[2]))
            if moment.joiners:
                joining = load.rate(now_s) * wait_ms
        factor, typical = self.spread, 1.0
        if moment.corrects:
            factor = self.correction.factor(number, now_s)
            typical = min(self.median.factor(number, now_s), factor)
        service_ms = service_of(fit, moment.tokens, pace, joining, moment.texts)
        service_ms += hop_ms + moment.lag_ms
        if not starts and self._waits_in_line():
            wait_ms, place = self._in_turn(pace, most_ms=moment.left_ms / factor - service_ms)
        p95_ms = (wait_ms + service_ms) * factor
        self._told = wait_ms, service_ms, p95_ms, number, typical, PLACES_MS[place]
        return self._told

    def _waits_in_line(self) -> bool:
        return bool((self.pool.line if self.pool.is_shared else self.load.line).work_ms)

    def _in_turn(self, pace: float, *, most_ms: float) -> tuple[float, int]:
        """The wait and the place of a request that may wait for so long."""
        place = self._moment.place
        wait_ms = self._wait_ms(place, pace)
        if place and wait_ms > most_ms and self._wait_ms(0, pace) <= most_ms:
            while wait_ms > most_ms:
                place -= 1
                wait_ms = self._wait_ms(place, pace)
        return wait_ms, place

    def _wait_ms(self, place: int, pace: float) -> float:
        """Of a request at this place in line."""
        moment, load = self._moment, self.load
        work_ms = load.work_ms(min(moment.tokens, load.fit[2]))
        turn = turn_s(moment.now_s, place_ms=PLACES_MS[place], work_ms=work_ms)
        return load.wait_ms(turn, now_s=moment.now_s, pace=pace, grows=moment.joiners)

    def candidate(self) -> Candidate:
        """All that is seen of the variant."""
        return _candidate(self, self.told(), self.price)


class Looked:
    """What a decision was made from, until somebody asks: see `decision.Record`."""

    __slots__ = ("_asked", "_chosen", "_floor", "_hint", "_left_ms", "_rents", "_rows", "_told")

    def __init__(
        self,
        hint: Hint,
        rows: Sequence[Outlook],
        left_ms: float,
        floor: float,
        chosen: Candidate | None,
        moment: Moment,
    ) -> None:
        self._hint = hint
        self._rows = rows
        self._left_ms = left_ms
        self._floor = floor
        self._chosen = chosen
        self._asked = moment.tokens, moment.texts
        if chosen is None:  # then all are told of
            for row in rows:
                row.told()
        self._told = [row.told() if row.is_told else None for row in rows]
        self._rents = [row.pool.rent for row in rows]

    def grounds(self) -> Grounds:
        chosen = self._chosen
        candidates = [
            chosen
            if chosen is not None and row.variant == chosen.variant
            else _candidate(row, told, self._price(row, rent))
            for row, told, rent in zip(self._rows, self._told, self._rents, strict=True)
            if told is not None
        ]
        limit = Limit(self._left_ms, self._hint.budget_ms is not None)
        return Grounds(self._hint, candidates, limit, self._floor)

    def passed(self) -> list[Passed]:
        return [
            Passed(row.variant, row.fidelity, row.cost, self._price(row, rent), row.cold)
            for row, told, rent in zip(self._rows, self._told, self._rents, strict=True)
            if told is None
        ]

    def _price(self, row: Outlook, rent: float) -> float:
        tokens, texts = self._asked
        return rent * row.load.work_ms(tokens, texts=texts) / texts


def _candidate(row: Outlook, told: Told, price: float) -> Candidate:
    return Candidate(row.variant, row.fidelity, row.cost, Forecast(*told), row.cold, price)
