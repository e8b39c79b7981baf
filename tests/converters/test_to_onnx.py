"""What the exporters cannot put into one right ONNX file is refused, by operator, difference or size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: nothing can be converted")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
transformers = pytest.importorskip("transformers")

from converters import to_onnx  # noqa: E402 - they need the above
from serve_app.errors import ConversionError  # noqa: E402

pytestmark = pytest.mark.model


class Stub(torch.nn.Module):
    """The least that the exporters take for a transformer."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(64, 4)
        self.change = change

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        del attention_mask
        states = self.change(self.embedding(input_ids))
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=states)


def test_what_cannot_be_exported_names_the_operator(tmp_path: Path) -> None:
    """When both exporters fail, one line says why each did, the operator, and what to try."""
    stub = Stub(lambda states: torch.special.zeta(states.abs() + 2, states))
    with pytest.raises(ConversionError) as caught:
        to_onnx.export(stub, tmp_path / "model.onnx", pooling="mean")
    assert "TorchScript: " in caught.value.message
    assert "aten::special_zeta" in caught.value.message
    assert "dynamo: " in caught.value.message
    assert "--variants torch-fp16" in caught.value.message
    assert "\n" not in caught.value.message
    assert not list(tmp_path.iterdir())


def test_a_length_frozen_by_tracing_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchScript writes the traced length into the graph without an error: the vectors tell."""
    monkeypatch.setattr(to_onnx, "EXPORTERS", {"TorchScript": False})
    stub = Stub(lambda states: states + torch.arange(4.0) * float(int(states.shape[1])))
    with pytest.raises(
        ConversionError, match=r"its vectors differ from PyTorch's by .* at 4 tokens"
    ):
        to_onnx.export(stub, tmp_path / "model.onnx", pooling="mean")


def test_what_one_onnx_file_cannot_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights over the limit are one line with both sizes and what to build, before any export."""
    stub = Stub(lambda states: states)
    weight_bytes = stub.embedding.weight.nbytes
    monkeypatch.setattr(to_onnx, "MAX_WEIGHT_BYTES", weight_bytes)
    to_onnx.export(stub, tmp_path / "fits.onnx", pooling="mean")
    monkeypatch.setattr(to_onnx, "MAX_WEIGHT_BYTES", weight_bytes - 1)
    with pytest.raises(ConversionError, match=r"Stub has .* GB of weights.*torch-bf16") as caught:
        to_onnx.export(stub, tmp_path / "model.onnx", pooling="mean")
    assert "\n" not in caught.value.message
    assert [file.name for file in tmp_path.iterdir()] == ["fits.onnx"]
