"""Layers that compute in 16 bits: prepare, convert, save, explain, export."""

import copy
import re
import sys

import pytest
import torch
from torch import nn

import sparseq
from sparseq import NM, Layer, Plan, Quant

INT8 = Layer(Quant(axis=0), Quant(symmetric=False))
DTYPES = ["float16", "bfloat16", "float32"]


def network():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    with torch.no_grad():  # a batch norm that does something
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
        model[1].weight.uniform_(0.5, 2)
        model[1].bias.normal_()
    return model.eval()


def rounded(x, name):
    return x.to(getattr(torch, name))


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_prepared_layer_computes_in_its_type(name, bias):
    layer, x = nn.Linear(16, 8, bias=bias), torch.randn(5, 16)
    weight, offset = layer.weight.detach().clone(), layer.bias
    model = sparseq.prepare(nn.Sequential(layer), Plan({"*": Layer(dtype=name)}))
    wanted = nn.functional.linear(
        rounded(x, name), rounded(weight, name), None if offset is None else rounded(offset, name)
    )
    got = model(x)
    assert got.dtype == torch.float32 and torch.equal(got, wanted.float())
    half = model(x.bfloat16())
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("name", DTYPES)
def test_gradients_reach_the_float32_parameters(name):
    model = sparseq.prepare(network().train(), Plan({"*": Layer(dtype=name)}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    x = torch.randn(4, 4, 6, 6, requires_grad=True)
    model(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert all(moved)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_convert_rounds_once_with_the_batch_norm_in_it(name):
    model, x = network(), torch.randn(2, 4, 6, 6)
    prepared = sparseq.prepare(network(), Plan({"*": Layer(dtype=name)}))
    fast = sparseq.convert(prepared)
    assert type(fast[1]) is nn.Identity
    factor = model[1].weight * torch.rsqrt(model[1].running_var + model[1].eps)
    wanted = model[0].weight * factor[:, None, None, None]
    step = torch.finfo(getattr(torch, name)).eps
    assert fast[0].weight.dtype == fast[0].bias.dtype == getattr(torch, name)
    torch.testing.assert_close(fast[0].weight.float(), wanted, rtol=step / 2 * 1.01, atol=1e-6)
    with torch.no_grad():
        exact, y = model(x), fast(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, prepared(x), rtol=0, atol=8 * step * float(exact.abs().max()))
    torch.testing.assert_close(y, exact, rtol=0, atol=8 * step * float(exact.abs().max()))
    assert not torch.equal(y, exact)


def test_without_batch_norm_converted_is_prepared_bit_for_bit():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    sparseq.prepare(model, Plan({"*": Layer(dtype="float16")}))
    x = torch.randn(7, 8)
    assert torch.equal(sparseq.convert(model)(x), model(x))


def test_sparsity_goes_along():
    plan = Plan({"*": Layer(sparsity=NM(2, 4), dtype="bfloat16")})
    model = sparseq.prepare(nn.Sequential(nn.Linear(16, 8)), plan).eval()
    fast, x = sparseq.convert(model), torch.randn(3, 16)
    assert (fast[0].weight == 0).float().mean() == 0.5
    assert torch.equal(fast(x), model(x))


@pytest.mark.parametrize("convert", [True, False])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_save_and_load(tmp_path, name, convert):
    plan = Plan({"*": Layer(dtype=name), "3": INT8})
    model, x = sparseq.prepare(network(), plan), torch.randn(2, 4, 6, 6)
    sparseq.calibrate(model, [x])
    model = sparseq.convert(model) if convert else model
    sparseq.save(model, tmp_path / "m.safetensors")
    again = sparseq.load(tmp_path / "m.safetensors", network())
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert str(sparseq.explain(again)) == str(sparseq.explain(model))
    assert again.state_dict().keys() == model.state_dict().keys()


def test_the_file_is_half_as_large(tmp_path):
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))
    sparseq.save(model, tmp_path / "float.safetensors")
    half = sparseq.convert(sparseq.prepare(model, Plan({"*": Layer(dtype="float16")})))
    sparseq.save(half, tmp_path / "half.safetensors")
    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in ("half", "float")]
    assert 0.5 <= sizes[0] / sizes[1] < 0.505


def test_a_file_with_an_unknown_type_is_an_error(tmp_path):
    from sparseq.flow.storage import KEY, _digest, read_file

    half = sparseq.convert(sparseq.prepare(network(), Plan({"*": Layer(dtype="float16")})))
    path = tmp_path / "m.safetensors"
    sparseq.save(half, path)
    metadata, parts = read_file(path)
    text = metadata[KEY].replace('"0": "float16"', '"0": "load"')
    assert text != metadata[KEY]
    from safetensors.torch import save_file

    save_file(parts, path, metadata={KEY: text, f"{KEY}_sha256": _digest(text, parts)})
    with pytest.raises(ValueError, match="dtype must be one of"):
        sparseq.load(path, network())


def test_explain_says_what_runs(monkeypatch):
    plan = Plan({"*": Layer(dtype="float16"), "3": Layer(dtype="float32")})
    model = sparseq.prepare(network(), plan)
    module = sys.modules["sparseq.flow.explain"]  # its name in the package is the function
    monkeypatch.setattr(module, "emulated", lambda dtype, _: dtype == torch.float16)
    for case in (model, sparseq.convert(model)):
        rows = {row.name: row for row in sparseq.explain(case).rows}
        assert rows["0"].kernel == rows["7"].kernel == "float16"
        assert "computes in float16, by the plan" in rows["0"].note
        assert "this CPU has no float16 products" in rows["0"].note
        assert rows["3"].kernel == "float32" and "no float" not in rows["3"].note


def test_a_weight_that_does_not_fit_is_named():
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    with torch.no_grad():
        model[0].weight[0, 0] = 1e5
    sparseq.prepare(model, Plan({"*": Layer(dtype="float16")}))
    with pytest.raises(ValueError, match="convert: 0: weight must be at most 65504 for float16"):
        sparseq.convert(model)


def test_a_type_and_a_quantisation_exclude_each_other_in_steps_too():
    model = sparseq.prepare(network(), Plan({"*": Layer(dtype="float16")}))
    before = str(model)
    with pytest.raises(ValueError, match=r"prepare: 0 is prepared with .* dtype must be None"):
        sparseq.prepare(model, Plan({"*": INT8}))
    assert str(model) == before
    sparseq.prepare(model, Plan({"*": Layer(dtype="bfloat16")}))  # replaces the type
    assert sparseq.convert(model)[7].weight.dtype == torch.bfloat16


def test_models_that_move_to_another_type_as_a_whole():
    fast = sparseq.convert(sparseq.prepare(network(), Plan({"*": Layer(dtype="float16")})))
    x = torch.randn(2, 4, 6, 6)
    assert fast.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_a_transformer_leaves_torchs_fused_path():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0).eval()
    x = torch.randn(2, 5, 16)
    plan = Plan({"linear*": Layer(dtype="bfloat16")})
    with torch.no_grad():
        exact = layer(x)
        prepared = sparseq.prepare(layer, plan)
        fast = sparseq.convert(prepared)
        assert torch.equal(fast(x), prepared(x))
        assert not torch.equal(fast(x), exact)


def test_a_whole_encoder(tmp_path):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    encoder, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(2, 5, 16)
    prepared = sparseq.prepare(copy.deepcopy(encoder), Plan({"*": Layer(dtype="float16")}))
    with torch.no_grad():
        fast = sparseq.convert(prepared)
        wanted = fast(x)
        assert torch.equal(wanted, prepared(x))
        assert 0 < (wanted - encoder(x)).abs().max() < 0.01
        sparseq.save(fast, tmp_path / "m.safetensors")
        again = sparseq.load(tmp_path / "m.safetensors", copy.deepcopy(encoder))
        assert torch.equal(again(x), wanted)
        program = torch.export.export(fast, (x,))
        assert torch.equal(program.module()(x), wanted)
    rows = sparseq.explain(fast).rows
    assert len(rows) == 12 and all(row.kernel == "float16" for row in rows)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_onnx_holds_float16_weights(tmp_path, exporter):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    plan = Plan({"*": Layer(dtype="float16"), "3": INT8})
    model, x = sparseq.prepare(network(), plan), torch.randn(2, 4, 6, 6)
    sparseq.calibrate(model, [x])
    path = tmp_path / "m.onnx"
    report = sparseq.export.onnx(model, x, path, exporter=exporter)
    assert report.passed
    proto = onnx.load(path)
    kinds = [t.data_type for t in proto.graph.initializer if len(t.dims) > 1]
    assert kinds.count(onnx.TensorProto.FLOAT16) == 2
    held = {p.key: p.value for p in proto.metadata_props}
    assert Plan.from_json(held["sparseq_plan"]).rules["0"] == Layer(dtype="float16")


def test_bfloat16_is_refused_for_onnx_runtime(tmp_path):
    pytest.importorskip("onnxruntime")
    model = sparseq.prepare(network(), Plan({"0": Layer(dtype="bfloat16")}))
    text = "export.onnx: target 'onnxruntime' has no bfloat16 kernels on a CPU: 0 computes in it"
    with pytest.raises(ValueError, match=re.escape(text)):
        sparseq.export.onnx(model, torch.randn(1, 4, 6, 6), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
