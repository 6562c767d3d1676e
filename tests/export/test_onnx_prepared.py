"""Prepared models in torch's own exporters, as a user calls them."""

from __future__ import annotations

import io
import warnings
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_cases import IMAGES, INT8, LEARNED, SYMMETRIC, Pieces, Plain, Transformer, made
from torch import nn

import sparseq
from sparseq import NM, Layer, Plan, Quant, export
from sparseq.export.translate import NOT_EXPORTED, OPS

PLANS = {
    "int8": INT8,
    "symmetric": SYMMETRIC,
    "sparse": Plan({"*": Layer(Quant(axis=0), Quant(symmetric=False), NM(2, 4))}),
    "learned": LEARNED,
    "groups": Plan({"*": Layer(Quant(bits=4, group_size=4), Quant(bits=6, symmetric=False))}),
    "unsigned": Plan({"*": Layer(Quant(symmetric=False), Quant(signed=False, symmetric=False))}),
}


def by_dynamo(model, x, target="onnxruntime"):
    table = export.translations(target)
    program = torch.onnx.export(
        model, (x,), dynamo=True, custom_translation_table=table, opset_version=18, verbose=False
    )
    return program.model_proto


def by_torchscript(model, x):
    file = io.BytesIO()
    with warnings.catch_warnings():  # as a user sees it, with warnings that are not errors
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), file, dynamo=False, opset_version=17)
    return onnx.load_model_from_string(file.getvalue())


def answer(proto, x):
    """Unoptimised: the graph's own numbers."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert len(outputs) == 1  # nothing that the model notes for itself
    return outputs[0]


def check(proto, model, x):
    onnx.checker.check_model(proto, full_check=True)
    with torch.no_grad():
        wanted = model(x).numpy()
    difference = np.abs(answer(proto, x) - wanted) / np.abs(wanted).max()
    assert difference.max() <= 0.01
    # sums in another order push a value or two over the edge between two integers
    assert (difference.max(1) <= 1e-5).mean() >= 0.7
    ops = Counter(node.op_type for node in proto.graph.node)
    layers = sum(isinstance(m, (nn.Linear, nn.Conv2d)) for m in model.modules())
    assert ops["QuantizeLinear"] == ops["DequantizeLinear"] == 2 * layers
    return ops


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", [Plain, Transformer])
def test_torchscript_knows_the_ops_on_import(kind, plan):
    model, x = made(kind, IMAGES, PLANS[plan])
    check(by_torchscript(model, x), model, x)


@pytest.mark.parametrize("plan", ["int8", "groups"])
def test_dynamo_takes_the_translations(plan):
    model, x = made(Transformer, IMAGES, PLANS[plan])
    check(by_dynamo(model, x), model, x)


def test_the_target_decides_on_the_integers():
    model, x = made(Pieces, IMAGES, SYMMETRIC)
    kinds = {}
    try:
        for target in ("onnxruntime", "tensorrt"):
            export.register_symbolics(target)
            for name, proto in (
                ("torchscript", by_torchscript(model, x)),
                ("dynamo", by_dynamo(model, x, target)),
            ):
                check(proto, model, x)
                inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
                types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
                kinds[target, name] = {
                    types[n.output[0]] for n in proto.graph.node if n.op_type == "QuantizeLinear"
                }
    finally:
        export.register_symbolics()
    uint8, int8 = onnx.TensorProto.UINT8, onnx.TensorProto.INT8
    for name in ("torchscript", "dynamo"):
        assert kinds["onnxruntime", name] == {uint8, int8}  # inputs, and weights
        assert kinds["tensorrt", name] == {int8}


def test_halves():
    """QuantizeLinear takes float32 alone before opset 19."""

    class Half(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x.half()).float()

    torch.manual_seed(0)
    model, x = Half(nn.Linear(16, 8).half()).eval(), torch.randn(4, 16)
    sparseq.calibrate(sparseq.prepare(model, Plan({"*": Layer(Quant(axis=0), Quant())})), [x])
    with torch.no_grad():
        wanted = model(x).numpy()
    for proto in (by_torchscript(model, x), by_dynamo(model, x)):
        assert np.abs(answer(proto, x) - wanted).max() <= 2e-3 * np.abs(wanted).max()


def test_a_weight_that_moved_since_the_last_pass():
    """A weight's grid follows the weight, in the file as in the model."""
    model, x = made(Plain, IMAGES, INT8)
    with torch.no_grad():
        model(x)
        model[3].parametrizations.weight.original.mul_(3)
    check(by_torchscript(model, x), model, x)


def test_export_leaves_the_model_as_it_is():
    model, x = made(Plain, IMAGES, INT8)
    before = {n: v.clone() for n, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    by_torchscript(model, x)
    after = model.state_dict()
    assert all(torch.equal(v, after[n]) for n, v in before.items())
    assert isinstance(after["0.input_quantizer._extra_state"], dict)


def test_unknown_targets():
    for function in (export.translations, export.register_symbolics):
        with pytest.raises(ValueError, match=r"target must be one of .*got 'tvm'"):
            function("tvm")


def test_every_op_is_translated_or_named_as_not_exported():
    every = set(sparseq.ops.kernels())
    for target in ("onnxruntime", "tensorrt"):
        translated = {op._schema.name.partition("::")[2] for op in export.translations(target)}
        assert translated == set(OPS)
        assert translated | NOT_EXPORTED == every
        assert not translated & NOT_EXPORTED
