"""A headless browser looks at a page: how wide it gets, whether its images load, what it complains of."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_S = 60
# A frame, as a window of its own may not be narrower than 500; its answer is JSON in the text.
ASK = """<iframe src="PAGE" width="WIDTH" height="2000" style="border: 0"></iframe><script>
addEventListener("load", () => {
  const page = frames[0].document, answer = document.createElement("pre");
  answer.textContent = JSON.stringify({
    inner: frames[0].innerWidth,
    scroll: page.documentElement.scrollWidth,
    images: [...page.images].map(image => image.naturalWidth),
  });
  document.body.append(answer);
});
</script>"""


@dataclass(frozen=True)
class Seen:
    """What the browser saw, in pixels."""

    inner: int
    scroll: int
    images: list[int]
    console: list[str]


def seen_by_a_browser(page: Path, *, width: int, profile: Path) -> Seen:
    """Show a page in a window of a width; skips where no browser is."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is installed")
    asking = page.with_name("asking.html")
    asking.write_text(ASK.replace("PAGE", page.name).replace("WIDTH", str(width)))
    done = subprocess.run(
        [
            browser,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            f"--user-data-dir={profile / 'browser'}",
            *("--allow-file-access-from-files", "--window-size=1400,2100"),
            "--dump-dom",
            asking.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    answer = re.search(r"<pre>(.*?)</pre>", done.stdout)
    assert answer is not None, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(**json.loads(answer[1]), console=console)
