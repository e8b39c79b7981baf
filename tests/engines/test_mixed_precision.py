"""16 bits on CPUs that multiply in 32."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from serve_app.engines.mixed_precision import (  # noqa: E402
    autocasting,
    cpu_multiplies_in,
    halve,
    widen_products,
)

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


class Layers(nn.Module):
    """As much of a transformer as has linear layers; ids are positions in a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(32, 64)
        self.up = nn.Linear(64, 256)
        self.down = nn.Linear(256, 64, bias=False)
        self.norm = nn.LayerNorm(64)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        del attention_mask
        found: torch.Tensor = self.norm(self.down(functional.gelu(self.up(self.table(input_ids)))))
        return found


IDS = torch.arange(32).reshape(4, 8)


@PRECISIONS
def test_a_product_is_the_fp32_sum_rounded_once(dtype: torch.dtype) -> None:
    """Inputs and weights have 16 bits, sums 32, and what comes out 16 again: not a bit differs."""
    layer = nn.Linear(64, 48).to(dtype)
    values = torch.randn(5, 64).to(dtype)
    expected = functional.linear(values.float(), layer.weight.float(), layer.bias.float()).to(dtype)
    model = nn.Sequential(layer)
    widen_products(model, dtype)
    with torch.inference_mode():
        found = model(values)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


@PRECISIONS
@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_keeps_its_numbers(dtype: torch.dtype, *, autocast: bool) -> None:
    """Beside PyTorch's own 16 bits, emulated where need be, sums differ by the order of their terms only."""

    def made() -> nn.Module:
        return autocasting(Layers(), dtype) if autocast else Layers().to(dtype)

    widened, plain = made(), made()
    widen_products(widened, dtype)
    with torch.inference_mode():
        found, expected = widened(IDS, IDS), plain(IDS, IDS)
    assert found.dtype == expected.dtype
    assert torch.allclose(found.float(), expected.float(), atol=8 * torch.finfo(dtype).eps)
    assert not torch.allclose(found.float(), Layers()(IDS, IDS), atol=torch.finfo(dtype).eps / 8)


def test_layers_kept_in_fp32_stay() -> None:
    """What would overflow in FP16 is not rounded to it on the way."""
    model = Layers()
    before = model.down.weight.detach().clone()
    halve(model, kept_fp32=["down"])
    widen_products(model, torch.float16)
    assert torch.equal(model.down.weight, before)
    assert not torch.equal(model.up.weight, Layers().up.weight)
    with torch.inference_mode():
        assert model(IDS, IDS).dtype == torch.float16


def test_a_layer_whose_weights_others_read_stays() -> None:
    """PyTorch's attention takes the weights of its last linear layer without calling it."""
    attention = nn.MultiheadAttention(16, 2, batch_first=True).half().eval()
    values = torch.randn(1, 3, 16).half()
    expected, _ = attention(values, values, values)
    widen_products(attention, torch.float16)
    found, _ = attention(values, values, values)
    assert torch.equal(found, expected)


def test_fp32_needs_no_widening() -> None:
    """Every CPU multiplies in FP32."""
    assert cpu_multiplies_in(torch.float32)


@PRECISIONS
@pytest.mark.parametrize("told", [(), (False,), (True,)], ids=["nothing", "no", "yes"])
def test_pytorch_is_asked_what_the_cpu_can(
    dtype: torch.dtype, told: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it does not say, as without oneDNN, the safe answer is no."""
    name = "_is_mkldnn_fp16_supported" if dtype == torch.float16 else "_is_mkldnn_bf16_supported"
    mkldnn = SimpleNamespace()
    if told:
        setattr(mkldnn, name, lambda: told[0])
    ops = SimpleNamespace(mkldnn=mkldnn)
    monkeypatch.setattr("serve_app.engines.mixed_precision.torch.ops", ops)
    assert cpu_multiplies_in(dtype) is any(told)
