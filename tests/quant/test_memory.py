"""A prepared layer keeps its input once, and trains on the same numbers."""

import copy
import sys

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

import sparseq
from sparseq import Layer, Plan, Quant, testing

LAYERS = {
    "convolution": (lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False), (2, 4, 7, 7)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2), (2, 4, 7, 7)),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 7)),
    "of sequences": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 5, 5)),
    "linear": (lambda: nn.Linear(12, 5), (8, 12)),
    "linear without bias": (lambda: nn.Linear(12, 5, bias=False), (8, 12)),
    "linear of tokens": (lambda: nn.Linear(12, 5), (2, 4, 12)),
    "linear of tokens without bias": (lambda: nn.Linear(12, 5, bias=False), (2, 4, 12)),
}
GRIDS = {
    "symmetric": Quant(),
    "asymmetric": Quant(symmetric=False, observer="moving_average"),
    "learned": Quant(symmetric=False, learned=True),
    "pact": Quant(signed=False, learned="pact"),
}


class Net(nn.Module):
    """A layer behind something whose result is a leaf no more."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x * self.gain).sin()


def made(name: str, grid: str = "asymmetric") -> tuple[Net, torch.Tensor]:
    make, shape = LAYERS[name]
    plan = Plan({"*": Layer(weight=Quant(axis=0), input=GRIDS[grid])})
    net, x = sparseq.prepare(Net(make()), plan).train(), torch.randn(shape)
    net(x)  # the grid is known from here on
    return net, x


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch):
    """A switch: from its call on, layers keep their fake-quantised inputs."""
    module = sys.modules["sparseq.flow.prepare"]
    return lambda: monkeypatch.setattr(module, "forget_input", lambda y, output: None)


def gradients(net: Net, x: torch.Tensor, run=None) -> dict[str, torch.Tensor]:
    net = copy.deepcopy(net)
    y = net(x) if run is None else run(net, x)
    y.square().sum().backward()
    return {"": y.detach()} | {n: p.grad for n, p in net.named_parameters() if p.requires_grad}


def assert_same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert got.keys() == wanted.keys() and len(got) > 1
    for name, value in got.items():
        assert value is not None, name
        testing.assert_equal(value, wanted[name], message=name)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("grid", GRIDS)
def test_the_same_numbers(name, grid, kept):
    net, x = made(name, grid)
    got = gradients(net, x)
    kept()
    assert_same(got, gradients(net, x))


def saved_input(net: Net, x: torch.Tensor) -> tuple[StorageWeakRef, torch.Tensor]:
    """The memory of the layer's fake-quantised input, and the network's output."""
    seen = []
    handle = net.layer.input_quantizer.register_forward_hook(
        lambda _m, _a, y: seen.append(StorageWeakRef(y.untyped_storage()))
    )
    y = net(x)
    handle.remove()
    (reference,) = seen
    return reference, y


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - {"reflected"}))  # the padding saves it
def test_the_input_is_freed(name, kept):
    net, x = made(name)
    reference, y = saved_input(net, x)
    assert reference.expired()
    y.sum().backward()
    kept()
    reference, y = saved_input(net, x)
    assert not reference.expired()


def test_backward_twice():
    net, x = made("convolution")
    y = net(x)
    first = torch.autograd.grad(y.sum(), list(net.parameters()), retain_graph=True)
    second = torch.autograd.grad(y.sum(), list(net.parameters()))
    for a, b in zip(first, second, strict=True):
        testing.assert_equal(a, b)


@pytest.mark.parametrize("name", ["convolution", "linear"])
def test_a_weight_that_is_not_trained(name, kept):
    net, x = made(name)
    net.layer.parametrizations.weight.original.requires_grad_(False)
    got = gradients(net, x)
    kept()
    assert_same(got, gradients(net, x))


@pytest.mark.parametrize("name", ["convolution", "linear of tokens"])
def test_under_autocast(name, kept):
    def run(net, x):
        with torch.autocast("cpu", torch.bfloat16):
            return net(x).float()

    net, x = made(name)
    got = gradients(net, x, run)
    kept()
    assert_same(got, gradients(net, x, run))


@pytest.mark.parametrize("name", ["convolution", "linear of tokens"])
@pytest.mark.parametrize("way", ["checkpoint", "reentrant", "save_on_cpu"])
def test_others_that_hold_saved_tensors(name, way, kept):
    """Checkpointing and offloading see what they would see."""

    def run(net, x):
        if way == "save_on_cpu":
            with torch.autograd.graph.save_on_cpu():
                return net(x)
        return checkpoint(net, x.requires_grad_(), use_reentrant=way == "reentrant")

    net, x = made(name)
    got = gradients(net, x, run)
    kept()
    assert_same(got, gradients(net, x, run))


def test_a_layer_that_was_called_with_its_input_by_name(kept):
    net, x = made("linear")
    results = []
    for _ in range(2):
        layer = copy.deepcopy(net.layer)
        y = layer(input=x.clone().requires_grad_())
        y.sum().backward()
        results.append(layer.parametrizations.weight.original.grad)
        kept()
    testing.assert_equal(*results)
