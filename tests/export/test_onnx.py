"""Exported files: what is in them, and that ONNX Runtime gives the model's numbers.

An export takes torch seconds, so each model is exported once and looked at by several tests.
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

import sparseq
from sparseq import NM, Layer, Plan, Quant, Unstructured, export
from sparseq.export.translate import NOT_EXPORTED, translations
from sparseq.export.view import quantised_layers
from sparseq.nn import SparseQuantConv2d, SparseQuantLinear

WEIGHT, INPUT = Quant(axis=0), Quant(symmetric=False)
INT8 = Plan({"*": Layer(WEIGHT, INPUT)})
SYMMETRIC = Plan({"*": Layer(WEIGHT, Quant())})


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
LEARNED = Plan({"*": Layer(Quant(axis=0, learned=True), Quant(symmetric=False, learned=True))})

CASES = {  # model, shape of its input, plan, arguments of export.onnx
    "residual": (Residual, IMAGES, INT8, {}),
    "symmetric": (Residual, IMAGES, SYMMETRIC, {}),
    "tensorrt": (Residual, IMAGES, SYMMETRIC, {"target": "tensorrt"}),
    "plain": (Plain, IMAGES, Plan({"*": Layer(WEIGHT, INPUT, NM(2, 4))}), {}),
    "mixed images": (Plain, IMAGES, MIXED_IMAGES, {}),
    "mixed rows": (Perceptron, ROWS, MIXED_ROWS, {"opset": 23}),
    "mixed rows, oldest opset": (Perceptron, ROWS, MIXED_ROWS, {"opset": 18}),
    "odd": (Odd, (8, 4, 4, 4), LEARNED, {"dynamic_batch": False}),
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

    def __init__(self, name, folder):
        kind, shape, self.plan, arguments = CASES[name]
        prepared, self.x = made(kind, shape, self.plan)
        self.model = sparseq.convert(prepared)
        self.path = folder / f"{name}.onnx"
        export.onnx(self.model, self.x, self.path, **arguments)
        self.proto = onnx.load(self.path)

    def weights(self):
        return {
            tensor.name.removesuffix(".weight_values"): tensor
            for tensor in self.proto.graph.initializer
            if tensor.name.endswith(".weight_values")
        }


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def get(name):
        if name not in done:
            done[name] = Exported(name, folder)
        return done[name]

    return get


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["output"], {"input": x.numpy()})[0]


def optimised_ops(path, folder):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize("name", CASES)
def test_onnx_runtime_gives_the_models_numbers(name, exported):
    case = exported(name)
    x = case.x
    batches = [x, x * 3] if name == "odd" else [x, x[:1], x[:7] * 3]
    report = export.verify(case.model, case.path, batches)
    assert report.passed, report
    assert report.max_difference <= 1
    assert report.batches == len(batches)
    assert report.layer is None


@pytest.mark.parametrize("name", CASES)
def test_weights_are_stored_as_the_models_integers(name, exported):
    case = exported(name)
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
    assert largest <= 192 if name.startswith("mixed rows") else largest <= 144


def test_the_file_is_clean(exported):
    case = exported("residual")
    proto = case.proto
    onnx.checker.check_model(proto, full_check=True)
    assert [i.name for i in proto.graph.input] == ["input"]
    assert [o.name for o in proto.graph.output] == ["output"]
    dimensions = proto.graph.input[0].type.tensor_type.shape.dim
    assert dimensions[0].dim_param == "batch"
    assert [d.dim_value for d in dimensions[1:]] == [4, 8, 8]
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 21)]
    properties = {p.key: p.value for p in proto.metadata_props}
    assert properties["sparseq_version"] == sparseq.__version__
    layers = json.loads(properties["sparseq_layers"])
    assert list(layers) == ["stem", "conv1", "conv2", "shortcut", "fc"]
    assert Quant(**layers["conv1"]["weight"]) == WEIGHT
    assert Quant(**layers["conv1"]["input"]) == INPUT
    assert b".py" not in case.path.read_bytes()  # no paths of source files
    assert not list(case.path.parent.glob(".*"))


@pytest.mark.parametrize("batch", [1, 7])
def test_the_batch_is_dynamic(batch, exported):
    case = exported("plain")
    y, wanted = run(case.path, case.x[:batch]), case.model(case.x[:batch])
    assert y.shape == (batch, 10)
    assert np.abs(y - wanted.numpy()).max() <= 0.02 * float(wanted.abs().max())


def test_a_fixed_batch(exported):
    case = exported("odd")
    assert case.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 8
    with pytest.raises(ValueError, match="cannot run the file"):
        export.verify(case.model, case.path, [case.x[:4]])


def test_opsets(exported):
    versions = {
        name: exported(name).proto.opset_import[0].version
        for name in ("plain", "mixed rows", "mixed rows, oldest opset")
    }
    assert list(versions.values()) == [21, 23, 18]


def test_calls_of_one_layer(exported):
    properties = {p.key: p.value for p in exported("odd").proto.metadata_props}
    assert list(json.loads(properties["sparseq_layers"])) == ["fc", "fc@1"]


def test_the_file_is_a_quarter(exported, tmp_path):
    case = exported("plain")
    export.onnx(Plain(), case.x, tmp_path / "float.onnx")
    assert (tmp_path / "float.onnx").stat().st_size > 3.6 * case.path.stat().st_size


def test_zeros_stay_zeros(exported):
    weights = exported("plain").weights()
    for name in ("0", "3", "6"):
        stored = numpy_helper.to_array(weights[name])
        groups = np.moveaxis(stored, 1, -1).reshape(-1, 4)
        assert ((groups != 0).sum(1) <= 2).all(), name
    stored = numpy_helper.to_array(exported("mixed images").weights()["3"])
    assert (stored.astype(np.int8) == 0).mean() >= 0.7


def test_integer_kernels_run(exported, tmp_path):
    """What is quantised on both sides runs on integers; nothing is left to compute on weights."""
    ops = optimised_ops(exported("plain").path, tmp_path)
    assert ops["QLinearConv"] == 2
    assert ops["QGemm"] == 1
    assert ops["Conv"] + ops["FusedConv"] == 0
    assert ops["Gemm"] == 1  # the head: its result is not quantised
    assert ops["Cast"] == 0
    ops = optimised_ops(exported("residual").path, tmp_path)
    assert ops["QLinearConv"] == 2
    assert ops["Conv"] + ops["FusedConv"] == 2  # they feed the residual addition
    assert ops["Cast"] == 0


def test_full_range_products_do_not_saturate(tmp_path):
    """On x86 without VNNI the usual uint8 x int8 kernel would give about half of the sum.

    The third channel is one that batch norm switched off: its bias does not fit int32.
    """
    model = nn.Sequential(
        nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1),
        nn.ReLU(), nn.Conv2d(8, 8, 1),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for index in (0, 3, 5):
            model[index].weight.fill_(1.0)
        model[1].weight[2], model[1].bias[2] = 1e-12, 99.0
    x = torch.ones(2, 16, 6, 6)
    sparseq.calibrate(sparseq.prepare(model, INT8), [x])
    export.onnx(model, x, tmp_path / "m.onnx")
    assert optimised_ops(tmp_path / "m.onnx", tmp_path)["QLinearConv"] == 1
    wanted = sparseq.convert(model)(x).numpy()
    assert np.abs(run(tmp_path / "m.onnx", x) - wanted).max() <= 0.01 * wanted.max()


def test_each_batchs_own_range(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        SparseQuantConv2d.from_float(nn.Conv2d(4, 8, 3), input=Quant(symmetric=False)),
        nn.ReLU(),
        SparseQuantConv2d.from_float(nn.Conv2d(8, 8, 1), input=Quant()),
        nn.Flatten(),
        SparseQuantLinear.from_float(nn.Linear(288, 6), input=Quant(bits=5, symmetric=False)),
    )
    x = torch.randn(5, 4, 8, 8)
    export.onnx(model, x[:2], tmp_path / "m.onnx")
    report = export.verify(model, tmp_path / "m.onnx", [x, 5 * x, torch.zeros_like(x)])
    assert report.passed, report
    with pytest.raises(ValueError, match="the input of 0 takes"):
        model[0].input_spec = Quant()
        model[4].input_spec = Quant()
        export.onnx(model, x, tmp_path / "n.onnx", target="tensorrt")


@pytest.mark.parametrize("batch", [(6,), (3, 7)])
@pytest.mark.parametrize(
    "grid",
    [Quant(), Quant(symmetric=False), Quant(bits=5, symmetric=False), Quant(signed=False)],
    ids=lambda spec: f"{spec.bits} {spec.signed} {spec.symmetric}",
)
def test_each_rows_own_range(batch, grid, tmp_path):
    """Per token, between layers that are and that are not; the numbers are those of the op."""
    torch.manual_seed(0)
    fixed = {"scale": torch.tensor(0.02), "zero_point": torch.tensor(-100, dtype=torch.int32)}
    model = nn.Sequential(
        SparseQuantLinear.from_float(nn.Linear(32, 48), input=grid),
        nn.ReLU(),
        SparseQuantLinear.from_float(nn.Linear(48, 40), input=INPUT, **fixed),
        nn.ReLU(),
        SparseQuantLinear.from_float(nn.Linear(40, 24), Quant(group_size=8), grid),
        nn.Tanh(),
        SparseQuantLinear.from_float(nn.Linear(24, 10), input=grid),
    )
    x = torch.randn(*batch, 32) * torch.logspace(-2, 2, batch[-1])[:, None]
    export.onnx(model, x[:2], tmp_path / "m.onnx")
    report = export.verify(model, tmp_path / "m.onnx", [x, 5 * x, torch.zeros_like(x), x[:1]])
    assert report.passed, report
    calls = json.loads(
        {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}["sparseq_layers"]
    )
    assert all(set(call["values"]) == {"input", "output"} for call in calls.values())


def test_tensorrt_profile(exported):
    graph = exported("tensorrt").proto.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    affine = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in affine:
        if len(node.input) > 2:
            assert constants[node.input[2]].dtype == np.int8
            assert not constants[node.input[2]].any()
    weights = [n for n in affine if n.input[0].endswith("weight_values")]
    assert len(weights) == 5
    assert [a.i for n in weights for a in n.attribute if a.name == "axis"] == [0] * 5
    clips = [n for n in graph.node if n.op_type == "Clip"]
    assert len(clips) == 1  # only the image has negative values that could round to -128


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (Layer(WEIGHT, INPUT), "the input of stem"),
        (Layer(Quant(axis=0, symmetric=False), Quant()), "the weight of stem"),
        (Layer(WEIGHT, Quant(signed=False)), "the input of stem"),
    ],
)
def test_tensorrt_refuses_other_grids(layer, text, tmp_path):
    model, x = made(Residual, IMAGES, Plan({"*": layer}))
    with pytest.raises(ValueError, match=text):
        export.onnx(model, x, tmp_path / "m.onnx", target="tensorrt")
    assert not list(tmp_path.iterdir())


def test_bad_arguments(tmp_path):
    model, x = made(Perceptron, ROWS, INT8)
    with pytest.raises(ValueError, match=r"target must be one of .*got 'tvm'"):
        export.onnx(model, x, tmp_path / "m.onnx", target="tvm")
    for opset in (17, 99, "21"):
        with pytest.raises(ValueError, match="opset must be from 18 to 23"):
            export.onnx(model, x, tmp_path / "m.onnx", opset=opset)
    with pytest.raises(TypeError, match="example must be a tensor"):
        export.onnx(model, [x], tmp_path / "m.onnx")
    with pytest.raises(TypeError, match=r"model must be an nn.Module"):
        export.onnx(x, x, tmp_path / "m.onnx")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        export.onnx(model, x, tmp_path / "missing" / "m.onnx")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="does not exist"):
        export.onnx(model, x, tmp_path / "file" / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_model_that_cannot_be_traced(tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(ValueError, match="torch cannot export the model"):
        export.onnx(Branching(), torch.randn(2, 3), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_uncalibrated(tmp_path):
    model = sparseq.prepare(Perceptron(), INT8)
    with pytest.raises(ValueError, match="run calibrate"):
        export.onnx(model, torch.randn(ROWS), tmp_path / "m.onnx")


def test_the_model_is_not_changed(exported):
    case = exported("residual")
    fresh = sparseq.convert(made(*CASES["residual"][:3])[0])
    assert torch.equal(case.model(case.x), fresh(case.x))


def test_missing_packages(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("sparseq.export.require.importlib.import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'sparseq\[export\]'"):
        export.onnx(nn.Linear(4, 4), torch.randn(2, 4), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_every_op_is_translated_or_named_as_not_exported():
    every = set(sparseq.ops.kernels())
    for target in ("onnxruntime", "tensorrt"):
        translated = set(translations(target))
        assert translated | NOT_EXPORTED == every
        assert not translated & NOT_EXPORTED
