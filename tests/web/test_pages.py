"""Both pages: nothing from elsewhere, text stays text, and they fit a phone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.web.canned import EMBEDDINGS
from tests.web.site import PAGES, Site, look_into


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
