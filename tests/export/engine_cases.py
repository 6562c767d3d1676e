"""Models that engines are built from; each is exported once in a test run."""

import copy
import functools
import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import sparseq
from sparseq import NM, Layer, Plan, Quant, export
from sparseq.run import models

FOLDER = tempfile.TemporaryDirectory(prefix="sparseq-engines-")

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs TensorRT-RTX: pip install 'sparseq[tensorrt-rtx]'",
)


class Block(nn.Module):
    def __init__(self, width=64, heads=4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        y = self.norm1(x)
        n, t, width = y.shape
        query, key, value = (
            layer(y).reshape(n, t, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        score = torch.softmax(query @ key.transpose(-1, -2) / (width // self.heads) ** 0.5, -1)
        x = x + self.out((score @ value).transpose(1, 2).reshape(n, t, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Its query, key and value layers share an input, which TensorRT makes one product of."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(48, 64), nn.Linear(64, 10)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def resnet18(whole):
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [2, 2, 2, 2] if whole else [1, 1, 1, 1], num_classes=100)


def mobilenet(whole):
    from torchvision.models import mobilenet_v2

    if whole:
        return mobilenet_v2(num_classes=100)
    return mobilenet_v2(
        num_classes=100, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
    )


class Mixed(nn.Module):
    """A grouped convolution, a layer in float, one on a weight alone, one that is called twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(8, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.fc, self.weight_only = nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.grouped(torch.relu(self.stem(x)))).mean((2, 3))
        return self.head(self.weight_only(self.fc(self.fc(x))))


WEIGHT = Quant(axis=0)
DENSE = Plan({"*": Layer(WEIGHT, Quant())})
SPARSE = Plan({"*": Layer(WEIGHT, Quant(), NM(2, 4))})
MIXED = Plan({"*": Layer(WEIGHT, Quant()), "head": None, "weight_only": Layer(WEIGHT)})
IMAGES, ROWS = (2, 3, 32, 32), (4, 16, 48)
# the whole networks with 2:4; with fewer blocks without, as tracing them takes the time
CASES = {
    "demo": (lambda: models.build("small", 3, 10), IMAGES, DENSE),
    "demo 2:4": (lambda: models.build("small", 3, 10), IMAGES, SPARSE),
    "resnet18": (lambda: resnet18(False), IMAGES, DENSE),
    "resnet18 2:4": (lambda: resnet18(True), IMAGES, SPARSE),
    "mobilenet": (lambda: mobilenet(False), IMAGES, DENSE),
    "mobilenet 2:4": (lambda: mobilenet(True), IMAGES, SPARSE),
    "transformer": (Transformer, ROWS, DENSE),
    "transformer 2:4": (Transformer, ROWS, SPARSE),
    "mixed": (Mixed, (2, 8, 6, 6), MIXED),
}


LAYER = "blocks.1.conv1"  # of "demo"


@functools.cache
def exported(name):
    """The case's converted model and its file."""
    make, shape, plan = CASES[name]
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    with torch.no_grad():
        model.train()(x * 2 + 0.5)
    sparseq.calibrate(sparseq.prepare(model.eval(), plan), [x])
    model = sparseq.convert(model)
    path = Path(FOLDER.name) / f"{name.replace(':', '')}.onnx"
    export.onnx(model, x, path, target="tensorrt", verify=False)
    return model, path


def build(path, folder, **arguments):
    """The audit's table of an engine for both devices in one, and its path."""
    arguments = {"compute_capabilities": ("8.6", "12.0"), "runtime": "tensorrt_rtx"} | arguments
    return export.tensorrt(path, folder / "m.engine", **arguments), folder / "m.engine"


def edited(name, edit, folder):
    """A copy of a case's file after `edit(graph)`."""
    proto = copy.deepcopy(onnx.load(exported(name)[1]))
    edit(Graph(proto.graph))
    del proto.graph.value_info[:]
    path = folder / "edited.onnx"
    onnx.save(proto, path)
    return path


class Graph:
    """A graph to edit."""

    def __init__(self, graph):
        self.graph = graph

    def node(self, kind, source=None, result=None):
        """The one node of an operator with that first input, or that output."""
        return next(
            n
            for n in self.graph.node
            if n.op_type == kind
            and (source is None or n.input[0] == source)
            and (result is None or n.output[0] == result)
        )

    def reader(self, value):
        return next(n for n in self.graph.node if value in n.input)

    def around(self, integers):
        """The nodes that make these integers, and read them."""
        return self.node("QuantizeLinear", result=integers), self.reader(integers)

    def value(self, name):
        return numpy_helper.to_array(next(t for t in self.graph.initializer if t.name == name))

    def constant(self, name, array):
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def rename_input(self, node, old, new):
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new

    def bypass(self, *nodes):
        """Let readers of the last node read the first one's input."""
        old, new = nodes[-1].output[0], nodes[0].input[0]
        for node in self.graph.node:
            self.rename_input(node, old, new)
        for node in nodes:
            self.graph.node.remove(node)
