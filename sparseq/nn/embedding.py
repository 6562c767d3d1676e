"""SparseQuantEmbedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparseq.choice import FLOAT
from sparseq.nn.grid import InputGrid
from sparseq.nn.layer import SparseQuantLayer
from sparseq.packed import PackedWeight

_dequantize = torch.ops.sparseq.dequantize.default


class SparseQuantEmbedding(SparseQuantLayer):
    """Embedding of stored quantised rows; only those asked for are dequantised.

    Shapes as nn.Embedding. Made by `from_float` or by `convert`. Its input are indices, so that an
    input scheme does not apply. The result has the float layer's dtype, and follows `half()`.
    """

    float_type = nn.Embedding
    own_range = "no range"

    def __init__(
        self,
        weight: PackedWeight,
        bias: Tensor | None,
        grid: InputGrid | None,
        like: nn.Module,
    ) -> None:
        assert isinstance(like, nn.Embedding)
        super().__init__(weight, None, None, like)
        self.dtype = like.weight.dtype

    @staticmethod
    def arguments_of(like: nn.Module) -> dict[str, Any]:
        """padding_idx, which training alone looks at."""
        assert isinstance(like, nn.Embedding)
        return {"padding_idx": like.padding_idx}

    @staticmethod
    def refusal(layer: nn.Module) -> str | None:
        """What writes into the weight as it reads it, or needs it to be a leaf."""
        assert isinstance(layer, nn.Embedding)
        if layer.max_norm is not None:
            return f"max_norm rescales the weight in place, got {layer.max_norm}"
        if layer.sparse:
            return "sparse=True: a quantised weight has no sparse gradient"
        return None

    def why_float(self) -> str:
        """There is no product."""
        return "only the rows asked for are dequantised"

    def _apply(self, fn: Any, recurse: bool = True) -> SparseQuantEmbedding:
        super()._apply(fn, recurse)
        kind = fn(torch.empty(0, dtype=self.dtype, device=self.weight_values.device)).dtype
        if kind.is_floating_point:
            self.dtype = kind
        return self

    @property
    def kernel(self) -> str:
        """What a look-up reads."""
        return f"int{4 if self.weight_spec.bits <= 4 else 8} rows"

    def use(self, kernel: str, reason: str = "asked for") -> None:
        """There is one way.

        Raises:
            ValueError: another kernel than "float32".
        """
        if kernel != FLOAT:
            raise ValueError(f"use: kernel must be one that this layer has, got {kernel!r}")
        super().use(kernel, reason)

    def forward(self, x: Tensor) -> Tensor:
        """Rows by index: int32 or int64 of any shape to `[..., dim]`."""
        flat = x.reshape(-1)
        rows = functional.embedding(flat, self.weight_values)
        scale = self.weight_scale.index_select(0, flat)
        zero = self.weight_zero_point
        zero = None if zero is None else zero.index_select(0, flat)
        group = self.weight_spec.group_size
        # the whole table passed the checks of `ops.dequantize`, which take longer than a few rows
        y = _dequantize(rows, scale, zero, 0, group, self.dtype)
        return y.reshape(*x.shape, rows.shape[1])

    def extra_repr(self) -> str:
        """Shape, scheme and padding_idx, for print(model)."""
        padding = self.arguments["padding_idx"]
        return f"{super().extra_repr()}, padding_idx={padding}"
