"""Weights whose first dimension is not the output channel, seen as if it were."""

from __future__ import annotations

from torch import Tensor, nn


def swap_channels(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight in a convolution's order, or back: it is its own inverse.

    `[groups * a, b, ...]` becomes `[groups * b, a, ...]`, group by group: from
    `[in, out / groups, kH, kW]` to `[out, in / groups, kH, kW]`.

    Args:
        weight: at least two dimensions, the first a multiple of groups.
        groups: of the convolution.

    Returns:
        A view where groups is 1.
    """
    if groups == 1:
        return weight.transpose(0, 1)
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


class SwapChannels(nn.Module):
    """Tensor to Tensor: `swap_channels`. Two of them enclose transforms that want outputs first."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, weight: Tensor) -> Tensor:
        """The weight in the other order."""
        return swap_channels(weight, self.groups)

    def extra_repr(self) -> str:
        """The groups, for print(model)."""
        return f"groups={self.groups}"
