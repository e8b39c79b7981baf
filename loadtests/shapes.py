"""Locust's shapes, chosen with --shape; none is seen by Locust before, so --users works as ever."""

from __future__ import annotations

from typing import ClassVar

from locust import LoadTestShape

from loadtests.users import users_at

DEFAULT_DURATION_S = 60.0
DEFAULT_USERS = 16
MOST_A_SECOND = 100  # Locust warns of more


class Shape(LoadTestShape):
    """Users that come and go, up to --users within --run-time."""

    abstract: ClassVar[bool] = True
    use_common_options: ClassVar[bool] = True

    def __init__(self, shape: str, *, users: int | None, duration_s: float | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shape = shape
        self.users = users or DEFAULT_USERS
        self.duration_s = duration_s or DEFAULT_DURATION_S

    def tick(self) -> tuple[int, float] | None:
        """Say how many users there should be now; Locust asks once a second."""
        now_s = float(self.get_run_time())  # type: ignore[no-untyped-call]
        users = users_at(self.shape, now_s, users=self.users, duration_s=self.duration_s)
        return None if users is None else (users, min(users, MOST_A_SECOND))
