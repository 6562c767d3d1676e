"""`export.inspect`: against what is counted by hand."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

import sparseq
from sparseq import NM, Layer, Plan, Quant
from sparseq.export import inspect


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=2)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(self.grouped(self.stem(x).relu()).relu().mean((2, 3)))


def converted(plan, shape=(2, 3, 10, 12)):
    model = sparseq.prepare(Network(), Plan(plan))
    sparseq.calibrate(model, [torch.randn(shape)])
    return sparseq.convert(model)


INT8 = Layer(weight=Quant(axis=0), input=Quant(symmetric=False))
SPARSE = Layer(weight=Quant(axis=0), input=Quant(symmetric=False), sparsity=NM(2, 4))
# output of the stem: 5 x 6
MACS = [8 * 30 * 3 * 9, 16 * 30 * 4 * 9, 16 * 10]


@pytest.fixture(scope="module")
def sparse_model():
    torch.manual_seed(0)
    return converted({"*": SPARSE})


def test_an_exported_file(sparse_model, tmp_path):
    path = tmp_path / "model.onnx"
    sparseq.export.onnx(sparse_model, torch.randn(2, 3, 10, 12), path)
    found = inspect(path)
    assert [row.name for row in found.rows] == ["stem", "grouped", "fc"]
    assert found.format == "onnx" and found.file_size == path.stat().st_size
    assert [row.shape for row in found.rows] == [(8, 3, 3, 3), (16, 4, 3, 3), (10, 16)]
    assert [row.bits for row in found.rows] == [8, 8, 8]
    assert [row.input_bits for row in found.rows] == [8, 8, 8]
    assert [row.two_of_four for row in found.rows] == [False, True, True]
    assert [row.macs for row in found.rows] == MACS and found.macs == sum(MACS)
    assert [row.size for row in found.rows] == [216, 576, 160]
    for row, layer in zip(found.rows, ("stem", "grouped", "fc"), strict=True):
        values = sparse_model.get_submodule(layer).weight_values
        assert row.zeros == pytest.approx(float((values == 0).float().mean()), abs=1e-6)
    assert found.facts["target"] == "onnxruntime" and "ai.onnx 21" in found.facts["opset"]


def test_a_saved_file(sparse_model, tmp_path):
    path = tmp_path / "model.safetensors"
    sparseq.save(sparse_model, path)
    found = inspect(path)
    assert [row.name for row in found.rows] == ["stem", "grouped", "fc"]
    assert [row.kind for row in found.rows] == ["Conv2d", "Conv2d", "Linear"]
    assert [row.two_of_four for row in found.rows] == [False, True, True]
    assert [(row.bits, row.input_bits, row.macs) for row in found.rows] == [(8, 8, None)] * 3
    assert found.macs is None and found.parameters == 216 + 576 + 160
    assert found.rows[1].size == 576 // 2 + 576 // 8  # values and positions
    zeros = [
        float((sparse_model.get_submodule(n).weight_values == 0).float().mean())
        for n in ("stem", "grouped", "fc")
    ]
    assert [row.zeros for row in found.rows] == pytest.approx(zeros, abs=1e-6)


@pytest.mark.parametrize("group", [None, 8])
def test_int4_with_zero_points(group, tmp_path):
    torch.manual_seed(0)
    scheme = Quant(bits=4, axis=0, group_size=group, symmetric=False)
    model = converted({"fc": Layer(weight=scheme)})
    sparseq.save(model, tmp_path / "m.safetensors")
    sparseq.export.onnx(model, torch.randn(2, 3, 10, 12), tmp_path / "m.onnx")
    layer = model.fc
    zeros = float((layer.packed().dequantize() == 0).float().mean())
    for name, bits in (("m.safetensors", 4), ("m.onnx", 4)):
        rows = inspect(tmp_path / name).rows
        row = next(r for r in rows if r.parameters == 160)
        assert (row.bits, row.size) == (bits, 80)
        assert row.zeros == pytest.approx(zeros, abs=1e-6)
        assert row.input_bits == 32
    floats = [r for r in inspect(tmp_path / "m.safetensors").rows if r.parameters != 160]
    assert [(r.bits, r.size) for r in floats] == [(32, 864), (32, 2304)]


def graph(nodes, inputs, outputs, initializers):
    made = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def test_files_of_others(tmp_path):
    """A transposed convolution, attention's product, integer operators, float16, external data."""
    w = np.arange(-12, 12, dtype=np.int8).reshape(2, 3, 2, 2)
    q = np.array([[3, 1], [5, 0], [3, 3]], np.uint8)
    half = np.ones((2, 4), np.float16)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wf"], axis=1),
        helper.make_node("ConvTranspose", ["x", "wf"], ["y"], "up"),
        helper.make_node("MatMul", ["a", "b"], ["ab"], "scores"),
        helper.make_node("MatMulInteger", ["u", "q", "uz", "qz"], ["uq"], "integer"),
        helper.make_node("MatMul", ["h", "half"], ["hh"], "halves"),
    ]
    inputs = [
        value("x", ["batch", 2, 5, 7]),
        value("a", ["batch", 6, 9]),
        value("b", ["batch", 9, 4]),
        value("u", ["batch", 3], TensorProto.UINT8),
        value("h", [5, 2], TensorProto.FLOAT16),
    ]
    outputs = [
        value("y", None),
        value("ab", None),
        value("uq", None, TensorProto.INT32),
        value("hh", None, TensorProto.FLOAT16),
    ]
    tensors = {
        "w": w, "s": np.ones(3, np.float32), "q": q, "uz": np.uint8(7), "qz": np.uint8(3),
        "half": half,
    }  # fmt: skip
    initializers = [numpy_helper.from_array(np.asarray(t), n) for n, t in tensors.items()]
    path = tmp_path / "other.onnx"
    model = graph(nodes, inputs, outputs, initializers)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    found = {row.name: row for row in inspect(path).rows}
    up, scores, integer = found["up"], found["scores"], found["integer"]
    assert (up.bits, up.macs, up.zeros) == (8, 2 * 35 * 3 * 4, 1 / 24)
    assert (scores.shape, scores.bits, scores.macs) == ((), None, 6 * 4 * 9)
    assert (integer.bits, integer.input_bits, integer.macs) == (8, 8, 6)
    assert integer.zeros == pytest.approx(3 / 6) and not integer.two_of_four
    assert (found["halves"].bits, found["halves"].size, found["halves"].macs) == (16, 16, 40)


def test_an_onnx_weight_is_24_along_its_inputs(tmp_path):
    weight = np.array([[1, 0], [1, 0], [0, 1], [0, 1]] * 2, np.float32)  # [K, N], 2:4 along K
    for transposed in (False, True):
        stored = weight.T.copy() if transposed else weight
        kind = ("Gemm", {"transB": 1}) if transposed else ("MatMul", {})
        node = helper.make_node(kind[0], ["x", "w"], ["y"], "l", **kind[1])
        model = graph(
            [node],
            [value("x", [1, 8])],
            [value("y", [1, 2])],
            [numpy_helper.from_array(stored, "w")],
        )
        onnx.save(model, tmp_path / "l.onnx")
        (row,) = inspect(tmp_path / "l.onnx").rows
        assert row.two_of_four and row.zeros == 0.5 and row.macs == 16


def test_any_safetensors_file(tmp_path):
    tensors = {
        "a.weight": torch.eye(4).half(),
        "a.bias": torch.ones(4),
        "steps": torch.ones(2, 2).int(),
    }
    save_file(tensors, tmp_path / "any.safetensors")
    (row,) = inspect(tmp_path / "any.safetensors").rows
    assert (row.name, row.kind, row.shape, row.bits) == ("a", "Linear", (4, 4), 16)
    assert row.two_of_four and row.zeros == 0.75 and row.size == 32


def test_the_table(sparse_model, tmp_path):
    sparseq.save(sparse_model, tmp_path / "m.safetensors")
    found = inspect(tmp_path / "m.safetensors")
    text, markdown = str(found), found.to_markdown()
    assert text.splitlines()[0].split()[:3] == ["layer", "kind", "weight"]
    assert "16x4x3x3" in text and f"{found.file_size:,}" in text
    assert markdown.count("\n") == len(found.rows) + 2
    assert all(line.count("|") == 10 for line in markdown.splitlines())


def test_bad_files(tmp_path, sparse_model):
    with pytest.raises(FileNotFoundError, match="inspect: path must name a file, got"):
        inspect(tmp_path / "none.onnx")
    other = tmp_path / "a.txt"
    other.write_text("hello there")
    with pytest.raises(ValueError, match=r"must name an \.onnx, \.safetensors or"):
        inspect(other)
    good = tmp_path / "good.onnx"
    sparseq.export.onnx(sparse_model, torch.randn(2, 3, 10, 12), good)
    for name, content in (
        ("cut.onnx", good.read_bytes()[:-100]),
        ("empty.onnx", b""),
        ("text.onnx", b"this is no protobuf"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}' is not a sound ONNX file") as error:
            inspect(tmp_path / name)
        assert "\n" not in str(error.value)
    sparseq.save(sparse_model, tmp_path / "good.safetensors")
    whole = (tmp_path / "good.safetensors").read_bytes()
    altered = bytearray(whole)
    altered[-3] ^= 1
    head = json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}).encode()
    for content in (
        whole[:-10],
        whole[:40],
        bytes(altered),
        len(head).to_bytes(8, "little") + head,
    ):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.safetensors' is not a sound safetensors file"):
            inspect(tmp_path / "bad.safetensors")
