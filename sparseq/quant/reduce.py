"""What the ranks of a distributed run saw, put together."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch import distributed as dist


def distributed() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def reduced_range(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The range over all ranks, in one collective; as it is where there is only one process.

    A rank whose range is NaN does not count, unless all are.
    """
    if not distributed():
        return low, high
    both = torch.stack([low, -high])
    both = torch.where(both.isnan(), torch.inf, both)
    dist.all_reduce(both, dist.ReduceOp.MIN)
    unseen = both[0] > -both[1]  # +inf and -inf: nowhere a range
    nothing = unseen & low.isnan()
    low, high = both[0], -both[1]
    return torch.where(nothing, torch.nan, low), torch.where(nothing, torch.nan, high)


def reduced_(value: Tensor, greatest: bool = False) -> Tensor:
    """The sum (or greatest) over all ranks, in place."""
    if distributed():
        dist.all_reduce(value, dist.ReduceOp.MAX if greatest else dist.ReduceOp.SUM)
    return value


def counter(module: nn.Module) -> Tensor:
    """A zero on the module's device, where its ranks can add it up."""
    held = next(module.parameters(), None)
    return torch.zeros((), device=None if held is None else held.device)


def sharded(module: nn.Module) -> bool:
    """Whether FSDP2 (`fully_shard`) holds this module's parameters."""
    if not distributed():
        return False
    from torch.distributed._composable_state import _module_state_mapping
    from torch.distributed.fsdp import FSDPModule

    roots = [m for m in list(_module_state_mapping) if isinstance(m, FSDPModule)]
    return any(module is inner for root in roots for inner in root.modules())
