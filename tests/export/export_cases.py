"""The models that the export tests share, and how to look at a file."""

from __future__ import annotations

from collections import Counter

import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn import functional

import sparseq
from sparseq import NM, Layer, Plan, Quant, Unstructured, export

WEIGHT, INPUT = Quant(axis=0), Quant(symmetric=False)
INT8 = Plan({"*": Layer(WEIGHT, INPUT)})
SYMMETRIC = Plan({"*": Layer(WEIGHT, Quant())})
EXPORTERS = ("dynamo", "torchscript")


class Residual(nn.Module):
    """A stem, a residual block with a shortcut, a grouped and a depthwise convolution, a head."""

    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Conv2d(4, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, 2, padding=1, groups=2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(width, width, 1, 2)
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        y = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
        return self.fc(x.mean((2, 3)))


class Plain(nn.Sequential):
    """A stack of convolutions, as most integer kernels as can be."""

    def __init__(self, width=64):
        super().__init__(
            nn.Conv2d(4, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * width, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )


class Perceptron(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 10)
        )


class Odd(nn.Module):
    """A layer that has no integer kernel, and one that is called twice."""

    def __init__(self):
        super().__init__()
        self.reflect = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        x = torch.relu(self.reflect(x)).mean(1).flatten(1)
        return self.fc(self.fc(x))


class Pieces(nn.Module):
    """Operators that changed between opsets, around a few layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = functional.relu6(self.first(x))
        y = self.project(functional.relu6(self.depthwise(x)))
        x = functional.pad(functional.max_pool2d(x + y, 2), (1, 1, 1, 1))
        x, y = functional.interpolate(x, scale_factor=2.0).chunk(2, 1)
        pooled = [x.mean((2, 3)), y.amax((2, 3)), x.sum((2, 3)) / 64, y.std((2, 3))]
        return self.head(torch.cat(pooled, 1))


class Block(nn.Module):
    """Pre-norm attention and a GELU perceptron."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A small vision transformer."""

    def __init__(self, width=32, depth=1, heads=4):
        super().__init__()
        self.patch = nn.Conv2d(4, width, 4, 4)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


IMAGES, ROWS = (16, 4, 8, 8), (32, 32)
MIXED_IMAGES = Plan(
    {
        "0": Layer(WEIGHT, Quant(), NM(2, 4)),
        "3": Layer(Quant(bits=4, axis=0), INPUT, Unstructured(0.7)),
        "6": Layer(Quant(symmetric=False), Quant(signed=False, symmetric=False)),
        "8": Layer(Quant(axis=0, signed=False, symmetric=False), Quant(signed=False)),
    }
)
MIXED_ROWS = Plan(
    {
        "0": Layer(Quant(bits=4, group_size=16), INPUT),
        "2": Layer(Quant(group_size=16, symmetric=False)),
        "4": Layer(Quant(bits=3, axis=0, symmetric=False), Quant(bits=4, symmetric=False)),
    }
)
ZERO_POINTS = Plan({"*": Layer(Quant(axis=0, symmetric=False), INPUT)})
LEARNED = Plan({"*": Layer(Quant(axis=0, learned=True), Quant(symmetric=False, learned=True))})

CASES = {  # model, shape of its input, plan, arguments of export.onnx
    "residual": (Residual, IMAGES, INT8, {}),
    "symmetric": (Residual, IMAGES, SYMMETRIC, {}),
    "tensorrt": (Residual, IMAGES, SYMMETRIC, {"target": "tensorrt"}),
    "plain": (Plain, IMAGES, Plan({"*": Layer(WEIGHT, INPUT, NM(2, 4))}), {}),
    "mixed images": (Plain, IMAGES, MIXED_IMAGES, {}),
    "mixed rows": (Perceptron, ROWS, MIXED_ROWS, {"opset": 23}),
    "mixed rows, oldest opset": (Perceptron, ROWS, MIXED_ROWS, {"opset": 17}),
    "zero points": (Residual, IMAGES, ZERO_POINTS, {}),
    "odd": (Odd, (8, 4, 4, 4), LEARNED, {"dynamic_batch": False}),
    "transformer": (Transformer, IMAGES, INT8, {}),
    "transformer, tensorrt": (Transformer, IMAGES, SYMMETRIC, {"target": "tensorrt"}),
}


def made(kind, shape, plan):
    """A prepared, calibrated model with lively batch norms, and data of its kind."""
    torch.manual_seed(0)
    model, x = kind(), torch.randn(shape)
    with torch.no_grad():
        model.train()(x * 2 + 0.5)
    sparseq.prepare(model.eval(), plan)
    return sparseq.calibrate(model, [x]), x


class Exported:
    """One case: the converted model, its data, its file."""

    def __init__(self, name, exporter, folder):
        kind, shape, self.plan, arguments = CASES[name]
        self.prepared, self.x = made(kind, shape, self.plan)
        self.model = sparseq.convert(self.prepared)
        self.path = folder / f"{name} {exporter}.onnx"
        self.report = export.onnx(self.model, self.x, self.path, exporter=exporter, **arguments)
        self.proto = onnx.load(self.path)

    def weights(self):
        return {
            tensor.name.removesuffix(".weight_values"): tensor
            for tensor in self.proto.graph.initializer
            if tensor.name.endswith(".weight_values")
        }


def properties(path):
    """A file's metadata."""
    return {p.key: p.value for p in onnx.load(path).metadata_props}


def run(path, x):
    """ONNX Runtime's answer."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["output"], {"input": x.numpy()})[0]


def optimised_ops(path, folder):
    """How often each operator occurs in ONNX Runtime's optimised graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)
