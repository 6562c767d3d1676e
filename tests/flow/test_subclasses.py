"""Layers that derive from torch's: an integer layer takes their place only if it is the same."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from sparseq import NM, Layer, Plan, Quant, convert, explain, prepare
from sparseq.nn import SparseQuantConv2d, SparseQuantLinear


class SamePadding(nn.Conv2d):
    """Pads by the size of its input, as TensorFlow's and timm's Conv2dSame."""

    def forward(self, x):
        height, width = (2 - n % 2 for n in x.shape[2:])
        return super().forward(functional.pad(x, [width // 2, (width + 1) // 2, 0, height]))


class Standardised(nn.Conv2d):
    """Its weights have mean 0 and variance 1, as timm's StdConv2d."""

    def forward(self, x):
        weight = functional.layer_norm(self.weight, self.weight.shape[1:])
        return functional.conv2d(x, weight, self.bias, self.stride)


class Circular(nn.Conv2d):
    """Another product behind torch's forward."""

    def _conv_forward(self, x, weight, bias):
        return functional.conv2d(functional.pad(x, [0, 2, 0, 2], "circular"), weight, bias)


class Adapted(nn.Linear):
    """A product beside the product, and more arguments."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.side = nn.Linear(*sizes)

    def forward(self, x, scale):
        return super().forward(x) + scale * self.side(x)


class Restated(nn.Linear):
    """A forward of its own that is Linear's, as timm's Linear."""

    def forward(self, x):
        return functional.linear(x, self.weight, self.bias)


PLAN = Plan({"*": Layer(weight=Quant(axis=0), sparsity=NM(2, 4))})


@pytest.mark.parametrize("kind", [SamePadding, Standardised, Circular])
def test_what_computes_something_else_stays_float_and_keeps_its_batch_norm(kind):
    model = nn.Sequential(kind(4, 8, 3), nn.BatchNorm2d(8)).eval()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 9, 8)
    fast = convert(prepare(model, PLAN))
    assert torch.equal(fast(x), model(x))
    assert f"{kind.__name__} is no plain nn.Conv2d" in explain(fast).rows[0].note
    with pytest.raises(ValueError, match=f"from_float: {kind.__name__} is no plain nn.Conv2d"):
        SparseQuantConv2d.from_float(kind(4, 8, 3))


def test_a_forward_with_more_arguments_stays_float():
    assert "Adapted is no plain" in explain(convert(prepare(Adapted(8, 4), PLAN))).rows[0].note


def test_a_forward_that_is_the_layers_converts():
    class Renamed(nn.Conv2d):
        pass

    model = nn.Sequential(Renamed(4, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), Restated(32, 4)).eval()
    fast = convert(prepare(model, PLAN))
    assert isinstance(fast[0], SparseQuantConv2d) and isinstance(fast[3], SparseQuantLinear)
    assert isinstance(fast[1], nn.Identity)
    x = torch.randn(1, 4, 2, 2)
    assert torch.allclose(fast(x), model(x), atol=1e-5)
