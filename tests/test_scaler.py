"""Routers share one decision over the board, and each keeps its variants in step with it."""

import asyncio
from collections.abc import Mapping

from serve_app.policy.scaling import Bounds, Rules
from serve_app.scaler import GONE_AFTER_S, STANDING, TARGET, Attendant, Scaler, Standing

BOUNDS = [
    Bounds(variant="best", fidelity=1.0, minimum=0, maximum=4),
    Bounds(variant="cheap", fidelity=0.9, minimum=1, maximum=4),
]
RULES = Rules(slots=6, quiet_s=30.0)


class DictBoard:
    """A board in this process, whose controller obeys at once."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def read(self, key: str) -> str | None:
        return self.texts.get(key)

    def write(self, key: str, text: str) -> None:
        self.texts[key] = text
        if key.startswith(TARGET):
            self.texts[STANDING + key.removeprefix(TARGET)] = Standing(int(text), int(text)).text

    def delete(self, key: str) -> None:
        self.texts.pop(key, None)

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.texts if key.startswith(prefix)]

    def target(self, variant: str) -> str | None:
        return self.read(TARGET + variant)


def scaler(board: DictBoard, router: str) -> Scaler:
    return Scaler(board, router=router, bounds=BOUNDS, rules=RULES)


def test_the_demand_of_all_routers_adds_up() -> None:
    """Two routers with one engine's work each: the first by name asks for what two engines need."""
    board = DictBoard()
    first, second = scaler(board, "a"), scaler(board, "b")
    first.tick({}, now_s=0.0)
    second.tick({"best": 1.0}, now_s=5.0)
    first.tick({"best": 1.0}, now_s=1.0)
    assert board.target("best") == "3"
    assert board.target("cheap") == "1"


def test_another_router_takes_over_from_one_that_is_gone() -> None:
    """A router that reports nothing new loses its vote and its demand, whatever its clock said."""
    board = DictBoard()
    scaler(board, "a").tick({"best": 2.0}, now_s=1e6)
    second = scaler(board, "b")
    second.tick({"best": 0.5}, now_s=0.0)
    assert board.target("best") == "3"
    second.tick({"best": 0.5}, now_s=GONE_AFTER_S + 1)
    second.tick({}, now_s=GONE_AFTER_S + 2 + RULES.quiet_s)
    assert board.target("best") == "2"
    assert board.keys("demand/") == ["demand/b"]


def test_an_unknown_variant_of_an_older_deployment_is_passed_over() -> None:
    """A router that still reports a variant which is no longer deployed changes nothing."""
    board = DictBoard()
    scaler(board, "b").tick({"former": 3.0}, now_s=0.0)
    scaler(board, "a").tick({}, now_s=0.0)
    assert {board.target(b.variant) for b in BOUNDS} == {"0", "1"}


class Recorder:
    """Variants that only remember what they were told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.fails = 0

    def demand(self) -> Mapping[str, float]:
        return {}

    async def warm_up_variant(self, variant: str) -> None:
        if self.fails:
            self.fails -= 1
            raise OSError("no connection")
        self.told.append(("up", variant))

    def cool_down(self, variant: str) -> None:
        self.told.append(("down", variant))


def attended(*looks: dict[str, Standing], fails: int = 0) -> list[tuple[str, str]]:
    async def run() -> list[tuple[str, str]]:
        variants = Recorder()
        attendant = Attendant(variants, BOUNDS)
        await asyncio.sleep(0)
        variants.told.clear()
        variants.fails = fails
        for look in looks:
            attendant.look(look)
            await asyncio.sleep(0)
        return variants.told

    return asyncio.run(run())


def test_requests_go_where_replicas_run_and_nowhere_else() -> None:
    """A group is warmed up once when its first replica runs, and left when it is to have none."""
    looks = [Standing(0, 0), Standing(1, 0), Standing(1, 1), Standing(2, 2), Standing(0, 2)]
    told = attended(*({"best": standing} for standing in looks))
    assert told == [("up", "best"), ("down", "best")]


def test_a_group_whose_replicas_died_is_not_left() -> None:
    """No replica runs, but one is to come: calls are sent again, so requests still go there."""
    assert attended({"cheap": Standing(1, 0)}, {"cheap": Standing(1, 1)}) == []


def test_a_failed_warm_up_is_tried_again() -> None:
    """A replica that died while it was warmed up: the next look starts anew."""
    up = {"best": Standing(1, 1)}
    assert attended(up, up, up, fails=1) == [("up", "best")]


def test_an_attendant_starts_with_what_must_run() -> None:
    """From the start, groups with a minimum are waited for, and the others get no requests."""

    async def run() -> list[tuple[str, str]]:
        variants = Recorder()
        Attendant(variants, BOUNDS)
        await asyncio.sleep(0)
        return variants.told

    assert sorted(asyncio.run(run())) == [("down", "best"), ("up", "cheap")]
