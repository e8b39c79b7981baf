"""The two pages: nothing from elsewhere, text stays text, and a browser shows what the API said."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from serve_app.api import FIELDS
from tests.asked import VARIANTS as VARIANT_NAMES
from tests.browser import BROWSERS

WEB = Path(__file__).parent.parent / "serve_app" / "web"
PAGES = {"/": WEB / "index.html", "/docs": WEB / "docs.html"}
PATIENCE_S = 60
# A page of the site in a frame, as a window of its own may not be narrower than 500; then a deed in it.
FRAME = """<!DOCTYPE html>
<iframe src="PAGE" width="WIDTH" height="2000" style="border: 0"></iframe><script>
const page = frames[0];
setTimeout(() => { const id = name => page.document.getElementById(name); DEED }, 1500);
setTimeout(() => {
  const answer = document.createElement("pre"), root = page.document.documentElement;
  answer.textContent = JSON.stringify({
    wide: [...page.document.querySelectorAll("body *")]
      .filter(e => e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.outerHTML),
    sideways: root.scrollWidth - root.clientWidth,
    told: page.document.body.innerText,
    curl: page.document.getElementById("curl")?.textContent,
  });
  document.body.append(answer);
}, 3000);
</script>"""
GONE = 0  # no answer at all
MARKUP = "<b>x</b>"
ESCAPED = "&lt;b&gt;x&lt;/b&gt;"


def variant(name: str, *, cost_ms: float, fidelity: float) -> dict[str, object]:
    """One of `/v1/variants`, with the fields that the page reads."""
    return {
        "variant": name,
        "runtime": "onnx",
        "precision": "int8",
        "device": "cpu",
        "ready": True,
        "fidelity": fidelity,
        "size_bytes": 23_600_000,
        "profile": {"cost_ms": cost_ms},
        "replicas": 2,
    }


def forecast(name: str, *, p50_ms: float, fidelity: float) -> dict[str, object]:
    """One of the forecasts of `/v1/route`."""
    times = {"wait_ms": 0.0, "p50_ms": p50_ms, "p95_ms": 1.5 * p50_ms}
    return {"variant": name, "fidelity": fidelity, "ready": True, **times}


VARIANTS = {
    "variants": [
        variant("onnx-fp32", cost_ms=0.1012, fidelity=1.0),
        variant("onnx-int8", cost_ms=0.0443, fidelity=0.99699),
    ],
    "not_on_ladder": [{"variant": "onnx-fp16", "reason": f"needs {MARKUP}"}],
    "brownout": {"level": 0, "floor": 0.99, "miss_share": 0.0},
}
ROUTE = {
    "admitted": True,
    "variant": "onnx-int8",
    "fidelity": 0.99699,
    "reason": "highest fidelity whose p95 forecast fits the budget",
    "at_risk": False,
    "predicted_ms": 30.2,
    "budget_ms": 50.0,
    "retry_after_s": None,
    "brownout_level": 0,
    "tokens": 31,
    "truncated": [],
    "forecasts": [
        forecast("onnx-fp32", p50_ms=62.0, fidelity=1.0),
        forecast("onnx-int8", p50_ms=30.2, fidelity=0.99699),
    ],
    "rejected": [{"variant": "onnx-fp32", "reason": "p95 forecast 93.0 ms exceeds the 49.0 ms"}],
}
VECTORS = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0, -1]], dtype="<f4")
EMBEDDINGS = {
    "object": "list",
    "model": "m",
    "data": [
        {"object": "embedding", "index": i, "embedding": base64.b64encode(row).decode()}
        for i, row in enumerate(VECTORS)
    ],
    "usage": {"prompt_tokens": 31, "total_tokens": 31},
    "routing": {
        "variant": "onnx-int8",
        "fidelity": 0.99699,
        "reason": "the reason of the answer",
        "predicted_ms": 30.2,
        "budget_ms": 50.0,
        "queue_ms": 0.517,
        "inference_ms": 21.4,
        "total_ms": 33.3,
        "within_budget": True,
        "truncated": [1],
    },
}
OPENAPI = {
    "openapi": "3.1.0",
    "info": {"title": "Canned", "version": "7.8.9", "description": "What it is for."},
    "paths": {
        "/v1/embeddings": {
            "post": {
                "summary": "Embed texts.",
                "parameters": [
                    {"name": "X-Quality", "in": "header", "schema": {"type": "string"}},
                ],
                "requestBody": {
                    "content": {
                        "application/json": {
                            "schema": {"$ref": "#/components/schemas/Request"},
                            "example": {"input": "it's"},
                        }
                    }
                },
                "responses": {"200": {"description": "Vectors."}, "429": {"description": "Late."}},
            }
        },
        "/ready": {"get": {"responses": {"200": {"description": f"Up {MARKUP}."}}}},
    },
    "components": {
        "schemas": {
            "Request": {
                "type": "object",
                "required": ["input"],
                "properties": {
                    "input": {
                        "oneOf": [
                            {"type": "string"},
                            {"type": "array", "items": {"type": "string"}, "maxItems": 77},
                        ],
                        "description": "The texts to embed.",
                    },
                    "latency_ms": {"$ref": "#/components/schemas/Budget"},
                },
            },
            "Budget": {
                "type": ["number", "null"],
                "exclusiveMinimum": 0,
                "default": None,
                "description": "How long the client waits.",
            },
        }
    },
}
REFUSAL = {"error": {"message": f"not admitted: {MARKUP}", "param": None, "code": "not_admitted"}}
CANNED = {
    "/ready": (200, {"status": "ready"}),
    "/v1/variants": (200, VARIANTS),
    "/v1/route": (200, ROUTE),
    "/v1/embeddings": (200, EMBEDDINGS),
    "/openapi.json": (200, OPENAPI),
}


@dataclass
class Site:
    """The pages with canned answers, below a prefix as a gateway may put one."""

    url: str
    answers: dict[str, tuple[int, object]]
    headers: dict[str, str] = field(default_factory=dict)
    bodies: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)  # of each request
    frame: str = ""


@contextmanager
def serving(answers: Mapping[str, tuple[int, object]]) -> Iterator[Site]:
    """Serve on a free port of this host."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            site.bodies.append((self.path.removeprefix("/under"), json.loads(body)))
            self._answer()

        def _answer(self) -> None:
            path = self.path.removeprefix("/under")
            site.keys.append(self.headers["Authorization"])
            if path in PAGES:
                self._send(200, PAGES[path].read_bytes(), "text/html; charset=utf-8")
            elif path == "/frame":
                self._send(200, site.frame.encode(), "text/html; charset=utf-8")
            else:
                status, content = site.answers.get(path, (404, {}))
                if status == GONE:
                    return
                self._send(status, json.dumps(content).encode(), "application/json")

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in site.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site = Site(f"http://127.0.0.1:{server.server_port}/under/", dict(answers))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(CANNED) as served:
        yield served


@pytest.fixture
def real(served: Any, site: Site) -> Site:
    """The site with what the real router answers, fake engines below it."""
    body = {"input": ["a text", "another", "a third"], "latency_ms": 5000}
    asked = {
        "/ready": served.ask("GET", "/ready"),
        "/openapi.json": served.ask("GET", "/openapi.json"),
        "/v1/variants": served.ask("GET", "/v1/variants"),
        "/v1/route": served.ask("POST", "/v1/route", json=body),
        "/v1/embeddings": served.ask(
            "POST", "/v1/embeddings", json=body | {"encoding_format": "base64"}
        ),
    }
    site.answers = {path: (found.status_code, found.json()) for path, found in asked.items()}
    site.headers["Content-Security-Policy"] = served.ask("GET", "/").headers[
        "content-security-policy"
    ]
    return site


@dataclass(frozen=True)
class Shown:
    """What the browser made of a page: the document afterwards, and its console."""

    dom: str
    console: list[str]

    @property
    def text(self) -> str:
        """The words alone, still escaped."""
        body = re.sub(r"<(script|style)\b.*?</\1>", "", self.dom, flags=re.DOTALL)
        return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def look(url: str, profile: Path) -> Shown:
    """Open a page and let its timers run for some seconds; skips where no browser is."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is installed")
    done = subprocess.run(
        [
            browser,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            f"--user-data-dir={profile / 'browser'}",
            *("--virtual-time-budget=4000", "--dump-dom", url),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    return Shown(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])


def look_into(
    site: Site, page: str, profile: Path, *, width: int = 360, deed: str = ""
) -> dict[str, Any]:
    """Open a page in a frame, do a deed there, and say what came of it."""
    site.frame = FRAME.replace("PAGE", page).replace("WIDTH", str(width)).replace("DEED", deed)
    shown = look(f"{site.url}frame", profile)
    answer = re.search(r"<pre>(.*?)</pre>", shown.dom, flags=re.DOTALL)
    assert answer is not None, shown
    assert shown.console == []
    return json.loads(html.unescape(answer[1]))


@pytest.mark.parametrize("page", PAGES.values(), ids=lambda page: page.name)
class TestSource:
    """What the pages are made of."""

    def test_nothing_comes_from_elsewhere(self, page: Path) -> None:
        """No attribute, style or request names a host, and no link starts at the root."""
        source = page.read_text()
        attributes = re.findall(r"""\b(?:src|href|action|srcset)\s*=\s*["']([^"']*)""", source)
        requests = re.findall(r"""\b(?:fetch|call|import|url)\(\s*["'`]?([^"'`),\s]*)""", source)
        assert attributes
        assert not [to for to in attributes + requests if re.match(r"[a-z]+:(?!,)|/", to)]
        assert not re.search(r"https?://", source)
        assert "@import" not in source

    def test_text_is_never_parsed(self, page: Path) -> None:
        """No way from a string to markup or code is used."""
        parsing = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
        assert not re.findall(parsing + r"|setHTML|DOMParser|srcdoc|javascript:", page.read_text())


@pytest.mark.parametrize("page", ["./", "docs"])
def test_a_phone_need_not_scroll_sideways(site: Site, page: str, tmp_path: Path) -> None:
    """At 360 pixels, with nine texts and a word without end, nothing is wider than the window."""
    data = [EMBEDDINGS["data"][i % 3] | {"index": i} for i in range(9)]
    site.answers["/v1/embeddings"] = (200, EMBEDDINGS | {"data": data})
    deed = """if (id("texts")) {
        id("texts").value = "word".repeat(200) + "\\n text".repeat(8);
        id("texts").dispatchEvent(new page.Event("input", { bubbles: true }));
        id("ask").requestSubmit();
    }"""
    seen = look_into(site, page, tmp_path, deed=deed)
    assert seen["sideways"] == 0
    assert seen["wide"] == []
    assert ("within the budget" in seen["told"]) or ("How long the client waits." in seen["told"])


class TestPlayground:
    """The page at the root."""

    def test_the_real_routers_answers_are_shown(self, real: Site, tmp_path: Path) -> None:
        """Every variant, the decision, the routing and the vectors, under the server's own policy."""
        shown = look(f"{real.url}#ask", tmp_path)
        route, embedded = real.answers["/v1/route"][1], real.answers["/v1/embeddings"][1]
        assert f"{route['variant']} : {route['reason']}" in shown.text
        for name in VARIANT_NAMES:
            assert f'<option value="{name}">' in shown.dom
            assert f"{name} " in shown.text
        assert f"Why: {embedded['routing']['reason']}" in shown.text
        assert len(re.findall(r"--share: ", shown.dom)) == 9
        assert not re.search("undefined|NaN|No connection|cannot be read", shown.text)
        assert shown.console == []
        for _, body in real.bodies:
            assert set(body) <= set(FIELDS)

    def test_the_decision_is_shown_at_once(self, site: Site, tmp_path: Path) -> None:
        """On load: what is served, the decision, each forecast, why not the others; no complaint."""
        shown = look(site.url, tmp_path)
        assert "onnx-int8 : highest fidelity whose p95 forecast fits the budget" in shown.text
        assert "p50 62.0 ms, p95 93.0 ms p95 forecast 93.0 ms exceeds" in shown.text
        assert "onnx-int8 chosen" in shown.text
        assert "onnx-int8 onnx int8 cpu yes 0.99699 44.3 24 2" in shown.text
        assert '<option value="onnx-fp32">' in shown.dom
        assert shown.console == []
        asked = [body for path, body in site.bodies if path == "/v1/route"]
        assert asked[0]["latency_ms"] == 50
        assert not [path for path, _ in site.bodies if path == "/v1/embeddings"]

    def test_a_link_may_embed(self, site: Site, tmp_path: Path) -> None:
        """With #ask: times, what was cut, the vectors decoded from base64, their cosines."""
        shown = look(f"{site.url}#ask", tmp_path)
        assert "onnx-int8 in 33.3 ms, within the budget of 50 ms" in shown.text
        assert "Why: the reason of the answer" in shown.text
        assert "In queue 0.52 ms Inference 21.4 ms" in shown.text
        assert "Cut at the model's limit text 2" in shown.text
        assert "0.6000 0.8000 0.0000 …" in shown.text
        cosines = re.findall(r"--share: [\d.]+;\">(-?\d\.\d\d)<", shown.dom)
        assert [float(c) for c in cosines] == [1, 0.6, 0, 0.6, 1, 0, 0, 0, 1]
        embedded = [body for path, body in site.bodies if path == "/v1/embeddings"]
        assert [body["encoding_format"] for body in embedded] == ["base64"]
        assert shown.console == []

    def test_moving_the_slider_asks_once_it_rests(self, site: Site, tmp_path: Path) -> None:
        """Of a row of moves the last alone is asked, with its milliseconds; nothing is embedded."""
        deed = """for (const position of [0, 500, 1000]) {
            id("slider").value = position;
            id("slider").dispatchEvent(new page.Event("input", { bubbles: true }));
        }"""
        look_into(site, "./", tmp_path, deed=deed)
        assert [path for path, _ in site.bodies] == ["/v1/route", "/v1/route"]
        assert [body["latency_ms"] for _, body in site.bodies] == [50, 2000]

    def test_the_form_is_what_is_sent(self, site: Site, tmp_path: Path) -> None:
        """Lines without blank ones, the budget off, a floor, a pin: in the request as in the curl."""
        deed = """id("texts").value = "it's\\n\\n two";
        id("budget-on").checked = false;
        id("quality").value = "floor"; id("floor").value = "0.9";
        id("variant").value = "onnx-fp32";
        id("texts").dispatchEvent(new page.Event("input", { bubbles: true }));
        id("ask").requestSubmit();"""
        seen = look_into(site, "./", tmp_path, deed=deed)
        asked = {"input": ["it's", " two"], "quality": 0.9, "variant": "onnx-fp32"}
        embedded = [body for path, body in site.bodies if path == "/v1/embeddings"]
        assert embedded == [asked | {"encoding_format": "base64"}]
        words = shlex.split(seen["curl"])
        assert words[:3] == ["curl", "-s", f"{site.url}v1/embeddings"]
        assert json.loads(words[-1]) == asked

    def test_a_key_is_sent_and_never_shown(self, site: Site, tmp_path: Path) -> None:
        """It goes out as a bearer token with the next request; the curl names a variable instead."""
        deed = """id("key").value = "s3cret";
        id("key").dispatchEvent(new page.Event("input", { bubbles: true }));
        id("key").dispatchEvent(new page.Event("change", { bubbles: true }));"""
        seen = look_into(site, "./", tmp_path, deed=deed)
        assert site.keys[0] is None
        assert site.keys[-1] == "Bearer s3cret"
        assert "$API_KEY" in seen["curl"]
        assert "s3cret" not in seen["curl"] + seen["told"]

    def test_markup_of_the_server_stays_text(self, site: Site, tmp_path: Path) -> None:
        """Tags in reasons, names and errors are shown as they are, and make no elements."""
        site.answers["/v1/route"] = (200, ROUTE | {"variant": MARKUP, "reason": MARKUP})
        site.answers["/v1/embeddings"] = (400, REFUSAL)
        shown = look(f"{site.url}#ask", tmp_path)
        assert f"{ESCAPED} : {ESCAPED}" in shown.text
        assert f"needs {ESCAPED}" in shown.text
        assert f"not admitted: {ESCAPED}" in shown.text
        assert "<b>" not in shown.dom

    def test_a_refusal_says_when_to_come_back(self, site: Site, tmp_path: Path) -> None:
        """A 429 shows Retry-After beside the server's own words."""
        site.answers["/v1/embeddings"] = (429, REFUSAL)
        site.headers["Retry-After"] = "3"
        shown = look(f"{site.url}#ask", tmp_path)
        assert "Refused for now: try again in 3 s (429) not admitted:" in shown.text

    def test_a_refusal_that_will_stay_says_so(self, site: Site, tmp_path: Path) -> None:
        """A 429 without Retry-After does not ask anybody to wait."""
        site.answers["/v1/embeddings"] = (429, REFUSAL)
        shown = look(f"{site.url}#ask", tmp_path)
        assert "Refused: waiting would not help" in shown.text

    def test_a_lost_connection_is_said(self, site: Site, tmp_path: Path) -> None:
        """Where no answer comes, plain words stand where the answer would."""
        site.answers["/v1/route"] = (GONE, None)
        shown = look(site.url, tmp_path)
        assert "No connection The server does not answer." in shown.text

    def test_a_gateway_that_speaks_no_json_is_quoted(self, site: Site, tmp_path: Path) -> None:
        """An answer that is not ours is shown with its status, as it is."""
        site.answers["/v1/embeddings"] = (502, "bad gateway")
        shown = look(f"{site.url}#ask", tmp_path)
        assert 'The server failed (502) "bad gateway"' in shown.text

    def test_a_starting_server_is_waited_for(self, site: Site, tmp_path: Path) -> None:
        """While `ready` is a 503 the page says what is starting, and embeds nothing."""
        starting = {"error": {"message": "starting: onnx-int8; up: 1", "code": "not_ready"}}
        site.answers["/ready"] = (503, starting)
        shown = look(f"{site.url}#ask", tmp_path)
        assert "The server is starting; asking every second. starting: onnx-int8" in shown.text
        assert not [path for path, _ in site.bodies if path == "/v1/embeddings"]


class TestDocs:
    """The page at /docs."""

    def test_the_real_document_is_rendered(self, real: Site, tmp_path: Path) -> None:
        """Every route, field and description of a field, and an example that the parser takes."""
        shown = look(f"{real.url}docs", tmp_path)
        text, document = html.unescape(shown.text), real.answers["/openapi.json"][1]
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                assert f"{method.upper()} {path} {operation['summary']}" in text
        for name, field_ in document["components"]["schemas"]["EmbeddingRequest"][
            "properties"
        ].items():
            assert f" {name} " in text
            assert field_.get("description", "") in text
        assert """ -d '{"input":"how do I reset my card pin","latency_ms":50}'""" in text
        assert "quality string or number" in text
        assert shown.console == []

    def test_a_key_is_asked_for_where_the_document_says_so(
        self, site: Site, tmp_path: Path
    ) -> None:
        """With `security` each curl line carries a key, as a variable of the shell."""
        site.answers["/openapi.json"] = (200, OPENAPI | {"security": [{"key": []}]})
        shown = look(f"{site.url}docs", tmp_path)
        assert shown.text.count('-H "Authorization: Bearer $API_KEY"') == 2

    def test_the_document_is_rendered(self, site: Site, tmp_path: Path) -> None:
        """Title, routes, parameters, fields behind references, limits, an example for a shell."""
        shown = look(f"{site.url}docs", tmp_path)
        assert "Canned 7.8.9 What it is for." in shown.text
        assert "POST /v1/embeddings Embed texts. Parameters" in shown.text
        assert "X-Quality header string" in shown.text
        assert "input required string or array of string items ≤ 77 The texts" in shown.text
        assert "latency_ms number or null null &gt; 0 How long the client waits." in shown.text
        assert f"curl -s '{site.url}v1/embeddings'" in shown.text
        assert r"""-d '{"input":"it'\''s"}'""" in shown.text
        assert "200 Vectors. 429 Late." in shown.text
        assert f"Up {ESCAPED}." in shown.text
        assert shown.console == []

    def test_a_missing_document_is_said(self, site: Site, tmp_path: Path) -> None:
        """Without openapi.json the page says so, with the server's answer."""
        site.answers["/openapi.json"] = (404, {"error": {"message": MARKUP}})
        shown = look(f"{site.url}docs", tmp_path)
        assert "openapi.json cannot be had" in shown.text
        assert f'404 Not Found: {{"error": {{"message": "{ESCAPED}"' in shown.text
