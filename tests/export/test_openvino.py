"""OpenVINO reads and runs the exported files: `verify`, with OpenVINO in ONNX Runtime's place."""

from types import SimpleNamespace

import onnx
import pytest
import torch
from export_cases import INT8, Perceptron, Plain, Residual
from torch import nn

import sparseq
from sparseq import NM, Layer, Plan, Quant, export
from sparseq.export import compare

openvino = pytest.importorskip("openvino")

SPARSE = Plan({"*": Layer(Quant(axis=0), Quant(symmetric=False), NM(2, 4))})
INT4 = Plan({"*": Layer(Quant(bits=4, axis=0, group_size=8))})
# OpenVINO's INT8 kernels add two products in 16 bits where the CPU has no VNNI (its documentation:
# use 7 bits there). Files for ONNX Runtime keep out of them where that could matter.
SEVEN = Plan({"*": Layer(Quant(bits=7, axis=0), Quant())})


class OpenVino:
    """What `verify` asks of an ONNX Runtime session, answered by OpenVINO on the CPU."""

    def __init__(self, proto):
        core = openvino.Core()
        model = core.read_model(proto.SerializeToString(), b"")
        # On CPUs with VNNI its defaults compute in bfloat16 what is not quantised, and requantise
        # with another rounding.
        accurate = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
        self.compiled = core.compile_model(model, "CPU", accurate)

    def get_outputs(self):
        kinds = {"u8": "tensor(uint8)", "i8": "tensor(int8)", "f32": "tensor(float)"}
        return [
            SimpleNamespace(name=port.get_any_name(), type=kinds[port.element_type.to_string()])
            for port in self.compiled.outputs
        ]

    def run(self, names, feed):
        results = self.compiled(feed)
        return [results[self.compiled.output(name)] for name in names]

    def precisions(self):
        """What the products ran in: kind -> precisions."""
        found: dict[str, list[str]] = {}
        for node in self.compiled.get_runtime_model().get_ordered_ops():
            about = node.get_rt_info()
            kind = about["layerType"].astype(str)
            if kind in ("Convolution", "FullyConnected", "MatMul"):
                found.setdefault(kind, []).append(about["runtimePrecision"].astype(str))
        return found


CASES = {
    "residual": (Residual, INT8, (4, 8, 8)),
    "residual 2:4": (Residual, SPARSE, (4, 8, 8)),
    "plain": (Plain, INT8, (4, 8, 8)),
    "perceptron": (Perceptron, INT8, (32,)),
    "perceptron int4": (Perceptron, INT4, (32,)),
}


def converted(make, plan, shape):
    torch.manual_seed(0)
    model = sparseq.prepare(make().eval(), plan)
    sparseq.calibrate(model, [torch.randn(8, *shape)])
    return sparseq.convert(model)


def compared(model, path, shape, monkeypatch):
    monkeypatch.setattr(compare, "session", lambda proto, *rest, **options: OpenVino(proto))
    return export.verify(model, path, [torch.randn(n, *shape) for n in (1, 5)])


@pytest.mark.parametrize("name", CASES)
def test_the_same_answers(name, tmp_path, monkeypatch):
    model, shape = converted(*CASES[name]), CASES[name][2]
    export.onnx(model, torch.randn(2, *shape), tmp_path / "m.onnx")
    report = compared(model, tmp_path / "m.onnx", shape, monkeypatch)
    assert report.passed, report


def test_the_tensorrt_profile_runs_on_integers(tmp_path, monkeypatch):
    model = converted(Plain, SEVEN, (4, 8, 8))
    export.onnx(model, torch.randn(2, 4, 8, 8), tmp_path / "m.onnx", target="tensorrt")
    ran = OpenVino(onnx.load(tmp_path / "m.onnx")).precisions()
    assert sum(map(len, ran.values())) == 4
    assert all(kind in ("i8", "u8") for kinds in ran.values() for kind in kinds), ran
    # end to end: where verify feeds int8 to single layers, OpenVINO rounds otherwise
    report = compared(model, tmp_path / "m.onnx", (4, 8, 8), monkeypatch)
    assert report.output_difference <= compare.FLOAT and report.argmax_agreement == 1


@pytest.mark.parametrize("grid", [Quant(symmetric=False), Quant(), Quant(bits=6)])
def test_ranges_of_rows(grid, tmp_path, monkeypatch):
    """No scale of an axis that the graph computes, which OpenVINO would not take."""
    torch.manual_seed(0)
    layers = [nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10)]
    kind = sparseq.nn.SparseQuantLinear
    model = nn.Sequential(
        *(kind.from_float(m, input=grid) if isinstance(m, nn.Linear) else m for m in layers)
    )
    export.onnx(model, torch.randn(2, 32), tmp_path / "m.onnx")
    report = compared(model, tmp_path / "m.onnx", (32,), monkeypatch)
    assert report.passed, report
