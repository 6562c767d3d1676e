"""What stands in for torch.ao's FloatFunctional, so that the result needs no torch.ao."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Functional(nn.Module):
    """The operations of torch.ao's FloatFunctional, in float: `functional.add(x, y)` and the like.

    What they give is rounded where the next layer reads it.
    """

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """`x + y`."""
        return torch.add(x, y)

    def add_scalar(self, x: Tensor, y: float) -> Tensor:
        """`x + y`."""
        return torch.add(x, y)

    def add_relu(self, x: Tensor, y: Tensor) -> Tensor:
        """`max(x + y, 0)`."""
        return torch.relu(torch.add(x, y))

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        """`x * y`, element by element."""
        return torch.mul(x, y)

    def mul_scalar(self, x: Tensor, y: float) -> Tensor:
        """`x * y`."""
        return torch.mul(x, y)

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """The matrix product."""
        return torch.matmul(x, y)

    def cat(self, x: list[Tensor], dim: int = 0) -> Tensor:
        """The tensors one after another along a dimension."""
        return torch.cat(x, dim=dim)
