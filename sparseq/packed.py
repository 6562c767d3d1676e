"""A quantised weight as it is stored: integers, scales, zero points.

A plain object, no tensor subclass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseq import ops
from sparseq.ops.check import check_grouping
from sparseq.quant import range_to_grid
from sparseq.reference import expand_channels
from sparseq.spec import Quant


@dataclass(frozen=True)
class PackedWeight:
    """`weight = (values - zero_point) * scale`.

    Args:
        values: int8 (signed) or uint8, the weight's shape `[N, ...]`.
        scale: float32: `[N]`, or `[N, groups]` with a group size.
        zero_point: int32, as scale in shape; None for zeros.
        spec: the scheme.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor | None
    spec: Quant

    @classmethod
    def from_float(cls, weight: Tensor, spec: Quant) -> PackedWeight:
        """Quantise a float weight over its own range."""
        weight = weight.detach().float()
        low, high = ops.minmax(weight, spec.axis, spec.group_size)
        scale, zero_point = range_to_grid(low, high, spec)
        q = ops.quantize(
            weight, scale, zero_point, spec.quant_min, spec.quant_max, spec.axis, spec.group_size
        )
        return cls.from_integers(q, scale, zero_point, spec)

    @classmethod
    def like(cls, weight: Tensor, spec: Quant) -> PackedWeight:
        """What `from_float` makes of such a weight but for the contents: on the meta device."""
        check_grouping("PackedWeight", weight, spec.axis, spec.group_size)
        if spec.axis is not None and spec.axis % weight.dim() != 0:
            raise ValueError(f"PackedWeight: axis must be that of outputs, 0, got {spec.axis}")
        dtype = torch.int8 if spec.signed else torch.uint8
        values = torch.empty(weight.shape, dtype=dtype, device="meta")
        rows = weight.shape[0]
        groups = [] if spec.group_size is None else [weight.numel() // rows // spec.group_size]
        scale = torch.empty([rows, *groups], device="meta")
        zero = None if spec.symmetric else torch.empty_like(scale, dtype=torch.int32)
        return cls(values, scale, zero, spec)

    @classmethod
    def from_integers(
        cls, values: Tensor, scale: Tensor, zero_point: Tensor, spec: Quant
    ) -> PackedWeight:
        """From integers and their grid; one scale for all becomes one per output channel."""
        if scale.dim() == 0:
            scale, zero_point = scale.expand(values.shape[0]), zero_point.expand(values.shape[0])
        zero = None if spec.symmetric else zero_point.contiguous()
        return cls(values.contiguous(), scale.contiguous(), zero, spec)

    def dequantize(self) -> Tensor:
        """The float32 weight."""
        return ops.dequantize(
            self.values, self.scale, self.zero_point, axis=0, group_size=self.spec.group_size
        )

    def scaled(self, factor: Tensor) -> PackedWeight:
        """Each output channel times a factor: only scales change, integers at most mirror.

        A negative factor mirrors the integers in their range, which is exact; a zero factor leaves
        the channel's integers at its zero point.

        Args:
            factor: `[N]`.
        """
        low, high = self.spec.quant_min, self.spec.quant_max
        per_row = [-1] + [1] * (self.values.dim() - 1)
        negative, none = (factor < 0).reshape(per_row), (factor == 0).reshape(per_row)
        values = self.values.int()
        values = (low + high - values).where(negative, values)
        zero = self.zero_point
        per_scale = [-1] + [1] * (self.scale.dim() - 1)
        if zero is None and low + high != 0 and bool((factor < 0).any()):
            zero = torch.zeros_like(self.scale, dtype=torch.int32)  # a mirrored one is not 0
        if zero is not None:
            zero = (low + high - zero).where((factor < 0).reshape(per_scale), zero)
            axis = 0 if zero.dim() == 1 else None
            size = None if zero.dim() == 1 else values.numel() // zero.numel()
            values = expand_channels(zero, values, axis, size).where(none, values)
        else:
            values = values.masked_fill(none, 0)
        magnitude = factor.abs().where(factor != 0, factor.new_ones(()))
        return PackedWeight(
            values.to(self.values.dtype), self.scale * magnitude.reshape(per_scale), zero, self.spec
        )
