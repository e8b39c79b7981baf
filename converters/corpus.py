"""Text to calibrate and to probe with, from what every installation already has.

Short texts come from `data/short_texts.txt` (written for this project) and the summary lines of
standard library docstrings; paragraphs and long texts from the language reference inside Python
(`pydoc_data.topics`) and from docstrings. Modules are parsed, never imported. A whole source (a
topic, a module) goes to one side, probe or calibration, by a digest of its name, and each side
takes the texts with the lowest digests: where another Python version words a paragraph anew, only
that paragraph changes.
"""

import ast
import hashlib
import importlib.util
import inspect
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

from serve_app.errors import ConversionError

PROBE_TEXTS = 400
CALIBRATION_TEXTS = 256
PROBE_SHARE = PROBE_TEXTS / (PROBE_TEXTS + CALIBRATION_TEXTS)
SHORT_SHARE = 0.5  # queries and sentences, 5-20 tokens
LONG_SHARE = 0.15  # at least 256 tokens; the rest are paragraphs of 40-120 tokens

SHORT_CHARS = range(25, 100)
PARAGRAPH_CHARS = range(180, 560)  # English prose has about 4.6 characters a token
LONG_CHARS = 1350
ALONE_BETWEEN_LONG = 2
LEAST_LETTER_SHARE = 0.88  # of prose; below it are signatures, grammar and tables
CODE_MARKS = ("::=", ">>>", "----", "****", " = ", "==", "...)")

SHORT_TEXTS_FILE = Path(__file__).parent / "data" / "short_texts.txt"
DOCSTRING_MODULES = (  # those of 3.11 to 3.13; one that a later Python drops is skipped
    "argparse ast bdb calendar cmd codecs collections configparser contextlib copy csv datetime "
    "_pydecimal difflib dis doctest fileinput fnmatch fractions ftplib functools gettext glob "
    "gzip heapq imaplib importlib inspect ipaddress logging mailbox mimetypes netrc numbers "
    "optparse os pathlib pdb pickle pickletools platform plistlib poplib pprint profile pstats "
    "pydoc queue random sched secrets selectors shelve shlex shutil smtplib socket socketserver "
    "ssl statistics string subprocess sysconfig tarfile tempfile textwrap threading timeit token "
    "trace traceback turtle types typing unittest uuid warnings wave weakref webbrowser zipfile"
)


@dataclass(frozen=True, slots=True)
class _Pool:
    """The texts of one side, by length."""

    short: list[str]
    paragraphs: list[str]
    long: list[str]


def probe_texts() -> list[str]:
    """The 400 texts on which a variant's fidelity is measured; none of them calibrates."""
    return _mixed(_pools()[0], PROBE_TEXTS)


def calibration_texts() -> list[str]:
    """The 256 texts whose activation ranges an integer variant is built for."""
    return _mixed(_pools()[1], CALIBRATION_TEXTS)


def read_corpus(path: Path) -> list[str]:
    """Read a user's texts: one a line, or `.jsonl` whose objects have a "text" field.

    Blank lines are skipped. Raises `ConversionError` naming the file, and the line.
    """
    try:
        raw = path.read_bytes()
        content = raw.decode("utf-8-sig")
    except OSError as error:
        raise ConversionError(f"corpus {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        where = f"corpus {path}, line {line}, byte {error.start} of the file"
        raise ConversionError(f"{where}: not UTF-8") from error
    lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if path.suffix == ".jsonl":
        texts = [_text_field(line, where=f"corpus {path}, line {number}") for number, line in lines]
    else:
        texts = [line.strip() for _, line in lines]
    if not texts:
        raise ConversionError(f"corpus {path}: no text in it")
    return texts


def _text_field(line: str, *, where: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConversionError(f"{where}: not JSON ({error.msg})") from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ConversionError(f'{where}: no "text" field with a non-empty string')
    return text.strip()


def _mixed(pool: _Pool, count: int) -> list[str]:
    """Take `count` texts in the fixed shares, in an order that mixes the lengths."""
    short_count = round(count * SHORT_SHARE)
    long_count = round(count * LONG_SHARE)
    paragraph_count = count - short_count - long_count
    chosen = pool.short[:short_count] + pool.long[:long_count] + pool.paragraphs[:paragraph_count]
    return _by_digest(chosen)


@cache
def _pools() -> tuple[_Pool, _Pool]:
    """(probe, calibration)."""
    sources = [
        *sorted(topics.items()),
        *((name, _docstrings(name)) for name in DOCSTRING_MODULES.split()),
    ]
    own_lines = _by_digest(SHORT_TEXTS_FILE.read_text(encoding="utf-8").splitlines())
    cut = round(len(own_lines) * PROBE_SHARE)
    sides: tuple[list[list[str]], list[list[str]]] = ([], [])
    seen: set[str] = set()
    for name, source in sources:
        prose = [text for text in dict.fromkeys(_prose(source)) if text not in seen]
        seen.update(prose)  # modules share docstrings, topics share paragraphs
        sides[_digest(name)[0] >= 256 * PROBE_SHARE].append(prose)
    return _pool(own_lines[:cut], sides[0]), _pool(own_lines[cut:], sides[1])


def _pool(own_lines: list[str], sources: Iterable[list[str]]) -> _Pool:
    """Our own lines first: they are closer to what users send than summary lines are."""
    summaries: list[str] = []
    paragraphs: list[str] = []
    long: list[str] = []
    for prose in sources:
        summaries += [text for text in prose if len(text) in SHORT_CHARS]
        for text in _pieces(iter(prose)):
            (long if len(text) >= LONG_CHARS else paragraphs).append(text)
    return _Pool(own_lines + _by_digest(summaries), _by_digest(paragraphs), _by_digest(long))


def _pieces(prose: Iterator[str]) -> Iterator[str]:
    """Deal one source's texts out: a few paragraphs alone, the next texts joined to a long one."""
    while True:
        paragraphs = (text for text in prose if len(text) in PARAGRAPH_CHARS)
        yield from itertools.islice(paragraphs, ALONE_BETWEEN_LONG)
        joined = ""
        for text in prose:
            joined = f"{joined} {text}".strip()
            if len(joined) >= LONG_CHARS:
                yield joined
                break
        else:
            return


def _prose(source: str) -> Iterator[str]:
    """The paragraphs that read as English, each on one line, without reference markup."""
    for block in re.split(r"\n\s*\n", source):
        text = " ".join(block.split())
        is_sentence = text[:1].isupper() and text.endswith((".", ":", "?", "!"))
        letters = sum(character.isalpha() or character == " " for character in text)
        is_code = any(mark in text for mark in CODE_MARKS)
        if is_sentence and not is_code and letters >= LEAST_LETTER_SHARE * len(text):
            yield re.sub(r'"(\S+?)"|\*(\S+?)\*', r"\1\2", text)


def _docstrings(module: str) -> str:
    """All docstrings of a standard library module, read from its source; '' where there is none."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return ""
    tree = ast.parse(Path(spec.origin).read_bytes())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    return "\n\n".join(inspect.cleandoc(text) for text in found if text)


def _by_digest(texts: Iterable[str]) -> list[str]:
    """Without repeats, in an order that does not depend on where a text was found."""
    return sorted(dict.fromkeys(texts), key=_digest)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
