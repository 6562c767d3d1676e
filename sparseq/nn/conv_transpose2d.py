"""SparseQuantConvTranspose2d: ordinary convolutions, by phases of the output."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparseq import ops
from sparseq.choice import DENSE, Work
from sparseq.nn.layer import SparseQuantLayer
from sparseq.sparse import SwapChannels, swap_channels

_int8_conv2d = torch.ops.sparseq.int8_conv2d.default
Run = tuple[range, int]  # phases along one dimension, and how many taps each of them has


def _runs(size: int, step: int, apart: bool) -> Iterator[Run]:
    """The phases of a kernel, those of equally many taps together unless wanted apart."""
    most = -(-size // step)
    split = size - (most - 1) * step
    for phases, taps in ((range(split), most), (range(split, step), most - 1)):
        if apart:
            yield from ((range(phase, phase + 1), taps) for phase in phases)
        elif phases:
            yield phases, taps


class _Phases(nn.Module):
    """Phases of the output that have equally many taps: one convolution of stride 1.

    Attributes:
        rows, columns: which phases, and the taps of each.
        weight: `[groups * rows * columns * out, in, taps down, taps across]`; None without taps.
        tiles: as of a layer.
    """

    weight: Tensor | None
    tiles: Tensor | None

    def __init__(self, rows: Run, columns: Run, weight: Tensor, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        taps = [
            [phase + step * tap for phase in phases for tap in reversed(range(count))]
            for (phases, count), step in zip((rows, columns), arguments["stride"], strict=True)
        ]
        chosen: Tensor | None = None
        if rows[1] and columns[1]:
            down, across = (torch.tensor(t, device=weight.device) for t in taps)
            chosen = weight.index_select(2, down).index_select(3, across)
            chosen = chosen.unflatten(3, (-1, columns[1])).unflatten(2, (-1, rows[1]))
            chosen = chosen.unflatten(0, (arguments["groups"], -1))
            # [groups, out, in, rows, down, columns, across]: the phases come before the outputs
            chosen = chosen.permute(0, 3, 5, 1, 2, 4, 6).flatten(0, 3).contiguous()
        self.register_buffer("weight", chosen, persistent=False)
        self.register_buffer("tiles", None, persistent=False)


class SparseQuantConvTranspose2d(SparseQuantLayer):
    """ConvTranspose2d on a stored quantised weight, INT8 products with an exact int32 sum.

    Shapes as nn.ConvTranspose2d; made by `from_float` or by `convert`. The weight is stored as a
    convolution's, `[out, in / groups, kH, kW]`, so that axis 0 is the output channel and N:M runs
    along input channels.

    Along one dimension, with stride s, tap `k = r + s j` reaches the outputs of phase r alone:

        full[s t + r] = sum_j weight[r + s j] * x[t - j],    y[p] = full[p + padding]

    so each of the s * s phases is a convolution of stride 1 with every s-th tap, in reverse. Those
    of equally many taps, which is all where s divides the kernel, are one `int8_conv2d`: channels
    of one pixel, laid side by side afterwards. Depthwise ones run phase by phase.

    Attributes:
        phases: these convolutions, made of the stored weight, never saved; none where the layer
            computes in float.

    Reference:
        Shi et al. 2016, Is the deconvolution layer the same as a convolutional layer?
    """

    float_type = nn.ConvTranspose2d
    phases: nn.ModuleList

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
        self.phases = nn.ModuleList(self._phases())
        super().settle(rows)

    def use(self, kernel: str, reason: str = "asked for") -> None:
        """As every layer, with every phase packed alike."""
        super().use(kernel, reason)
        kind = "dense" if kernel == DENSE else "auto"
        for phases in self._blocks():
            phases.tiles = None
            if self.tiles is not None and phases.weight is not None:
                phases.tiles = ops.int8_tiles(phases.weight, self.arguments["groups"], kind)

    def why_float(self) -> str | None:
        """Dilation, beside what holds for every layer."""
        if self.arguments["dilation"] != [1, 1]:
            return f"dilation {self.arguments['dilation']} has no integer kernel"
        return super().why_float()

    @property
    def kernel_weight(self) -> Tensor:
        """The phases with the most taps."""
        return self.phases[0].weight if self.phases else self.weight_values  # type: ignore[return-value]

    def work(self, rows: int) -> Work:
        """Rows are pixels of the result: a window yields one a phase."""
        down, across = self.arguments["stride"]
        return super().work(max(1, rows // (down * across)))

    def _blocks(self) -> list[_Phases]:
        return list(self.phases)  # type: ignore[arg-type]

    def _phases(self) -> Iterator[_Phases]:
        weight, groups = self.weight_values, self.arguments["groups"]
        if self.input_spec is None or self.weight_scale.dim() > 1 or weight.numel() == 0:
            return
        apart = weight.shape[:2] == (groups, 1)
        down, across = (
            list(_runs(size, step, apart))
            for size, step in zip(weight.shape[2:], self.arguments["stride"], strict=True)
        )
        for rows in down:
            yield from (_Phases(rows, columns, weight, self.arguments) for columns in across)

    def _spread(self, values: Tensor | None, count: int) -> Tensor | None:
        """A value a channel as a value a channel of so many phases."""
        if values is None or count == 1:
            return values
        return values.view(self.arguments["groups"], 1, -1).expand(-1, count, -1).reshape(-1)

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

    def _steps(self, d: int, length: int) -> range:
        """The t of `full[s t + r]` that reach into y, along one dimension."""
        step, padding = self.arguments["stride"][d], self.arguments["padding"][d]
        return range(padding // step, (length - 1 + padding) // step + 1)

    def integer_kernel(self, x: Tensor) -> Tensor:
        """`sparseq.ops.int8_conv2d` by phases, and each pixel's phases side by side."""
        assert self.input_limits is not None
        height, width = self.output_size(x)
        if min(height, width) < 0:
            raise RuntimeError(
                f"{type(self).__name__}: x must be large enough for its padding, got "
                f"{tuple(x.shape)} for a result of {height} x {width}"
            )
        if not len(x) * height * width:
            return x.new_empty((len(x), len(self.weight_values), height, width))
        scale, zero_point = self.input_grid(x)
        grid: dict[str, Any] = {
            "x_scale": scale, "x_min": self.input_limits[0], "x_max": self.input_limits[1]
        }  # fmt: skip
        dtype, factor = x.dtype, None
        if len(self.phases) > 1:  # several readers: quantised once
            x, factor = self.quantize_input(x)[0], scale
            grid = {"dtype": dtype}
        steps = [self._steps(0, height), self._steps(1, width)]
        (down, across), outputs = self.arguments["stride"], len(self.weight_values)
        groups = self.arguments["groups"]
        full = x.new_empty(
            (len(x), len(steps[0]), down, len(steps[1]), across, groups, outputs // groups),
            dtype=dtype,
        )
        for phases in self._blocks():
            (rows, _), (columns, _) = phases.rows, phases.columns
            y = self._convolved(x, phases, steps, factor, zero_point, grid)
            place = full[:, :, rows.start : rows.stop, :, columns.start : columns.stop]
            # [N, groups * rows * columns * out, H, W] -> [N, H, rows, W, columns, groups, out]
            split = y.unflatten(1, (groups, len(rows), len(columns), -1))
            place.copy_(split.permute(0, 5, 2, 6, 3, 1, 4))
        pixels = full.flatten(5, 6).flatten(3, 4).flatten(1, 2)
        top, left = (p % s for p, s in zip(self.arguments["padding"], (down, across), strict=True))
        return pixels[:, top : top + height, left : left + width].permute(0, 3, 1, 2)

    def _convolved(
        self,
        x: Tensor,
        phases: _Phases,
        steps: list[range],
        factor: Tensor | None,
        zero_point: Tensor,
        grid: dict[str, Any],
    ) -> Tensor:
        """The outputs of these phases at these steps."""
        runs = (phases.rows, phases.columns)
        count = len(runs[0][0]) * len(runs[1][0])
        bias = self._spread(self.bias, count)
        if phases.weight is None:
            y = x.new_zeros((), dtype=torch.float32) if bias is None else bias.view(-1, 1, 1) + 0.0
            shape = (len(x), count * len(self.weight_values), *map(len, steps))
            return y.expand(shape)
        scale = self.weight_scale if factor is None else self.weight_scale * factor
        # so much padding, on both sides, that no step is missing; what is too much is cut off
        padding = [
            max(taps - 1 - t.start, t.stop - size, 0)
            for (_, taps), t, size in zip(runs, steps, x.shape[2:], strict=True)
        ]
        y = _int8_conv2d(
            x,
            phases.weight,
            self._spread(scale, count),
            zero_point,
            self._spread(self.weight_zero_point, count),
            bias,
            [1, 1],
            padding,
            [1, 1],
            self.arguments["groups"],
            phases.tiles,
            **grid,
        )
        for d in range(2):
            first = steps[d].start - runs[d][1] + 1 + padding[d]
            y = y.narrow(d + 2, first, len(steps[d]))
        return y

    def float_kernel(self, x: Tensor, weight: Tensor) -> Tensor:
        """`functional.conv_transpose2d`."""
        swapped = swap_channels(weight, self.arguments["groups"])
        return functional.conv_transpose2d(x, swapped, self.bias, **self.arguments)
