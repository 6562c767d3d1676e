"""Small models and loops, as users write them."""

import torch
from torch import nn
from torch.nn import functional as F

from sparseq import Layer, Plan, Quant, prepare

PLANS = {
    "minmax": Layer(weight=Quant(axis=0), input=Quant(symmetric=False)),
    "moving": Layer(weight=Quant(axis=0), input=Quant(symmetric=False, observer="moving_average")),
    "learned": Layer(
        weight=Quant(axis=0, learned=True), input=Quant(symmetric=False, learned=True)
    ),
    "pact": Layer(weight=Quant(axis=0), input=Quant(signed=False, learned="pact")),
}


class Net(nn.Module):
    """Two blocks and a head; `run` says how a block is called (checkpointed, say)."""

    def __init__(self, run=None):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(8, 5)
        self.run = run or (lambda block, x: block(x))

    def forward(self, x):
        x = self.run(self.first, x)
        x = self.run(self.second, x)
        return self.head(x.mean((2, 3)))


def network(plan="minmax", run=None, seed=0):
    torch.manual_seed(seed)
    return prepare(Net(run), Plan({"*": PLANS[plan]}))


def batch(seed, size=8):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 2, 8, 8, generator=generator) * (1 + seed / 4)
    return x, torch.randint(5, (size,), generator=generator)


def adam(model):
    return torch.optim.Adam(model.parameters(), 0.01)


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def state(model):
    """Every tensor of the state, copied."""
    return {
        name: value.clone()
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor)
    }


def grads(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
