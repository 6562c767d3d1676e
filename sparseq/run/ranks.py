"""Several processes that train one model: what torchrun started, or this process alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Ranks", "ranks_of_this_run"]


@dataclass(frozen=True)
class Ranks:
    """Which of the processes this one is.

    Attributes:
        rank: from 0; this one writes files and talks.
        count: of processes.
        local: rank among those of this machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def writes(self) -> bool:
        """Whether this process writes files and the screen."""
        return self.rank == 0

    def shared(self, value: Any) -> Any:
        """The first process' value, on all of them."""
        if self.count == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, src=0)
        return held[0]

    def summed(self, values: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model as the loop calls it: its gradients are the mean over the processes."""
        if self.count == 1:
            return model
        on_gpu = next(model.parameters()).is_cuda
        return DistributedDataParallel(model, device_ids=[self.local] if on_gpu else None)

    def agree(self, model: nn.Module) -> None:
        """Give all processes the first one's buffers: running statistics differ between them."""
        if self.count > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)


@contextmanager
def ranks_of_this_run(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started; one without it is alone.

    Args:
        device: "cpu" (gloo) or "cuda" (NCCL too, a GPU for each process of a machine).
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        torch.cuda.set_device(local)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    try:
        yield Ranks(distributed.get_rank(), count, local)
    finally:
        distributed.destroy_process_group()
