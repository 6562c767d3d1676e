"""Exported files: what is in them, and that ONNX Runtime gives the model's numbers."""

from __future__ import annotations

import builtins
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
from sparseq.nn import SparseQuantConv2d, SparseQuantLinear

WEIGHT, INPUT = Quant(axis=0), Quant(symmetric=False)


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

    def __init__(self, width=16):
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


IMAGES, ROWS = (16, 4, 8, 8), (32, 32)


def made(kind, shape, layer, *, trained=True):
    """A prepared, calibrated model with lively batch norms, and data of its kind."""
    torch.manual_seed(0)
    model, x = kind(), torch.randn(shape)
    if trained:
        model.train()
        model(x * 2 + 0.5)
    sparseq.prepare(model.eval(), Plan({"*": layer}))
    return sparseq.calibrate(model, [x]), x


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["output"], {"input": x.numpy()})[0]


def optimised_ops(path, folder):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def weights_of(path):
    proto = onnx.load(path)
    return {
        tensor.name.removesuffix(".weight_values"): tensor
        for tensor in proto.graph.initializer
        if tensor.name.endswith(".weight_values")
    }


VARIANTS = {
    "asymmetric": (Residual, IMAGES, Layer(WEIGHT, INPUT)),
    "symmetric": (Residual, IMAGES, Layer(WEIGHT, Quant())),
    "one scale, signed asymmetric weight": (Plain, IMAGES, Layer(Quant(symmetric=False), INPUT)),
    "unsigned": (Plain, IMAGES, Layer(Quant(axis=0, signed=False, symmetric=False),
                                      Quant(signed=False, symmetric=False))),
    "unsigned symmetric input": (Perceptron, ROWS, Layer(WEIGHT, Quant(signed=False))),
    "4 bits": (Residual, IMAGES, Layer(Quant(bits=4, axis=0), INPUT)),
    "4 bits all over": (Perceptron, ROWS, Layer(Quant(bits=4, axis=0, symmetric=False),
                                                Quant(bits=4, symmetric=False))),
    "groups": (Perceptron, ROWS, Layer(Quant(bits=4, group_size=16), INPUT)),
    "groups in convolutions": (Plain, IMAGES, Layer(Quant(group_size=36, symmetric=False))),
    "weight only": (Perceptron, ROWS, Layer(WEIGHT)),
    "pruned": (Residual, IMAGES, Layer(WEIGHT, INPUT, Unstructured(0.7))),
    "2:4": (Plain, IMAGES, Layer(WEIGHT, INPUT, NM(2, 4))),
    "learned": (Perceptron, ROWS, Layer(Quant(axis=0, learned=True),
                                        Quant(symmetric=False, learned=True))),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_onnx_runtime_gives_the_models_numbers(name, tmp_path):
    kind, shape, layer = VARIANTS[name]
    model, x = made(kind, shape, layer)
    path = tmp_path / "m.onnx"
    export.onnx(model, x[:2], path)
    fast = sparseq.convert(model)
    report = export.verify(fast, path, [x, x[:1], x[:7] * 3])
    assert report.passed, report
    assert report.max_difference <= 1
    assert report.batches == 3
    for stored in weights_of(path).values():
        four = layer.weight.bits == 4
        unsigned = not layer.weight.signed
        wanted = {
            (False, False): TensorProto.INT8,
            (False, True): TensorProto.UINT8,
            (True, False): TensorProto.INT4,
        }[four, unsigned]
        assert stored.data_type == wanted
    assert len(weights_of(path)) == len(sparseq.explain(fast).rows)
    for layer_name, stored in weights_of(path).items():
        values = fast.get_submodule(layer_name).weight_values
        assert np.array_equal(
            numpy_helper.to_array(stored).astype(np.int16).ravel(), values.numpy().ravel()
        )


def test_the_file_is_clean(tmp_path):
    model, x = made(Residual, IMAGES, Layer(WEIGHT, INPUT))
    path = tmp_path / "m.onnx"
    export.onnx(model, x[:1], path)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [i.name for i in proto.graph.input] == ["input"]
    assert [o.name for o in proto.graph.output] == ["output"]
    dimensions = proto.graph.input[0].type.tensor_type.shape.dim
    assert dimensions[0].dim_param == "batch"
    assert [d.dim_value for d in dimensions[1:]] == [4, 8, 8]
    assert [o.version for o in proto.opset_import if o.domain == ""] == [21]
    assert {o.domain for o in proto.opset_import} == {""}
    properties = {p.key: p.value for p in proto.metadata_props}
    assert properties["sparseq_version"] == sparseq.__version__
    layers = json.loads(properties["sparseq_layers"])
    assert list(layers) == ["stem", "conv1", "conv2", "shortcut", "fc"]
    assert Quant(**layers["conv1"]["weight"]) == WEIGHT
    assert Quant(**layers["conv1"]["input"]) == INPUT
    assert str(tmp_path.parent.parent).encode() not in path.read_bytes()
    assert b".py" not in path.read_bytes()  # no source paths
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("batch", [1, 7])
def test_the_batch_is_dynamic(batch, tmp_path):
    model, x = made(Plain, IMAGES, Layer(WEIGHT, INPUT))
    path = tmp_path / "m.onnx"
    export.onnx(model, x[:1], path)
    y = run(path, x[:batch])
    wanted = sparseq.convert(model)(x[:batch])
    assert y.shape == (batch, 10)
    assert np.abs(y - wanted.numpy()).max() <= 0.02 * float(wanted.abs().max())


def test_a_fixed_batch(tmp_path):
    model, x = made(Perceptron, ROWS, Layer(WEIGHT, INPUT))
    path = tmp_path / "m.onnx"
    export.onnx(model, x[:3], path, dynamic_batch=False)
    proto = onnx.load(path)
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    with pytest.raises(ValueError, match="cannot run the file"):
        export.verify(model, path, [x[:4]])


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_opsets(opset, tmp_path):
    model, x = made(Perceptron, ROWS, Layer(Quant(bits=4, group_size=16), Quant()))
    path = tmp_path / "m.onnx"
    export.onnx(model, x[:2], path, opset=opset)
    assert onnx.load(path).opset_import[0].version == opset
    kinds = {tensor.data_type for tensor in weights_of(path).values()}
    assert kinds == {TensorProto.INT4 if opset >= 21 else TensorProto.INT8}
    assert export.verify(model, path, [x]).passed


def test_sizes(tmp_path):
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)),
        torch.randn(8, 256),
    )
    export.onnx(model, x, tmp_path / "float.onnx")
    for bits, ratio in ((8, 3.8), (4, 7.2)):
        prepared = sparseq.prepare(
            nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)),
            Plan({"*": Layer(Quant(bits=bits, axis=0), INPUT)}),
        )
        sparseq.calibrate(prepared, [x])
        export.onnx(prepared, x, tmp_path / "m.onnx")
        size = (tmp_path / "m.onnx").stat().st_size
        assert (tmp_path / "float.onnx").stat().st_size > ratio * size


def test_zeros_stay_zeros(tmp_path):
    model, x = made(Plain, IMAGES, Layer(WEIGHT, INPUT, NM(2, 4)))
    export.onnx(model, x, tmp_path / "m.onnx")
    stored = {n: numpy_helper.to_array(t) for n, t in weights_of(tmp_path / "m.onnx").items()}
    for name in ("3", "6"):
        groups = np.moveaxis(stored[name], 1, -1).reshape(-1, 4)
        assert ((groups != 0).sum(1) <= 2).all(), name
        assert (stored[name] == 0).mean() >= 0.5


def test_integer_kernels_run(tmp_path):
    """What is quantised on both sides runs on integers, what is not runs in plain float."""
    model, x = made(Plain, IMAGES, Layer(WEIGHT, INPUT))
    export.onnx(model, x, tmp_path / "m.onnx")
    ops = optimised_ops(tmp_path / "m.onnx", tmp_path)
    assert ops["QLinearConv"] == 2
    assert ops["QGemm"] == 1
    assert ops["Conv"] + ops["FusedConv"] == 0
    assert ops["Gemm"] == 1  # the head: its result is not quantised
    assert ops["Cast"] == 0  # the weights' forms are computed when the session starts


def test_full_range_products_do_not_saturate(tmp_path):
    """On x86 without VNNI the usual uint8 x int8 kernel would give about half of the sum."""
    model = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[2].weight.fill_(1.0)
    x = torch.ones(2, 16, 6, 6)
    sparseq.prepare(model, Plan({"*": Layer(WEIGHT, INPUT)}))
    sparseq.calibrate(model, [x])
    export.onnx(model, x, tmp_path / "m.onnx")
    assert optimised_ops(tmp_path / "m.onnx", tmp_path)["QLinearConv"] == 1
    wanted = sparseq.convert(model)(x).numpy()
    assert np.abs(run(tmp_path / "m.onnx", x) - wanted).max() <= 0.01 * wanted.max()


def test_a_channel_that_batch_norm_switched_off(tmp_path):
    """Its scale is so small that its bias does not fit the integer kernels' int32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        model[1].weight[2], model[1].bias[2] = 1e-12, 0.8
    x = torch.randn(4, 4, 8, 8)
    sparseq.prepare(model.eval(), Plan({"*": Layer(WEIGHT, INPUT)}))
    sparseq.calibrate(model, [x])
    export.onnx(model, x, tmp_path / "m.onnx")
    assert export.verify(model, tmp_path / "m.onnx", [x]).max_difference <= 1


def test_each_batchs_own_range(tmp_path):
    torch.manual_seed(0)
    for spec in (Quant(symmetric=False), Quant(), Quant(bits=5, symmetric=False)):
        model = nn.Sequential(
            SparseQuantConv2d.from_float(nn.Conv2d(4, 8, 3), input=spec),
            nn.ReLU(),
            nn.Flatten(),
            SparseQuantLinear.from_float(nn.Linear(288, 6), input=spec),
        )
        x = torch.randn(5, 4, 8, 8)
        export.onnx(model, x[:2], tmp_path / "m.onnx")
        report = export.verify(model, tmp_path / "m.onnx", [x, 5 * x, torch.zeros_like(x)])
        assert report.passed, report


def test_a_layer_that_is_called_twice(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(16, 16)

        def forward(self, x):
            return self.fc(torch.relu(self.fc(x)))

    model, x = made(Twice, (8, 16), Layer(WEIGHT, INPUT), trained=False)
    export.onnx(model, x, tmp_path / "m.onnx")
    properties = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert list(json.loads(properties["sparseq_layers"])) == ["fc", "fc@1"]
    assert export.verify(model, tmp_path / "m.onnx", [x]).passed


def test_layers_that_stay_float_keep_their_fake_quantised_input(tmp_path):
    class Reflect(nn.Sequential):
        def __init__(self):
            super().__init__(
                nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(8, 4, 1)
            )

    model, x = made(Reflect, IMAGES, Layer(WEIGHT, INPUT), trained=False)
    export.onnx(model, x, tmp_path / "m.onnx")
    assert list(weights_of(tmp_path / "m.onnx")) == ["2"]
    assert export.verify(model, tmp_path / "m.onnx", [x]).passed


def test_tensorrt_profile(tmp_path):
    model, x = made(Residual, IMAGES, Layer(WEIGHT, Quant()))
    path = tmp_path / "m.onnx"
    export.onnx(model, x, path, target="tensorrt")
    proto = onnx.load(path)
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    affine = [n for n in proto.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in affine:
        if len(node.input) > 2:
            assert constants[node.input[2]].dtype == np.int8
            assert not constants[node.input[2]].any()
    weights = [n for n in affine if n.input[0].endswith("weight_values")]
    assert len(weights) == 5
    assert all(a.i == 0 for n in weights for a in n.attribute if a.name == "axis")
    assert export.verify(model, path, [x]).passed


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (Layer(WEIGHT, INPUT), "the input of stem"),
        (Layer(Quant(axis=0, symmetric=False), Quant()), "the weight of stem"),
        (Layer(WEIGHT, Quant(signed=False)), "the input of stem"),
    ],
)
def test_tensorrt_refuses_other_grids(layer, text, tmp_path):
    model, x = made(Residual, IMAGES, layer)
    with pytest.raises(ValueError, match=text):
        export.onnx(model, x, tmp_path / "m.onnx", target="tensorrt")
    assert not list(tmp_path.iterdir())


def test_tensorrt_refuses_a_batchs_own_range(tmp_path):
    model = nn.Sequential(SparseQuantLinear.from_float(nn.Linear(8, 4), input=Quant()))
    with pytest.raises(ValueError, match="the input of 0 takes"):
        export.onnx(model, torch.randn(2, 8), tmp_path / "m.onnx", target="tensorrt")


def test_bad_arguments(tmp_path):
    model, x = made(Perceptron, ROWS, Layer(WEIGHT, INPUT))
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
    model = sparseq.prepare(Perceptron(), Plan({"*": Layer(WEIGHT, INPUT)}))
    with pytest.raises(ValueError, match="run calibrate"):
        export.onnx(model, torch.randn(ROWS), tmp_path / "m.onnx")


def test_the_model_is_not_changed(tmp_path):
    model, x = made(Residual, IMAGES, Layer(WEIGHT, INPUT))
    fast = sparseq.convert(model)
    before = fast(x)
    state = {name: value.clone() for name, value in fast.state_dict().items()}
    export.onnx(fast, x, tmp_path / "m.onnx", verify=False)
    assert torch.equal(fast(x), before)
    assert all(torch.equal(value, state[name]) for name, value in fast.state_dict().items())


def test_missing_packages(tmp_path, monkeypatch):
    real = __import__
    monkeypatch.setattr(
        "importlib.import_module",
        lambda name, *rest: (_ for _ in ()).throw(ModuleNotFoundError(name)),
    )
    assert builtins.__import__ is real
    with pytest.raises(ImportError, match=r"pip install 'sparseq\[export\]'"):
        export.onnx(nn.Linear(4, 4), torch.randn(2, 4), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_every_op_is_translated_or_named_as_not_exported():
    every = set(sparseq.ops.kernels())
    for target in ("onnxruntime", "tensorrt"):
        translated = set(translations(target))
        assert translated | NOT_EXPORTED == every
        assert not translated & NOT_EXPORTED
