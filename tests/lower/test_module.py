"""`Lowered` as a module: its state, copies, files, threads, and torch's compilers."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from sparseq import Layer, Plan, Quant, analysis, convert, explain, export, load, prepare, save
from sparseq.flow.storage import read_file
from sparseq.lower import Lowered, layerwise
from tests.lower.lowering import lowered, settle


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.conv, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        h = self.norm(self.stem(x)).relu()
        return self.head(self.drop((self.conv(h) + h).relu().mean((2, 3))))


X = (2, 3, 11, 9)


@pytest.fixture
def x():
    return torch.randn(X)


@pytest.fixture
def fast(x):
    return lowered(settle(Network(), x), x)


def other_head(model):
    return model.head.packed().scaled(torch.full((5,), -2.0))


def test_state_has_the_layers_names(fast, x):
    source = layerwise(fast)
    assert type(source) is Network and layerwise(source) is source
    assert list(fast.state_dict()) == list(source.state_dict())
    assert [n for n, _ in fast.named_modules()] == [n for n, _ in source.named_modules()]
    assert (
        fast.stem is source.stem and fast[0:0] is None if hasattr(source, "__getitem__") else True
    )


def test_any_batch(fast):
    x = torch.randn(7, *X[1:])
    with torch.inference_mode():
        whole = fast(x)
        assert torch.equal(whole, torch.cat([fast(part) for part in x.split(3)]))


def test_a_new_weight_is_taken(fast, x):
    y = fast(x)
    fast.head.set_weight(other_head(fast))
    fast.head.bias = fast.head.bias * -2
    fast.head.settle()
    torch.testing.assert_close(fast(x), -2 * y)


def test_a_state_dict_is_taken_alone_and_inside_another_module(fast, x):
    y, state = fast(x), copy.deepcopy(fast.state_dict())
    for model, prefix in ((fast, ""), (nn.Sequential(copy.deepcopy(fast)), "0.")):
        inner = model if prefix == "" else model[0]
        inner.head.set_weight(other_head(inner))
        assert not torch.equal(model(x), y)
        assert list(model.state_dict()) == [prefix + name for name in state]
        model.load_state_dict({prefix + name: value for name, value in state.items()})
        assert torch.equal(model(x), y)
    layerwise(fast).load_state_dict(state)  # fits both


def test_copies_are_apart(fast, x):
    y, other = fast(x), copy.deepcopy(fast)
    assert isinstance(other, Lowered) and torch.equal(other(x), y)
    other.head.set_weight(other_head(other))
    assert not torch.equal(other(x), y) and torch.equal(fast(x), y)


def test_pickle_is_refused(fast):
    with pytest.raises(TypeError, match=r"cannot be pickled: save it with sparseq.save"):
        pickle.dumps(fast)
    with pytest.raises(TypeError, match=r"cannot be pickled"):
        torch.save(fast, io.BytesIO())
    torch.save(fast.state_dict(), io.BytesIO())


def test_a_file_brings_it_back(fast, x, tmp_path):
    path = tmp_path / "m.safetensors"
    save(fast, path)
    loaded = load(path, Network())
    assert isinstance(loaded, Lowered) and torch.equal(loaded(x), fast(x))
    save(layerwise(fast), tmp_path / "layers.safetensors")
    assert type(load(tmp_path / "layers.safetensors", Network())) is Network
    assert (
        '"lowered": {"shape": [2, 3, 11, 9], "dtype": "float32"}' in read_file(path)[0]["sparseq"]
    )


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ('{"shape": [2, 0, 3], "dtype": "float32"}', "the example must have 1 to"),
        ('{"shape": [99999, 99999], "dtype": "float32"}', "the example must have 1 to"),
        ('{"shape": "2", "dtype": "float32"}', "the example's shape must be list, got str"),
        ('{"shape": [2.5], "dtype": "float32"}', "each size of the example must be int"),
        ('{"shape": [2], "dtype": "load"}', "the example's dtype must be one of"),
        ("7", "lowered must be dict or null, got int"),
    ],
)
def test_a_hostile_file_is_refused(fast, tmp_path, monkeypatch, field, message):
    path = tmp_path / "m.safetensors"
    save(fast, path)
    metadata, parts = read_file(path)
    good = '{"shape": [2, 3, 11, 9], "dtype": "float32"}'
    metadata["sparseq"] = metadata["sparseq"].replace(f'"lowered": {good}', f'"lowered": {field}')
    monkeypatch.setattr("sparseq.flow.storage.read_file", lambda path: (metadata, parts))
    with pytest.raises(ValueError, match=message):
        load(path, Network())


def test_a_file_of_another_example_runs_by_layers(fast, x, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save(fast, path)
    metadata, parts = read_file(path)
    metadata["sparseq"] = metadata["sparseq"].replace("[2, 3, 11, 9]", "[2, 4, 11, 9]")
    monkeypatch.setattr("sparseq.flow.storage.read_file", lambda path: (metadata, parts))
    loaded = load(path, Network())
    assert type(loaded) is Network and "torch.fx cannot trace it" in explain(loaded).notes[0]


def test_threads_share_it(fast, x):
    y = fast(x)

    def call(_):
        with torch.inference_mode():
            return fast(x)

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(z, y) for z in pool.map(call, range(16)))


def test_training_mode_and_other_arguments_run_by_layers(fast, x):
    y = fast(x)
    fast.train()
    assert layerwise(fast).training and fast.assembled is None
    assert not torch.equal(fast(x), fast(x))  # dropout
    fast.eval()
    assert not layerwise(fast).training and torch.equal(fast(x), y)
    source = layerwise(fast)
    assert torch.equal(fast(x=x), y)
    for half in (x.half(), x.bfloat16()):
        assert torch.equal(fast(half), source(half))
    assert fast(x[:0]).shape == (0, 5)


def test_a_model_in_half_precision_runs_by_layers(x):
    fast = lowered(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.PReLU(8)), x)
    y = fast(x)
    fast.half()
    assert fast(x.half()).dtype == torch.float16
    assert torch.equal(fast(x.half()), layerwise(fast)(x.half()))
    assert torch.equal(fast.float()(x), y)


def test_a_layer_with_a_dtype_of_its_own_stays_in_torch(x):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    both = Layer(weight=Quant(axis=0), input=Quant(symmetric=False))
    fast = lowered(net, x, Plan({"*": both, "2": Layer(dtype="bfloat16")}))
    assert [row.program != "" for row in explain(fast).rows] == [True, False]
    assert torch.equal(fast(x), layerwise(fast)(x))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_sees_one_op(fast, x, backend):
    y = fast(x)
    compiled = torch.compile(fast, fullgraph=True, backend=backend, dynamic=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), y)
        more = torch.randn(5, *X[1:])
        assert torch.equal(compiled(more), fast(more))


@pytest.mark.parametrize("strict", [True, False])
def test_export_of_any_batch(fast, x, strict):
    batch = torch.export.Dim("batch")
    program = torch.export.export(fast, (x,), dynamic_shapes=({0: batch},), strict=strict)
    calls = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert calls.count("sparseq.network.default") == 1 and not any("int8" in c for c in calls)
    more = torch.randn(5, *X[1:])
    with torch.no_grad():
        assert torch.equal(program.module()(more), fast(more))


def test_onnx_files_are_of_the_layers(fast, x, tmp_path):
    report = export.onnx(fast, x, tmp_path / "m.onnx")
    assert report.passed and export.verify(fast, tmp_path / "m.onnx", [x]).passed


def test_diagnose_looks_at_the_layers(x):
    net = settle(Network(), x)
    fast = lowered(copy.deepcopy(net), x)
    found = analysis.diagnose(net, fast, [x])
    assert {row.name for row in found.rows} == {"stem", "conv", "head"}


def test_a_single_layer(x):
    layer = lowered(nn.Conv2d(3, 4, 3), x)
    assert torch.equal(layer(x), layerwise(layer)(x))
    assert next(iter(layer.state_dict())) == "weight_values"
    other = copy.deepcopy(layer)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_a_container_is_indexed_as_one(x):
    fast = lowered(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), x)
    assert fast[0] is layerwise(fast)[0] and isinstance(fast[1], nn.ReLU)
    assert fast.append is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = fast.nothing


def test_float_models_and_layers_alone_are_not_lowered(x):
    assert type(convert(nn.Sequential(nn.Conv2d(3, 4, 3)), x)) is nn.Sequential
    net = prepare(nn.Sequential(nn.Linear(9, 4)), Plan({"*": Layer(weight=Quant(axis=0))}))
    fast = convert(net, x)
    assert fast.sparseq_unlowered == "runs layer by layer: no input quantiser in the plan"
