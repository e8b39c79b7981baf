"""A request of a few tokens, and the variants as it sees them."""

import time

import numpy as np

from serve_app.engines.base import TokenIds
from serve_app.fleet import Fleet
from serve_app.policy.routing import Candidate

TOKENS = 4
TEXTS: list[TokenIds] = [np.array([2, 3], np.int32)]


def candidates(fleet: Fleet) -> list[Candidate]:
    """The variants as a request of a few tokens sees them now."""
    return fleet.brain.candidates(TOKENS, now_s=time.monotonic())
