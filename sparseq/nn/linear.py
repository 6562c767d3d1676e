"""SparseQuantLinear."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparseq.choice import INT4
from sparseq.nn.layer import DEVICES, SparseQuantLayer
from sparseq.reference import row_grid
from sparseq.spec import Quant

_int8_linear = torch.ops.sparseq.int8_linear.default
_int4_linear = torch.ops.sparseq.int4_linear.default

# beyond, dequantising and a float32 product are faster (measured at 4096x4096, on CPUs alone)
INT4_ROWS = 128


class SparseQuantLinear(SparseQuantLayer):
    """Linear on a stored quantised weight: `y = x W^T + b`, INT8 products with an exact int32 sum.

    Shapes as nn.Linear; see `sparseq.ops.int8_linear`. Made by `from_float` or by `convert`. An
    input without a fixed grid is quantised row by row ("per token"): each over its own range and 0,
    so that a row's result does not depend on the rest of the batch. Grids that are not symmetric
    are then unsigned: as many steps, other integers.
    """

    float_type = nn.Linear
    own_range = "each row's own range"
    by_rows = True

    @staticmethod
    def limits_of(spec: Quant, static: bool) -> tuple[int, int]:
        """The scheme's range; from 0 on where rows have grids that are not symmetric."""
        shift = 0 if static or spec.symmetric else spec.quant_min
        return spec.quant_min - shift, spec.quant_max - shift

    def _reduced(self, x: Tensor) -> Tensor:
        """An unsigned symmetric grid has no room below 0: its range is that of what lies above."""
        spec = self.input_spec
        assert spec is not None
        return x.clamp(min=0) if spec.symmetric and not spec.signed else x

    def input_grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The fixed grid, or one a row: `[..., 1]`."""
        if self.input_scale is not None:
            return super().input_grid(x)
        assert self.input_limits is not None
        return row_grid(self._reduced(x), *self.input_limits)

    def integer_kernel(self, x: Tensor) -> Tensor:
        """`sparseq.ops.int8_linear`."""
        assert self.input_limits is not None
        return _int8_linear(
            x if self.input_scale is not None else self._reduced(x),
            self.weight_values,
            self.weight_scale,
            self.input_zero_point,
            self.weight_zero_point,
            self.bias,
            self.tiles,
            x_scale=self.input_scale,
            x_min=self.input_limits[0],
            x_max=self.input_limits[1],
        )

    def _weight_only(self) -> tuple[str, str]:
        weight = self.weight_values
        if self.integer or self.weight_spec.bits > 4 or weight.device.type not in DEVICES:
            return super()._weight_only()
        return INT4, f"up to {INT4_ROWS} rows from packed int4, beyond float32"

    def weight_only_kernel(self, x: Tensor) -> Tensor:
        """`sparseq.ops.int4_linear` for few rows, else the float function."""
        few = x.numel() <= INT4_ROWS * x.shape[-1]
        if self.tiles is None or not few:
            return super().weight_only_kernel(x)
        scale, zero = self.weight_scale, self.weight_zero_point
        if scale.dim() == 1:
            scale, zero = scale.unsqueeze(1), None if zero is None else zero.unsqueeze(1)
        signed = self.weight_values.dtype == torch.int8
        x = x.float() if x.dtype == torch.float64 else x
        return _int4_linear(x, self.tiles, scale, zero, self.bias, signed)

    def float_kernel(self, x: Tensor, weight: Tensor) -> Tensor:
        """`functional.linear`."""
        return functional.linear(x, weight, self.bias)
