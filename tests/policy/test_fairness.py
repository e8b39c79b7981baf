"""Who asked for more than a fair part lately."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.fairness import FADES_S, MOST_CLIENTS, Shares


def test_of_two_clients_at_nine_to_one_the_large_one_is_over() -> None:
    """And the small one is not, whatever the number of its requests."""
    shares = Shares()
    for i in range(100):
        shares.asked("small" if i % 10 == 0 else "large", 50, now_s=i * 0.01)
    assert shares.is_over("large")
    assert not shares.is_over("small")
    assert not shares.is_over("unheard of")


@given(st.integers(1, 10_000))
def test_a_client_alone_is_never_over(tokens: int) -> None:
    """There is nobody to take from."""
    shares = Shares()
    shares.asked("only", tokens, now_s=0)
    assert not shares.is_over("only")


@given(st.integers(2, 20), st.integers(1, 1000))
def test_equals_are_never_over(clients: int, tokens: int) -> None:
    """Each at an equal part."""
    shares = Shares()
    for i in range(clients):
        shares.asked(f"c{i}", tokens, now_s=0)
    assert not any(shares.is_over(f"c{i}") for i in range(clients))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 1000)), min_size=1, max_size=50))
def test_never_are_all_over(asked: list[tuple[int, int]]) -> None:
    """Somebody can always still be served."""
    shares = Shares()
    for client, tokens in asked:
        shares.asked(str(client), tokens, now_s=0)
    assert not all(shares.is_over(str(client)) for client, _ in asked)


def test_the_past_is_forgotten() -> None:
    """Who asked for much a minute ago asks for little now."""
    shares = Shares()
    shares.asked("once", 900, now_s=0)
    shares.asked("now", 100, now_s=0)
    assert shares.is_over("once")
    for second in range(60):
        for client in ("now", "other"):
            shares.asked(client, 100, now_s=float(second))
    assert not shares.is_over("once")
    shares.asked("now", 1, now_s=60 + 20 * FADES_S)
    assert list(shares._tokens) == ["now"]


def test_memory_is_bounded() -> None:
    """Of very many clients the smallest are forgotten, and the sum stays that of the known."""
    shares = Shares()
    for i in range(MOST_CLIENTS + 100):
        shares.asked(f"c{i}", 10 + i, now_s=0)
    assert len(shares._tokens) == MOST_CLIENTS
    assert shares._total == pytest.approx(sum(shares._tokens.values()))
