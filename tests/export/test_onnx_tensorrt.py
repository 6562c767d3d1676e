"""The profile for TensorRT: what its parser and its builder take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from export_cases import EXPORTERS, IMAGES, INPUT, SYMMETRIC, WEIGHT, Plain, Residual, made
from onnx import numpy_helper
from torch import nn

import sparseq
from sparseq import Layer, Plan, Quant, export

both = pytest.mark.parametrize("exporter", EXPORTERS)


@both
@pytest.mark.parametrize("name", ["tensorrt", "transformer, tensorrt"])
def test_every_layer_is_between_q_and_dq(name, exporter, exported):
    graph = exported(name, exporter).proto.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    maker = {output: node for node in graph.node for output in node.output}
    affine = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in affine:
        if len(node.input) > 2:
            assert constants[node.input[2]].dtype == np.int8
            assert not constants[node.input[2]].any()
    weights = [n for n in affine if n.input[0].endswith("weight_values")]
    layers = len(exported(name, exporter).weights())
    assert len(weights) == layers
    assert [a.i for n in weights for a in n.attribute if a.name == "axis"] == [0] * layers
    products = [n for n in graph.node if n.name.endswith(".product")]
    assert len(products) == layers
    for node in products:
        assert node.op_type in ("Conv", "Gemm", "MatMul")
        assert maker[node.input[0]].op_type == "DequantizeLinear"
        weight = maker[node.input[1]]
        weight = maker[weight.input[0]] if weight.op_type == "Transpose" else weight
        assert weight.op_type == "DequantizeLinear"
        for bias in node.input[2:]:
            assert constants[bias].dtype == np.float32
    assert not {"ConvInteger", "MatMulInteger"} & {n.op_type for n in graph.node}


@both
def test_only_what_could_round_to_minus_128_is_cut(exporter, exported):
    graph = exported("tensorrt", exporter).proto.graph
    clips = [n for n in graph.node if n.op_type == "Clip"]
    assert len(clips) == 1  # only the image has negative values


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (Layer(WEIGHT, INPUT), "the input of stem"),
        (Layer(Quant(axis=0, symmetric=False), Quant()), "the weight of stem"),
        (Layer(WEIGHT, Quant(signed=False)), "the input of stem"),
    ],
)
def test_other_grids_are_refused(layer, text, tmp_path):
    model, x = made(Residual, IMAGES, Plan({"*": layer}))
    with pytest.raises(ValueError, match=text):
        export.onnx(model, x, tmp_path / "m.onnx", target="tensorrt")
    assert not list(tmp_path.iterdir())


def test_full_range_products_are_verified_exactly(tmp_path):
    model = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    with torch.no_grad():
        for index in (0, 2):
            model[index].weight.fill_(1.0)
    x = torch.ones(2, 16, 6, 6)
    sparseq.calibrate(sparseq.prepare(model, SYMMETRIC), [x])
    given = {"target": "tensorrt", "exporter": "torchscript"}
    report = export.onnx(model, x, tmp_path / "m.onnx", **given)
    assert report.passed and report.max_difference == 0


@pytest.mark.parametrize("batch", [(8,), (4, 8)])
def test_full_range_linear_layers_are_verified_exactly(batch, tmp_path):
    """As a float graph: ONNX Runtime's own kernels for int8 x int8 saturate without VNNI."""
    model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 8)).eval()
    with torch.no_grad():
        for index in (0, 2):
            model[index].weight.fill_(1.0)
            model[index].weight[3:].neg_()
    x = torch.rand(*batch, 64)
    sparseq.calibrate(sparseq.prepare(model, SYMMETRIC), [x])
    given = {"target": "tensorrt", "exporter": "torchscript"}
    report = export.onnx(model, x, tmp_path / "m.onnx", **given)
    assert report.passed and report.max_difference <= 1
    assert report.output_difference < 1e-4


def test_a_changed_weight_is_caught(tmp_path):
    import onnx

    model, x = made(Plain, IMAGES, SYMMETRIC)
    path = tmp_path / "m.onnx"
    export.onnx(model, x, path, target="tensorrt", exporter="torchscript")
    proto = onnx.load(path)
    tensor = next(t for t in proto.graph.initializer if t.name == "3.weight_values")
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[5] ^= 64
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, path)
    report = export.verify(model, path, [x])
    assert not report.passed and report.layer == "3"
