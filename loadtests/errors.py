"""What can be wrong with what a load test was asked to do; each message is one line.

LoadTestError
├── BadOption    an option's value cannot be taken
├── BadFile      a file is missing, or is not what it should be
└── NoServer     nothing answers at the host, or it lets us not in
"""

from __future__ import annotations

from typing import ClassVar


class LoadTestError(Exception):
    """The load test cannot be run as asked; programs print it and exit with `exit_code`."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class BadOption(LoadTestError):
    """Names the option, the value it was given, and what it takes."""

    def __init__(self, option: str, value: object, why: str) -> None:
        super().__init__(f"{option}={value!s}: {why}")


class BadFile(LoadTestError):
    """Names the file."""


class NoServer(LoadTestError):
    """Names the host."""
