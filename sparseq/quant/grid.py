"""From a range to the grid that covers it."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseq.spec import Quant


def range_to_grid(low: Tensor, high: Tensor, spec: Quant) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover [low, high] and represent 0 exactly.

    Symmetric: `scale = max(|low|, |high|) / quant_max`, zero point 0. Asymmetric:
    `scale = (high - low) / (quant_max - quant_min)` with 0 taken into the range, and
    `zero_point = rne(quant_min - low / scale)`. A range without extent gets scale 1.

    Args:
        low: float32 of any shape.
        high: as low.
        spec: the scheme.

    Returns:
        (scale float32, zero_point int32), shaped as low.

    Reference:
        Jacob et al. 2018, section 3; Krishnamoorthi 2018, section 2.1.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    if spec.symmetric:
        extent = torch.maximum(-low, high) if spec.signed else high
        scale = extent / spec.quant_max
    else:
        scale = (high - low) / (spec.quant_max - spec.quant_min)
    scale = torch.where(scale >= torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
    if spec.symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    zero = (spec.quant_min - low / scale).round().clamp(spec.quant_min, spec.quant_max)
    return scale, zero.to(torch.int32)
