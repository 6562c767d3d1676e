"""Exported files: what is in them, and that ONNX Runtime gives the model's numbers."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from export_cases import CASES, EXPORTERS, SYMMETRIC, made, properties, run
from onnx import TensorProto, numpy_helper
from torch import nn

import sparseq
from sparseq import Quant, export
from sparseq.export.view import quantised_layers
from sparseq.nn import SparseQuantConv2d, SparseQuantLinear

both = pytest.mark.parametrize("exporter", EXPORTERS)


@both
@pytest.mark.parametrize("name", CASES)
def test_onnx_runtime_gives_the_models_numbers(name, exporter, exported):
    case = exported(name, exporter)
    x = case.x
    batches = [x, x * 3] if name == "odd" else [x, x[:1], x[:7] * 3]
    report = export.verify(case.model, case.path, batches)
    assert report.passed, report
    assert report.max_difference <= 1
    assert report.batches == len(batches)
    assert report.layer is None
    assert case.report.passed and case.report.batches == 1


@both
@pytest.mark.parametrize("name", CASES)
def test_weights_are_stored_as_the_models_integers(name, exporter, exported):
    case = exported(name, exporter)
    layers = quantised_layers(case.model)
    assert set(case.weights()) == set(layers)
    for layer_name, stored in case.weights().items():
        spec, values = layers[layer_name].weight_spec, layers[layer_name].weight_values
        four = spec.bits <= 4 and "oldest" not in name
        wanted = {(0, 1): "INT8", (0, 0): "UINT8", (1, 1): "INT4"}[four, spec.signed]
        assert stored.data_type == TensorProto.DataType.Value(wanted)
        if four:
            assert len(stored.raw_data) == (values.numel() + 1) // 2
        integers = numpy_helper.to_array(stored).astype(np.int16).ravel()
        assert np.array_equal(integers, values.numpy().ravel())
    largest = max(
        np.prod(t.dims) for t in case.proto.graph.initializer if t.data_type == TensorProto.FLOAT
    )
    assert largest <= 192


@both
@pytest.mark.parametrize("name", ["residual", "transformer"])
def test_the_file_is_clean(name, exporter, exported):
    case = exported(name, exporter)
    proto = case.proto
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    known = {value.name for value in inferred.graph.value_info}
    made_values = {name for node in proto.graph.node for name in node.output}
    assert made_values - known <= {"output"}
    assert [i.name for i in proto.graph.input] == ["input"]
    assert [o.name for o in proto.graph.output] == ["output"]
    for value, rest in ((proto.graph.input[0], [4, 8, 8]), (proto.graph.output[0], [10])):
        dimensions = value.type.tensor_type.shape.dim
        assert dimensions[0].dim_param == "batch"
        assert [d.dim_value for d in dimensions[1:]] == rest
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 21)]
    assert {node.domain for node in proto.graph.node} == {""}
    data = case.path.read_bytes()
    assert b".py" not in data and b"site-packages" not in data  # no paths of source files
    for node in proto.graph.node:
        assert not any("/" in name for name in (node.name, *node.input, *node.output))
        assert not node.doc_string and not node.metadata_props
    names = [node.name for node in proto.graph.node]
    assert all(names) and len(set(names)) == len(names)
    assert b"onnx::" not in data
    assert not list(case.path.parent.glob(".*"))


@both
@pytest.mark.parametrize("batch", [1, 7])
def test_the_batch_is_dynamic(batch, exporter, exported):
    case = exported("plain", exporter)
    y, wanted = run(case.path, case.x[:batch]), case.model(case.x[:batch])
    assert y.shape == (batch, 10)
    assert np.abs(y - wanted.numpy()).max() <= 0.02 * float(wanted.abs().max())


@both
def test_a_fixed_batch(exporter, exported):
    case = exported("odd", exporter)
    assert case.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 8
    with pytest.raises(ValueError, match="cannot run the file"):
        export.verify(case.model, case.path, [case.x[:4]])


@both
def test_calls_of_one_layer(exporter, exported):
    calls = json.loads(properties(exported("odd", exporter).path)["sparseq_layers"])
    assert list(calls) == ["fc", "fc@1"]


@both
def test_calls_of_one_layer_after_other_cuts(exporter, tmp_path):
    """What is cut before one call must not be before the other."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return self.again(self.again(torch.relu(self.first(x))).clamp(-0.1, 0.2))

    model, x = made(Twice, (32, 16), SYMMETRIC)
    report = export.onnx(model, x, tmp_path / "m.onnx", exporter=exporter)
    assert report.passed, report
    assert [k.kernel for k in export.kernels(tmp_path / "m.onnx")] == ["QGemm"] * 2 + [
        "MatMulInteger"
    ]


@both
def test_integers_give_the_models_floats_bit_for_bit(exporter, exported):
    """Exact int32 sums, then the model's own formula: no tolerance."""
    case = exported("transformer", exporter)
    calls = json.loads(properties(case.path)["sparseq_layers"])
    assert {call["form"] for call in calls.values()} == {"ConvInteger", "MatMulInteger"}
    model = case.model.patch
    q = model.quantize_input(case.x)[0]
    proto = onnx.ModelProto()
    proto.CopyFrom(case.proto)
    proto.graph.output.append(onnx.ValueInfoProto(name=calls["patch"]["values"]["output"]))
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString())
    got = session.run([calls["patch"]["values"]["output"]], {"input": case.x.numpy()})[0]
    assert q.dtype == torch.int8
    assert np.array_equal(got, model(case.x).numpy())


@both
def test_a_layer_alone(exporter, tmp_path):
    """The model is itself a layer."""
    torch.manual_seed(0)
    model, x = SparseQuantLinear.from_float(nn.Linear(16, 8), input=Quant()), torch.randn(3, 16)
    assert export.onnx(model, x, tmp_path / "m.onnx", exporter=exporter).passed
    assert np.array_equal(run(tmp_path / "m.onnx", x), model(x).numpy())
    (kernel,) = export.kernels(tmp_path / "m.onnx")
    assert (kernel.layer, kernel.kernel, kernel.integer) == ("", "MatMulInteger", True)


@both
def test_halves(exporter, tmp_path):
    """Layers compute in float32 and round what they give; no kernel may join two of them."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            grid = {"scale": torch.tensor(0.02), "zero_point": torch.tensor(0, dtype=torch.int32)}
            self.first = SparseQuantConv2d.from_float(nn.Conv2d(4, 8, 3), input=Quant(), **grid)
            self.second = SparseQuantConv2d.from_float(nn.Conv2d(8, 4, 1), input=Quant(), **grid)

        def forward(self, x):
            return self.second(torch.relu(self.first(x.half()))).float().flatten(1)

    torch.manual_seed(0)
    model, x = Half().eval(), torch.randn(3, 4, 8, 8)
    report = export.onnx(model, x, tmp_path / "h.onnx", exporter=exporter)
    assert report.passed, report
    assert {k.kernel for k in export.kernels(tmp_path / "h.onnx")} == {"ConvInteger"}


@both
def test_each_batchs_own_range(exporter, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        SparseQuantConv2d.from_float(nn.Conv2d(4, 8, 3), input=Quant(symmetric=False)),
        nn.ReLU(),
        SparseQuantConv2d.from_float(nn.Conv2d(8, 8, 1), input=Quant()),
        nn.Flatten(),
        SparseQuantLinear.from_float(nn.Linear(288, 6), input=Quant(bits=5, symmetric=False)),
    )
    x = torch.randn(5, 4, 8, 8)
    export.onnx(model, x[:2], tmp_path / "m.onnx", exporter=exporter)
    report = export.verify(model, tmp_path / "m.onnx", [x, 5 * x, torch.zeros_like(x)])
    assert report.passed, report
    assert all(kernel.integer for kernel in export.kernels(tmp_path / "m.onnx"))
    with pytest.raises(ValueError, match="the input of 0 takes"):
        model[0].input_spec = Quant()
        model[4].input_spec = Quant()
        export.onnx(model, x, tmp_path / "n.onnx", target="tensorrt")


GRIDS = [Quant(), Quant(symmetric=False), Quant(bits=5, symmetric=False), Quant(signed=False)]


@pytest.mark.parametrize(
    ("exporter", "batch", "grid"),
    [("torchscript", batch, grid) for batch in [(6,), (3, 7)] for grid in GRIDS]
    + [("dynamo", (3, 7), GRIDS[2])],  # slower; the grid is computed alike
)
def test_each_rows_own_range(exporter, batch, grid, tmp_path):
    """Per token, between layers that are and that are not; the numbers are those of the op."""
    torch.manual_seed(0)
    fixed = {"scale": torch.tensor(0.02), "zero_point": torch.tensor(-100, dtype=torch.int32)}
    model = nn.Sequential(
        SparseQuantLinear.from_float(nn.Linear(32, 48), input=grid),
        nn.ReLU(),
        SparseQuantLinear.from_float(nn.Linear(48, 40), input=Quant(symmetric=False), **fixed),
        nn.ReLU(),
        SparseQuantLinear.from_float(nn.Linear(40, 24), Quant(group_size=8), grid),
        nn.Tanh(),
        SparseQuantLinear.from_float(nn.Linear(24, 10), Quant(axis=0, symmetric=False), grid),
    )
    x = torch.randn(*batch, 32) * torch.logspace(-2, 2, batch[-1])[:, None]
    export.onnx(model, x[:2], tmp_path / "m.onnx", exporter=exporter)
    report = export.verify(model, tmp_path / "m.onnx", [x, 5 * x, torch.zeros_like(x), x[:1]])
    assert report.passed, report
    calls = json.loads(properties(tmp_path / "m.onnx")["sparseq_layers"])
    assert all(set(call["values"]) == {"input", "output"} for call in calls.values())
    integer = [kernel.integer for kernel in export.kernels(tmp_path / "m.onnx")]
    assert integer == [True, True, False, True]


def test_the_model_is_not_changed(exported):
    case = exported("residual")
    fresh = sparseq.convert(made(*CASES["residual"][:3])[0])
    assert torch.equal(case.model(case.x), fresh(case.x))
