"""The main job over real HTTP: right vectors from the right variant, by hint."""

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import pytest
from huggingface_hub import InferenceClient

from converters import corpus
from tests.e2e.harness import Server, StartServer

pytestmark = pytest.mark.e2e

GOLDEN = Path(__file__).parents[1] / "golden"
TEXTS: list[str] = json.loads((GOLDEN / "golden_texts.json").read_text(encoding="utf-8"))
VECTORS = np.load(GOLDEN / "golden.npz")["vectors"]


def embed(http: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = http.post("/v1/embeddings", json={"input": TEXTS} | body)
    assert answer.status_code == httpx.codes.OK, answer.text
    return answer.json()


def vectors_of(content: dict[str, Any]) -> np.ndarray:
    return np.array([item["embedding"] for item in content["data"]])


def ladder(http: httpx.Client) -> list[dict[str, Any]]:
    return http.get("/v1/variants").json()["variants"]


def test_best_quality_equals_sentence_transformers(http: httpx.Client) -> None:
    """quality=best gives FP32's vectors, cosine at least 0.9999."""
    content = embed(http, quality="best")
    assert content["routing"]["fidelity"] == max(v["fidelity"] for v in ladder(http))
    assert (vectors_of(content) * VECTORS).sum(1).min() >= 0.9999


def test_fast_is_the_cheapest_variant_and_keeps_its_word(http: httpx.Client) -> None:
    """quality=fast takes the cheapest variant, and its vectors are as close as it states."""
    cheapest = min(ladder(http), key=lambda v: v["profile"]["cost_ms"])
    probe = corpus.probe_texts()
    fast, best = (embed(http, input=probe, quality=quality) for quality in ("fast", "best"))
    assert fast["routing"]["variant"] == cheapest["variant"]
    close = (vectors_of(fast) * vectors_of(best)).sum(1)
    assert np.percentile(close, 1) >= cheapest["fidelity"] - 1e-4


def test_a_wide_budget_gets_the_highest_fidelity(http: httpx.Client) -> None:
    """A budget that every variant can meet: the highest fidelity, and within 0.001 of it the cheapest."""
    rungs = ladder(http)
    top = max(v["fidelity"] for v in rungs)
    near = [v for v in rungs if v["fidelity"] >= top - 0.001]
    wanted = min(near, key=lambda v: v["profile"]["cost_ms"])["variant"]
    content = embed(http, input="a short text", latency_ms=60_000)
    assert content["routing"]["variant"] == wanted
    assert content["routing"]["within_budget"] is True


def test_an_impossible_budget_is_not_admitted(http: httpx.Client) -> None:
    """A budget below every forecast is a 429 that says so."""
    answer = http.post("/v1/embeddings", json={"input": "text", "latency_ms": 0.01})
    assert answer.status_code == httpx.codes.TOO_MANY_REQUESTS
    assert "needs" in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "latency_ms"


def test_headers_do_the_same_as_the_body(http: httpx.Client) -> None:
    """X-Latency-Ms, X-Quality and X-Variant route as their fields do."""
    tight = http.post("/v1/embeddings", json={"input": "t"}, headers={"X-Latency-Ms": "0.01"})
    assert tight.status_code == httpx.codes.TOO_MANY_REQUESTS
    for name, value in (("quality", "fast"), ("quality", "best"), ("variant", "onnx-fp32")):
        by_body = embed(http, **{name: value})["routing"]
        answer = http.post(
            "/v1/embeddings", json={"input": TEXTS}, headers={f"X-{name.title()}": value}
        )
        assert answer.json()["routing"]["variant"] == by_body["variant"]
        assert answer.headers["X-Variant"] == by_body["variant"]


@pytest.mark.parametrize(
    "hint",
    [
        {"quality": "best"},
        {"quality": "fast"},
        {"latency_ms": 60_000},
        {"variant": "onnx-fp32"},
        {},
    ],
)
def test_route_tells_what_embeddings_would_do(http: httpx.Client, hint: dict[str, Any]) -> None:
    """/v1/route names the variant that /v1/embeddings then takes, and why not each other one."""
    told = http.post("/v1/route", json={"input": TEXTS[0]} | hint).json()
    done = embed(http, input=TEXTS[0], **hint)["routing"]
    assert told["variant"] == done["variant"]
    others = {v["variant"] for v in ladder(http)} - {told["variant"]}
    assert {r["variant"] for r in told["rejected"]} == others
    assert all(r["reason"] for r in told["rejected"])


def test_route_explains_a_refusal(http: httpx.Client) -> None:
    """/v1/route answers an impossible budget with the reason, not with an error."""
    answer = http.post("/v1/route", json={"input": "text", "latency_ms": 0.01})
    assert answer.status_code == httpx.codes.OK
    assert answer.json()["admitted"] is False
    assert "needs" in answer.json()["reason"]


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_the_official_client_works_unchanged(server: Server, encoding: str | None) -> None:
    """OpenAI's Python client gets right vectors in each encoding, with our hint beside."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused")
    chosen = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(
        model="all-MiniLM-L6-v2", input=TEXTS[:2], extra_body={"latency_ms": 60_000}, **chosen
    )
    for item, expected in zip(answer.data, VECTORS, strict=False):
        raw: Any = item.embedding
        vector = np.frombuffer(base64.b64decode(raw), "<f4") if isinstance(raw, str) else raw
        assert np.dot(vector, expected) > 0.999
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_many_clients_get_each_their_own_vectors(http: httpx.Client, server: Server) -> None:
    """Under concurrency each text gets its own vector from each variant, never a neighbour's."""

    def one(job: int) -> float:
        place = job % len(TEXTS)
        variant = ladder_names[job % len(ladder_names)]
        body = {"input": TEXTS[place], "variant": variant}
        answer = httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=60).json()
        return float(np.dot(answer["data"][0]["embedding"], VECTORS[place]))

    ladder_names = [v["variant"] for v in ladder(http)]
    with ThreadPoolExecutor(16) as pool:
        assert min(pool.map(one, range(160))) > 0.95


def test_a_killed_replica_loses_no_request(start_server: StartServer) -> None:
    """After kill -9 of a replica under load, every request is answered all the same."""
    server = start_server("--variants", "onnx-int8")
    (victim,) = server.replica_pids("onnx-int8")

    def one(job: int) -> int:
        if job == 40:
            psutil.Process(victim).kill()
        body = {"input": TEXTS, "quality": "fast"}
        return httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=60).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, range(120))) == {httpx.codes.OK}
    assert not server.stop()


def test_a_killed_router_comes_back_to_its_port(start_server: StartServer) -> None:
    """The only router, which listens itself, is replaced by one that listens there too."""
    server = start_server("--variants", "onnx-int8")
    (victim,) = server.replica_pids("router")
    router = psutil.Process(victim)
    router.kill()
    router.wait(30)
    server.wait_until_ready()
    (successor,) = server.replica_pids("router")
    assert successor != victim
    body = {"input": TEXTS[:1], "quality": "fast"}
    answer = httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=60)
    assert answer.status_code == httpx.codes.OK
    assert not server.stop()


def test_calls_travel_over_connections_of_our_own(server: Server, http: httpx.Client) -> None:
    """The router holds a connection to a port of each replica, which only this host can reach."""
    for row in ladder(http):
        deadline_s = time.monotonic() + 30
        while not (doors := _doors(server, row["variant"])) and time.monotonic() < deadline_s:
            time.sleep(0.2)  # it is looked for a quarter of a second after the first call
        assert {door.ip for door in doors} == {"127.0.0.1"}


def _doors(server: Server, variant: str) -> set[Any]:
    """Where replicas of a variant listen and the router is connected to."""
    (router,) = map(psutil.Process, server.replica_pids("router"))
    reached = {c.raddr for c in router.net_connections() if c.status == "ESTABLISHED"}
    replicas = map(psutil.Process, server.replica_pids(variant))
    ports = [c for replica in replicas for c in replica.net_connections()]
    return {c.laddr for c in ports if c.status == "LISTEN" and c.laddr in reached}


@pytest.mark.parametrize("path", ["", "/embed"])
def test_the_client_of_text_embeddings_inference_works_unchanged(server: Server, path: str) -> None:
    """Hugging Face's InferenceClient gets right vectors from either of TEI's addresses."""
    client = InferenceClient(model=server.url + path)
    for text, expected in zip(TEXTS[:3], VECTORS, strict=False):
        found = client.feature_extraction(text, normalize=True, truncate=True)
        assert (np.asarray(found) @ expected).item() > 0.99


def test_tokens_that_are_told_have_the_vector_of_their_text(http: httpx.Client) -> None:
    """What /tokenize gives of real texts can be sent in their place."""
    told = http.post("/tokenize", json={"inputs": TEXTS[:8]}).json()
    ids = [[piece["id"] for piece in text] for text in told]
    by_ids, by_text = (embed(http, input=given, quality="best") for given in (ids, TEXTS[:8]))
    assert by_ids["usage"] == by_text["usage"]
    close = (vectors_of(by_ids) * vectors_of(by_text)).sum(1)
    assert close.min() > 1 - 1e-6


def test_pages_and_description_are_served(http: httpx.Client) -> None:
    """A browser finds the playground, the documentation, and the description that it draws."""
    for path in ("/", "/docs"):
        page = http.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert "<title>" in page.text
    described = http.get("/openapi.json").json()
    assert {v["variant"] for v in ladder(http)} == set(
        described["components"]["schemas"]["EmbeddingRequest"]["properties"]["variant"]["enum"]
    )


def test_a_replica_loads_its_own_runtime_only(server: Server, http: httpx.Client) -> None:
    """Replicas of CPU variants map their runtime, and no torch library, into their memory."""
    libraries = {"onnx": "onnxruntime", "openvino": "openvino"}
    for row in (row for row in ladder(http) if row["device"] == "cpu"):
        for pid in server.replica_pids(row["variant"]):
            maps = {m.path for m in psutil.Process(pid).memory_maps()}
            assert any(libraries[row["runtime"]] in path for path in maps)
            assert not any("/torch/" in path for path in maps)


@pytest.mark.parametrize("flags", [(), ("--proxy",)])
def test_listens_on_this_machine_only(start_server: StartServer, flags: tuple[str, ...]) -> None:
    """Whatever speaks HTTP is bound to 127.0.0.1: the router, or HAProxy with its own pages."""
    server = start_server("--variants", "onnx-int8", *flags)
    port = int(server.url.rpartition(":")[2])
    doors = [
        found.laddr
        for process in server.tree()
        for found in process.net_connections()
        # Workers have Ray's own ports besides.
        if found.status == "LISTEN" and (process.name() == "haproxy" or found.laddr.port == port)
    ]
    assert {door.ip for door in doors} == {"127.0.0.1"}
    assert not server.stop()
