"""What TensorRT is told, which needs no GPU; that it runs needs one."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.manifest import Tokenizer, Variant, describe_files

onnx_engine = pytest.importorskip(
    "serve_app.engines.onnx_engine", reason="onnxruntime is not installed"
)


@pytest.fixture
def variant(make_facts) -> Variant:
    return Variant(
        variant="onnx-tensorrt",
        runtime="tensorrt",
        precision="fp16",
        checkpoint=make_facts(max_tokens=32),
        tokenizer=Tokenizer(digest="0" * 64, pad_id=0, vocab_size=9),
    )


def test_shapes_reach_from_one_token_to_the_limit(tmp_path: Path, variant: Variant) -> None:
    """One profile covers every batch a replica makes: both inputs, up to the checkpoint's tokens."""
    options = onnx_engine.tensorrt_options(tmp_path, variant)
    assert options["trt_profile_min_shapes"] == "input_ids:1x1,attention_mask:1x1"
    assert options["trt_profile_opt_shapes"] == "input_ids:8x32,attention_mask:8x32"
    assert options["trt_profile_max_shapes"] == "input_ids:512x32,attention_mask:512x32"


def test_keeps_what_it_compiled_where_it_may_write(
    tmp_path: Path, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is a hidden folder of the artifact; a read-only artifact goes without one."""
    options = onnx_engine.tensorrt_options(tmp_path, variant)
    assert options["trt_engine_cache_enable"] == "1"
    cache = Path(options["trt_engine_cache_path"])
    assert cache.parent == tmp_path
    assert cache.name.startswith(".")
    monkeypatch.setattr(onnx_engine.os, "access", lambda *_: False)
    assert onnx_engine.tensorrt_options(tmp_path, variant)["trt_engine_cache_enable"] == "0"


def test_no_manifest_lists_what_it_compiled(tmp_path: Path, variant: Variant) -> None:
    """Another GPU compiles its own: the cache is none of the promised files."""
    cache = Path(onnx_engine.tensorrt_options(tmp_path, variant)["trt_engine_cache_path"])
    cache.mkdir()
    (cache / "a.engine").write_bytes(b"compiled")
    (tmp_path / "model.onnx").write_bytes(b"graph")
    assert list(describe_files(tmp_path)) == ["model.onnx"]
