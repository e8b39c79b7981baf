"""What travels to a replica."""

import math

import numpy as np

from serve_app.calls import Call
from tests.replica.held_thread import texts_of


def test_a_call_carries_its_texts_unchanged() -> None:
    """Token ids and their borders survive the way from router to replica."""
    texts = texts_of(3, 1, 7)
    back = Call.of(texts).texts()
    assert [ids.tolist() for ids in back] == [ids.tolist() for ids in texts]
    assert all(ids.dtype == np.int32 for ids in back)


def test_a_call_is_four_bytes_a_token() -> None:
    """Flat int32 ids: what crosses between processes is small."""
    call = Call.of(texts_of(3, 1))
    assert (len(call.ids), len(call.lengths), len(call.left_ms)) == (4 * 4, 4 * 2, 4 * 2)


def test_a_call_says_how_long_each_text_is_wanted() -> None:
    """On the receiver's clock; for ever where nothing is said."""
    assert Call.of(texts_of(3, 1), [250.0, math.inf]).deadlines_s(arrived_s=7.0) == [7.25, math.inf]
    assert Call.of(texts_of(3, 1)).deadlines_s(arrived_s=7.0) == [math.inf] * 2
