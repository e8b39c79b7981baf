"""The survey of an idle server: exact tokens, the limit of each class, and few questions."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from loadtests import survey as surveys
from loadtests.errors import BadFile, NoServer
from loadtests.feasibility import NAME, Feasibility
from loadtests.served import Route, Server
from loadtests.settings import Settings
from loadtests.survey import CONFIRMED, MOST_ASKED, SAMPLE, survey
from loadtests.workload import DEFAULT_MIX, Texts, Workload, parse_mix
from tests.loadtests import fake_cluster
from tests.loadtests.fake_cluster import FakeCluster, tokens_of

TEXTS = Texts(
    (tuple(f"{n} " + "word " * n for n in range(1, 101)), ("word " * 300, "more " * 320)),
    (3.0, 1.0),
)


@dataclass
class Idle:
    """Admits what takes no longer than the budget, at so many ms a token, times a jitter."""

    ms_a_token: float = 1.0
    jitter: Callable[[], float] = lambda: 1.0
    asked: list[str] = field(default_factory=list)

    @contextmanager
    def asking(self) -> Iterator[Callable[[bytes], Route]]:
        yield self._ask

    def _ask(self, body: bytes) -> Route:
        given = json.loads(body)
        self.asked.append(given["input"])
        tokens = tokens_of(given["input"])
        needed_ms = self.ms_a_token * tokens * self.jitter()
        return Route(admitted=needed_ms <= given.get("latency_ms", 1e9), tokens=tokens)


def _survey(server: Idle, texts: Texts = TEXTS, mix: str = "") -> Feasibility:
    return survey(server, Workload(parse_mix(mix), texts), now=pytest.fail)


@pytest.mark.parametrize("ms_a_token", [0.01, 0.3, 1.0, 7.3, 100.0])
def test_the_limit_is_the_longest_text_that_is_admitted(ms_a_token: float) -> None:
    """For each class with a budget the largest count under it, 0 for none; every text's fate follows from it."""
    found = _survey(Idle(ms_a_token))
    assert set(found.token_limits) == {"tight", "interactive", "relaxed"}
    for c in DEFAULT_MIX[:3]:
        refused = {
            t
            for pool in TEXTS.pools
            for t in pool
            if ms_a_token * tokens_of(t) > (c.budget_ms or 0)
        }
        assert found.infeasible(TEXTS)[c.name] == refused
        first, second = (np.mean([t not in refused for t in pool]) for pool in TEXTS.pools)
        assert found.shares(TEXTS)[c.name] == pytest.approx((3 * first + second) / 4)


def test_each_text_is_asked_for_once() -> None:
    """Bisection takes a few questions more, and a text that is in two pools is one."""
    twice = Texts((*TEXTS.pools, TEXTS.pools[0]), (1.0, 1.0, 1.0))
    server = Idle()
    found = _survey(server, twice, "tight=1,bulk=1")
    assert found.estimated_texts == 0
    assert [len(pool) for pool in found.tokens] == [100, 2, 100]
    assert server.asked[:102] == [text for pool in TEXTS.pools for text in pool]
    assert len(server.asked) < 102 + CONFIRMED * 12


def test_a_limit_that_jitters_is_the_stricter_one() -> None:
    """At forecasts that vary by a tenth the limit is near where the server begins to refuse, not far below."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        found = _survey(Idle(jitter=lambda: float(rng.uniform(0.9, 1.1))), mix="50ms=1")
        assert 43 <= found.token_limits["50ms"] <= 53


def test_a_stall_while_surveying_moves_no_limit() -> None:
    """A server that refuses everything for three questions of the bisection is asked again."""
    turn = iter([1.0] * 102 + [1e9] * 3)
    found = _survey(Idle(jitter=lambda: next(turn, 1.0)), mix="interactive=1")
    assert found.token_limits == {"interactive": 100}


def test_of_a_large_file_a_sample_is_asked() -> None:
    """Above the limit texts' tokens are estimated by their length, near what they are, and the count says so."""
    rng = np.random.default_rng(0)
    count = MOST_ASKED + 500
    many = Texts((tuple(f"{n} " + "word " * rng.integers(1, 200) for n in range(count)),), (1.0,))
    server = Idle()
    found = _survey(server, many, "interactive=1")
    assert found.estimated_texts >= count - SAMPLE
    assert len(server.asked) < SAMPLE + CONFIRMED * 12
    exact = [tokens_of(text) for text in many.pools[0]]
    assert np.abs(np.array(found.tokens[0]) - exact).max() <= 2


def test_the_mean_request_is_that_of_the_mix() -> None:
    """Texts by the shares of their pools, bulk with all its 32."""
    load = Workload(parse_mix("tight=3,bulk=1"), TEXTS)
    mean = (3 * np.mean([tokens_of(t) for t in TEXTS.pools[0]]) + (302 + 322) / 2) / 4
    found = survey(Idle(), load, now=pytest.fail)
    assert found.tokens_per_request(load) == pytest.approx(mean * (3 + 32) / 4)


def test_progress_is_told_when_it_takes_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a second there is a line that says how far it is."""
    monkeypatch.setattr(surveys, "TOLD_AFTER_S", -1.0)
    told: list[str] = []
    survey(Idle(), Workload(DEFAULT_MIX, TEXTS), now=told.append)
    assert told == ["survey: 50 of 102 texts", "survey: 100 of 102 texts"]


def test_a_server_is_asked_over_one_connection() -> None:
    """All questions share one connection; a server that refuses one, or is gone, is one line."""
    with fake_cluster.serving(FakeCluster(ms_a_token=1.0)) as cluster:
        server = Server(cluster.url)
        found = survey(server, Workload(parse_mix("interactive=1"), TEXTS), now=lambda _: None)
        assert found.token_limits == {"interactive": 100}
        assert cluster.connections == 1
        assert cluster.routed > 102
        with (
            server.asking() as ask,
            pytest.raises(NoServer, match=r"/v1/route answers 400 to 'refuse me'"),
        ):
            ask(b'{"input": "refuse me"}')
    with pytest.raises(NoServer, match="does not answer"):
        server.route(b'{"input": "x"}')


def test_what_is_written_reaches_whoever_sends(tmp_path: Path) -> None:
    """The file of a run, given as an option, tells each request of the same texts what it is."""
    texts = tmp_path / "texts.txt"
    texts.write_text("short\n" + "word " * 200, encoding="utf-8")
    load = Workload(DEFAULT_MIX, Texts.from_file(texts))
    found = survey(Idle(), load, now=pytest.fail)
    file = found.write(tmp_path)
    assert file.name == NAME
    assert Feasibility.read(file) == found
    given = {"texts": str(texts), "feasibility": str(file), "pin": "onnx-int8"}
    infeasible = Settings.parse(given).workload.infeasible
    assert infeasible is not None
    counts = {name: len(of) for name, of in infeasible.items()}
    assert counts == {"tight": 1, "interactive": 1, "relaxed": 0}
    assert Settings.parse({"texts": str(texts)}).workload.infeasible is None


def test_a_wrong_file_is_one_line(tmp_path: Path) -> None:
    """Missing, of something else, or of other texts than those that are sent."""
    file = tmp_path / "f.json"
    with pytest.raises(BadFile, match=r"--feasibility=.*f\.json: it cannot be read"):
        Settings.parse({"feasibility": str(file)})
    for content in ("{}", "[]", "no", '{"tokens": [[1]], "x": 1}'):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(BadFile, match=r"--feasibility=.*f\.json: it is not what a run writes"):
            Settings.parse({"feasibility": str(file)})
    other = replace(_survey(Idle()), digest="0" * 32).write(tmp_path)
    with pytest.raises(BadFile, match="--feasibility is about other texts"):
        Settings.parse({"feasibility": str(other)})
