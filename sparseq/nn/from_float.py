"""How an integer module is made of a float one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sparseq.nn.grid import DEFAULT_INPUT, DEFAULT_WEIGHT, InputGrid
from sparseq.nn.own_forward import own_forward
from sparseq.packed import PackedWeight
from sparseq.sparse import SwapChannels
from sparseq.spec import Quant

if TYPE_CHECKING:
    from typing import Self


class FromFloat(nn.Module):
    """What a kind of integer module says about the float layers that it replaces.

    Attributes:
        float_type: the kind of layer.
    """

    float_type: type[nn.Module]

    def __init__(
        self, weight: PackedWeight, bias: Tensor | None, grid: InputGrid | None, like: nn.Module
    ) -> None:
        super().__init__()

    @staticmethod
    def arguments_of(like: nn.Module) -> dict[str, Any]:
        """What the layer's function needs beside weight and bias."""
        return {}

    @staticmethod
    def refusal(layer: nn.Module) -> str | None:
        """Why this kind of layer cannot run on integers, or None."""
        return None

    @staticmethod
    def swap_of(layer: nn.Module) -> SwapChannels | None:
        """What puts a float layer's output channels first, and back; None where they are."""
        return None

    @classmethod
    def outputs_first(cls, layer: nn.Module, weight: Tensor) -> Tensor:
        """A float layer's weight in the order that is stored: `[out, in / groups, ...]`."""
        swap = cls.swap_of(layer)
        return weight if swap is None else swap(weight)

    @classmethod
    def from_float(
        cls,
        layer: nn.Module,
        weight: Quant = DEFAULT_WEIGHT,
        input: Quant | None = DEFAULT_INPUT,
        scale: Tensor | None = None,
        zero_point: Tensor | None = None,
    ) -> Self:
        """Quantise a float layer over its weight's own range.

        Args:
            layer: the float module; left as it is.
            weight: the weight's scheme, with axis 0 or None.
            input: the input's scheme, per tensor; None computes in float on the stored weight.
            scale: the input's scale (float32, one element); None takes the input's own range: each
                batch's for a convolution, each row's for a linear layer.
            zero_point: the input's zero point (int32), with scale.

        Raises:
            TypeError: layer is of another kind.
            ValueError: a layer or scheme that cannot be served.
        """
        if not isinstance(layer, cls.float_type):
            raise TypeError(
                f"{cls.__name__}.from_float: layer must be nn.{cls.float_type.__name__}, "
                f"got {type(layer).__name__}"
            )
        refusal = own_forward(layer, cls.float_type) or cls.refusal(layer)
        if refusal:
            raise ValueError(f"{cls.__name__}.from_float: {refusal}")
        if weight.axis not in (0, None):
            raise ValueError(
                f"{cls.__name__}.from_float: weight must have axis 0 or None, got {weight.axis}"
            )
        packed = PackedWeight.from_float(cls.outputs_first(layer, layer.weight), weight)  # type: ignore[arg-type]
        grid = None if input is None else InputGrid(input, scale, zero_point)
        return cls(packed, getattr(layer, "bias", None), grid, layer)
