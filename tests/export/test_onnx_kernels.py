"""Which kernels ONNX Runtime puts the layers on: every layer that can runs on integers."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from export_cases import (
    EXPORTERS,
    IMAGES,
    INT8,
    SYMMETRIC,
    Perceptron,
    Transformer,
    made,
    optimised_ops,
    run,
)
from torch import nn

import sparseq
from sparseq import Layer, Plan, Quant, export
from sparseq.export.view import quantised_layers
from sparseq.nn import SparseQuantLinear

FLOAT_PRODUCTS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
both = pytest.mark.parametrize("exporter", EXPORTERS)


def floats(ops):
    return sum(ops[kind] for kind in FLOAT_PRODUCTS)


def onnx_ops(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def kinds(path):
    return Counter(kernel.kernel for kernel in export.kernels(path))


@both
def test_what_is_quantised_on_both_sides_is_one_kernel(exporter, exported, tmp_path):
    case = exported("plain", exporter)
    assert [str(k) for k in export.kernels(case.path)] == [
        "0: QLinearConv",
        "3: QLinearConv",
        "6: QGemm",
        "8: MatMulInteger",
    ]
    ops = optimised_ops(case.path, tmp_path)
    assert (ops["QLinearConv"], ops["QGemm"], ops["MatMulInteger"]) == (2, 1, 1)
    assert floats(ops) == 0
    assert ops["DequantizeLinear"] == 0
    assert ops["Cast"] == 1  # the head's sum: nothing is left to compute on weights


@both
def test_a_float_layer_is_named_with_the_reason(exporter, exported, tmp_path):
    case = exported("residual", exporter)
    found = {kernel.layer: kernel for kernel in export.kernels(case.path)}
    assert {name: k.integer for name, k in found.items()} == {
        "stem": True,
        "conv1": True,
        "conv2": False,
        "shortcut": True,
        "fc": True,
    }
    assert "depthwise" in found["conv2"].reason and "ConvInteger" in found["conv2"].reason
    assert str(found["conv2"]).startswith("conv2: Conv (a depthwise convolution")
    assert floats(optimised_ops(case.path, tmp_path)) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        found["stem"].integer = False


@both
def test_zero_points_of_channels_keep_a_convolution_in_float(exporter, exported):
    found = {k.layer: k for k in export.kernels(exported("zero points", exporter).path)}
    assert found["fc"].kernel == "MatMulInteger"
    assert not found["stem"].integer
    assert "one zero point for all channels" in found["stem"].reason


def test_weights_alone_are_computed_in_float(tmp_path):
    model, x = made(Perceptron, (32, 32), Plan({"*": Layer(Quant(axis=0))}))
    export.onnx(model, x, tmp_path / "m.onnx", exporter="torchscript")
    found = export.kernels(tmp_path / "m.onnx")
    assert not any(k.integer for k in found)
    assert {k.reason for k in found} == {"its input is not quantised"}


def test_groups_are_computed_in_float(exported):
    found = {k.layer: k for k in export.kernels(exported("mixed rows", "torchscript").path)}
    assert found["0"].reason == "group scales have no integer kernel"
    assert found["4"].integer


def test_a_file_for_tensorrt_says_so(exported):
    found = export.kernels(exported("tensorrt").path)
    assert len(found) == 5
    assert all(k.integer or k.reason for k in found)


def test_kernels_wants_a_file_of_export(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match="kernels: path must name a file"):
        export.kernels(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ValueError, match=r"kernels: .* is not a sound ONNX file"):
        export.kernels(tmp_path / "text.onnx")
    proto = onnx.load(exported("plain").path)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match=r"kernels: path must name a file of export\.onnx"):
        export.kernels(tmp_path / "foreign.onnx")


@pytest.mark.parametrize(
    ("name", "exporter", "plan"),
    [
        ("resnet18", "dynamo", INT8),
        ("resnet18", "torchscript", INT8),
        ("resnet18", "torchscript", SYMMETRIC),
        ("mobilenet_v2", "torchscript", INT8),
        ("mobilenet_v2", "torchscript", SYMMETRIC),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.rules["*"].input.symmetric),
)
def test_known_networks_run_on_integers_alone(name, exporter, plan, tmp_path):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model, x = getattr(models, name)(num_classes=100), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 64, 64))
    sparseq.calibrate(sparseq.prepare(model.eval(), plan), [x])
    fast = sparseq.convert(model)
    report = export.onnx(fast, x, tmp_path / "m.onnx", exporter=exporter)
    assert report.passed, report
    assert report.argmax_agreement == 1.0
    found = export.kernels(tmp_path / "m.onnx")
    assert len(found) == len(quantised_layers(fast))
    assert all(k.integer for k in found), [str(k) for k in found if not k.integer]
    assert floats(optimised_ops(tmp_path / "m.onnx", tmp_path)) == 0
    counted = Counter(k.kernel for k in found)
    # what feeds an addition or a pooling is not quantised again at once
    again = {"resnet18": (8, 12), "mobilenet_v2": (36, 16)}[name]
    assert (counted["QLinearConv"], counted["ConvInteger"]) == again
    assert counted["MatMulInteger"] == 1


@both
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_transformer_runs_on_integers(dynamic, exporter, tmp_path):
    if dynamic:
        torch.manual_seed(0)
        model, x = Transformer().eval(), torch.randn(IMAGES)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear):
                parent = model.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], SparseQuantLinear.from_float(layer))
    else:
        model, x = made(Transformer, IMAGES, INT8)
    report = export.onnx(model, x, tmp_path / "m.onnx", exporter=exporter)
    assert report.passed, report
    found = export.kernels(tmp_path / "m.onnx")
    assert {k.kernel for k in found} <= {"MatMulInteger", "MatMulIntegerToFloat", "ConvInteger"}
    assert len(found) == (5 if dynamic else 6)
    # attention multiplies activations: two products that belong to no layer
    ops = optimised_ops(tmp_path / "m.onnx", tmp_path)
    assert ops["MatMul"] + ops["FusedMatMul"] == 2
    assert ops["Gemm"] == 0 and ops["Conv"] + ops["FusedConv"] == int(dynamic)


def test_full_range_products_do_not_saturate(tmp_path):
    """On x86 without VNNI the usual uint8 x int8 kernel would give about half of the sum.

    The third channel is one that batch norm switched off: its bias does not fit int32.
    """
    model = nn.Sequential(
        nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1),
        nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(288, 16), nn.ReLU(),
        nn.Linear(16, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for index in (0, 3, 5, 7, 9):
            model[index].weight.fill_(1.0)
        model[1].weight[2], model[1].bias[2] = 1e-12, 99.0
    x = torch.ones(2, 16, 6, 6)
    sparseq.calibrate(sparseq.prepare(model, INT8), [x])
    export.onnx(model, x, tmp_path / "m.onnx")
    assert [k.kernel for k in export.kernels(tmp_path / "m.onnx")] == [
        "ConvInteger",  # its bias
        "QLinearConv",
        "QLinearConv",
        "QGemm",
        "MatMulInteger",
    ]
    wanted = sparseq.convert(model)(x).numpy()
    assert np.abs(run(tmp_path / "m.onnx", x) - wanted).max() <= 0.01 * wanted.max()


@pytest.mark.parametrize("grid", [Quant(symmetric=False), Quant(), Quant(bits=6)], ids=str)
@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.7), nn.SiLU()], ids=str
)
def test_cuts_become_cuts_of_integers(activation, grid, tmp_path):
    """A ReLU before a quantiser keeps no layer off the fused kernel, whatever the grid covers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), activation, nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.Flatten()
    ).eval()
    x = 3 * torch.randn(8, 4, 12, 12)
    plan = Plan({"*": Layer(Quant(axis=0), grid)})
    sparseq.calibrate(sparseq.prepare(model, plan), [x])
    fast = sparseq.convert(model)
    joined = not isinstance(activation, nn.SiLU)
    for factor in (1.0, 4.0, 0.3):  # the grid reaches further than the cut, or less far
        fast[3].input_scale = fast[3].input_scale * factor
        report = export.onnx(fast, x, tmp_path / "m.onnx", exporter="torchscript")
        assert report.passed, report
        assert report.max_difference <= 1
        assert kinds(tmp_path / "m.onnx")["QLinearConv"] == joined
        assert onnx_ops(tmp_path / "m.onnx")["Relu"] == 0


class Forked(nn.Module):
    """A result that is cut for one reader and not for the other."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3)
        self.left = nn.Conv2d(8, 8, (3, 1), (2, 1), padding=(1, 2), dilation=(2, 1), groups=2)
        self.right = nn.Conv2d(8, 8, (3, 1), (2, 1), padding=(1, 2), dilation=(2, 1))

    def forward(self, x):
        x = self.first(x)
        return (self.left(torch.relu(x)) + self.right(x)).flatten(1)


@both
def test_a_fork_before_a_cut_is_not_joined(exporter, tmp_path):
    model, x = made(Forked, IMAGES, SYMMETRIC)
    report = export.onnx(model, x, tmp_path / "m.onnx", exporter=exporter)
    assert report.passed, report
    assert kinds(tmp_path / "m.onnx") == {"ConvInteger": 3}
    assert onnx_ops(tmp_path / "m.onnx")["Relu"] == 1
