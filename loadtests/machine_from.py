"""A machine file from a running server of ours: its ladder's profiles, and its tokenizer's counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil

from loadtests.errors import NoServer
from loadtests.machine_file import MachineFile, MeasuredProfile, Pool, Rung
from loadtests.served import Server
from loadtests.server import variants
from loadtests.workload import LENGTHS, HintClass, Texts

NAMES = ("query", "passage", "long")
# Where nothing was measured: about what Ray Serve takes for a request and a call on one host.
ROUTER_MS = 0.6
CALL_MS = 2.0
REPLICA_CALL_MS = 1.0
HOP_MS = 0.5


def machine_from(host: str) -> MachineFile:
    """Ask a server; raises NoServer. Cores are this machine's, overheads are to be measured apart."""
    server, asked = Server(host), HintClass(name="count", weight=1)
    server.check()
    try:
        with server.asking() as ask:
            return described(
                variants(host, server.api_key),
                lambda text: ask(asked.body([text])).tokens,
                cores=float(psutil.cpu_count() or 1),
                where=host,
            )
    except (KeyError, TypeError, ValueError) as error:
        raise NoServer(f"--machine-from={host}: what it tells lacks or breaks {error}") from error


def described(
    told: Sequence[dict[str, Any]], count: Callable[[str], int], *, cores: float, where: str
) -> MachineFile:
    """A machine file from what `/v1/variants` tells and a count of texts' tokens.

    Raises:
        KeyError, TypeError, ValueError: a field of a variant is missing, or is not what it should be.
    """
    return MachineFile(
        about=f"Profiles and token counts of the server at {where}; overheads assumed.",
        cores=cores,
        router_ms=ROUTER_MS,
        call_ms=CALL_MS,
        replica_call_ms=REPLICA_CALL_MS,
        hop_ms=HOP_MS,
        variants=tuple(map(_rung, told)),
        token_pools=tuple(_pools(count)),
    )


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
