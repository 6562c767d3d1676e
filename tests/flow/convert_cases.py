"""Networks with batch norms, and how their converted form is compared."""

import copy

import torch
from torch import nn

from sparseq import (
    Layer,
    Plan,
    Quant,
    calibrate,
    convert,
    prepare,
    testing,
)
from sparseq.nn import SparseQuantLayer

BOTH = Layer(weight=Quant(axis=0), input=Quant(symmetric=False))


def settle(model):
    """Batch norms with the statistics and factors of a trained model, some negative, one zero."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 3)
            if module.affine:
                module.weight.data.normal_()
                module.weight.data[0], module.weight.data[-1] = -0.7, 0.0
                module.bias.data.normal_()
    return model.eval()


def prepared(model, x, plan=BOTH):
    plan = plan if isinstance(plan, Plan) else Plan({"*": plan})
    return calibrate(prepare(settle(model), plan), [x])


def agree(model, x, lsb=1.0):
    """The converted model, after comparing it with the fake-quantised one."""
    with torch.no_grad():
        wanted, state = model(x), copy.deepcopy(model.state_dict())
        fast = convert(model)
        for _ in testing.every_isa():
            step = (wanted.max() - wanted.min()) / 255
            testing.assert_within_lsb(fast(x), wanted, step, lsb=lsb)
        testing.assert_equal(model(x), wanted)
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            testing.assert_equal(value, state[name], message=name)
    return fast


def integer(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseQuantLayer)}


def conv_net(bias=True, affine=True):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=bias),
        nn.BatchNorm2d(8, affine=affine),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=8, bias=bias),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 12, 1, bias=bias),
        nn.Flatten(),
        nn.Linear(12 * 16, 16, bias=bias),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 5, bias=bias),
    )


IMAGES = (6, 3, 10, 10)
