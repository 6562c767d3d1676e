"""What each rank of a distributed run does; torchrun starts it, test_distributed.py reads it."""

import sys

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparseq.distill import AttentionTransfer, CachedLogits, Hint, Loss

STEPS, HALF = 3, 4


def network(width):
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 5),
    )


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * HALF, 3, 6, 6, generator=generator)
    ids = torch.arange(2 * HALF) + seed * 2 * HALF
    return x, torch.randint(5, (2 * HALF,), generator=generator), ids


def train(teacher, rank=None):
    """Losses are means over equal parts, so that averaged gradients are those of the whole."""
    student, features = network(4), network(8)
    terms = [Hint({"1": "1"}, teacher=1), AttentionTransfer({"0": "0"}, 10.0, teacher=1)]
    torch.manual_seed(0 if rank is None else rank)  # projections differ until DDP aligns them
    wrapped = student if rank is None else DistributedDataParallel(student)
    loss = Loss([teacher, features], terms=terms, student=wrapped, example=batch(0)[0])
    loss_of = loss if rank is None else DistributedDataParallel(loss)
    optimizer = torch.optim.SGD([*wrapped.parameters(), *loss_of.parameters()], 0.1)
    mine = slice(None) if rank is None else slice(rank * HALF, (rank + 1) * HALF)
    for seed in range(STEPS):
        x, labels, ids = (t[mine] for t in batch(seed))
        value = loss_of(wrapped(x), labels, x, ids)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return {name: p.detach() for m in (student, loss) for name, p in m.state_dict().items()}


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, folder = dist.get_rank(), sys.argv[1]
    teacher, path = network(6), f"{folder}/teacher.safetensors"
    if rank == 0:
        batches = [(ids, x) for x, _, ids in map(batch, range(STEPS))]
        CachedLogits.write(path, teacher, batches, torch.float32)
    dist.barrier()
    found = {"ddp": train(CachedLogits(path, teacher), rank)}
    if rank == 0:
        found["alone"] = train(CachedLogits(path, teacher))
        found["uncached"] = train(teacher)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
