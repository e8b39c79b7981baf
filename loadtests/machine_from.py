"""A machine file from a running server of ours: its ladder's profiles, and its tokenizer's counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import psutil

from loadtests.errors import NoServer
from loadtests.in_service import InService
from loadtests.machine_file import MachineFile, MeasuredFit, MeasuredProfile, Pool, Rung
from loadtests.overheads import Overheads, measure
from loadtests.served import Server
from loadtests.server import variants
from loadtests.sim_types import Fit
from loadtests.workload import LENGTHS, HintClass, Texts

NAMES = ("query", "passage", "long")
DIGITS = 4
# What the file has under the same name:
MEASURED = tuple(f.name for f in fields(Overheads) if f.name not in {"idle_cores", "engines"})


def machine_from(host: str) -> MachineFile:
    """Ask a quiet server on this machine, and measure what it spends; raises NoServer."""
    server, asked = Server(host), HintClass(name="count", weight=1)
    server.check()
    try:
        told = variants(host, server.api_key)
        with server.asking() as ask:
            return described(
                told,
                lambda text: ask(asked.body([text])).tokens,
                cores=float(psutil.cpu_count() or 1),
                overheads=_overheads(host, told),
            )
    except (KeyError, TypeError, ValueError) as error:
        raise NoServer(f"--machine-from={host}: what it tells lacks or breaks {error}") from error


def described(
    told: Sequence[dict[str, Any]],
    count: Callable[[str], int],
    *,
    cores: float,
    overheads: Overheads,
) -> MachineFile:
    """A machine file from what `/v1/variants` tells and a count of texts' tokens.

    Raises:
        KeyError, TypeError, ValueError: a field of a variant is missing, or is not what it should be.
    """
    streams = {one["streams"] for one in told}
    if len(streams) > 1:
        raise ValueError("one number of streams for all variants, as a simulated machine has")
    idle_cores, engines = round(overheads.idle_cores, 3), overheads.engines
    return MachineFile(
        about="Profiles and token counts as a server tells them; overheads measured on it; of "
        f"{cores:g} cores, {idle_cores:g} go to processes that serve nothing.",
        cores=round(cores - idle_cores, 3),
        streams=max(streams),
        **{name: _rounded(getattr(overheads, name)) for name in MEASURED},
        together_pace=_rounded(engines.together_pace),
        variants=tuple(_in_service(_rung(one), engines) for one in told),
        token_pools=tuple(_pools(count)),
    )


def _rounded(value: float | None) -> Any:
    return None if value is None else round(value, DIGITS)


def _in_service(rung: Rung, engines: InService) -> Rung:
    found = engines.served.get(rung.variant)
    if found is None:
        return rung
    served = MeasuredFit(
        base_ms=_rounded(found.base_ms),
        per_token_ms=_rounded(found.per_token_ms),
        spread=_rounded(found.spread),
    )
    return replace(rung, served=served)


def _overheads(host: str, told: Sequence[dict[str, Any]]) -> Overheads:
    """By the cheapest variant, whose engine hides least."""
    rungs = list(map(_rung, told))
    cheapest = min(rungs, key=lambda rung: rung.profile.per_token_ms)
    profiles = {
        rung.variant: Fit(
            base_ms=rung.profile.base_ms,
            per_token_ms=rung.profile.per_token_ms,
            spread=rung.profile.spread,
        )
        for rung in rungs
    }
    return measure(host, variant=cheapest.variant, profiles=profiles)


def _rung(variant: dict[str, Any]) -> Rung:
    told = variant["profile"]
    return Rung(
        variant=variant["variant"],
        fidelity=variant["fidelity"],
        profile=MeasuredProfile(
            hardware=told["hardware"],
            device=told["device"],
            threads=told["threads"],
            base_ms=told["base_ms"],
            per_token_ms=told["per_token_ms"],
            spread=told["spread"],
            batch_tokens=told["batch_tokens"],
        ),
    )


def _pools(count: Callable[[str], int]) -> Iterator[Pool]:
    """The built-in texts of the load tests, counted by the server's own tokenizer."""
    kinds = zip(NAMES, LENGTHS.values(), Texts.built_in().pools, strict=True)
    for name, share, texts in kinds:
        yield Pool(name=name, share=float(share), tokens=tuple(map(count, texts)))
