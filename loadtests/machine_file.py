"""A measured machine as a JSON file: its ladder, cores and overheads, and the texts' token counts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from loadtests.errors import BadFile
from loadtests.sim_types import Fit, Machine
from loadtests.sim_workload import TokenPool
from serve_app.manifest import Profile
from serve_app.policy.brain import VariantFacts

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
UNREAD = 0.5  # of router_ms: what turning a request away takes, where the file does not say


@checked(frozen=True, slots=True, kw_only=True, config=STRICT)
class MeasuredProfile:
    """What a batch takes: see `serve_app.promises.Profile`."""

    hardware: str
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    base_ms: NotNegative
    per_token_ms: Positive
    spread: Annotated[float, Field(ge=1)]
    batch_tokens: Annotated[int, Field(gt=0)]


@checked(frozen=True, slots=True, kw_only=True, config=STRICT)
class MeasuredFit:
    """What a batch takes by its padded tokens, in a server rather than in a profile's hot loop."""

    base_ms: NotNegative
    per_token_ms: Positive
    spread: Annotated[float, Field(ge=1)]


@checked(frozen=True, slots=True, kw_only=True, config=STRICT)
class Rung:
    """A variant of the ladder."""

    variant: Annotated[str, Field(min_length=1)]
    fidelity: Annotated[float, Field(ge=0, le=1)]
    profile: MeasuredProfile
    served: MeasuredFit | None = None


@checked(frozen=True, slots=True, kw_only=True, config=STRICT)
class Pool:
    """Texts of a kind, by their tokens."""

    name: str
    share: Positive
    tokens: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]


@checked(frozen=True, slots=True, kw_only=True, config=STRICT)
class MachineFile:
    """All that a simulation needs to know of a machine."""

    about: str  # where the numbers come from, for people
    cores: Positive
    streams: Annotated[int, Field(ge=1)] = 1  # files of before replicas had several do not say
    router_ms: NotNegative
    router_ms_per_token: NotNegative = 0.0
    warm_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    refuse_ms: NotNegative | None = None  # half of router_ms where nobody measured it
    call_ms: NotNegative
    replica_call_ms: NotNegative
    hop_ms: NotNegative
    proxy_ms: NotNegative = 0.0
    client_ms: NotNegative = 0.0
    around_ms: NotNegative | None = None  # of both, in files that do not tell them apart
    outside_ms: NotNegative = 0.0
    outside_spread: Annotated[float, Field(ge=1)] = 1.0
    engine_pace: Positive = 1.0  # of rungs that do not say what their batches take in a server
    together_pace: Annotated[float, Field(ge=1)] = 1.0
    stalls_per_s: NotNegative = 0.0
    stall_ms: NotNegative = 0.0
    variants: Annotated[tuple[Rung, ...], Field(min_length=1)]
    token_pools: Annotated[tuple[Pool, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A machine and the texts it is asked for."""

    about: str
    machine: Machine
    pools: tuple[TokenPool, ...]


ADAPTER = TypeAdapter(MachineFile)


def read_machine(file: Path) -> Measured:
    """Read a file; raises BadFile, which names the field."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise BadFile(f"--machine={file}: it cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadFile(f"--machine={file}: it is not JSON: {error}") from error
    try:
        found = ADAPTER.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadFile(f"--machine={file}: {where}: {first['msg']}") from error
    names = [rung.variant for rung in found.variants]
    if len(set(names)) < len(names):
        raise BadFile(f"--machine={file}: variants: a variant is listed twice")
    return _measured(found)


def write_machine(file: Path, content: MachineFile) -> None:
    """Write a file that `read_machine` reads."""
    text = ADAPTER.dump_json(content, indent=1).decode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_pools_on_lines(text) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadFile(f"--out={file}: it cannot be written: {error.strerror}") from error


def _pools_on_lines(text: str) -> str:
    """A line for each pool rather than one for each number."""
    content = json.loads(text)
    pools = content.pop("token_pools")
    head = json.dumps(content, indent=1, ensure_ascii=False)
    lines = ",\n".join(f"  {json.dumps(pool)}" for pool in pools)
    return f'{head.removesuffix("}").rstrip()},\n "token_pools": [\n{lines}\n ]\n}}'


def _measured(found: MachineFile) -> Measured:
    return Measured(
        about=found.about,
        machine=Machine(
            cores=found.cores,
            streams=found.streams,
            variants=tuple(map(_facts, found.variants)),
            router_ms=found.router_ms,
            router_ms_per_token=found.router_ms_per_token,
            refuse_ms=_refuse_ms(found),
            warm_share=found.warm_share,
            call_ms=found.call_ms,
            replica_call_ms=found.replica_call_ms,
            hop_ms=found.hop_ms,
            proxy_ms=found.proxy_ms + (found.around_ms or 0.0),
            client_ms=found.client_ms,
            outside_ms=found.outside_ms,
            outside_spread=found.outside_spread,
            engine_pace=found.engine_pace,
            served={
                rung.variant: Fit(
                    base_ms=rung.served.base_ms,
                    per_token_ms=rung.served.per_token_ms,
                    spread=rung.served.spread,
                )
                for rung in found.variants
                if rung.served is not None
            },
            together_pace=found.together_pace,
            stalls_per_s=found.stalls_per_s if found.stall_ms else 0.0,
            stall_ms=found.stall_ms,
        ),
        pools=tuple(
            TokenPool(name=pool.name, share=pool.share, tokens=pool.tokens)
            for pool in found.token_pools
        ),
    )


def _refuse_ms(found: MachineFile) -> float:
    """Turning a request away unread costs no more than reading it."""
    told_ms = found.router_ms * UNREAD if found.refuse_ms is None else found.refuse_ms
    return min(told_ms, found.router_ms)


def _facts(rung: Rung) -> VariantFacts:
    told = rung.profile
    profile = Profile(
        hardware=told.hardware,
        device=told.device,
        threads=told.threads,
        base_ms=told.base_ms,
        per_token_ms=told.per_token_ms,
        spread=told.spread,
        batch_tokens=told.batch_tokens,
        grid=(),
        load_ms=0.0,
        resident_bytes=0,
    )
    return VariantFacts(variant=rung.variant, fidelity=rung.fidelity, profile=profile)
