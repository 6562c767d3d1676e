"""What the tests of lowering share."""

import torch
from torch import nn

from sparseq import Layer, Plan, Quant, calibrate, convert, explain, prepare
from sparseq.lower import Lowered

BOTH = Layer(weight=Quant(axis=0), input=Quant(symmetric=False))


def settle(net, x):
    """Batch norms that have seen data, so that random weights do not amplify rounding."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    if not any(isinstance(m, norms) for m in net.modules()):
        return net.eval()
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, *x.shape[1:]))
    return net.eval()


def fast_of(net, x, plan=BOTH):
    """The network converted, calibrated on x."""
    plan = plan if isinstance(plan, Plan) else Plan({"*": plan})
    prepare(net.eval(), plan)
    calibrate(net, [x])
    with torch.no_grad():
        return convert(net, x)


def lowered(net, x, plan=BOTH):
    fast = fast_of(net, x, plan)
    assert isinstance(fast, Lowered), getattr(fast, "sparseq_unlowered", "not lowered")
    return fast


def assert_all_in_programs(fast):
    rows = [row for row in explain(fast).rows if row.kind.startswith("SparseQuant")]
    assert rows and [row.name for row in rows if not row.program] == []


def ops_of(fast):
    """Of all programs, in order."""
    return [i.op for p in fast.assembled.programs for i in p.instructions]


def rounded(layer, x):
    """X as it lies on the layer's input grid."""
    return layer._rounded_input(x)


def relative(a, b):
    """Root mean square of the difference by that of b."""
    return float(((a - b).square().mean() / b.square().mean()).sqrt())


class Chain(nn.Module):
    """A forward given as a function of the module and x."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)
