"""The transform that rounds a weight or a bias to another float type."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Cast(nn.Module):
    """Tensor to Tensor: `x.to(dtype)`; the gradient is cast back.

    Args:
        dtype: a floating type.

    Attributes:
        enabled: False passes x through unchanged.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """X in the other type."""
        return x.to(self.dtype) if self.enabled else x

    def extra_repr(self) -> str:
        """The type, for print(model)."""
        return str(self.dtype)
