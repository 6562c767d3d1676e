"""SparseQuantConv1d."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparseq.nn.layer import SparseQuantLayer

_int8_conv2d = torch.ops.sparseq.int8_conv2d.default


class SparseQuantConv1d(SparseQuantLayer):
    """Conv1d on a stored quantised weight: `int8_conv2d` on an image of one row.

    Shapes as nn.Conv1d, zero padding; see `sparseq.ops.int8_conv2d`. Made by `from_float` or by
    `convert`. An input without a fixed grid is quantised over each batch's own range. The result is
    laid out as `[N, L, C]`, which the next convolution reads fastest.
    """

    float_type = nn.Conv1d

    @staticmethod
    def arguments_of(like: nn.Module) -> dict[str, Any]:
        """Stride, padding, dilation, groups."""
        assert isinstance(like, nn.Conv1d)
        return {
            "stride": list(like.stride),
            "padding": like._reversed_padding_repeated_twice[:1],  # a number also for "same"
            "dilation": list(like.dilation),
            "groups": like.groups,
        }

    @staticmethod
    def refusal(layer: nn.Module) -> str | None:
        """Padding other than zeros, or other on one side than on the other."""
        assert isinstance(layer, nn.Conv1d)
        if layer.padding_mode != "zeros":
            return f"padding_mode must be 'zeros', got {layer.padding_mode!r}"
        left, right = layer._reversed_padding_repeated_twice
        if left != right:
            return f"padding must be equal on both sides, got {layer.padding!r}"
        return None

    @property
    def kernel_weight(self) -> Tensor:
        """`[O, C / groups, 1, K]`."""
        return self.weight_values.unsqueeze(2)

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Conv1d, of `[N, C, L]` or `[C, L]`."""
        if x.dim() == 2:
            return super().forward(x.unsqueeze(0)).squeeze(0)
        return super().forward(x)

    def integer_kernel(self, x: Tensor) -> Tensor:
        """`sparseq.ops.int8_conv2d` with a height of one."""
        assert self.input_limits is not None
        scale, zero_point = self.input_grid(x)
        arguments = self.arguments
        return _int8_conv2d(
            x.unsqueeze(2),
            self.kernel_weight,
            self.weight_scale,
            zero_point,
            self.weight_zero_point,
            self.bias,
            [1, *arguments["stride"]],
            [0, *arguments["padding"]],
            [1, *arguments["dilation"]],
            arguments["groups"],
            self.tiles,
            x_scale=scale,
            x_min=self.input_limits[0],
            x_max=self.input_limits[1],
        ).squeeze(2)

    def float_kernel(self, x: Tensor, weight: Tensor) -> Tensor:
        """`functional.conv1d`."""
        return functional.conv1d(x, weight, self.bias, **self.arguments)
