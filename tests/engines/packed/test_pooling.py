"""Pooling by segment: what belongs to no text does not matter, and long sums stay finite."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from serve_app.engines.packed.layout import Room, fill  # noqa: E402 - they need what is skipped for
from serve_app.engines.packed.pooling import pool_segments  # noqa: E402
from serve_app.engines.pooling import pool  # noqa: E402
from serve_app.manifest import Pooling  # noqa: E402

pytestmark = pytest.mark.model


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_loud_tokens_of_no_text_do_not_matter(pooling: Pooling) -> None:
    """Whatever states the room to spare has, not-a-number too, a text's vector is finite and its own."""
    texts = [np.ones(n, dtype=np.int32) for n in (2, 3)]
    room = Room(9, 4)
    row = np.empty(room.numbers, dtype=np.int32)
    fill(row, texts, room, first_position=0)
    _, _, segments, offsets = (torch.from_numpy(row[part]) for part in room.parts)
    states = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    states[5:] = float("nan")
    found = pool_segments(states, segments, offsets, pooling)[:2]
    for number, part in enumerate((states[:2], states[2:5])):
        mask = torch.ones(1, len(part), dtype=torch.int64)
        torch.testing.assert_close(found[number], pool(part[None], mask, pooling)[0])


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_sums_over_long_texts_do_not_overflow(pooling: Pooling) -> None:
    """The sum over 2000 loud tokens is beyond FP16, and still comes out finite."""
    states = torch.full((2000, 2), 1000.0, dtype=torch.float16)
    segments = torch.zeros(2000, dtype=torch.int32)
    offsets = torch.tensor([0, 2000], dtype=torch.int32)
    found = pool_segments(states, segments, offsets, pooling)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
