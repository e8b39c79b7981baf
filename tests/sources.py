"""The product's sources in a tree of their own, for tests that change or compile them."""

import shutil
from pathlib import Path

from serve_app.compiled import OF_SOURCES

ROOT = Path(__file__).parents[1]


def copy_sources(tree: Path) -> Path:
    """Copy what is written, not what was compiled from it; returns the tree."""
    ignored = shutil.ignore_patterns("*.so", "*.pyd", OF_SOURCES, "results", "__pycache__")
    for package in ("serve_app", "loadtests", "converters", "tests"):
        shutil.copytree(ROOT / package, tree / package, ignore=ignored)
    return tree
