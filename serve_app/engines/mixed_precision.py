"""Two ways to keep FP16 from overflowing: some modules in FP32, or FP32 weights under autocast.

And how a CPU that cannot multiply in 16 bits runs either: PyTorch would emulate each product there, which took ten
times as long as FP32 on an AMD EPYC with AVX2 alone.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch.nn import functional

from serve_app.errors import ArtifactError


def halve(model: torch.nn.Module, *, kept_fp32: Collection[str]) -> None:
    """Turn an FP32 model's parameters into FP16, but for the named modules and all inside them.

    Those are cast into FP32 and out to FP16, so their neighbours never notice. Buffers stay: a
    rotary table in FP16 would misplace tokens.

    Raises:
        ArtifactError: the model has no module of such a name.
    """
    modules = dict(model.named_modules())
    for name in kept_fp32:
        if name not in modules:
            raise ArtifactError(f"kept_fp32 names {name!r}, and the model has no such module")
    kept = {id(weight) for name in kept_fp32 for weight in modules[name].parameters()}
    for weight in model.parameters():
        if id(weight) not in kept:
            weight.data = weight.data.half()
    for name in kept_fp32:
        modules[name].register_forward_pre_hook(_cast_in, with_kwargs=True)
        modules[name].register_forward_hook(_cast_out)


def autocasting(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """The same model with its matrix products in `dtype`; what overflows it by nature stays FP32."""
    return _Autocasting(model, dtype)


def cpu_multiplies_in(dtype: torch.dtype) -> bool:
    """Whether PyTorch has matrix products of this precision for this CPU."""
    if dtype == torch.float32:
        return True
    ask = "_is_mkldnn_fp16_supported" if dtype == torch.float16 else "_is_mkldnn_bf16_supported"
    ops = torch.ops.mkldnn
    return hasattr(ops, ask) and bool(getattr(ops, ask)())


def widen_products(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Have linear layers multiply in FP32 where they would in `dtype`, for an FP32 copy of their weights.

    The numbers stay those of `dtype`: weights and inputs are rounded to it, and so is each sum, once, as in a
    GPU's tensor cores. Layers that were kept in FP32 stay as they are, and so do PyTorch's own subclasses, whose
    weights others read past them.
    """
    autocasts = isinstance(model, _Autocasting)
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if type(layer) is torch.nn.Linear and (autocasts or layer.weight.dtype == dtype):
                setattr(parent, name, _Widened(layer, dtype))


class _Widened(torch.nn.Linear):
    """A linear layer of values and weights in a 16-bit precision, whose weights are kept in FP32."""

    def __init__(self, layer: torch.nn.Linear, dtype: torch.dtype) -> None:
        has_bias = layer.bias is not None
        super().__init__(layer.in_features, layer.out_features, bias=has_bias, device="meta")
        self.load_state_dict(layer.to(dtype).float().state_dict(), assign=True)
        self._dtype = dtype

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        with torch.autocast(values.device.type, enabled=False):
            sums = functional.linear(values.to(self._dtype).float(), self.weight, self.bias)
            return sums.to(self._dtype)


class _Autocasting(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._model = model
        self._dtype = dtype

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        with torch.autocast(input_ids.device.type, dtype=self._dtype):
            return self._model(input_ids=input_ids, attention_mask=attention_mask)


def _cast_in(
    _: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[object, object]:
    return cast_floats(args, torch.float32), cast_floats(kwargs, torch.float32)


def _cast_out(_: torch.nn.Module, __: object, output: object) -> object:
    return cast_floats(output, torch.float16)


def cast_floats(value: object, dtype: torch.dtype) -> object:
    """`value` with every floating tensor in it, however deep in tuples, lists and dicts, cast."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(cast_floats(part, dtype) for part in value)
    if isinstance(value, dict):
        return {key: cast_floats(part, dtype) for key, part in value.items()}
    return value
