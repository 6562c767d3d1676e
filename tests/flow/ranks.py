"""What each rank of a distributed run does; torchrun starts it, test_distributed.py reads it."""

import sys

import loop_cases as cases
import torch
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from sparseq import Layer, Plan, Quant, calibrate, prepare
from sparseq.flow.prepare import input_quantizers

OBSERVERS = ("minmax", "moving_average", "percentile", "histogram", "entropy")
STEPS = 3
HALF = 4


def grids(model):
    return {
        name: [t.detach().clone() for t in q.grid() if t is not None]
        for name, q in input_quantizers(model).items()
    }


def observed(observer):
    torch.manual_seed(0)
    layer = Layer(weight=Quant(axis=0), input=Quant(symmetric=False, observer=observer))
    return prepare(cases.Net(), Plan({"*": layer}))


def part(seed, rank):
    x, y = cases.batch(seed, 2 * HALF)
    mine = slice(rank * HALF, (rank + 1) * HALF)
    return x[mine], y[mine]


def train_ddp(plan, rank):
    """Losses are means over equal parts, so that averaged gradients are those of the whole."""
    model = DistributedDataParallel(cases.network(plan))
    optimizer, gradients = torch.optim.SGD(model.parameters(), 0.05), []
    for seed in range(STEPS):
        x, y = part(seed, rank)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        gradients.append(cases.grads(model.module))
        optimizer.step()
    return {"grids": grids(model.module), "grads": gradients, "state": cases.state(model.module)}


def calibrate_ddp(observer, rank):
    """Three batches on the first rank, one on the second, of other sizes."""
    model = DistributedDataParallel(observed(observer))
    sizes = [(0, 8), (1, 3), (2, 5)] if rank == 0 else [(3, 6)]
    calibrate(model, [cases.batch(seed, size)[0] for seed, size in sizes])
    return {"grids": grids(model.module)}


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train_fsdp(plan, rank):
    model = cases.network(plan)
    calibrate(model, [cases.batch(0)[0]])
    for block in (model.first, model.second, model):
        fully_shard(block)
    optimizer, gradients = torch.optim.SGD(model.parameters(), 0.05), []
    for seed in range(STEPS):
        x, y = part(seed, rank)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        gradients.append({n: whole(p.grad).clone() for n, p in model.named_parameters()})
        optimizer.step()
    state = {n: whole(v) for n, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    return {"grads": gradients, "state": {name: value.clone() for name, value in state.items()}}


def learned_without_calibration(rank):
    """FSDP's shards cannot take a grid that a forward pass sets: the error's text."""
    model = cases.network("learned")
    fully_shard(model)
    try:
        model(part(0, rank)[0])
    except RuntimeError as error:
        return str(error)
    return ""


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {f"ddp {plan}": train_ddp(plan, rank) for plan in cases.PLANS}
    found |= {f"calibrate {observer}": calibrate_ddp(observer, rank) for observer in OBSERVERS}
    found |= {f"fsdp {plan}": train_fsdp(plan, rank) for plan in cases.PLANS}
    found["uncalibrated"] = learned_without_calibration(rank)
    torch.save(found, f"{sys.argv[1]}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
