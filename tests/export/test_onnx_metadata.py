"""What a file says of itself: the plan, each layer, version, target, accuracy."""

from __future__ import annotations

import json
import math

import pytest
import torch
from export_cases import (
    EXPORTERS,
    INPUT,
    LEARNED,
    MIXED_IMAGES,
    ROWS,
    WEIGHT,
    Perceptron,
    made,
    properties,
)
from torch import nn

import sparseq
from sparseq import NM, Layer, Plan, Quant, Unstructured, export

both = pytest.mark.parametrize("exporter", EXPORTERS)


@both
def test_each_layer_is_described(exporter, exported):
    found = properties(exported("residual", exporter).path)
    assert found["sparseq_version"] == sparseq.__version__
    assert found["sparseq_target"] == "onnxruntime"
    assert found["sparseq_exporter"] == exporter
    assert "sparseq_accuracy" not in found
    layers = json.loads(found["sparseq_layers"])
    assert set(layers) == {"stem", "conv1", "conv2", "shortcut", "fc"}
    assert Quant(**layers["conv1"]["weight"]) == WEIGHT
    assert Quant(**layers["conv1"]["input"]) == INPUT
    assert layers["conv1"]["form"] == "QLinearConv"
    assert layers["conv2"]["form"] == "float" and layers["conv2"]["reason"]
    assert 0 < layers["conv1"]["zeros"] < 0.1


def test_the_plan_reads_back(exported):
    plan = Plan.from_json(properties(exported("plain").path)["sparseq_plan"])
    # the fully connected head's integers came out 2:4, like all others
    names = ["0", "3", "6", "8"]
    assert plan == Plan({name: Layer(WEIGHT, INPUT, NM(2, 4)) for name in names})
    assert set(plan.match(names)) == set(names)


def test_masks_of_a_prepared_model_are_in_the_plan(exported, tmp_path):
    """A converted model no longer knows what its zeros were meant to be; a prepared one does."""
    case = exported("mixed images")
    held = Plan.from_json(properties(case.path)["sparseq_plan"]).rules
    assert held["0"].sparsity == NM(2, 4)
    assert held["3"] == Layer(Quant(bits=4, axis=0), INPUT)
    export.onnx(case.prepared, case.x, tmp_path / "m.onnx", exporter="torchscript", verify=False)
    held = Plan.from_json(properties(tmp_path / "m.onnx")["sparseq_plan"]).rules
    assert held == MIXED_IMAGES.rules
    assert held["3"].sparsity == Unstructured(0.7)


def test_layers_that_stay_float_are_in_the_plan(exported):
    held = Plan.from_json(properties(exported("odd").path)["sparseq_plan"]).rules
    assert held == {"reflect": LEARNED.rules["*"], "fc": LEARNED.rules["*"]}


def test_a_plan_prepares_the_same_model_again(exported):
    plan = Plan.from_json(properties(exported("mixed rows").path)["sparseq_plan"])
    model = sparseq.prepare(Perceptron(), plan)
    assert {
        n: m.sparseq_layer for n, m in model.named_modules() if hasattr(m, "sparseq_layer")
    } == (plan.rules)


def test_a_float_model_has_no_plan(tmp_path, capfd):
    x = torch.randn(2, 4)
    assert export.onnx(nn.Linear(4, 4), x, tmp_path / "m.onnx", exporter="torchscript").passed
    found = properties(tmp_path / "m.onnx")
    assert "sparseq_plan" not in found
    assert json.loads(found["sparseq_layers"]) == {}
    assert export.kernels(tmp_path / "m.onnx") == []
    assert not any(capfd.readouterr())  # the exporter grumbles at domains that are not used


@pytest.mark.parametrize("accuracy", [0.931, 93, {"top1": 0.931, "top5": 0.99}])
def test_accuracy_is_noted(accuracy, tmp_path):
    model, x = made(Perceptron, ROWS, Plan({"*": Layer(WEIGHT, INPUT)}))
    given = {"exporter": "torchscript", "verify": False, "accuracy": accuracy}
    assert export.onnx(model, x, tmp_path / "m.onnx", **given) is None
    assert json.loads(properties(tmp_path / "m.onnx")["sparseq_accuracy"]) == accuracy


@pytest.mark.parametrize(
    ("accuracy", "kind"),
    [
        ("0.9", TypeError),
        (True, TypeError),
        ({}, TypeError),
        ({1: 0.5}, TypeError),
        ({"top1": "high"}, TypeError),
        (math.nan, ValueError),
        ({"top1": math.inf}, ValueError),
    ],
    ids=str,
)
def test_what_is_not_an_accuracy(accuracy, kind, tmp_path):
    with pytest.raises(kind, match=r"export\.onnx: accuracy must be"):
        export.onnx(nn.Linear(4, 4), torch.randn(2, 4), tmp_path / "m.onnx", accuracy=accuracy)
    assert not list(tmp_path.iterdir())


def test_verify_on_given_batches(tmp_path):
    model, x = made(Perceptron, ROWS, Plan({"*": Layer(WEIGHT, INPUT)}))
    batches = iter([(x, torch.zeros(32)), (x[:5], torch.zeros(5))])
    given = {"exporter": "torchscript", "verify": batches}
    report = export.onnx(model, x, tmp_path / "m.onnx", **given)
    assert report.passed and report.batches == 2
    with pytest.raises(ValueError, match="at least one batch"):
        export.onnx(model, x, tmp_path / "n.onnx", exporter="torchscript", verify=[])
    assert not (tmp_path / "n.onnx").exists()
