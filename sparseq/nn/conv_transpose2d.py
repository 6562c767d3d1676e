"""SparseQuantConvTranspose2d: a transposed convolution as one ordinary convolution."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparseq.choice import Work
from sparseq.nn.layer import SparseQuantLayer
from sparseq.reference import expand_channels
from sparseq.sparse import SwapChannels, swap_channels

_int8_conv2d = torch.ops.sparseq.int8_conv2d.default


class SparseQuantConvTranspose2d(SparseQuantLayer):
    """ConvTranspose2d on a stored quantised weight, INT8 products with an exact int32 sum.

    Shapes as nn.ConvTranspose2d; made by `from_float` or by `convert`. The weight is stored as a
    convolution's, `[out, in / groups, kH, kW]`, so that axis 0 is the output channel and N:M runs
    along input channels.

    Along one dimension, with stride s, tap `k = r + s j` reaches the outputs of phase r alone:

        full[s t + r] = sum_j weight[r + s j] * x[t - j],    y[p] = full[p + padding]

    so each of the s * s phases is a convolution of stride 1 with every s-th tap, in reverse. They
    read the same windows of x: one `int8_conv2d` computes them as channels of one pixel, which are
    then laid side by side. A phase of fewer taps than the others gets taps that add nothing.

    Attributes:
        phases: the weight of that convolution, `[s * s * out, in / groups, jH, jW]`, in a group
            phase by phase; made of the stored weight, never saved. None where there is none.

    Reference:
        Shi et al. 2016, Is the deconvolution layer the same as a convolutional layer?
    """

    float_type = nn.ConvTranspose2d
    phases: Tensor | None

    @staticmethod
    def arguments_of(like: nn.Module) -> dict[str, Any]:
        """Stride, padding, output_padding, groups, dilation."""
        assert isinstance(like, nn.ConvTranspose2d)
        return {
            "stride": list(like.stride),
            "padding": [int(size) for size in like.padding],
            "output_padding": list(like.output_padding),
            "groups": like.groups,
            "dilation": list(like.dilation),
        }

    @staticmethod
    def swap_of(layer: nn.Module) -> SwapChannels | None:
        """From `[in, out / groups, kH, kW]` to `[out, in / groups, kH, kW]`, and back."""
        assert isinstance(layer, nn.ConvTranspose2d)
        return SwapChannels(layer.groups)

    def settle(self, rows: int | None = None) -> None:
        """As every layer, on the weight by phases."""
        self.register_buffer("phases", self._phases(), persistent=False)
        super().settle(rows)

    def why_float(self) -> str | None:
        """Dilation, beside what holds for every layer."""
        if self.arguments["dilation"] != [1, 1]:
            return f"dilation {self.arguments['dilation']} has no integer kernel"
        return super().why_float()

    @property
    def kernel_weight(self) -> Tensor:
        """The phases."""
        return self.weight_values if self.phases is None else self.phases

    def work(self, rows: int) -> Work:
        """Rows are pixels of the result: a window yields one a phase."""
        down, across = self.arguments["stride"]
        return super().work(max(1, rows // (down * across)))

    def _phases(self) -> Tensor | None:
        weight, zero = self.weight_values, self.weight_zero_point
        if self.input_spec is None or self.weight_scale.dim() > 1 or weight.numel() == 0:
            return None
        steps = self.arguments["stride"]
        taps = [-(-size // step) for size, step in zip(weight.shape[2:], steps, strict=True)]
        whole = [count * step for count, step in zip(taps, steps, strict=True)]
        padded = weight.new_zeros((*weight.shape[:2], *whole))
        if zero is not None:  # so that taps that are not there add nothing
            padded = expand_channels(zero, padded, 0, None).to(weight.dtype).clone()
        padded[:, :, : weight.shape[2], : weight.shape[3]] = weight
        groups = padded.unflatten(0, (self.arguments["groups"], -1))
        split = groups.unflatten(-1, (taps[1], steps[1])).unflatten(-3, (taps[0], steps[0]))
        # [groups, out, in, jH, sH, jW, sW] -> [groups, sH, sW, out, in, jH, jW]
        return split.permute(0, 4, 6, 1, 2, 3, 5).flip(5, 6).flatten(0, 3).contiguous()

    def _by_phase(self, values: Tensor | None) -> Tensor | None:
        """A value a channel as a value a channel of the convolution."""
        if values is None:
            return None
        groups, (down, across) = self.arguments["groups"], self.arguments["stride"]
        return values.view(groups, 1, -1).expand(groups, down * across, -1).reshape(-1)

    def _window(self, d: int) -> tuple[int, int]:
        """Along one dimension: the convolution's padding, and where y begins in its result."""
        step, padding = self.arguments["stride"][d], self.arguments["padding"][d]
        last = self.weight_values.shape[d + 2] - 1 + self.arguments["output_padding"][d] - padding
        reach = -(-self.weight_values.shape[d + 2] // step) - 1  # how far a tap looks back
        around = max(reach - padding // step, last // step, 0)
        return around, padding - (reach - around) * step

    def output_size(self, x: Tensor) -> list[int]:
        """Height and width of the result."""
        return [
            (x.shape[d + 2] - 1) * self.arguments["stride"][d]
            - 2 * self.arguments["padding"][d]
            + self.weight_values.shape[d + 2]
            + self.arguments["output_padding"][d]
            for d in range(2)
        ]

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """As nn.ConvTranspose2d, of `[N, C, H, W]` or `[C, H, W]`."""
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0), output_size).squeeze(0)
        if output_size is None:
            return super().forward(x)
        other = copy.copy(self)  # the same tensors
        other.arguments = {**self.arguments, "output_padding": [0, 0]}
        least, steps = other.output_size(x), self.arguments["stride"]
        more = [a - b for a, b in zip(output_size[-2:], least, strict=True)]
        if any(not 0 <= extra < step for extra, step in zip(more, steps, strict=True)):
            most = [size + step - 1 for size, step in zip(least, steps, strict=True)]
            raise ValueError(
                f"{type(self).__name__}: output_size must be from {least} to {most}, "
                f"got {list(output_size[-2:])}"
            )
        other.arguments["output_padding"] = more
        return super(SparseQuantConvTranspose2d, other).forward(x)

    def integer_kernel(self, x: Tensor) -> Tensor:
        """`sparseq.ops.int8_conv2d` on the phases, then each pixel's phases side by side."""
        assert self.input_limits is not None and self.phases is not None
        (above, top), (beside, left) = self._window(0), self._window(1)
        height, width = self.output_size(x)
        if height < 1 or width < 1:
            raise RuntimeError(
                f"{type(self).__name__}: x must be large enough for a result of at least 1 x 1, "
                f"got {tuple(x.shape)} for {height} x {width}"
            )
        scale, zero_point = self.input_grid(x)
        y = _int8_conv2d(
            x,
            self.phases,
            self._by_phase(self.weight_scale),
            zero_point,
            self._by_phase(self.weight_zero_point),
            self._by_phase(self.bias),
            [1, 1],
            [above, beside],
            [1, 1],
            self.arguments["groups"],
            self.tiles,
            x_scale=scale,
            x_min=self.input_limits[0],
            x_max=self.input_limits[1],
        )
        groups, (down, across) = self.arguments["groups"], self.arguments["stride"]
        pixels = y.permute(0, 2, 3, 1).unflatten(3, (groups, down, across, -1))
        # [N, H, W, groups, sH, sW, out] -> [N, H, sH, W, sW, groups, out]
        pixels = pixels.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        return pixels[:, top : top + height, left : left + width].permute(0, 3, 1, 2)

    def float_kernel(self, x: Tensor, weight: Tensor) -> Tensor:
        """`functional.conv_transpose2d`."""
        swapped = swap_channels(weight, self.arguments["groups"])
        return functional.conv_transpose2d(x, swapped, self.bias, **self.arguments)
