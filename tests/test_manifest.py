"""An artifact keeps its manifest's promises, or is refused by name."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import ArtifactError
from serve_app.manifest import (
    MANIFEST_NAME,
    TOKENIZER_NAME,
    File,
    describe_files,
    read_manifest,
    sha256_of,
    verify,
    write_manifest,
)


@pytest.fixture
def artifact(artifacts: Path) -> Path:
    return artifacts / "fake-int8"


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_what_is_written_is_read_back(artifact: Path) -> None:
    """A manifest comes back equal, nested parts, None and non-ASCII text included."""
    manifest = replace(read_manifest(artifact), off_ladder="zu ungenau – δ", tools={"ort": "1.2"})
    write_manifest(artifact, manifest)
    assert read_manifest(artifact) == manifest


@pytest.mark.parametrize(
    ("path", "key"),
    [((), "surprise"), (("profile",), "surprise"), (("files", "model.onnx"), "md5")],
)
def test_an_unknown_key_is_refused_by_name(artifact: Path, path: tuple[str, ...], key: str) -> None:
    """A key from another version or a typing error is named with its place, never ignored."""

    def change(content: dict[str, Any]) -> None:
        for part in path:
            content = content[part]
        content[key] = 1

    _edit(artifact, change)
    with pytest.raises(ArtifactError, match=re.escape(".".join([*path, key]))):
        read_manifest(artifact)


@pytest.mark.parametrize("key", ["fidelity", "off_ladder", "files", "format_version"])
def test_a_missing_key_is_refused_by_name(artifact: Path, key: str) -> None:
    """Nothing has a default: a manifest says everything."""
    _edit(artifact, lambda content: content.pop(key))
    with pytest.raises(ArtifactError, match=f"{key}.*rebuild the variant"):
        read_manifest(artifact)


@pytest.mark.parametrize(
    ("key", "value"), [("runtime", "abacus"), ("batch_invariant", "maybe"), ("files", [])]
)
def test_a_wrong_value_is_refused_by_its_key(artifact: Path, key: str, value: object) -> None:
    """A runtime that nobody knows, or a value of another type, is named with its key."""
    _edit(artifact, lambda content: content.update({key: value}))
    with pytest.raises(ArtifactError, match=f"{MANIFEST_NAME}: {key}: "):
        read_manifest(artifact)


def test_broken_json_is_refused_by_its_path(artifact: Path) -> None:
    """Half a manifest is no manifest."""
    path = artifact / MANIFEST_NAME
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=r"manifest\.json: not JSON"):
        read_manifest(artifact)


def test_a_folder_without_a_manifest_is_refused(artifact: Path) -> None:
    """An interrupted build has no manifest, and the refusal says which file is missing."""
    (artifact / MANIFEST_NAME).unlink()
    with pytest.raises(ArtifactError, match=r"fake-int8/manifest\.json: cannot be read \(No such"):
        read_manifest(artifact)


def test_another_format_version_is_refused(artifact: Path) -> None:
    """The refusal names both versions and says what to do."""
    _edit(artifact, lambda content: content.update(format_version=3))
    with pytest.raises(ArtifactError, match="format_version 3, this version reads 2; rebuild"):
        read_manifest(artifact)


def test_another_format_version_is_named_before_its_new_keys(artifact: Path) -> None:
    """A newer format has newer keys: the version is what a person needs to hear of."""
    _edit(artifact, lambda content: content.update(format_version=3, new_in_3=True))
    with pytest.raises(ArtifactError, match="format_version 3"):
        read_manifest(artifact)


def test_an_untouched_artifact_is_verified(artifact: Path) -> None:
    """What the builder wrote passes, and its manifest is handed back."""
    assert verify(artifact) == read_manifest(artifact)


@pytest.mark.parametrize("name", ["model.onnx", TOKENIZER_NAME])
def test_a_tampered_byte_is_refused_by_name(artifact: Path, name: str) -> None:
    """One changed byte of the same length is found, and both file and variant are named."""
    content = bytearray((artifact / name).read_bytes())
    content[-1] ^= 1
    (artifact / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} of fake-int8 .*checksum differs"):
        verify(artifact)


def test_a_missing_file_is_refused_by_name(artifact: Path) -> None:
    """A file that the manifest lists and the folder lacks is named."""
    (artifact / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"fake-int8 lacks its file model\.onnx"):
        verify(artifact)


def test_files_are_described_with_their_folders(tmp_path: Path) -> None:
    """Nested files count, by their path inside the artifact; the manifest does not list itself."""
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.bin").write_bytes(b"abc")
    (tmp_path / MANIFEST_NAME).write_bytes(b"{}")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert describe_files(tmp_path) == {"onnx/model.bin": File(sha256=sha256, size_bytes=3)}


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    """The well-known digest of nothing."""
    (tmp_path / "empty").touch()
    assert sha256_of(tmp_path / "empty").startswith("e3b0c44298fc1c14")


def test_the_size_leaves_out_the_shared_tokenizer(artifact: Path) -> None:
    """All variants share the tokenizer; a variant's size is what it adds."""
    assert read_manifest(artifact).size_bytes == len("fake-int8")


def test_the_cost_is_that_of_a_token_in_a_full_batch(artifact: Path) -> None:
    """A batch's base is shared by the tokens of a full batch."""
    profile = replace(read_manifest(artifact).profile, base_ms=32, per_token_ms=2, batch_tokens=64)
    assert profile.cost_ms == pytest.approx(2.5)


def test_writing_leaves_the_manifest_alone_in_its_folder(artifact: Path) -> None:
    """No temporary file stays behind."""
    before = sorted(artifact.iterdir())
    write_manifest(artifact, read_manifest(artifact))
    assert sorted(artifact.iterdir()) == before


def test_a_failed_write_leaves_the_old_manifest_whole(artifact: Path) -> None:
    """The new manifest is there whole or not at all."""
    manifest = read_manifest(artifact)
    with pytest.raises(TypeError):
        write_manifest(artifact, replace(manifest, built_at=object()))
    assert read_manifest(artifact) == manifest


def test_a_failed_write_leaves_no_temporary_file(artifact: Path) -> None:
    """Half a manifest is not left lying beside the files that the next one would list."""
    before = sorted(artifact.iterdir())
    with pytest.raises(TypeError):
        write_manifest(artifact, replace(read_manifest(artifact), built_at=object()))
    assert sorted(artifact.iterdir()) == before
