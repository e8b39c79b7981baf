"""A batch as one row, and back: nothing is lost, nothing of one text is in another's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engines.packed.layout import Room, fill, split

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def _texts(lengths: list[int]) -> list[np.ndarray]:
    return [np.arange(100 * i, 100 * i + n, dtype=np.int32) for i, n in enumerate(lengths)]


def _parts(texts: list[np.ndarray], room: Room, first_position: int = 0) -> list[np.ndarray]:
    row = np.full(room.numbers, -7, dtype=np.int32)
    fill(row, texts, room, first_position=first_position)
    assert not (row == -7).any()
    return [row[part] for part in room.parts]


@given(LENGTHS)
def test_texts_come_out_of_the_row_as_they_went_in(lengths: list[int]) -> None:
    """Offsets cut the ids back into the texts, and every token names its text and place."""
    texts = _texts(lengths)
    ids, positions, segments, offsets = _parts(texts, Room.of(texts))
    for number, text in enumerate(texts):
        part = slice(offsets[number], offsets[number + 1])
        np.testing.assert_array_equal(ids[part], text)
        np.testing.assert_array_equal(positions[part], np.arange(len(text)))
        assert (segments[part] == number).all()
    assert offsets[-1] == len(ids) == sum(lengths)


@given(LENGTHS, st.integers(0, 40), st.integers(0, 5))
def test_room_to_spare_belongs_to_no_text(lengths: list[int], tokens: int, more: int) -> None:
    """Tokens beyond the last text are of segment N, texts beyond it are empty, and the rest stays."""
    texts = _texts(lengths)
    exact = Room.of(texts)
    room = Room(exact.tokens + tokens, exact.texts + more)
    ids, positions, segments, offsets = _parts(texts, room, first_position=2)
    np.testing.assert_array_equal(ids[: exact.tokens], np.concatenate(texts))
    assert (ids[exact.tokens :] == 0).all()
    assert (segments[exact.tokens :] == room.texts).all()
    assert (offsets[exact.texts :] == exact.tokens).all()
    assert positions.min() == 2
    assert room.holds(exact)


def test_positions_start_where_the_model_wants_them() -> None:
    """RoBERTa's first token has the position behind the padding's."""
    texts = _texts([2, 3])
    positions = _parts(texts, Room.of(texts), first_position=2)[1]
    assert positions.tolist() == [2, 3, 2, 3, 4]


@given(LENGTHS, st.integers(1, 60))
def test_a_cut_batch_is_whole_and_within_the_limit(lengths: list[int], most: int) -> None:
    """Every text is in one part, parts keep the order, and only a text alone may exceed the limit."""
    parts = [lengths[part] for part in split(lengths, most)]
    assert [n for part in parts for n in part] == lengths
    assert all(sum(part) <= most or len(part) == 1 for part in parts)
    assert all(parts)


@pytest.mark.parametrize(
    ("room", "other", "holds"),
    [((8, 2), (8, 2), True), ((8, 2), (9, 2), False), ((8, 2), (8, 3), False)],
)
def test_a_room_holds_what_it_has_tokens_and_texts_for(
    room: tuple[int, int], other: tuple[int, int], *, holds: bool
) -> None:
    """Both must fit."""
    assert Room(*room).holds(Room(*other)) is holds
