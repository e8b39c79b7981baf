"""Users by the hint they send: `locust -f loadtests/locustfile.py --host URL`.

Locust's table has a row for each hint, and one for each variant that answered it.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import ClassVar

from locust import HttpUser, between, task

TEXTS_FILE = Path(__file__).parent.parent / "converters" / "data" / "short_texts.txt"
TEXTS = TEXTS_FILE.read_text(encoding="utf-8").splitlines()


class EmbeddingUser(HttpUser):
    """A client that embeds one text after another; subclasses add their hint."""

    abstract = True
    wait_time = between(0.01, 0.1)
    hint: ClassVar[dict[str, float | str]]
    texts_per_request = 1

    @task
    def embed(self) -> None:
        """One request; a 429 or a 504 counts as a failure of its own kind."""
        body = {"input": random.choices(TEXTS, k=self.texts_per_request)} | self.hint  # noqa: S311
        name = " ".join(f"{key}={value}" for key, value in self.hint.items()) or "no hint"
        with self.client.post(
            "/v1/embeddings", json=body, name=name, catch_response=True
        ) as response:
            if not response.ok:
                response.failure(f"{response.status_code}")
                return
            self.environment.events.request.fire(
                request_type="variant",
                name=f"{name} → {response.json()['routing']['variant']}",
                response_time=response.request_meta["response_time"],
                response_length=len(response.content),
                exception=None,
                context={},
            )


class TightBudget(EmbeddingUser):
    """A search box that waits for its vector."""

    weight = 3
    hint: ClassVar[dict[str, float | str]] = {"latency_ms": 25}


class Interactive(EmbeddingUser):
    """A page that loads."""

    weight = 3
    hint: ClassVar[dict[str, float | str]] = {"latency_ms": 100}


class Relaxed(EmbeddingUser):
    """A job that can wait a second."""

    hint: ClassVar[dict[str, float | str]] = {"latency_ms": 1000}


class BestQuality(EmbeddingUser):
    """Evaluation runs."""

    hint: ClassVar[dict[str, float | str]] = {"quality": "best"}


class Unhinted(EmbeddingUser):
    """A client that knows nothing of hints."""

    hint: ClassVar[dict[str, float | str]] = {}


class Indexing(EmbeddingUser):
    """Documents in bulk, 32 at a time, for as little as can be."""

    hint: ClassVar[dict[str, float | str]] = {"quality": "fast"}
    texts_per_request = 32
