"""Which layers FP16 would break: found by running texts in FP32 and looking at every layer.

FP16 ends at 65504 and has 11 bits. A layer whose values come near the end, or whose output moves
too far when its input, weights and output are rounded, stays in FP32. Products are taken to sum in
FP32, as GPUs do it. Where even a layer's output would overflow, the smallest module around it whose
input and output both fit stays in FP32 as a whole, so that what passes between modules is FP16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.func import functional_call

from converters.calibration import TokenBatch
from serve_app.engines.mixed_precision import cast_floats
from serve_app.errors import ConversionError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FP16_MAX = torch.finfo(torch.float16).max
MARGIN = 4  # users' texts may be louder than those seen here
MAX_ERROR = 0.01  # of a layer's output; rounding alone gives about 0.0005
ERROR_EVERY = 8  # batches: ranges need every text, an average error does not
SCAN_ATTENTION = "overflow_scan"


@dataclass(slots=True)
class Layer:
    """The largest magnitudes seen at one module, and its FP16 error relative to its output."""

    name: str
    input: float = 0.0
    weight: float = 0.0
    output: float = 0.0
    scores: float = 0.0  # of attention, before the softmax
    error: float = 0.0

    @property
    def passes_fp16(self) -> bool:
        """Whether what goes in and comes out can be handed on in FP16."""
        return max(self.input, self.output) <= FP16_MAX / MARGIN

    def trouble(self) -> str | None:
        """Why the layer must not run in FP16, or None."""
        if self.weight > FP16_MAX:
            return f"weights reach {self.weight:.3g}"
        if not self.passes_fp16:
            return f"values reach {max(self.input, self.output):.3g}"
        if self.scores > FP16_MAX / MARGIN:
            return f"attention scores reach {self.scores:.3g}"
        if not self.error <= MAX_ERROR:
            return f"FP16 error {self.error:.2g}"
        return None


@dataclass(frozen=True, slots=True)
class Scan:
    """What was seen of each module with weights, and the modules to keep in FP32, with reasons."""

    layers: tuple[Layer, ...]
    kept: dict[str, str] = field(default_factory=dict)


def scan(model: PreTrainedModel, batches: Sequence[TokenBatch]) -> Scan:
    """Run batches through an FP32 model and decide what FP16 leaves whole.

    Args:
        model: a transformer that takes `input_ids` and `attention_mask`.
        batches: both, int64 [batch, tokens]. Padding counts: it is computed, too.

    Raises:
        ConversionError: what passes between the outermost modules overflows; nothing is left to halve.
    """
    watch = _Watch(model)
    with torch.inference_mode(), watch.hooked(), _watched_attention(model, watch):
        for number, (ids, mask) in enumerate(batches):
            watch.with_error = number % ERROR_EVERY == 0
            model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    kept: dict[str, str] = {}
    for layer in watch.layers.values():
        reason = layer.trouble() if layer.name in watch.judged else None
        if reason is not None:
            kept.setdefault(_fitting(layer.name, watch.layers), f"{layer.name}: {reason}")
    return Scan(
        layers=tuple(watch.layers[name] for name in watch.judged),
        kept={n: why for n, why in kept.items() if not any(_is_inside(n, other) for other in kept)},
    )


def _fitting(name: str, layers: dict[str, Layer]) -> str:
    """The module itself, or the smallest around it that can exchange FP16 with the rest."""
    place = name
    while place and not layers[place].passes_fp16:
        place = place.rpartition(".")[0]
        while place and place not in layers:  # a list of modules is never called itself
            place = place.rpartition(".")[0]
    if not place:
        raise ConversionError(
            f"FP16 overflows between modules ({name} reaches {layers[name].output:.3g}): "
            "build torch-fp16-mixed or a BF16 variant instead"
        )
    return place


def _is_inside(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")


class _Watch:
    """Hooks that fill in `layers`."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.with_error = False
        self.layers: dict[str, Layer] = {}
        self.judged: dict[str, None] = {}  # in order: leaves with weights, modules with attention
        self._modules = {m: name for name, m in model.named_modules() if name}
        self._is_measuring = False

    @contextmanager
    def hooked(self) -> Iterator[None]:
        hooks = [m.register_forward_hook(self._look, with_kwargs=True) for m in self._modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _look(
        self, module: torch.nn.Module, args: object, kwargs: dict[str, object], output: object
    ) -> None:
        if self._is_measuring:
            return
        name = self._modules[module]
        layer = self.layers.setdefault(name, Layer(name))
        layer.input = max(layer.input, _largest((args, kwargs)))
        layer.output = max(layer.output, _largest(output))
        weights = dict(module.named_parameters(recurse=False))
        if weights and not list(module.children()):
            self.judged[name] = None
            layer.weight = layer.weight or max(_largest(w) for w in weights.values())
            if self.with_error and isinstance(output, torch.Tensor):
                error = self._error(module, args, output)
                layer.error = max(layer.error, error)

    def _error(
        self,
        module: torch.nn.Module,
        args: object,
        output: torch.Tensor,
    ) -> float:
        rounded = {n: w.half().float() for n, w in module.named_parameters(recurse=False)}
        self._is_measuring = True
        try:
            found: torch.Tensor = functional_call(module, rounded, _rounded(args))
        finally:
            self._is_measuring = False
        apart = (found.half().float() - output).norm() / output.norm().clamp(min=1e-12)
        return float(apart.nan_to_num(nan=torch.inf))

    def scores(self, module: torch.nn.Module, largest: float) -> None:
        name = self._modules[module]
        layer = self.layers.setdefault(name, Layer(name))
        self.judged[name] = None
        layer.scores = max(layer.scores, largest)


def _rounded(value: object) -> object:
    return cast_floats(cast_floats(value, torch.float16), torch.float32)


def _largest(value: object) -> float:
    """Largest magnitude in any floating tensor of `value`; a mask's minus infinity is no value."""
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point() or not value.numel():
            return 0.0
        low, high = value.aminmax()
        if low <= torch.finfo(value.dtype).min:
            low = value[value > torch.finfo(value.dtype).min].amin()
        return float(torch.maximum(low.abs(), high.abs()).nan_to_num(nan=torch.inf))
    if isinstance(value, dict):
        return _largest(tuple(value.values()))
    if isinstance(value, (tuple, list)):
        return max((_largest(part) for part in value), default=0.0)
    return 0.0


@contextmanager
def _watched_attention(model: PreTrainedModel, watch: _Watch) -> Iterator[None]:
    """Look at attention scores too, where the model lets its attention function be replaced."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        *rest: object,
        **options: object,
    ) -> object:
        heads_per_key = query.shape[1] // key.shape[1]
        products = query @ key.repeat_interleave(heads_per_key, dim=1).transpose(-1, -2)
        scale = options.get("scaling")
        scale = scale if isinstance(scale, float) else query.shape[-1] ** -0.5
        watch.scores(module, _largest(products) * scale)
        return sdpa_attention_forward(module, query, key, *rest, **options)

    AttentionInterface.register(SCAN_ATTENTION, attend)
    AttentionMaskInterface.register(SCAN_ATTENTION, sdpa_mask)
    before = model.config._attn_implementation  # noqa: SLF001 - the library has no getter
    try:
        model.set_attn_implementation(SCAN_ATTENTION)
    except (ValueError, AttributeError):  # its attention is its own, as DeBERTa's is
        yield
        return
    try:
        yield
    finally:
        model.set_attn_implementation(before)
