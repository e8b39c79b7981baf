"""One variant in the decisions of one router: its queue as of now, and a forecast for who asks.

A decision first looks at all queues (`look`): the waits, and what they make of the prices. The rest of a
forecast is worked out only for variants that may be chosen (`p95_ms`), and its numbers stay until the
next look.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

from serve_app.policy.correction import Correction
from serve_app.policy.decision import Candidate, Grounds, Limit, Passed
from serve_app.policy.forecast import (
    LOAD_BINS,
    SIZE_BINS,
    Forecast,
    load_bin,
    service_of,
    wait_of,
)
from serve_app.policy.hint import Hint
from serve_app.policy.load import OTHERS_FADE_S, Engines, VariantLoad
from serve_app.policy.options import VariantFacts
from serve_app.policy.price import LEAST, TARGET_WAIT_MS, moved

Told = tuple[float, float, float, int, float]  # a Forecast's fields


class Moment:
    """What is the same for all variants in one decision. The brain sets it."""

    __slots__ = (
        "adding",
        "corrects",
        "gap_ms",
        "joiners",
        "joining",
        "lag_ms",
        "now_s",
        "passed_s",
        "remembers",
        "room",
        "size_bin",
        "texts",
        "tokens",
    )

    def __init__(self, *, corrects: bool, joiners: bool) -> None:
        self.corrects = corrects
        self.joiners = joiners
        self.tokens = self.texts = 0  # of the request
        self.size_bin = 0
        self.now_s = 0.0
        self.passed_s = 0.0  # since the last decision
        self.remembers = True  # prices move for good
        self.lag_ms = 0.0  # of the router, on both legs of a call
        self.joining = self.adding = (1.0, 0.0)  # pace and hop: of a busy engine; of one more
        self.gap_ms = 0.0  # between two batches of an engine
        self.room = False  # cores are idle


class Outlook:
    """See above. Attributes are as of the last look."""

    __slots__ = (
        "_moment",
        "ahead",
        "cold",
        "correction",
        "fidelity",
        "forecast",
        "load",
        "median",
        "per_token",
        "price",
        "service_ms",
        "spread",
        "typical",
        "variant",
        "wait_ms",
    )

    def __init__(self, facts: VariantFacts, moment: Moment, engines: Engines) -> None:
        self.variant = facts.variant
        self.fidelity = facts.fidelity
        self.spread = spread = facts.profile.spread
        self.load = VariantLoad(facts.profile, engines, streams=facts.streams)
        self.correction = Correction.of_p95(spread=spread, bins=LOAD_BINS * SIZE_BINS)
        self.median = Correction.of_median(bins=LOAD_BINS * SIZE_BINS)
        self.cold = True
        self.per_token = LEAST  # the price of a token
        self.wait_ms = self.price = 0.0
        self.ahead: float | None = None  # see `VariantLoad.ahead`
        self.service_ms, self.typical = 0.0, 1.0  # once `p95_ms` was asked for
        self.forecast: Told | None = None  # as well
        self._moment = moment

    @property
    def cost(self) -> float:
        """See `decision.Candidate`."""
        return self.load.cost_ms

    def look(self) -> None:
        """See the queue, and what it costs to join it."""
        moment, load = self._moment, self.load
        now_s = moment.now_s
        self.forecast = None
        ahead = self.ahead = load.ahead(now_s, room=moment.room)
        if ahead is None:
            wait_ms = 0.0
        else:
            running_ms, pace = load.running_ms(now_s), moment.joining[0]
            wait_ms = wait_of(load.fit, ahead, running_ms, pace, moment.gap_ms)
        self.wait_ms = wait_ms
        per_token = self.per_token
        if wait_ms <= TARGET_WAIT_MS and per_token == LEAST:
            self.price = 0.0  # and stays so
            return
        per_token = moved(per_token, wait_ms, moment.passed_s)
        self.price = moment.tokens * per_token if per_token > LEAST else 0.0
        if moment.remembers:
            self.per_token = per_token

    def p95_ms(self) -> float:
        """Of all that the request takes here; worked out once."""
        if self.forecast is not None:
            return self.forecast[2]
        moment, load, ahead, wait_ms = self._moment, self.load, self.ahead, self.wait_ms
        number, now_s = moment.size_bin, moment.now_s
        tokens, texts = moment.tokens, moment.texts
        if ahead is None:
            pace, hop_ms = moment.adding
            service_ms = service_of(load.fit, tokens, pace, 0.0, texts)
        else:
            pace, hop_ms = moment.joining
            joining = load.rate(now_s) * wait_ms if moment.joiners else 0.0
            service_ms = service_of(load.fit, tokens, pace, joining, texts)
            number += SIZE_BINS * load_bin(ahead, load.fit[2])
        service_ms += hop_ms + moment.lag_ms
        factor, typical = self.spread, 1.0
        if moment.corrects:
            factor = self.correction.factor(number, now_s)
            typical = self.median.factor(number, now_s)
        p95_ms = (wait_ms + service_ms) * factor
        self.service_ms = service_ms
        self.typical = typical = min(typical, factor)
        self.forecast = wait_ms, service_ms, p95_ms, number, typical
        return p95_ms

    def p50_ms(self) -> float:
        """The learned median of the same."""
        self.p95_ms()
        return (self.wait_ms + self.service_ms) * self.typical

    def candidate(self) -> Candidate:
        """All that is seen of the variant, which is forecast now where it was not."""
        if self.forecast is None:
            self.p95_ms()
        return _candidate(self, self.forecast, self.price)


def look_at_all(rows: Sequence[Outlook], moment: Moment) -> None:
    """`Outlook.look` of each, and of nothing else: its calls, written out, take half as long.

    A router does this for each request. A test holds the two together.
    """
    now_s, passed_s, tokens = moment.now_s, moment.passed_s, moment.tokens
    pace, gap_ms, remembers = moment.joining[0], moment.gap_ms, moment.remembers
    room = moment.room
    for row in rows:
        load = row.load
        row.forecast = None
        if now_s > load.forgets_s:
            load.forget(now_s)
        others, calls, running = load.others_tokens, load.calls, load.counted
        if others:
            others *= exp((load.seen_s - now_s) / OTHERS_FADE_S)
        if others < 1 and calls < (load.places if room else running):
            row.ahead = None
            wait_ms = 0.0
        else:
            if calls > running:
                running = calls if calls < load.places else load.places
            ahead = row.ahead = (load.inflight_tokens + others) / running
            base_ms, per_token_ms, batch_tokens = load.fit
            first = ahead if ahead < batch_tokens else batch_tokens
            first_ms = pace * (base_ms + per_token_ms * first) + gap_ms
            running_ms = (now_s - load.running_since_s) * 1000
            batches = -(-ahead // batch_tokens)
            wait_ms = pace * (batches * base_ms + ahead * per_token_ms) + batches * gap_ms
            wait_ms -= running_ms if running_ms < first_ms else first_ms
            wait_ms = max(wait_ms, 0.0)
        row.wait_ms = wait_ms
        per_token = row.per_token
        if wait_ms <= TARGET_WAIT_MS and per_token == LEAST:
            row.price = 0.0
            continue
        per_token = moved(per_token, wait_ms, passed_s)
        row.price = tokens * per_token if per_token > LEAST else 0.0
        if remembers:
            row.per_token = per_token


class Looked:
    """What a decision was made from, until somebody asks: see `decision.Record`."""

    __slots__ = ("_chosen", "_floor", "_forecasts", "_hint", "_left_ms", "_prices", "_rows")

    def __init__(
        self,
        hint: Hint,
        rows: Sequence[Outlook],
        left_ms: float,
        floor: float,
        chosen: Candidate | None,
    ) -> None:
        self._hint = hint
        self._rows = rows
        self._left_ms = left_ms
        self._floor = floor
        self._chosen = chosen
        if chosen is None:  # then all are told of
            for row in rows:
                row.p95_ms()
        self._forecasts = [row.forecast for row in rows]
        self._prices = [row.price for row in rows]

    def grounds(self) -> Grounds:
        chosen = self._chosen
        candidates = [
            chosen
            if chosen is not None and row.variant == chosen.variant
            else _candidate(row, forecast, price)
            for row, forecast, price in zip(self._rows, self._forecasts, self._prices, strict=True)
            if forecast is not None
        ]
        limit = Limit(self._left_ms, self._hint.budget_ms is not None)
        return Grounds(self._hint, candidates, limit, self._floor)

    def passed(self) -> list[Passed]:
        return [
            Passed(row.variant, row.fidelity, row.cost, price, row.cold)
            for row, forecast, price in zip(self._rows, self._forecasts, self._prices, strict=True)
            if forecast is None
        ]


def _candidate(row: Outlook, told: Told | None, price: float) -> Candidate:
    assert told is not None  # noqa: S101  # only rows that were forecast are asked for
    return Candidate(row.variant, row.fidelity, row.cost, Forecast(*told), row.cold, price)
