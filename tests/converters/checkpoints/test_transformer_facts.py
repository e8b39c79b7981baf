"""The transformer's own facts: the limit of tokens, its tokenizer, and whose code is run to read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import normalizers

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("safetensors.numpy")

from converters.checkpoint import open_checkpoint
from serve_app.errors import ConversionError
from tests.converters.checkpoints.folders import CONFIG, VOCABULARY, WIDTH, refusal, write


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ({}, {"sentence_bert_config.json": {"max_seq_length": 20}}, 20),
        ({}, {"sentence_bert_config.json": {"max_seq_length": 512}}, 32),
        ({}, {"tokenizer_config.json": {"model_max_length": 16}}, 16),
        ({}, {"tokenizer_config.json": {"model_max_length": int(1e30)}}, 32),
        ({}, {"sentence_bert_config.json": {"max_seq_length": None}}, 32),
        ({}, {}, 32),
        ({"model_type": "roberta", "pad_token_id": 1}, {}, 30),
        ({"model_type": "mpnet"}, {}, 30),
        ({"model_type": "xlm-roberta"}, {"tokenizer_config.json": {"model_max_length": 32}}, 30),
    ],
)
def test_the_limit_of_tokens(folder: Path, config: Any, files: Any, expected: int) -> None:
    """Stated by the first file that says so, and never more than the model has positions for."""
    write(folder, "config.json", CONFIG | config)
    for name, content in files.items():
        write(folder, name, content)
    assert open_checkpoint(str(folder)).facts.max_tokens == expected


def test_no_limit_is_refused(folder: Path) -> None:
    """T5 has no positions; where nothing states a limit the error says where to write one."""
    write(folder, "config.json", {"model_type": "t5", "d_model": WIDTH, "vocab_size": VOCABULARY})
    assert "write it to sentence_bert_config.json" in refusal(folder)


def test_padding_is_transformers_own_default(folder: Path) -> None:
    """RoBERTa counts positions by it, and a config.json may leave it out."""
    write(folder, "config.json", CONFIG | {"model_type": "roberta"})
    assert open_checkpoint(str(folder)).tokenizer.pad_id == 1


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    """More tokens than the model has embeddings for."""
    write(folder, "config.json", CONFIG | {"vocab_size": VOCABULARY - 1})
    assert "10 tokens, but the model has 9: the tokenizer does not belong" in refusal(folder)


def test_a_missing_or_broken_tokenizer_is_refused(folder: Path) -> None:
    """The error says how to write a tokenizer.json."""
    (folder / "tokenizer.json").write_text("{")
    assert "cannot be read as a tokenizer" in refusal(folder)
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json is missing. Write it where" in refusal(folder)


def test_lower_casing_must_be_the_tokenizers(folder: Path) -> None:
    """sentence-transformers' do_lower_case is only kept where the tokenizer does it."""
    write(folder, "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True})
    assert "do_lower_case is set" in refusal(folder)
    tokenizer = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(folder / "tokenizer.json"))
    assert open_checkpoint(str(folder)).facts.max_tokens == 20


def test_code_of_the_checkpoint_is_not_run_unless_asked(folder: Path) -> None:
    """A model type that transformers does not know, with code beside it, needs the flag."""
    code = "open(__file__ + '.ran', 'w')\n"
    (folder / "configuration_odd.py").write_text(code)
    auto_map = {"auto_map": {"AutoConfig": "configuration_odd.OddConfig"}}
    write(folder, "config.json", CONFIG | auto_map | {"model_type": "odd"})
    assert "add --trust-remote-code" in refusal(folder)
    assert not list(folder.glob("*.ran"))
    write(folder, "config.json", CONFIG | {"model_type": "odd"})
    assert "does not know the model type 'odd'; a newer one may" in refusal(folder)


def test_trusted_code_runs_in_the_build_and_never_in_the_server(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the flag the checkpoint's own classes are used; a torch variant would need them served."""
    pytest.importorskip("torch")
    from transformers import dynamic_module_utils

    from converters.to_fp16 import write_half

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    code = "from transformers import BertConfig\nclass OddConfig(BertConfig):\n    model_type = 'odd'\n"
    (folder / "configuration_odd.py").write_text(code)
    auto_map = {"auto_map": {"AutoConfig": "configuration_odd.OddConfig"}}
    write(folder, "config.json", CONFIG | auto_map | {"model_type": "odd"})
    opened = open_checkpoint(str(folder), trust_remote_code=True)
    assert opened.facts.dims == WIDTH
    with pytest.raises(ConversionError, match="own code in the server; build the variants whose"):
        write_half(opened, tmp_path, batches=[])


def test_a_known_model_type_never_runs_code(folder: Path) -> None:
    """Native code is used where transformers has it, even when the checkpoint brings its own."""
    (folder / "configuration_bert.py").write_text("raise SystemExit\n")
    auto_map = {"auto_map": {"AutoConfig": "configuration_bert.BertConfig"}}
    write(folder, "config.json", CONFIG | auto_map)
    assert open_checkpoint(str(folder)).facts.dims == WIDTH
