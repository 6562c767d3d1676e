"""What the modules that run on integers share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparseq import ops
from sparseq.choice import DENSE, FLOAT, INT4, SPARSE, Choice, Work, choose
from sparseq.nn.from_float import FromFloat
from sparseq.nn.grid import InputGrid
from sparseq.ops.check_int8 import MAX_DEPTH
from sparseq.packed import PackedWeight
from sparseq.quant import range_to_grid
from sparseq.spec import Quant

# The op itself: for a layer of some microseconds the wrapper's checks would take longer.
_quantize = torch.ops.sparseq.quantize.default

DEVICES = tuple(name.lower() for name in ops.kernels()["int8_linear"])  # that this build serves


class SparseQuantLayer(FromFloat):
    """What the integer modules share: the stored weight, the input's grid, and which kernel runs.

    Integers run where the input is quantised and the weight has one scale an output channel, as one
    op from float to float; dense or 2:4, or float32 where that was measured to be faster
    (`sparseq.choice`). Other layers compute in float32 on the dequantised weight, linear ones of at
    most 4 bits straight from their packed weight while rows are few.

    Attributes:
        own_range: whose range a grid covers that is not fixed.
        by_rows: whether that is each row's.
        weight_values: int8 or uint8.
        weight_scale: float32 `[N]`, or `[N, groups]`.
        weight_zero_point: int32, or None.
        bias: float32 `[N]`, or None.
        input_scale: float32 `[1]`, or None.
        input_zero_point: int32 `[1]`, or None.
        input_limits: least and greatest integer of the quantised input, or None.
        integer: whether integers can run.
        tiles: the weight as the kernels of its device read it; made on load and when the layer
            moves to another device, never saved.
        float_weight: the dequantised weight, where float32 was chosen over integers; never saved.
        rows: how many rows (output pixels) a call is expected to have; None if nobody said.
        choice: the kernel, and why.
        revision: grows with each weight, state or kernel that the layer takes.
    """

    revision = 0

    own_range = "each batch's own range"
    by_rows = False
    weight_values: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor | None
    bias: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    tiles: Tensor | None
    float_weight: Tensor | None

    def __init__(
        self, weight: PackedWeight, bias: Tensor | None, grid: InputGrid | None, like: nn.Module
    ) -> None:
        super().__init__(weight, bias, grid, like)
        self.weight_spec = weight.spec
        self.input_spec = None if grid is None else grid.spec
        static = grid is not None and grid.scale is not None
        self.input_limits = None if grid is None else self.limits_of(grid.spec, static)
        self.arguments = self.arguments_of(like)
        for name in ("weight_values", "weight_scale", "weight_zero_point"):
            self.register_buffer(name, None)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        self.register_buffer(
            "input_scale", grid.scale.reshape(1) if grid and grid.scale is not None else None
        )
        zero = grid.zero_point if grid is not None and static else None
        if grid is not None and grid.scale is not None and zero is None:
            zero = torch.zeros(1, dtype=torch.int32, device=grid.scale.device)
        self.register_buffer("input_zero_point", None if zero is None else zero.reshape(1))
        self.register_buffer("tiles", None, persistent=False)
        self.register_buffer("float_weight", None, persistent=False)
        self.rows: int | None = None
        self.set_weight(weight)
        self.train(False)

    @staticmethod
    def limits_of(spec: Quant, static: bool) -> tuple[int, int]:
        """The range of the integers that the input becomes."""
        return spec.quant_min, spec.quant_max

    def set_weight(self, weight: PackedWeight) -> None:
        """Take another stored weight of the same shape and scheme."""
        self.weight_values, self.weight_scale = weight.values, weight.scale
        self.weight_zero_point = weight.zero_point
        self.settle(self.rows)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.settle(self.rows)

    def _apply(self, fn: Any, recurse: bool = True) -> SparseQuantLayer:
        before = self.weight_values.device

        def moved(tensor: Tensor) -> Tensor:
            result: Tensor = fn(tensor)
            # grids and biases stay float32 in a model of 16 bits, as the kernels read them
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        if self.weight_values.device != before:  # what was packed was packed for the other device
            self.settle(self.rows)
        return self

    @property
    def _tiled(self) -> bool:
        """Tiles serve signed weights without zero points."""
        weight = self.kernel_weight
        plain = weight.dtype == torch.int8 and self.weight_zero_point is None
        return self.integer and plain and weight.device.type in DEVICES and weight.numel() > 0

    def work(self, rows: int) -> Work:
        """This layer on so many rows."""
        weight, groups = self.kernel_weight, self.arguments.get("groups", 1)
        inputs, taps = weight.shape[1], weight[0, 0].numel() if weight.numel() else 1
        return Work(rows, max(1, inputs), max(1, weight.shape[0] // groups), taps, groups)

    def settle(self, rows: int | None = None) -> None:
        """Choose the kernel by what was measured, and pack the weight for it.

        Args:
            rows: how many rows (output pixels) a call will have, about; None for 128.
        """
        self.rows = rows
        self.integer = self.why_float() is None
        if not self.integer:
            self.use(*self._weight_only())
            return
        if not self._tiled:
            self.use(DENSE, "unsigned weights and zero points have no packed form")
            return
        packed = ops.int8_tiles(self.kernel_weight, self.arguments.get("groups", 1))
        sparse, device = ops.tile_kind(packed) == "2:4", self.weight_values.device.type
        if device == "cpu":
            choice = choose(self.work(rows or 128), sparse)
        else:  # the tables are of CPUs
            choice = Choice(SPARSE if sparse else DENSE, f"not measured on {device}")
        self.use(choice.kernel, choice.reason)

    def _weight_only(self) -> tuple[str, str]:
        """Kernel and reason of a layer without integer products."""
        return FLOAT, self.why_float() or "asked for"

    def why_float(self) -> str | None:
        """Why there is no integer product, or None."""
        if self.input_spec is None:
            return "no input quantiser in the plan"
        if self.weight_scale.dim() > 1:
            return "group scales have no integer kernel"
        weight = self.kernel_weight
        depth = weight[0].numel() if len(weight) else 0
        if depth > MAX_DEPTH:
            return f"{depth} products may overflow an int32 sum, {MAX_DEPTH} may not"
        return None

    @property
    def kernel_weight(self) -> Tensor:
        """The integers as the integer op takes them."""
        return self.weight_values

    def use(self, kernel: str, reason: str = "asked for") -> None:
        """Run on this kernel from now on.

        Args:
            kernel: "int8", "int8 2:4", "int4" or "float32".
            reason: what `explain` shall say.

        Raises:
            ValueError: the layer's weight or input does not allow it.
        """
        groups, weight = self.arguments.get("groups", 1), self.kernel_weight
        tiles = float_weight = None
        if kernel == INT4 and self._weight_only()[0] == INT4:
            tiles = ops.pack_int4(self.weight_values)
        elif kernel == FLOAT and self.integer:
            float_weight = self._float_layout(self.packed().dequantize())
        elif kernel in (DENSE, SPARSE) and self._tiled:
            tiles = ops.int8_tiles(weight, groups, "dense" if kernel == DENSE else "2:4")
        elif kernel != FLOAT and not (kernel == DENSE and self.integer):
            raise ValueError(f"use: kernel must be one that this layer has, got {kernel!r}")
        self.tiles, self.float_weight = tiles, float_weight
        self.choice = Choice(kernel, reason)
        self.revision += 1

    @staticmethod
    def _float_layout(weight: Tensor) -> Tensor:
        """The weight in the memory format that the float function likes."""
        return weight

    @property
    def kernel(self) -> str:
        """What `forward` runs on: "int8", "int8 2:4", "int8 depthwise", "int4" or "float32"."""
        chosen = self.choice.kernel
        if chosen == DENSE and self.tiles is not None and ops.tile_kind(self.tiles) == "depthwise":
            return "int8 depthwise"
        return chosen

    def packed(self) -> PackedWeight:
        """The stored weight."""
        return PackedWeight(
            self.weight_values, self.weight_scale, self.weight_zero_point, self.weight_spec
        )

    def input_grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of x, each of one element, or of one a row."""
        scale, zero_point = self.input_scale, self.input_zero_point
        if scale is None or zero_point is None:
            assert self.input_spec is not None
            return range_to_grid(*ops.minmax(x), self.input_spec)
        return scale, zero_point

    def quantize_input(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """X as integers, with scale and zero point, each of one element or of one a row.

        What the integer op does inside; for where there is none, and for comparisons.
        """
        assert self.input_limits is not None
        scale, zero_point = self.input_grid(x)
        # the grid was checked when made: the op itself, without the wrapper's looks at values
        rows = (-1, x.shape[-1]) if scale.dim() > 1 else (None, None)
        return _quantize(x, scale, zero_point, *self.input_limits, *rows), scale, zero_point

    def forward(self, x: Tensor) -> Tensor:
        """As the float layer; the result has x's dtype."""
        if not x.is_floating_point():
            kind, got = type(self).__name__, str(x.dtype).removeprefix("torch.")
            raise TypeError(f"{kind}: x must be float32, float16 or bfloat16, got {got}")
        if self.float_weight is not None:
            y = self.float_kernel(self._rounded_input(x).float(), self.float_weight)
        elif self.integer:
            y = self.integer_kernel(x)
        else:
            y = self.weight_only_kernel(self._rounded_input(x))
        return y if y.dtype == x.dtype else y.to(x.dtype)

    def weight_only_kernel(self, x: Tensor) -> Tensor:
        """The float32 function on the weight as it is stored."""
        return self.float_kernel(x.float(), self.packed().dequantize())

    def _rounded_input(self, x: Tensor) -> Tensor:
        """X on its grid, if it has one."""
        if self.input_spec is None:
            return x
        q, scale, zero_point = self.quantize_input(x)
        if scale.dim() > 1:
            return ((q.float() - zero_point) * scale).to(x.dtype)
        return ops.dequantize(q, scale, zero_point, dtype=x.dtype)

    def integer_kernel(self, x: Tensor) -> Tensor:
        """The integer op, from floating x to y."""
        raise TypeError(f"{type(self).__name__} has no integer kernel")

    def float_kernel(self, x: Tensor, weight: Tensor) -> Tensor:
        """The float function on the dequantised weight."""
        raise TypeError(f"{type(self).__name__} has no float kernel")

    def extra_repr(self) -> str:
        """Shape and schemes, for print(model)."""
        return (
            f"{list(self.weight_values.shape)}, weight={self.weight_spec}, input={self.input_spec}"
        )
