"""Every opset that export.onnx takes: exported, checked, run; and what it says where it cannot."""

from __future__ import annotations

import onnx
import pytest
import torch
from export_cases import EXPORTERS, IMAGES, INT8, Pieces, Transformer, made
from torch import nn

import sparseq
from sparseq import Layer, Plan, Quant, export
from sparseq.export.opsets import OPSETS

# the first version of operators that the two models hold
SINCE = {"Gelu": 20, "Attention": 23}


@pytest.fixture(scope="module")
def models():
    return [
        (sparseq.convert(model), x)
        for model, x in (made(kind, IMAGES, INT8) for kind in (Pieces, Transformer))
    ]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_gives_the_models_numbers(opset, exporter, models, tmp_path):
    found = set()
    for index, (model, x) in enumerate(models):
        if exporter == "dynamo" and index and opset not in (17, 20, 23, 27):
            continue  # it takes seconds; the transformer's operators changed in these
        path = tmp_path / f"{index}.onnx"
        report = export.onnx(model, x, path, opset=opset, exporter=exporter)
        assert report.passed, report
        proto = onnx.load(path)
        onnx.checker.check_model(proto, full_check=True)
        assert [(o.domain, o.version) for o in proto.opset_import] == [("", opset)]
        wanted = onnx.helper.find_min_ir_version_for(proto.opset_import)
        assert proto.ir_version == wanted
        assert all(kernel.integer for kernel in export.kernels(path))
        found |= {node.op_type for node in proto.graph.node}
    assert "ReduceMean" in found
    for kind, since in SINCE.items():
        assert kind not in found or opset >= since
    if exporter == "dynamo" and opset in (23, 27):
        assert set(SINCE) <= found


@pytest.mark.parametrize("opset", [16, 28, 99, "21", True])
def test_opsets_that_are_not_taken(opset, tmp_path):
    with pytest.raises(ValueError, match=f"opset must be from 17 to 27, got {opset!r}"):
        export.onnx(nn.Linear(4, 4), torch.randn(2, 4), tmp_path / "m.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_an_older_onnx_package(monkeypatch, tmp_path):
    monkeypatch.setattr("onnx.defs.onnx_opset_version", lambda: 24)
    with pytest.raises(ValueError, match="opset must be at most 24, as the installed onnx has"):
        export.onnx(nn.Linear(4, 4), torch.randn(2, 4), tmp_path / "m.onnx", opset=25)
    assert not list(tmp_path.iterdir())


def test_int4_is_stored_in_bytes_before_21(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64)), torch.randn(8, 64)
    sparseq.prepare(model, Plan({"*": Layer(Quant(bits=4, axis=0))}))
    types = {}
    for opset in (20, 21):
        export.onnx(model, x, tmp_path / "m.onnx", opset=opset, exporter="torchscript")
        (weight,) = (
            t
            for t in onnx.load(tmp_path / "m.onnx").graph.initializer
            if t.name.endswith("weight_values")
        )
        types[opset] = onnx.TensorProto.DataType.Name(weight.data_type)
    assert types == {20: "INT8", 21: "INT4"}


class Mish(nn.Module):
    """An operator of opset 18."""

    def forward(self, x):
        return nn.functional.mish(x)


def test_an_operator_that_came_later_is_named(tmp_path):
    x = torch.randn(2, 4)
    export.onnx(Mish(), x, tmp_path / "m.onnx", opset=18)
    found = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert "Mish" in found
    with pytest.raises(ValueError, match="opset 17 has no operator Mish, which the model needs"):
        export.onnx(Mish(), x, tmp_path / "n.onnx", opset=17)
    assert not (tmp_path / "n.onnx").exists()


def test_unequal_parts_need_18(tmp_path):
    class Parts(nn.Module):
        def forward(self, x):
            a, b = x.chunk(2, dim=1)
            return a[:, :2] + b

    report = export.onnx(Parts(), torch.randn(2, 5), tmp_path / "m.onnx", opset=17)
    assert report.passed
