"""One moving demand, played under each way to size replica groups.

What runs is the real server on Ray with doubles of real variants (`autoscale_doubles.py`): their
batches take the time that the profiles say, but asleep, so Ray may be told of more CPUs than there are.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil

from converters.provenance import Provenance
from loadtests.autoscale_doubles import make_double
from loadtests.autoscale_load import OK, Answer, Phase, Sample, count_replicas, play
from loadtests.errors import NoServer
from serve_app.ports import free_port

READY_WITHIN_S = 180.0
STOPPED_WITHIN_S = 60.0
POLICIES = {
    "requests": ("--autoscaling", "requests"),
    "demand": ("--autoscaling", "demand"),
    "demand, from zero": ("--autoscaling", "demand", "--min-replicas", "0"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One policy's run."""

    policy: str
    flags: Sequence[str]
    attainment: dict[str, float]  # in time / offered, by phase, and of "all"
    offered: int
    statuses: dict[str, int]
    replica_seconds: dict[str, float]  # by variant, and of "all"
    samples: Sequence[Sample]
    answers: Sequence[Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all policies are run with."""

    originals: Sequence[Path]
    slower: float
    cpus: int
    scale_down_s: float
    seed: int
    phases: Sequence[Phase]


def run(setting: Setting, policy: str) -> Played:
    """Play the demand to a server of its own."""
    flags = POLICIES[policy]
    with tempfile.TemporaryDirectory() as made:
        artifacts = Path(made, "artifacts")
        doubles = [make_double(o, artifacts, slower=setting.slower) for o in setting.originals]
        variants = [d.variant for d in doubles]
        with _served(artifacts, setting, flags, log=Path(made, "log")) as (url, server):
            found = play(
                url,
                setting.phases,
                variants,
                seed=setting.seed,
                replicas=lambda: count_replicas(server, variants),
            )
            answers, samples = asyncio.run(found)
    played = sum_up(policy, flags, answers, samples)
    print(
        f"{policy}: {played.attainment['all']:.1%} in time, "
        f"{played.replica_seconds['all']:.0f} replica-seconds, {played.statuses}",
        file=sys.stderr,
    )
    return played


@contextmanager
def _served(
    artifacts: Path, setting: Setting, flags: Sequence[str], *, log: Path
) -> Iterator[tuple[str, psutil.Process]]:
    port = free_port()
    command = [sys.executable, "-m", "serve_app", "--artifacts", str(artifacts)]
    command += ["--port", str(port), "--num-cpus", str(setting.cpus)]
    command += ["--scale-down-s", str(setting.scale_down_s), *flags]
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(  # noqa: S603
            command, stdout=stream, stderr=stream, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _await(url, process, log)
        yield url, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOPPED_WITHIN_S)


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    latest_s = time.monotonic() + READY_WITHIN_S
    while process.poll() is None and time.monotonic() < latest_s:
        try:
            if httpx.get(f"{url}/ready").status_code == OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise NoServer(f"the server did not get ready:\n{log.read_text(encoding='utf-8')}")


def sum_up(
    policy: str, flags: Sequence[str], answers: Sequence[Answer], samples: Sequence[Sample]
) -> Played:
    by_phase: dict[str, list[bool]] = {"all": []}
    statuses: dict[str, int] = {}
    for answer in answers:
        by_phase.setdefault(answer.phase, []).append(answer.in_time)
        by_phase["all"].append(answer.in_time)
        statuses[str(answer.status)] = statuses.get(str(answer.status), 0) + 1
    seconds: dict[str, float] = {"all": 0.0}
    for sample, following in itertools.pairwise(samples):
        for variant, count in sample.replicas.items():
            held = count * (following.at_s - sample.at_s)
            seconds[variant] = seconds.get(variant, 0.0) + held
            seconds["all"] += held
    return Played(
        policy=policy,
        flags=flags,
        attainment={name: sum(good) / len(good) for name, good in by_phase.items() if good},
        offered=len(answers),
        statuses=statuses,
        replica_seconds=seconds,
        samples=samples,
        answers=answers,
    )


def write(file: Path, setting: Setting, played: Sequence[Played], source: Provenance) -> None:
    runs = []
    for one in played:
        content = asdict(one)
        del content["answers"]  # thousands of rows; the sums and the figure are made from them
        runs.append(content)
    whole = {
        "provenance": asdict(source),
        "setting": asdict(setting) | {"originals": [o.name for o in setting.originals]},
        "runs": runs,
    }
    file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
