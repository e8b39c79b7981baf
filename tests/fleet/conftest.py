"""Fleets of three variants that cost 1000, 100 and 10 ms a token."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from serve_app.engines.base import open_engine
from serve_app.fleet import Fleet
from serve_app.manifest import Profile
from serve_app.registry import Ladder, load_ladder
from serve_app.replica import Replica
from serve_app.settings import Settings

Measured = Mapping[str, Profile]
MakeFleet = Callable[..., Fleet]


@pytest.fixture
def ladder(clear_cut_artifacts: Path) -> Ladder:
    """Costs of 1000, 100 and 10 ms a token."""
    return load_ladder(clear_cut_artifacts)


@pytest.fixture
def make_fleet(ladder: Ladder, at_its_word: Any) -> MakeFleet:
    """A fleet over replicas in this process, some with a profile of their own, each with one stream."""

    def make(measured: Measured | None = None, *, streams: int = 1) -> Fleet:
        replicas = {
            rung.manifest.variant: Replica(
                open_engine(rung.folder, rung.manifest),
                rung.manifest,
                name="r1",
                measured=(measured or {}).get(rung.manifest.variant),
            )
            for rung in ladder.rungs
        }
        transports = {name: at_its_word(replica) for name, replica in replicas.items()}
        return Fleet(ladder, transports, settings=Settings(cores=8, streams=streams))

    return make
