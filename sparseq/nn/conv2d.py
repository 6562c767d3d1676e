"""SparseQuantConv2d."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparseq.nn.layer import SparseQuantLayer

_int8_conv2d = torch.ops.sparseq.int8_conv2d.default


class SparseQuantConv2d(SparseQuantLayer):
    """Conv2d on a stored quantised weight, INT8 products with an exact int32 sum.

    Shapes as nn.Conv2d, zero padding; see `sparseq.ops.int8_conv2d`. Made by `from_float` or by
    `convert`. An input without a fixed grid is quantised over each batch's own range.
    """

    float_type = nn.Conv2d

    @staticmethod
    def _float_layout(weight: Tensor) -> Tensor:
        return weight.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def arguments_of(like: nn.Module) -> dict[str, Any]:
        """Stride, padding, dilation, groups."""
        assert isinstance(like, nn.Conv2d)
        after_before = (
            like._reversed_padding_repeated_twice
        )  # [w, w, h, h], numbers also for "same"
        return {
            "stride": list(like.stride),
            "padding": [after_before[2], after_before[0]],
            "dilation": list(like.dilation),
            "groups": like.groups,
        }

    @staticmethod
    def refusal(layer: nn.Module) -> str | None:
        """Padding other than zeros, or other on one side than on the other."""
        assert isinstance(layer, nn.Conv2d)
        if layer.padding_mode != "zeros":
            return f"padding_mode must be 'zeros', got {layer.padding_mode!r}"
        left, right, top, bottom = layer._reversed_padding_repeated_twice
        if left != right or top != bottom:
            return f"padding must be equal on both sides, got {layer.padding!r}"
        return None

    def integer_kernel(self, x: Tensor) -> Tensor:
        """`sparseq.ops.int8_conv2d`."""
        assert self.input_limits is not None
        scale, zero_point = self.input_grid(x)
        return _int8_conv2d(
            x,
            self.weight_values,
            self.weight_scale,
            zero_point,
            self.weight_zero_point,
            self.bias,
            **self.arguments,
            tiles=self.tiles,
            x_scale=scale,
            x_min=self.input_limits[0],
            x_max=self.input_limits[1],
        )

    def float_kernel(self, x: Tensor, weight: Tensor) -> Tensor:
        """`functional.conv2d`."""
        return functional.conv2d(x, weight, self.bias, **self.arguments)
