"""A run of `peers`: environments, vectors first, then rounds in which each peer and our server take turns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from converters.checkpoint import DEFAULT_CHECKPOINT, open_checkpoint
from loadtests.bench.ours import LEAST_CHEAP, best_rung, cheapest, compared_with_peers
from loadtests.bench.places import results_folder
from loadtests.bench.results import Results
from loadtests.bench.run import LOGS, Ground, Options, Summary, ground, measure
from loadtests.bench.samples import Failed, Subject
from loadtests.bench.served import ServerSubject, ask_once
from loadtests.bench.tables import markdown
from loadtests.bench.workloads import Workload
from loadtests.errors import BadOption, LoadTestError
from loadtests.peers.catalogue import PEERS, Peer
from loadtests.peers.environments import CannotInstall, make
from loadtests.peers.models import Models
from loadtests.peers.targets import peer_targets
from loadtests.peers.vectors import Checked, Embed, Vectors, check, read_vectors, unit
from loadtests.progress_line import ProgressLine
from serve_app.engines.base import open_engine
from serve_app.engines.tokenization import Tokenizer
from serve_app.errors import ConversionError
from serve_app.registry import Ladder

PROBES = 64  # of each workload's texts
EXACT = 0.99999  # fidelity of what stands for FP32

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Peers that can be measured, what is known of them, and those that cannot be."""

    subjects: tuple[ServerSubject, ...]
    versions: dict[str, dict[str, str]]
    failed: tuple[Failed, ...]


def run_peers(options: Options, *, work: Path, checkpoint: str = DEFAULT_CHECKPOINT) -> int:
    """Measure and write; a peer that cannot be had is told and left out."""
    found = ground(options)
    chosen = _chosen(options.words)
    folder = results_folder("peers", out=options.out)
    progress = ProgressLine()
    try:
        models = Models(open_checkpoint(checkpoint), work)
    except ConversionError as error:
        raise LoadTestError(str(error)) from error
    prepared = prepare(chosen, models, work, progress.done)
    logs = folder / LOGS
    logs.mkdir()
    checked, subjects, failed = _vectors_first(prepared.subjects, found, logs, progress.done)
    lines = _lines(checked, prepared, [*prepared.failed, *failed])
    best = best_rung(found.ladder).manifest.variant
    cheap = cheapest(found.ladder, LEAST_CHEAP).manifest.variant

    def summary(results: Results) -> Summary:
        return Summary(
            title="Beside what people run instead",
            targets=peer_targets(results, best=best, cheap=cheap),
            more=lines,
        )

    (folder / "vectors.json").write_text(
        json.dumps(
            {
                "versions": prepared.versions,
                "checked": {name: asdict(c) for name, c in checked.items()},
                "left_out": [asdict(f) for f in (*prepared.failed, *failed)],
            },
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )
    all_subjects: list[Subject] = [compared_with_peers(options.artifacts, found.ladder), *subjects]
    return measure(all_subjects, options, found, folder, summary, figure="peers.png")


def prepare(peers: Iterable[Peer], models: Models, work: Path, tell: Tell) -> Prepared:
    """Make each peer's environment."""
    subjects: list[ServerSubject] = []
    versions: dict[str, dict[str, str]] = {}
    failed: list[Failed] = []
    for peer in peers:
        tell(f"{peer.name}: its environment in {work / peer.name}")
        try:
            made = make(peer.environment, work)
            versions[peer.name] = made.versions(peer.telling)
            subjects += peer.subjects(made, models)
        except (CannotInstall, ConversionError) as error:
            tell(f"{peer.name}: left out, {error}")
            failed.append(Failed(peer.name, str(error)))
    return Prepared(tuple(subjects), versions, tuple(failed))


def _chosen(words: Sequence[str]) -> list[Peer]:
    found = [peer for peer in PEERS if not words or any(word in peer.name for word in words)]
    if not found:
        names = ", ".join(peer.name for peer in PEERS)
        raise BadOption("--rows", ",".join(words), f"no peer is named so; there are {names}")
    return found


def _vectors_first(
    subjects: Sequence[ServerSubject], found: Ground, folder: Path, tell: Tell
) -> tuple[dict[str, Checked], list[ServerSubject], list[Failed]]:
    """Check each peer's vectors; those that do not start are left out of the rounds."""
    texts = probe_texts(found.workloads.values())
    reference = exact_vectors(found.ladder, texts)
    checked: dict[str, Checked] = {}
    kept, failed = [], []
    for subject in subjects:
        try:
            with subject.started(folder) as started:
                checked[subject.name] = check(_asking(subject, started.port), reference, texts)
        except LoadTestError as error:
            tell(f"{subject.name}: left out, {error}")
            failed.append(Failed(subject.name, str(error)))
        else:
            tell(f"{subject.name}: {checked[subject.name]}")
            kept.append(subject)
    return checked, kept, failed


def probe_texts(workloads: Iterable[Workload]) -> list[str]:
    """Some of each workload."""
    return [text for workload in workloads for text in workload.texts(PROBES)]


def exact_vectors(ladder: Ladder, texts: Sequence[str]) -> Vectors:
    """FP32's vectors, one text a call; raises LoadTestError where no exact variant is built."""
    rung = ladder.rungs[0]
    if rung.manifest.fidelity.p1 < EXACT:
        raise LoadTestError(
            f"{rung.manifest.variant} is the closest variant and not exact: build onnx-fp32"
        )
    limit = rung.manifest.checkpoint.max_tokens
    ids = Tokenizer(ladder.tokenizer_file, max_tokens=limit).encode(texts).texts
    engine = open_engine(rung.folder, rung.manifest)
    return unit(np.concatenate([engine.embed([one]) for one in ids]))


def _asking(subject: ServerSubject, port: int) -> Embed:
    ask = next(iter(subject.asks.values()))

    def embed(texts: Sequence[str]) -> Vectors:
        _, answer = ask_once(port, "POST", subject.path, ask.body(texts))
        return read_vectors(answer)

    return embed


def _lines(checked: dict[str, Checked], prepared: Prepared, failed: Sequence[Failed]) -> str:
    rows = [
        (name, f"{c.mean:.5f}", f"{c.min:.5f}", f"{c.mates_min:.6f}") for name, c in checked.items()
    ]
    heads = ("vectors", "mean cosine to FP32", "min", "alone against among others, min")
    versions = [
        f"- {name}: {', '.join(f'{package} {number}' for package, number in found.items())}"
        for name, found in prepared.versions.items()
    ]
    left_out = [f"- {f.subject} is left out: {f.why}" for f in failed]
    return "\n\n".join([markdown(heads, rows), "\n".join([*versions, *left_out])])
