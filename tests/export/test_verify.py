"""`verify`: a file with other numbers than the model is caught, at the layer that holds them."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import sparseq
from sparseq import Layer, Plan, Quant, export

PLAN = Plan({"*": Layer(Quant(axis=0), Quant(symmetric=False))})


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu_(self.first(x))  # in place: must not write into what verify has seen
        x = torch.relu(self.third(torch.relu(self.second(x))) + x)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module", params=["dynamo", "torchscript"])
def good(request, tmp_path_factory):
    """A converted model, data, and its sound file, by each exporter."""
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(16, 4, 8, 8)
    sparseq.calibrate(sparseq.prepare(model, PLAN), [x])
    path = tmp_path_factory.mktemp("verify") / "m.onnx"
    export.onnx(model, x[:2], path, exporter=request.param)
    return sparseq.convert(model), x, path


def tampered(path, folder, name, change):
    """A copy of a file with one initialiser changed."""
    proto = onnx.load(path)
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    onnx.save(proto, folder / "tampered.onnx")
    return folder / "tampered.onnx"


def test_a_sound_file(good):
    model, x, path = good
    report = export.verify(model, path, [x, (x[:3], torch.zeros(3))])
    assert report.passed
    assert report.max_difference <= 1
    assert report.output_difference < 0.02
    assert report.argmax_agreement == 1.0
    assert (report.batches, report.layer, report.reason) == (2, None, "")
    assert str(report).startswith("equal; ")
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.passed = False


def test_training_mode_and_hooks_are_left_alone(good):
    model, x, path = good
    model.train()
    export.verify(model, path, [x[:2]])
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    model.eval()


def one_weight(values):
    values.reshape(-1)[5] ^= 64
    return values


@pytest.mark.parametrize("layer", ["first", "second", "third", "head"])
def test_one_changed_weight_is_caught_in_its_layer(layer, good, tmp_path):
    model, x, path = good
    bad = tampered(path, tmp_path, f"{layer}.weight_values", one_weight)
    report = export.verify(model, bad, [x])
    assert not report.passed
    assert report.layer == layer
    assert report.reason.startswith(f"{layer} is the first layer that differs: by ")
    assert str(report).startswith(f"DIFFERENT: {layer} is the first")


@pytest.mark.parametrize(
    ("name", "change", "layer"),
    [
        ("second.bias", lambda b: b + np.float32(0.01), "second"),
        ("second.weight_scale", lambda s: s * np.float32(1.01), "second"),
        ("third.multiplier", lambda s: s * np.float32(1.01), "third"),
        ("second.input_scale", lambda s: s * np.float32(1.01), "second"),
    ],
)
def test_other_changes_are_caught_too(name, change, layer, good, tmp_path):
    model, x, path = good
    report = export.verify(model, tampered(path, tmp_path, name, change), [x])
    assert not report.passed
    assert report.layer == layer


def test_a_shifted_zero_point_is_caught_although_it_is_one_step(good, tmp_path):
    model, x, path = good
    proto = onnx.load(path)
    node = next(n for n in proto.graph.node if n.output[0] == "first.input")
    bad = tampered(path, tmp_path, node.input[2], lambda z: z + np.uint8(1))
    report = export.verify(model, bad, [x])
    assert not report.passed
    assert report.layer == "first"


def test_a_change_outside_of_the_layers_is_caught(good, tmp_path):
    model, x, path = good
    proto = onnx.load(path)
    relu = [n for n in proto.graph.node if n.op_type == "Relu"][-1]
    relu.op_type = "Abs"
    onnx.save(proto, tmp_path / "tampered.onnx")
    report = export.verify(model, tmp_path / "tampered.onnx", [x])
    assert not report.passed
    assert report.layer == "head"
    assert report.reason.startswith("the input of head is the first that differs: by up to ")
    assert report.max_difference > 1


def test_export_leaves_no_file_that_fails(good, tmp_path, monkeypatch):
    model, x, _ = good
    failed = export.Report(False, 3.0, 0.5, 0.9, 1, "second", "second is the first layer")
    monkeypatch.setattr("sparseq.export.to_onnx.verify", lambda *arguments: failed)
    monkeypatch.setattr(
        "sparseq.export.to_onnx._checked", lambda *arguments: onnx.ModelProto(ir_version=10)
    )
    with pytest.raises(export.VerificationError, match="not written: second is the first layer"):
        export.onnx(model, x, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    assert issubclass(export.VerificationError, ValueError)


def test_another_model(good):
    _, x, path = good
    with pytest.raises(ValueError, match="no integer layer first"):
        export.verify(nn.Sequential(nn.Flatten(), nn.Linear(256, 5)), path, [x])


def test_bad_arguments(good, tmp_path):
    model, x, path = good
    with pytest.raises(FileNotFoundError, match="path must name a file"):
        export.verify(model, tmp_path / "missing.onnx", [x])
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ValueError, match="not a sound ONNX file"):
        export.verify(model, tmp_path / "text.onnx", [x])
    (tmp_path / "half.onnx").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="not a sound ONNX file"):
        export.verify(model, tmp_path / "half.onnx", [x])
    with pytest.raises(ValueError, match="at least one batch"):
        export.verify(model, path, [])
    with pytest.raises(TypeError, match="a batch must be"):
        export.verify(model, path, ["x"])
    with pytest.raises(ValueError, match="cannot run the file"):
        export.verify(model, path, [x.new_zeros(2, 4, 9, 9)])


def test_a_file_of_other_tools_is_compared_by_its_output(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Linear(6, 4), torch.randn(3, 6)
    weight, bias = (p.detach().numpy() for p in (model.weight, model.bias))
    for change, passed in ((0.0, True), (0.01, False)):
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Gemm", ["input", "w", "b"], ["output"], transB=1)],
            "foreign",
            [onnx.helper.make_tensor_value_info("input", 1, ["n", 6])],
            [onnx.helper.make_tensor_value_info("output", 1, ["n", 4])],
            [numpy_helper.from_array(weight + np.float32(change), "w"),
             numpy_helper.from_array(bias, "b")],
        )  # fmt: skip
        opset = onnx.helper.make_opsetid("", 20)
        proto = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
        onnx.save(proto, tmp_path / "f.onnx")
        report = export.verify(model, tmp_path / "f.onnx", [x])
        assert report.passed is passed
        assert report.layer is None


@pytest.fixture(scope="module")
def digits():
    """A small residual network trained on real digits, prepared on two plans, and the test set."""
    pytest.importorskip("sklearn")
    from sparseq.run import data, models

    torch.manual_seed(0)
    dataset = data.load("digits")
    model = models.ResNet(dataset.channels, 10, width=8, depth=1, stages=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        for x, y in dataset.train_batches(64, generator):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval(), list(dataset.test_batches(256))


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("sparsity", [None, sparseq.NM(2, 4)], ids=["dense", "2:4"])
def test_every_answer_on_a_real_test_set(target, exporter, sparsity, digits, tmp_path):
    float_model, batches = digits
    model = copy.deepcopy(float_model)
    plan = Plan({"*": Layer(Quant(axis=0), Quant(symmetric=target == "tensorrt"), sparsity)})
    sparseq.calibrate(sparseq.prepare(model, plan), batches[:1])
    given = {"target": target, "exporter": exporter, "verify": batches}
    report = export.onnx(model, batches[0][0][:1], tmp_path / "m.onnx", **given)
    assert report.passed, report
    assert report.batches == len(batches)
    assert report.max_difference <= 1
    assert report.argmax_agreement == 1.0
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    fast, right, count = sparseq.convert(model), 0, 0
    for x, y in batches:
        got = torch.from_numpy(session.run(None, {"input": x.numpy()})[0]).argmax(1)
        with torch.no_grad():
            logits = fast(x)
        # another answer only where two are as good as equal: their order is then float32 rounding's
        lost = logits.amax(1) - logits.gather(1, got[:, None])[:, 0]
        assert lost.max() <= 0.01 * logits.abs().max()
        right, count = right + int((got == y).sum()), count + len(y)
    assert right / count > 0.9 or sparsity is not None
