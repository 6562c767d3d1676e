"""What a file weighs: int8 a quarter, INT4 an eighth, channels that are gone are gone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from export_cases import EXPORTERS, Plain
from onnx import numpy_helper
from torch import nn

import sparseq
from sparseq import Layer, Plan, Quant, export

both = pytest.mark.parametrize("exporter", EXPORTERS)


@both
def test_resnet18_is_a_quarter(exporter, tmp_path):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model, x = models.resnet18().eval(), torch.randn(1, 3, 32, 32)
    floats = sum(v.numel() * v.element_size() for v in model.state_dict().values())
    sparseq.calibrate(sparseq.prepare(model, Plan({"*": Layer(Quant(axis=0), Quant())})), [x])
    export.onnx(model, x, tmp_path / "m.onnx", exporter=exporter, verify=False)
    assert (tmp_path / "m.onnx").stat().st_size < floats / 3.9


class Wide(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))


@both
@pytest.mark.parametrize(
    ("weight", "ratio"),
    [
        (Quant(axis=0), 3.8),
        (Quant(bits=4, axis=0), 7.4),
        (Quant(bits=4, axis=0, symmetric=False), 7.2),
        (Quant(bits=4, group_size=64), 6.6),
        (Quant(bits=3, group_size=64, symmetric=False), 5.4),
    ],
    ids=str,
)
def test_weights_alone(weight, ratio, exporter, tmp_path):
    torch.manual_seed(0)
    model, x = Wide(), torch.randn(4, 512)
    floats = sum(p.numel() * 4 for p in model.parameters())
    sparseq.prepare(model, Plan({"*": Layer(weight)}))
    assert export.onnx(model, x, tmp_path / "m.onnx", exporter=exporter).passed
    assert (tmp_path / "m.onnx").stat().st_size < floats / ratio


def test_int4_with_integer_inputs_is_an_eighth(tmp_path):
    torch.manual_seed(0)
    model, x = Wide(), torch.randn(4, 512)
    floats = sum(p.numel() * 4 for p in model.parameters())
    plan = Plan({"*": Layer(Quant(bits=4, axis=0), Quant(symmetric=False))})
    sparseq.calibrate(sparseq.prepare(model, plan), [x])
    assert export.onnx(model, x, tmp_path / "m.onnx").passed
    assert all(kernel.integer for kernel in export.kernels(tmp_path / "m.onnx"))
    assert (tmp_path / "m.onnx").stat().st_size < floats / 7.2


@both
def test_a_float_model_keeps_its_size(exporter, exported, tmp_path):
    case = exported("plain", exporter)
    export.onnx(Plain(), case.x, tmp_path / "float.onnx", exporter=exporter)
    assert (tmp_path / "float.onnx").stat().st_size > 3.6 * case.path.stat().st_size


@both
def test_zeros_stay_zeros(exporter, exported):
    weights = exported("plain", exporter).weights()
    for name in ("0", "3", "6"):
        stored = numpy_helper.to_array(weights[name])
        groups = np.moveaxis(stored, 1, -1).reshape(-1, 4)
        assert ((groups != 0).sum(1) <= 2).all(), name
    stored = numpy_helper.to_array(exported("mixed images", exporter).weights()["3"])
    assert (stored.astype(np.int8) == 0).mean() >= 0.7


def test_removed_channels_are_not_in_the_file(tmp_path):
    sizes = {}
    for width in (64, 32):
        torch.manual_seed(0)
        model, x = Plain(width), torch.randn(2, 4, 8, 8)
        plan = Plan({"*": Layer(Quant(axis=0), Quant())})
        sparseq.calibrate(sparseq.prepare(model, plan), [x])
        export.onnx(model, x, tmp_path / f"{width}.onnx", exporter="torchscript")
        sizes[width] = (tmp_path / f"{width}.onnx").stat().st_size
    weights = {w: 4 * w * 9 + w * 2 * w * 9 + 32 * w * 32 + 320 for w in sizes}
    assert abs(sizes[64] - sizes[32] - (weights[64] - weights[32])) < 3000
