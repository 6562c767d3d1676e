"""Real engines of TensorRT-RTX, built without a GPU and audited; each build has its own process."""

import logging

import numpy as np
import onnx
import pytest
from engine_cases import CASES, LAYER, build, edited, exported, needs_rtx
from onnx import helper

from sparseq import export
from sparseq.export.engine.plan import read_plan
from sparseq.export.engine.source import Source
from sparseq.export.view import quantised_layers

pytestmark = needs_rtx


@pytest.mark.parametrize("capability", ["8.6", "12.0"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "mixed"])
def test_every_layer_runs_on_integers(name, capability, tmp_path):
    model, path = exported(name)
    sparse = name.endswith("2:4")
    table, engine = build(path, tmp_path, sparse=sparse, compute_capabilities=[capability])
    layers = quantised_layers(model)
    assert sorted(layer.name for layer in table.layers) == sorted(layers)
    for row in table.layers:
        assert (row.input, row.weight, row.verbatim) == ("int8", "int8", True), row
        assert row.problem is None
        assert row.sparse_kernel is None  # chosen on the device
        takes_24 = layers[row.name].weight_values.shape[1] % 4 == 0
        assert row.sparse == (sparse and takes_24), row
    if sparse:
        assert sum(row.sparse for row in table.layers) >= 14
    assert str(export.audit(engine, path)) == str(table)
    assert [p.name for p in tmp_path.iterdir()] == ["m.engine"]
    target = {"8.6": b"accelerators={sm86 }", "12.0": b"accelerators={sm120 }"}[capability]
    assert target in engine.read_bytes()


@pytest.mark.parametrize(("name", "share"), [("demo 2:4", 0.9), ("transformer", 0.6)])
def test_half_precision_between_the_integers(name, share, tmp_path):
    """Activations take less memory; TensorRT-RTX keeps a convolution's own result in float32."""
    _, path = exported(name)
    sizes, tables = [], []
    for half in (False, True):
        table, engine = build(path, tmp_path, half=half)
        sizes.append(sum(_float_bytes(g) for g in read_plan(engine.read_bytes())))
        tables.append([(r.name, r.input, r.weight, r.verbatim) for r in table.layers])
    assert tables[0] == tables[1]
    assert sizes[1] < share * sizes[0]


def _float_bytes(graph):
    """Bytes of float32 and float16 activations for one image."""
    width = {"float": 4, "half": 2}
    return sum(
        width[t.dtype] * np.prod([d for d in t.dims if d is not None])
        for t in graph.tensors.values()
        if t.dtype in width and t.index is None and None in t.dims
    )


def test_layers_that_the_model_keeps_in_float(tmp_path):
    """They are listed, and held to nothing; a layer that is called twice is there twice."""
    _, path = exported("mixed")
    table, _ = build(path, tmp_path)
    rows = {row.name: row for row in table.layers}
    integer = [name for name, row in rows.items() if row.integer]
    assert integer == ["stem", "grouped", "fc", "fc@1"]
    assert all(rows[name].weight == "int8" and rows[name].verbatim for name in integer)
    assert {row.weight for row in rows.values() if not row.integer} == {"float"}
    assert str(table).count("float in the model") == len(rows) - 4


def wrong_axis(graph):
    """Scales along the inputs: valid ONNX, and no integer kernel has it."""
    node = graph.node("DequantizeLinear", f"{LAYER}.weight_values")
    next(a for a in node.attribute if a.name == "axis").i = 1


def no_quantised_input(graph):
    quantize = graph.node("QuantizeLinear", result=f"{LAYER}.input")
    graph.bypass(quantize, graph.node("DequantizeLinear", f"{LAYER}.input"))


def float_weight(graph):
    node = graph.node("DequantizeLinear", f"{LAYER}.weight_values")
    values, scale = (graph.value(f"{LAYER}.weight_{what}") for what in ("values", "scale"))
    graph.constant("wide", values * scale[:, None, None, None])
    graph.rename_input(graph.reader(node.output[0]), node.output[0], "wide")
    graph.graph.node.remove(node)


SILENT = [wrong_axis, no_quantised_input, float_weight]  # TensorRT builds these in float


@pytest.mark.parametrize("edit", SILENT)
def test_a_layer_that_falls_back_is_an_error(edit, tmp_path):
    path = edited("demo", edit, tmp_path)
    with pytest.raises(
        export.EngineAuditError, match=f"layer {LAYER}: it runs on float inputs and float weights"
    ) as caught:
        build(path, tmp_path)
    assert list(caught.value.audit.problems()) == [LAYER]
    assert [p.name for p in tmp_path.iterdir()] == ["edited.onnx"]
    _, engine = build(path, tmp_path, audit=False)
    with pytest.raises(export.EngineAuditError, match=LAYER):
        export.audit(engine, path)
    with pytest.raises(export.EngineAuditError, match=LAYER):
        export.audit(engine, path, allow_float=["blocks.2.*", "fc"])
    assert export.audit(engine, path, allow_float=["blocks.1.*"]).problems().keys() == {LAYER}


def zero_point(graph):
    graph.constant("three", np.int8(3))
    for node in (
        graph.node("QuantizeLinear", result=f"{LAYER}.input"),
        graph.reader(f"{LAYER}.input"),
    ):
        node.input[2] = "three"


def weight_zero_point(graph):
    node = graph.node("DequantizeLinear", f"{LAYER}.weight_values")
    node.input.append(graph.constant("two", np.full(32, 2, np.int8)))


def unsigned(graph):
    """TensorRT reads uint8 with zero point 0 as int8, so that large values are cut off."""
    graph.constant("zero", np.uint8(0))
    for node in (
        graph.node("QuantizeLinear", result=f"{LAYER}.input"),
        graph.reader(f"{LAYER}.input"),
    ):
        node.input[2] = "zero"


def int32_bias(graph):
    conv = graph.reader(graph.node("DequantizeLinear", f"{LAYER}.weight_values").output[0])
    scale = graph.value(f"{LAYER}.input_scale") * graph.value(f"{LAYER}.weight_scale")
    integers = np.rint(graph.value(f"{LAYER}.bias") / scale).astype(np.int32)
    inputs = [graph.constant("integers", integers), graph.constant("steps", scale)]
    conv.input[2] = "wide"
    at = list(graph.graph.node).index(conv)
    node = helper.make_node("DequantizeLinear", inputs, ["wide"], name="bias", axis=0)
    graph.graph.node.insert(at, node)


REFUSED = {
    zero_point: "a zero point is 3, and TensorRT takes only 0",
    weight_zero_point: "a zero point is 2, and TensorRT takes only 0",
    unsigned: "QuantizeLinear is on uint8, which TensorRT takes for int8",
    int32_bias: "the bias is int32",
}


@pytest.mark.parametrize("edit", REFUSED)
def test_what_tensorrt_refuses_or_misreads(edit, tmp_path):
    path = edited("demo", edit, tmp_path)
    with pytest.raises(ValueError, match=f"layer {LAYER}: {REFUSED[edit]}"):
        build(path, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["edited.onnx"]


@pytest.mark.parametrize("edit", [zero_point, int32_bias])
def test_the_parsers_errors_name_the_layer(edit, tmp_path, monkeypatch):
    monkeypatch.setattr(Source, "check", lambda self: None)
    kind = {zero_point: "QuantizeLinear", int32_bias: "DequantizeLinear"}[edit]
    path = edited("demo", edit, tmp_path)
    with pytest.raises(
        export.EngineBuildError, match=rf"does not take {kind} \([\w.]+\) at layer {LAYER}: \w+"
    ) as caught:
        build(path, tmp_path)
    assert "target='tensorrt'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_operator_that_the_parser_does_not_know(tmp_path):
    def edit(graph):
        conv = graph.reader(graph.node("DequantizeLinear", f"{LAYER}.weight_values").output[0])
        relu = graph.reader(conv.output[0])
        relu.op_type, relu.domain = "Mystery", "com.example"

    path = edited("demo", edit, tmp_path)
    proto = onnx.load(path)
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(proto, path)
    with pytest.raises(export.EngineBuildError, match=r"does not take Mystery .* at layer \S+: "):
        build(path, tmp_path)


def test_progress(tmp_path, capsys):
    calls = []
    _, path = exported("demo")
    build(path, tmp_path, progress=lambda *call: calls.append(call))
    assert calls[0] == ("Building engine", 0, 6)
    assert calls[-1] == ("Building engine", 6, 6)
    assert all(0 <= done <= steps for _, done, steps in calls)
    build(path, tmp_path, progress=True)
    assert capsys.readouterr().out == ""


def test_a_build_that_is_stopped_leaves_nothing(tmp_path):
    def stop(phase, done, steps):
        if phase == "Optimizing graph":
            raise KeyboardInterrupt

    (tmp_path / "m.engine").write_bytes(b"the old one")
    with pytest.raises(KeyboardInterrupt):
        build(exported("demo")[1], tmp_path, progress=stop)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"the old one"]


def test_builds_follow_each_other(tmp_path, caplog):
    """A failed one leaves no state behind; TensorRT's remarks are logged and not printed."""
    _, path = exported("demo")
    with pytest.raises(export.EngineBuildError, match="within workspace limit"):
        build(path, tmp_path, workspace=1)
    with caplog.at_level(logging.INFO, logger="sparseq.export.engine.build"):
        _, engine = build(path, tmp_path, half=True, workspace=1 << 28, batch=(1, 2, 4))
    assert engine.stat().st_size > 1 << 20
    assert b"out of bounds [1, 4]" in engine.read_bytes()
    assert any("scales to fp32" in message for message in caplog.messages)


def test_what_this_version_does_not_know(tmp_path):
    _, path = exported("demo")
    with pytest.raises(ValueError, match=r"holds '9.0', which this version .* 8\.0, 8\.6, .*12\.0"):
        build(path, tmp_path, compute_capabilities=("8.6", "9.0"))
    with pytest.raises(export.EngineBuildError, match="Turing"):
        build(path, tmp_path, compute_capabilities=("7.5",))
    assert not list(tmp_path.iterdir())


def test_running_needs_a_gpu(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _, engine = build(exported("demo")[1], tmp_path)
    with pytest.raises(RuntimeError, match="needs a CUDA device, and torch sees none"):
        export.Engine(engine)
