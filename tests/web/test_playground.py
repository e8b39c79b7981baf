"""The playground: what it asks, and what it shows of the answers."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from serve_app.api import FIELDS
from tests.asked import VARIANTS as VARIANT_NAMES
from tests.web.canned import ESCAPED, MARKUP, REFUSAL, ROUTE
from tests.web.site import GONE, Site, look, look_into


def test_the_real_routers_answers_are_shown(real: Site, tmp_path: Path) -> None:
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


def test_the_decision_is_shown_at_once(site: Site, tmp_path: Path) -> None:
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


def test_a_link_may_embed(site: Site, tmp_path: Path) -> None:
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


def test_moving_the_slider_asks_once_it_rests(site: Site, tmp_path: Path) -> None:
    """Of a row of moves the last alone is asked, with its milliseconds; nothing is embedded."""
    deed = """for (const position of [0, 500, 1000]) {
        id("slider").value = position;
        id("slider").dispatchEvent(new page.Event("input", { bubbles: true }));
    }"""
    look_into(site, "./", tmp_path, deed=deed)
    assert [path for path, _ in site.bodies] == ["/v1/route", "/v1/route"]
    assert [body["latency_ms"] for _, body in site.bodies] == [50, 2000]


def test_the_form_is_what_is_sent(site: Site, tmp_path: Path) -> None:
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


def test_a_key_is_sent_and_never_shown(site: Site, tmp_path: Path) -> None:
    """It goes out as a bearer token with the next request; the curl names a variable instead."""
    deed = """id("key").value = "s3cret";
    id("key").dispatchEvent(new page.Event("input", { bubbles: true }));
    id("key").dispatchEvent(new page.Event("change", { bubbles: true }));"""
    seen = look_into(site, "./", tmp_path, deed=deed)
    assert site.keys[0] is None
    assert site.keys[-1] == "Bearer s3cret"
    assert "$API_KEY" in seen["curl"]
    assert "s3cret" not in seen["curl"] + seen["told"]


def test_markup_of_the_server_stays_text(site: Site, tmp_path: Path) -> None:
    """Tags in reasons, names and errors are shown as they are, and make no elements."""
    site.answers["/v1/route"] = (200, ROUTE | {"variant": MARKUP, "reason": MARKUP})
    site.answers["/v1/embeddings"] = (400, REFUSAL)
    shown = look(f"{site.url}#ask", tmp_path)
    assert f"{ESCAPED} : {ESCAPED}" in shown.text
    assert f"needs {ESCAPED}" in shown.text
    assert f"not admitted: {ESCAPED}" in shown.text
    assert "<b>" not in shown.dom


def test_a_refusal_says_when_to_come_back(site: Site, tmp_path: Path) -> None:
    """A 429 shows Retry-After beside the server's own words."""
    site.answers["/v1/embeddings"] = (429, REFUSAL)
    site.headers["Retry-After"] = "3"
    shown = look(f"{site.url}#ask", tmp_path)
    assert "Refused for now: try again in 3 s (429) not admitted:" in shown.text


def test_a_refusal_that_will_stay_says_so(site: Site, tmp_path: Path) -> None:
    """A 429 without Retry-After does not ask anybody to wait."""
    site.answers["/v1/embeddings"] = (429, REFUSAL)
    shown = look(f"{site.url}#ask", tmp_path)
    assert "Refused: waiting would not help" in shown.text


def test_a_lost_connection_is_said(site: Site, tmp_path: Path) -> None:
    """Where no answer comes, plain words stand where the answer would."""
    site.answers["/v1/route"] = (GONE, None)
    shown = look(site.url, tmp_path)
    assert "No connection The server does not answer." in shown.text


def test_a_gateway_that_speaks_no_json_is_quoted(site: Site, tmp_path: Path) -> None:
    """An answer that is not ours is shown with its status, as it is."""
    site.answers["/v1/embeddings"] = (502, "bad gateway")
    shown = look(f"{site.url}#ask", tmp_path)
    assert 'The server failed (502) "bad gateway"' in shown.text


def test_a_starting_server_is_waited_for(site: Site, tmp_path: Path) -> None:
    """While `ready` is a 503 the page says what is starting, and embeds nothing."""
    starting = {"error": {"message": "starting: onnx-int8; up: 1", "code": "not_ready"}}
    site.answers["/ready"] = (503, starting)
    shown = look(f"{site.url}#ask", tmp_path)
    assert "The server is starting; asking every second. starting: onnx-int8" in shown.text
    assert not [path for path, _ in site.bodies if path == "/v1/embeddings"]
