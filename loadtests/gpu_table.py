"""From readings to the table of targets, each met, missed or not measured with its reason; and to JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from converters.provenance import Provenance
from loadtests.errors import BadFile
from loadtests.gpu_peers import OURS, PEER
from loadtests.gpu_readings import Label, Outcome, Reading

NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A promise of the project's, and the number that keeps or breaks it."""

    what: str
    goal: float
    at_most: bool = False  # else at least
    found: float | None

    @property
    def told(self) -> tuple[str, str, str]:
        """What, the goal, and what was found."""
        goal = f"{'≤' if self.at_most else '≥'} {self.goal:g}"
        if self.found is None:
            return self.what, goal, NOT_MEASURED
        met = self.found <= self.goal if self.at_most else self.found >= self.goal
        return self.what, goal, f"{self.found:.5g} ({'met' if met else 'missed'})"


def targets(outcomes: Sequence[Outcome], *, quick: bool = False) -> list[Target]:
    """What this project promises of GPUs, from whatever was measured; a smoke test measures nothing."""
    readings = [] if quick else [r for outcome in outcomes for r in outcome.readings]

    def value(what: str, **labels: Label) -> float | None:
        found = [r.value for r in readings if r.what == what and _has(r, labels)]
        return max(found) if found else None

    ceiling = _most(value("matmul TFLOP/s", dtype=d) for d in ("float16", "bfloat16"))
    return [
        Target(
            what="FP16 padding-free / sentence-transformers FP16, mixed lengths",
            goal=2.5,
            found=_ratio(
                value("tokens/s, texts in", engine=OURS), value("tokens/s, texts in", engine=PEER)
            ),
        ),
        Target(
            what="FP16 / FP32 torch (MiniLM shape, 128 × 128)",
            goal=4.0,
            found=_ratio(
                value("tokens/s", shape="MiniLM", engine="packed fp16"),
                value("tokens/s", shape="MiniLM", engine="padded fp32"),
            ),
        ),
        *(
            Target(
                what=f"{shape} shape, 512-token texts, large batch: share of the matmul ceiling",
                goal=goal,
                found=_ratio(value("engine TFLOP/s", shape=shape, length=512), ceiling),
            )
            for shape, goal in (("BERT-large", 0.55), ("BERT-base", 0.45))
        ),
        Target(
            what="single short text, p50 through the engine, ms",
            goal=1.2,
            at_most=True,
            found=_first(
                value("single text p50 ms", engine="packed fp16 graphs"),
                value("single text p50 ms", engine="packed fp16 eager"),
            ),
        ),
        Target(
            what="fidelity p1 of torch-fp16 on the probe texts",
            goal=0.9999,
            found=value("fidelity p1", engine="packed float16"),
        ),
    ]


def lines(outcomes: Sequence[Outcome], *, device: str, quick: bool) -> list[str]:
    """Markdown: the targets, and of each section how it ended."""
    rows = [
        ("target", "goal", device),
        ("---",) * 3,
        *(t.told for t in targets(outcomes, quick=quick)),
    ]
    ends = [
        f"{outcome.name}: {len(outcome.readings)} readings in {outcome.seconds:.0f} s"
        + (f", {outcome.ended}" if outcome.ended else "")
        for outcome in outcomes
    ]
    return [*ends, "", *(f"| {' | '.join(row)} |" for row in rows)]


def write(
    file: Path, outcomes: Sequence[Outcome], *, device: str, quick: bool, made: Provenance
) -> None:
    """All readings with where they come from; raises BadFile."""
    content = {
        "device": device,
        "quick": quick,
        "provenance": asdict(made),
        "sections": [asdict(outcome) for outcome in outcomes],
        "targets": [asdict(target) for target in targets(outcomes, quick=quick)],
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadFile(f"--out={file}: it cannot be written: {error.strerror}") from error


def _has(reading: Reading, labels: dict[str, Label]) -> bool:
    return all(reading.of.get(key) == wanted for key, wanted in labels.items())


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None


def _first(*found: float | None) -> float | None:
    return next((value for value in found if value is not None), None)


def _most(found: Iterable[float | None]) -> float | None:
    return max((value for value in found if value is not None), default=None)
