"""A layer and the batch norm behind it, in a float network and in a quantised one, and between."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseq.flow.convert import convert
from sparseq.flow.precision import own_dtype
from sparseq.flow.prepare import transform_of
from sparseq.nn import SparseQuantLayer, outputs_first
from sparseq.quant import FakeQuantize
from sparseq.reference import expand_channels
from sparseq.sparse import Mask
from sparseq.spec import Layer

PARTS = ("weight", "input", "mask", "fold")
ROUNDING = 0.501  # of a step: what rounding alone makes zero


class _Rounded(nn.Module):
    """A layer behind a rounding of its input."""

    def __init__(self, layer: nn.Module, rounding: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.rounding = layer, rounding

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.layer(self.rounding(x), *args, **kwargs)


@dataclass(frozen=True)
class Pair:
    """A layer and the batch norm that is its only reader, or None."""

    layer: nn.Module
    norm: nn.Module | None

    def after(self, result: Tensor) -> Tensor:
        """The layer's result with the batch norm on it."""
        return result if self.norm is None else self.norm(result)

    def __call__(self, args: Any, kwargs: Any) -> Tensor:
        """Both."""
        return self.after(self.layer(*args, **kwargs))


@dataclass(frozen=True)
class Unit:
    """A layer's two forms.

    Args:
        name: of the layer.
        norm: name of its batch norm, or None.
        plain: from the float network.
        quantised: from the prepared or converted one.
    """

    name: str
    norm: str | None
    plain: Pair
    quantised: Pair

    def modules(self, pair: Pair) -> dict[str, nn.Module]:
        """What goes into which slot, for one of the forms."""
        found = {self.name: pair.layer}
        if self.norm is not None and pair.norm is not None:
            found[self.norm] = pair.norm
        return found

    @property
    def scheme(self) -> str:
        """Such as W8A8, W4, A8 or float16; empty where only a mask is left."""
        layer = self.quantised.layer
        dtype = own_dtype(layer)
        if dtype is not None:
            return str(dtype).removeprefix("torch.")
        weight, input = _specs(layer)
        parts = (weight and f"W{weight.bits}", input and f"A{input.bits}")
        return "".join(part for part in parts if part)

    @property
    def bits(self) -> int:
        """Of the weight; 32 if it is float."""
        dtype = own_dtype(self.quantised.layer)
        if dtype is not None:
            return dtype.itemsize * 8
        weight, _ = _specs(self.quantised.layer)
        return 32 if weight is None else weight.bits

    def alone(self, part: str) -> Pair | None:
        """The float form with one part of the quantisation only; None where it has no such part.

        Args:
            part: "weight" (its rounding), "input" (its rounding), "mask" (the zeros), or "fold"
                (the batch norm in the weight, as `convert` does it).
        """
        if part == "fold":
            return self._folded()
        layer = self.quantised.layer
        dtype = own_dtype(layer)
        if isinstance(layer, SparseQuantLayer):
            return self._of_integers(part, layer)
        if dtype is not None and part != "mask":
            return self._of_dtype(part, dtype)
        return self._of_prepared(part)

    def _folded(self) -> Pair | None:
        if self.plain.norm is None:
            return None
        both = convert(nn.Sequential(copy.deepcopy(self.plain.layer), self.plain.norm))
        assert isinstance(both, nn.Sequential)
        return Pair(both[0], both[1])

    def _of_dtype(self, part: str, dtype: torch.dtype) -> Pair:
        layer = copy.deepcopy(self.plain.layer)
        if part == "weight":
            for parameter in layer.parameters():
                parameter.data = parameter.detach().to(dtype).to(parameter.dtype)
            return Pair(layer, self.plain.norm)
        return Pair(_Rounded(layer, lambda x: x.to(dtype).to(x.dtype)), self.plain.norm)

    def _of_prepared(self, part: str) -> Pair | None:
        layer = copy.deepcopy(self.quantised.layer)
        switches = {
            "weight": transform_of(layer, FakeQuantize),
            "input": getattr(layer, "input_quantizer", None),
            "mask": transform_of(layer, Mask),
        }
        if switches[part] is None:
            return None
        if part == "mask" and own_dtype(layer) is not None:
            plain = copy.deepcopy(self.plain.layer)
            plain.weight.data = switches[part](plain.weight.detach())  # type: ignore[operator]
            return Pair(plain, self.plain.norm)
        for name, switch in switches.items():
            if switch is not None:
                switch.enabled = name == part
        return Pair(layer, self.quantised.norm)

    def _of_integers(self, part: str, layer: SparseQuantLayer) -> Pair | None:
        if part == "input":
            if layer.input_spec is None:
                return None

            def rounding(x: Tensor) -> Tensor:
                q, scale, zero_point = layer.quantize_input(x)
                return ((q.float() - zero_point) * scale).to(x.dtype)

            return Pair(_Rounded(self.plain.layer, rounding), self.plain.norm)
        folded = self._folded() if isinstance(self.quantised.norm, nn.Identity) else None
        source = self.plain if folded is None else folded
        weight = outputs_first(self.plain.layer, source.layer.weight.detach().float())  # type: ignore[operator]
        packed = layer.packed()
        per_channel = packed.scale.dim() == 1
        axis = 0 if per_channel else None
        size = None if per_channel else packed.values.numel() // packed.scale.numel()
        scale = expand_channels(packed.scale, packed.values, axis, size)
        zero = packed.zero_point
        shift = scale * 0 if zero is None else expand_channels(zero, packed.values, axis, size)
        spec = packed.spec
        rounded = (weight / scale).round().add(shift).clamp(spec.quant_min, spec.quant_max)
        # a stored zero that rounding does not explain was masked
        masked = (packed.values == shift) & (weight.abs() > ROUNDING * scale)
        if part == "mask":
            if not bool(masked.any()):
                return None
            plain = copy.deepcopy(self.plain.layer)
            kept = outputs_first(plain, plain.weight.detach()).masked_fill(masked, 0)  # type: ignore[operator]
            plain.weight = nn.Parameter(outputs_first(plain, kept))
            return Pair(plain, self.plain.norm)
        result = copy.deepcopy(source.layer)
        alone = torch.where(masked, (rounded - shift) * scale, packed.dequantize())
        result.weight = nn.Parameter(outputs_first(result, alone).contiguous())
        return Pair(result, source.norm)


def _specs(layer: nn.Module) -> tuple[Any, Any]:
    """The schemes of weight and input, prepared or converted."""
    if isinstance(layer, SparseQuantLayer):
        return layer.weight_spec, layer.input_spec
    weight, held = transform_of(layer, FakeQuantize), getattr(layer, "input_quantizer", None)
    plan: Layer = getattr(layer, "sparseq_layer", Layer())
    return (plan.weight if weight is None else weight.spec), None if held is None else held.spec
