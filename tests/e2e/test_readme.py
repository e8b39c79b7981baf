"""The README stays true: its commands, flags, requests and tree."""

import argparse
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import converters.__main__
import loadtests.__main__
import serve_app.__main__
from serve_app.errors import SettingsError
from serve_app.settings import parse_settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
COMMANDS = [line.split("#")[0].strip() for line in SHELL.splitlines() if line.strip()]


def _make_lines() -> Iterator[list[str]]:
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "make":
            yield words[1:]


def test_every_make_verb_exists() -> None:
    """Each `make VERB` of the README is a target of the Makefile, and each variable is one."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = list(_make_lines())
    assert lines
    for verb, *variables in lines:
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE), verb
        for variable in variables:
            assert re.search(rf"^{variable.split('=')[0]} \?=", makefile, re.MULTILINE), variable


def _parsed(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    try:
        return parser.parse_args(words)
    except SystemExit:
        pytest.fail(f"the README's flags {words} are not taken")


def test_every_flag_exists() -> None:
    """Each command line of our programs in the README is one that they take."""
    parsers = {
        "converters": converters.__main__.parser(),
        "serve_app": serve_app.__main__.parser(),
        "loadtests": loadtests.__main__.parser(),
    }
    found = re.findall(r"python -m (converters|serve_app|loadtests)\b([^`\n)]*)", README)
    assert {program for program, _ in found} == set(parsers)
    for program, rest in found:
        words = shlex.split(rest.split("#")[0].strip(' "'))
        if "--help" not in words and words not in ([], ["list"]) and "|" not in words:
            _parsed(parsers[program], words)
    for flags in re.findall(r'make serve ARGS="(.*?)"', README):
        _parsed(parsers["serve_app"], shlex.split(flags))


def test_every_file_of_the_tree_exists() -> None:
    """Each path of the README's tree is there."""
    tree = README.split("## Where things are")[1].split("```")[1]
    names = re.findall(r"(?:^|\s)([\w./]+(?:\.py|\.yaml|/))(?=\s|$)", tree, re.MULTILINE)
    assert len(names) > 15
    for name in names:
        assert (
            list(ROOT.glob(name))
            or list((ROOT / "serve_app").glob(name))
            or (list((ROOT / "tests").glob(name)))
        ), name


def test_settings_named_in_serve_yaml_exist() -> None:
    """The shipped serve.yaml has only settings that exist; an unknown one is named."""
    import yaml

    (application,) = yaml.safe_load(
        (ROOT / "serve_app" / "serve.yaml").read_text(encoding="utf-8")
    )["applications"]
    parse_settings(application["args"])
    with pytest.raises(SettingsError, match="artefacts"):
        parse_settings({"artefacts": "x"})


@pytest.mark.e2e
def test_every_request_is_answered(http: httpx.Client) -> None:
    """Each curl request of the README is right; a busy machine may miss its budget."""
    requests = re.findall(r"curl -s http://127\.0\.0\.1:8000(/\S+).*?-d '(\{.*?\})'", SHELL)
    assert len(requests) >= 2
    for path, body in requests:
        answer = http.post(path, json=json.loads(body))
        late = {httpx.codes.TOO_MANY_REQUESTS, httpx.codes.GATEWAY_TIMEOUT}
        assert answer.status_code in {httpx.codes.OK, *late}, answer.text
