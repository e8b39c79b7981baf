"""Doubles of real variants that take their time asleep: many replicas on few cores."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from serve_app.engines.fake_engine import PACE_NAME
from serve_app.engines.measure import hardware_name
from serve_app.manifest import (
    TOKENIZER_NAME,
    Manifest,
    Profile,
    describe_files,
    read_manifest,
    write_manifest,
)


def make_double(original: Path, folder: Path, *, slower: float) -> Manifest:
    """An artifact of the fake runtime with another's tokenizer, fidelity and profile.

    Args:
        original: an artifact.
        folder: where the double goes; made new, named after the variant.
        slower: times by which its batches take longer, so that few requests keep an engine busy.
    """
    manifest = read_manifest(original)
    profile = _stretched(manifest.profile, slower)
    variant = f"fake-{manifest.precision}"
    into = folder / variant
    into.mkdir(parents=True)
    shutil.copy(original / TOKENIZER_NAME, into)
    pace = {"base_ms": profile.base_ms, "per_token_ms": profile.per_token_ms}
    (into / PACE_NAME).write_text(json.dumps(pace), encoding="utf-8")
    double = replace(
        manifest,
        variant=variant,
        runtime="fake",
        files=describe_files(into),
        profile=profile,
        off_ladder=None,
    )
    write_manifest(into, double)
    return double


def _stretched(profile: Profile, slower: float) -> Profile:
    """As if measured here: no replica shall measure its own at start."""
    return replace(
        profile,
        hardware=hardware_name("cpu"),
        device="cpu",
        threads=1,
        base_ms=profile.base_ms * slower,
        per_token_ms=profile.per_token_ms * slower,
        grid=tuple(replace(c, median_ms=c.median_ms * slower) for c in profile.grid),
    )
