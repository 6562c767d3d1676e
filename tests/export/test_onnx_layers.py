"""Files of models with Conv1d, ConvTranspose2d, Embedding and attention, held to ONNX Runtime."""

from __future__ import annotations

import onnx
import pytest
import torch
from engine_cases import needs_rtx
from export_cases import run
from onnx import TensorProto, numpy_helper
from torch import nn

import sparseq
from sparseq import NM, Layer, Plan, Quant, export
from sparseq.nn import SparseQuantEmbedding

INT8 = Layer(Quant(axis=0), Quant(symmetric=False))
SYMMETRIC = Layer(Quant(axis=0), Quant())
EXPORTERS = ("dynamo", "torchscript")


class Audio(nn.Sequential):
    """Joined, before a residual's like (nothing quantised behind it), depthwise."""

    def __init__(self):
        super().__init__(
            nn.Conv1d(4, 16, 5, stride=2, padding=2),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Conv1d(16, 16, 3, padding=1, groups=16),
            nn.ReLU(),
            nn.Conv1d(16, 8, 3, dilation=2, groups=2),
            nn.GELU(),
            nn.Conv1d(8, 5, 1),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
        )


class Decoder(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(4, 8, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.ConvTranspose2d(12, 12, 4, stride=2, padding=1, groups=12),
            nn.ReLU(),
            nn.ConvTranspose2d(12, 6, (2, 3), stride=(2, 1), groups=3, bias=False),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


class Text(nn.Module):
    """A small nn.TransformerEncoder with its embeddings."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(40, 16, padding_idx=0), nn.Embedding(9, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.1, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 5)

    def forward(self, x):
        x = self.tokens(x) + self.places(torch.arange(9, device=x.device))
        return self.head(self.encoder(x).mean(1))


def sequences(count=6):
    return torch.randint(1, 40, (count, 9))


MODELS = {
    "audio": (Audio, lambda: torch.randn(6, 4, 22)),
    "decoder": (Decoder, lambda: torch.randn(4, 4, 5, 6)),
    "text": (Text, sequences),
}


def converted(name, layer, train=False):
    make, data = MODELS[name]
    model, x = make(), data()
    with torch.no_grad():
        model.train()(x)  # lively batch norms
    sparseq.prepare(model, Plan({"*": layer}))
    sparseq.calibrate(model, [x])
    if train:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(3):
            optimizer.zero_grad()
            model.train()(x).square().mean().backward()
            optimizer.step()
    return sparseq.convert(model.eval()), x


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("exporter", "target"),
    [("dynamo", "onnxruntime"), ("torchscript", "onnxruntime"), ("torchscript", "tensorrt")],
)
def test_files_give_the_models_numbers(name, exporter, target, tmp_path):
    model, x = converted(name, SYMMETRIC if target == "tensorrt" else INT8)
    path = tmp_path / "m.onnx"
    report = export.onnx(model, x, path, target=target, exporter=exporter)
    assert report.passed and report.max_difference <= 1
    proto = onnx.load(path)
    stored = [t for t in proto.graph.initializer if t.name.endswith("weight_values")]
    layers = {name for name, m in model.named_modules() if hasattr(m, "weight_values")}
    if exporter == "torchscript":
        layers -= {"places"}  # of indices that are constant: it keeps the rows, a constant too
    assert {t.name.removesuffix(".weight_values") for t in stored} == layers
    assert {t.data_type for t in stored} == {TensorProto.INT8}
    other = MODELS[name][1]()[:2]  # another batch size
    assert export.verify(model, path, [other]).passed


def test_which_kernels_run(tmp_path):
    found = {}
    for name in MODELS:
        model, x = converted(name, INT8)
        path = tmp_path / "m.onnx"
        export.onnx(model, x, path, exporter="torchscript", verify=False)
        found[name] = {k.layer: k for k in export.kernels(path)}
    assert [k.kernel for k in found["audio"].values()] == [
        "QLinearConv", "QLinearConv", "ConvInteger", "ConvInteger"
    ]  # fmt: skip
    transposed = [found["decoder"][key] for key in ("2", "5", "7")]
    for kernel in transposed:
        assert kernel.kernel == "ConvTranspose" and not kernel.integer
        assert kernel.reason == "ONNX has no integer transposed convolution"
    assert found["text"]["tokens"].kernel == "Gather"
    assert found["text"]["tokens"].reason == "a look-up has no product"
    projections = [k for name, k in found["text"].items() if "self_attn" in name]
    assert len(projections) == 8
    assert all(k.integer and k.kernel.startswith("MatMulInteger") for k in projections)


def test_a_transformer_from_training_to_a_file(tmp_path):
    """Prepare, calibrate, train, convert, save, load, export: one model all the way."""
    model, x = converted("text", INT8, train=True)
    sparseq.save(model, tmp_path / "m.safetensors")
    again = sparseq.load(tmp_path / "m.safetensors", Text())
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    report = export.onnx(again, x, tmp_path / "m.onnx")
    assert report.passed and report.argmax_agreement == 1
    plan = Plan.from_json(
        {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}["sparseq_plan"]
    )
    assert plan.rules["encoder.layers.1.self_attn.out_proj"].weight == Quant(axis=0)
    assert plan.rules["tokens"] == Layer(Quant(axis=0))
    rows = {row.name: row for row in export.inspect(tmp_path / "m.onnx").rows}
    assert rows["tokens"].shape == (40, 16) and rows["tokens"].bits == 8
    assert rows["tokens"].size == 640 and rows["tokens"].macs == 0
    stored = {row.name: row for row in export.inspect(tmp_path / "m.safetensors").rows}
    assert stored["tokens"].kind == "Embedding" and stored["head"].kind == "Linear"


@pytest.mark.parametrize(
    "spec",
    [
        Quant(bits=4, axis=0),
        Quant(bits=4, group_size=8),
        Quant(bits=4, group_size=8, symmetric=False),
        Quant(group_size=8, symmetric=False),
        Quant(axis=0, symmetric=False, signed=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_embeddings_of_every_scheme(spec, shape, tmp_path):
    """The rows are the model's bit for bit; four bits stay four bits in the file."""
    layer = SparseQuantEmbedding.from_float(nn.Embedding(12, 16), spec)
    x = torch.randint(12, shape)
    for opset in (17, 21):
        path = tmp_path / f"{opset}.onnx"
        export.onnx(layer, x, path, opset=opset, exporter="torchscript")
        assert torch.equal(torch.from_numpy(run(path, x)), layer(x))
        (stored,) = [t for t in onnx.load(path).graph.initializer if "weight_values" in t.name]
        int4 = spec.bits == 4 and opset == 21
        kind = TensorProto.INT4 if int4 else TensorProto.INT8
        assert stored.data_type == (kind if spec.signed else TensorProto.UINT8)


@pytest.mark.parametrize("dtype", [torch.float16])
def test_an_embedding_of_a_half_model(dtype, tmp_path):
    layer = SparseQuantEmbedding.from_float(nn.Embedding(12, 16)).to(dtype)
    x = torch.randint(12, (4, 3))
    for exporter in EXPORTERS:
        export.onnx(layer, x, tmp_path / "m.onnx", exporter=exporter)
        got = torch.from_numpy(run(tmp_path / "m.onnx", x))
        assert got.dtype == dtype and torch.equal(got, layer(x))


@pytest.mark.parametrize(("groups", "axis"), [(1, 1), (8, 0), (2, None)])
def test_transposed_weights_for_tensorrt_stand_right_before_the_product(groups, axis, tmp_path):
    """In torch's order, one scale an output channel, where ONNX has an axis for it."""
    model = nn.Sequential(nn.ConvTranspose2d(8, 8 if groups > 1 else 6, 3, 2, groups=groups))
    x = torch.randn(2, 8, 4, 5)
    plan = Plan({"*": Layer(Quant(axis=0), Quant(), NM(2, 4) if groups == 1 else None)})
    model = sparseq.convert(sparseq.calibrate(sparseq.prepare(model.eval(), plan), [x]))
    path = tmp_path / "m.onnx"
    assert export.onnx(model, x, path, target="tensorrt", exporter="torchscript").passed
    graph = onnx.load(path).graph
    (product,) = [node for node in graph.node if node.op_type == "ConvTranspose"]
    made = {node.output[0]: node for node in graph.node}[product.input[1]]
    if axis is None:
        assert made.op_type == "Reshape"
    else:
        assert made.op_type == "DequantizeLinear"
        assert {a.name: a.i for a in made.attribute}["axis"] == axis
        (stored,) = [t for t in graph.initializer if t.name == made.input[0]]
        assert numpy_helper.to_array(stored).shape == tuple((8, 6 if groups == 1 else 1, 3, 3))
    (row,) = export.inspect(path).rows
    assert row.bits == 8 and row.kind == "ConvTranspose"
    if groups == 1:
        assert row.two_of_four and row.zeros >= 0.5


@needs_rtx
@pytest.mark.parametrize("name", MODELS)
def test_engines_run_them_on_integers_or_are_no_engines(name, tmp_path):
    """Each product is int8 in the plan, its integers intact; transposed ones are named as float."""
    model, x = converted(name, SYMMETRIC)
    path, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    export.onnx(
        model, x, path, target="tensorrt", exporter="torchscript", dynamic_batch=False, verify=False
    )
    options = {"runtime": "tensorrt_rtx", "compute_capabilities": ["8.6"]}
    if name == "decoder":
        with pytest.raises(export.EngineAuditError, match="layer 2: it runs on float inputs"):
            export.tensorrt(path, engine, **options)
        return
    audit = export.tensorrt(path, engine, **options)
    products = [n for n, m in model.named_modules() if getattr(m, "integer", False)]
    assert [layer.name for layer in audit.layers] == products
    assert all(layer.weight == "int8" and layer.verbatim for layer in audit.layers)
