"""The pages on a server of their own, and a browser that looks at them."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.browser import BROWSERS

WEB = Path(__file__).parents[2] / "serve_app" / "web"
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
