"""A machine file from a running server of ours: its ladder's profiles, and its tokenizer's counts."""

from __future__ import annotations

import os
from collections.abc import Sequence
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


def machine_from(host: str, *, api_key: str | None = None) -> MachineFile:
    """Ask a server; raises NoServer. Cores are this machine's, overheads are to be measured apart."""
    server = Server(host, api_key or os.environ.get("LOADTEST_API_KEY"))
    server.check()
    try:
        rungs = tuple(_rung(variant) for variant in variants(host, server.api_key))
    except (KeyError, TypeError, ValueError) as error:
        raise NoServer(f"--machine-from={host}: /v1/variants tells no profile: {error}") from error
    return MachineFile(
        about=f"Profiles and token counts of the server at {host}; overheads assumed.",
        cores=float(psutil.cpu_count() or 1),
        router_ms=ROUTER_MS,
        call_ms=CALL_MS,
        replica_call_ms=REPLICA_CALL_MS,
        hop_ms=HOP_MS,
        variants=rungs,
        token_pools=tuple(_pools(server)),
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


def _pools(server: Server) -> Sequence[Pool]:
    """The built-in texts of the load tests, counted by the server's own tokenizer."""
    asked = HintClass(name="count", weight=1)
    return [
        Pool(
            name=name,
            share=float(share),
            tokens=tuple(server.route(asked.body([text])).tokens for text in texts),
        )
        for name, share, texts in zip(NAMES, LENGTHS.values(), Texts.built_in().pools, strict=True)
    ]
