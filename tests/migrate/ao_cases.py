"""Models under torch.ao.quantization's eager flow, as its lesson has them."""

import copy
import functools
import warnings

import torch
import torch.ao.quantization as tq
from torch import nn
from torch.ao.nn.quantized import FloatFunctional
from torch.nn import functional as F

FUSED = [["conv1", "bn1", "relu1"], ["conv2", "bn2"], ["conv3", "relu3"], ["fc1", "relu4"]]


class Lesson(nn.Module):
    """All that eager fusion makes: conv-bn-relu, conv-bn, conv-relu, linear-relu, linear."""

    def __init__(self, residual=True):
        super().__init__()
        self.residual = residual
        self.quant = tq.QuantStub()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(12)
        self.skip = FloatFunctional()
        self.conv3 = nn.Conv2d(12, 24, 3, stride=2, padding=1, groups=2)
        self.relu3 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(96, 32)
        self.relu4 = nn.ReLU()
        self.fc2 = nn.Linear(32, 10)
        self.dequant = tq.DeQuantStub()

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(self.quant(x))))
        y = self.bn2(self.conv2(x))
        x = self.skip.add_relu(y, x) if self.residual else y
        x = torch.flatten(self.pool(self.relu3(self.conv3(x))), 1)
        return self.dequant(self.fc2(self.relu4(self.fc1(x))))


def quietly(function, *args, **kwargs):
    """Call what torch has deprecated, and let nothing else pass."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "Please use quant_min and quant_max", UserWarning)
        warnings.filterwarnings("ignore", "must run observer", UserWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        return function(*args, **kwargs)


def train(model, data, epochs, rate=3e-3):
    optimizer = torch.optim.Adam(model.parameters(), rate)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        for x, y in data.train_batches(64, generator):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def prepare_qat(model, backend="fbgemm", fused=FUSED):
    model.train().qconfig = quietly(tq.get_default_qat_qconfig, backend)
    return quietly(tq.prepare_qat, tq.fuse_modules_qat(model, fused) if fused else model)


@functools.cache
def learned(data, residual):
    torch.manual_seed(0)
    model = Lesson(residual)
    train(model, data, 8)
    return model


def trained(data, backend="fbgemm", residual=True):
    """A float model of eight epochs, and torch.ao's of two more."""
    model = learned(data, residual)
    qat = prepare_qat(copy.deepcopy(model), backend)
    train(qat, data, 2, 1e-3)
    qat.apply(tq.disable_observer)
    qat.apply(torch.ao.nn.intrinsic.qat.freeze_bn_stats)
    return model, qat.eval()


def calibrated(model, batches, backend="fbgemm"):
    """torch.ao's post-training flow."""
    model = copy.deepcopy(model).eval()
    model.qconfig = quietly(tq.get_default_qconfig, backend)
    fused = tq.fuse_modules(model, FUSED)
    fused = quietly(tq.prepare, fused)
    with torch.no_grad():
        for x, _ in batches:
            fused(x)
    return fused


def outputs(model, data):
    """Logits of the test images, and the share of them that is right."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(x) for x, _ in data.test_batches()])
    return logits, float((logits.argmax(1) == data.y_test).float().mean())


def factor(module):
    """What the batch norm in a fused module multiplies each channel by."""
    if not hasattr(module, "bn"):
        return torch.ones(module.weight.shape[0])
    return (module.bn.weight / torch.sqrt(module.bn.running_var + module.bn.eps)).detach()


def relative(a, b):
    return float((a - b).norm() / b.norm())
