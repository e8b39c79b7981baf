"""What all tests share: an artifact that needs no weights, and a router around it without Ray."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors

from serve_app.calls import Call, Reply
from serve_app.compiled import require_current
from serve_app.dispatch import Transport
from serve_app.engines.base import open_engine
from serve_app.manifest import (
    FORMAT_VERSION,
    TOKENIZER_NAME,
    Checkpoint,
    Drift,
    Fidelity,
    GridCell,
    Manifest,
    Overlap,
    Profile,
    Prompts,
    Tokenizer,
    describe_files,
    sha256_of,
    write_manifest,
)
from serve_app.registry import load_ladder
from serve_app.replica import Replica
from serve_app.router import Router
from serve_app.settings import parse_settings
from tests.building import Build

require_current()  # else the tests would pass or fail what is no longer written

hypothesis.settings.register_profile(
    "repeatable", derandomize=True, database=None, deadline=None, max_examples=100
)
hypothesis.settings.load_profile("repeatable")

E2E = Path(__file__).parent / "e2e"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, "a", "the", "query", "text", "of", "hello", "world", "warm", "-", "up"]
GIVEN = os.environ.get("EMBEDDING_TEST_ARTIFACTS")
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

MakeArtifact = Callable[..., Manifest]


@pytest.fixture(autouse=True)
def no_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside `e2e/` nothing starts Ray: `ray.init` raises, and Ray is not even imported for that."""
    if E2E in request.path.parents:
        return
    if "ray" in sys.modules:
        monkeypatch.setattr(sys.modules["ray"], "init", _refuse_ray)
    else:
        monkeypatch.setitem(sys.modules, "ray", None)


def _refuse_ray(*_: object, **__: object) -> None:
    raise AssertionError("a unit test must not start Ray: move it to tests/e2e/")


def write_tokenizer(file: Path) -> None:
    """A word-level tokenizer with BERT's special tokens."""
    tokenizer = FastTokenizer(
        models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token=SPECIAL[1])
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(file))


def make_facts(**changes: Any) -> Checkpoint:
    """What a manifest says of a tiny checkpoint."""
    tiny = Checkpoint(
        name="tiny",
        digest="0" * 64,
        dims=8,
        max_tokens=16,
        pooling="mean",
        head=(),
        prompts=Prompts(query="", document="", default=""),
        matryoshka_dims=(),
    )
    return replace(tiny, **changes)


def write_artifact(folder: Path, *, p1: float, cost_ms: float, drift: float = 0.0) -> Manifest:
    """A whole artifact of the fake runtime, named after its folder."""
    folder.mkdir(parents=True)
    write_tokenizer(folder / TOKENIZER_NAME)
    (folder / "model.onnx").write_bytes(folder.name.encode())
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        variant=folder.name,
        runtime="fake",
        precision=folder.name.rpartition("-")[2],
        checkpoint=make_facts(),
        tokenizer=Tokenizer(
            digest=sha256_of(folder / TOKENIZER_NAME), pad_id=0, vocab_size=len(WORDS)
        ),
        files=describe_files(folder),
        fidelity=Fidelity(
            mean=p1,
            p1=p1,
            min=p1,
            overlap=Overlap(both=p1, queries=p1, documents=p1),
            drift=Drift(alone=0.0, sorted_batch=drift, beside_longest=drift, padded=drift),
            probe_texts=1,
            tasks={},
        ),
        batch_invariant=drift <= 1e-4,
        off_ladder=None,
        profile=Profile(
            hardware="a test",
            device="cpu",
            threads=1,
            base_ms=0.0,
            per_token_ms=cost_ms,
            spread=1.2,
            batch_tokens=64,
            grid=(GridCell(texts=1, tokens=8, median_ms=8 * cost_ms),),
            load_ms=10.0,
            resident_bytes=1_000_000,
        ),
        tools={},
        built_at="2026-01-01T00:00:00+00:00",
        commit="a test",
        command="a test",
    )
    write_manifest(folder, manifest)
    return manifest


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Three variants on a proper ladder: dearer means closer."""
    folder = tmp_path / "artifacts"
    write_artifact(folder / "fake-fp32", p1=1.0, cost_ms=0.3)
    write_artifact(folder / "fake-bf16", p1=0.9995, cost_ms=0.2)
    write_artifact(folder / "fake-int8", p1=0.985, cost_ms=0.1)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real evaluation data of the workshop; not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no ../shared/data beside this checkout: real evaluation data is absent")
    return SHARED_DATA


@pytest.fixture(scope="session")
def fake_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One fake artifact that lives as long as the session."""
    folder = tmp_path_factory.mktemp("fake")
    write_artifact(folder / "fake-fp32", p1=1.0, cost_ms=0.3)
    return folder


@pytest.fixture(scope="session")
def real_artifacts(request: pytest.FixtureRequest) -> Path:
    """All variants of the default checkpoint, built once by the command that users run.

    The build began when the tests did, beside those that do not need it; these wait for its end.
    Set EMBEDDING_TEST_ARTIFACTS to a folder of finished artifacts to skip it.
    """
    pytest.importorskip("torch", reason="torch is not installed: nothing can be converted")
    if GIVEN:
        return Path(GIVEN).resolve()
    build = request.config.stash[BUILD]
    code, told = build.wait(), build.log.read_text()
    assert code == 0, told
    return build.folder


BUILD = pytest.StashKey[Build]()


def _needs_artifacts(item: pytest.Item) -> bool:
    if item.get_closest_marker("artifacts") or item.get_closest_marker("e2e"):
        return True
    return "real_artifacts" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those last that wait for the real artifacts, and of them last what starts clusters."""
    items.sort(key=lambda item: (_needs_artifacts(item), E2E in item.path.parents))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to build what some of the tests will need."""
    wanted = any(map(_needs_artifacts, session.items)) and find_spec("torch") is not None
    if wanted and not session.config.option.collectonly and not GIVEN:
        session.config.stash[BUILD] = Build()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Whatever came of it, nothing is left."""
    if (build := config.stash.get(BUILD, None)) is not None:
        build.end()


@pytest.fixture(name="make_facts")
def fixture_make_facts() -> Callable[..., Checkpoint]:
    """`make_facts` for tests."""
    return make_facts


@pytest.fixture(name="write_artifact")
def fixture_write_artifact() -> MakeArtifact:
    """`write_artifact` for tests, which cannot import this file."""
    return write_artifact


class Served:
    """A router and its replicas in this process, asked over ASGI on one event loop."""

    def __init__(self, runner: asyncio.Runner, router: Router) -> None:
        self.router = router
        self._runner = runner

    def set_ready(self) -> None:
        """Let requests go to every variant, none of which was warmed up."""
        for variant in self.router._fleet.rungs:
            self.router._fleet.brain.set_ready(variant)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """One request; `request` is what httpx takes: json, content, headers."""
        return self.run(self._ask(method, path, **request))

    def embed(self, text: object = "hello world", **fields: object) -> httpx.Response:
        """`POST /v1/embeddings` with further fields of the body."""
        return self.ask("POST", "/v1/embeddings", json={"input": text, **fields})

    async def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.router.handle)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **request)


MakeRouter = Callable[..., Served]


def at_its_word(replica: Replica) -> Transport:
    """Calls to a replica that says it took as long as its profile promises.

    The fake engine takes no time: were it believed, each forecast would depend on this machine.
    """

    async def embed(call: Call) -> Reply:
        reply = await replica.embed(call)
        return replace(reply, state=replace(reply.state, pace=1.0))

    return embed


@pytest.fixture(name="at_its_word")
def fixture_at_its_word() -> Callable[[Replica], Transport]:
    """`at_its_word` for tests."""
    return at_its_word


@pytest.fixture(scope="session")
def clear_cut_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ladder whose forecasts lie so far apart that the speed of this machine decides nothing.

    "hello world", 4 tokens, is forecast at p95 4800, 480 and 48 ms.
    """
    folder = tmp_path_factory.mktemp("clear_cut")
    write_artifact(folder / "fake-fp32", p1=1.0, cost_ms=1000)
    write_artifact(folder / "fake-bf16", p1=0.9995, cost_ms=100)
    write_artifact(folder / "fake-int8", p1=0.985, cost_ms=10)
    return folder


@pytest.fixture
def make_router(clear_cut_artifacts: Path) -> Iterator[MakeRouter]:
    """Build routers over in-process replicas, as `app.py` builds them over Ray's."""
    with asyncio.Runner() as runner:

        def make(
            artifacts: Path = clear_cut_artifacts,
            *,
            ready: bool = True,
            transports: Mapping[str, Transport] | None = None,
            **settings: object,
        ) -> Served:
            ladder = load_ladder(artifacts)
            own = {
                rung.manifest.variant: at_its_word(
                    Replica(open_engine(rung.folder, rung.manifest), rung.manifest, name="replica")
                )
                for rung in ladder.rungs
            }
            known = parse_settings({"streams": 1} | settings)  # not as many as this machine's cores
            router = Router(ladder, own | dict(transports or {}), settings=known)
            if ready:
                runner.run(router.warm_up())
            return Served(runner, router)

        yield make


@pytest.fixture
def served(make_router: MakeRouter) -> Served:
    """A router that is ready, with an alias for its model."""
    return make_router(aliases="alias")
