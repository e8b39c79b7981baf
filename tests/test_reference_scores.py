"""Real evaluation data: the FP32 pipeline reproduces published scores, and no variant loses much."""

import os
from functools import partial
from pathlib import Path

import pytest

from converters.fidelity import embed_sorted
from converters.gates import MAX_LOST_POINTS
from converters.tasks import NDCG, STS, Tasks
from serve_app.engines.base import open_engine
from serve_app.engines.tokenization import Tokenizer
from serve_app.registry import load_ladder

PUBLISHED = {STS: 91.34, NDCG: 79.80}
SAME = 0.1  # points, where nothing but rounding differs
EXACT = "onnx-fp32"
CORES = os.cpu_count() or 1


@pytest.fixture(scope="module")
def scores(real_artifacts: Path, shared_data: Path) -> dict[str, dict[str, float]]:
    """Of every variant on the ladder, by the engine that serves it."""
    ladder = load_ladder(real_artifacts)
    max_tokens = ladder.rungs[0].manifest.checkpoint.max_tokens
    tasks = Tasks.read(
        Tokenizer(ladder.tokenizer_file, max_tokens=max_tokens),
        sts=shared_data / "sts_dev.tsv",
        beir=shared_data / "scifact1k",
    )
    return {
        r.manifest.variant: tasks.scores(
            partial(embed_sorted, open_engine(r.folder, r.manifest, threads=CORES))
        )
        for r in ladder.rungs
    }


def test_fp32_reproduces_the_published_scores(scores: dict[str, dict[str, float]]) -> None:
    """STS Spearman and SciFact nDCG@10 of the exact variant are the FP32 checkpoint's."""
    if EXACT not in scores:
        pytest.skip(f"{EXACT} is not on this machine's ladder")
    for task, published in PUBLISHED.items():
        assert scores[EXACT][task] == pytest.approx(published, abs=SAME)


def test_no_variant_of_the_ladder_loses_half_a_point(scores: dict[str, dict[str, float]]) -> None:
    """On STS and on retrieval every rung keeps the FP32 checkpoint's score but for 0.5 points."""
    print(scores)
    assert scores
    for variant, found in scores.items():
        for task, published in PUBLISHED.items():
            assert found[task] >= published - MAX_LOST_POINTS, (variant, task)
