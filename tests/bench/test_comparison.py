"""`bench.compare` of two models or files: outputs first, then times and their ratio."""

import math
import warnings
from functools import partial

import bench_models
import pytest
import torch
from torch import nn

import sparseq
from sparseq import Layer, Plan, Quant, bench
from sparseq.bench import child, comparison, timing
from sparseq.bench.contenders import opened
from sparseq.bench.files import find_architecture, importable, kind_of
from sparseq.bench.stats import RESAMPLES

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
FEW = {"repeats": 2, "threads": 1}
TORCHSCRIPT = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same network in every form that needs no GPU."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("bench")
    model = bench_models.small()
    sparseq.save(model, folder / "float.safetensors")
    save_file(model.state_dict(), folder / "plain.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        sparseq.export.onnx(model, X, folder / "model.onnx", dynamic_batch=False, verify=False)
        torch.export.save(torch.export.export(model, (X,)), folder / "model.pt2")
        torch.jit.save(torch.jit.trace(model, X), folder / "script.pt")
    torch.save(model.state_dict(), folder / "state.pt")
    (folder / "model.engine").write_bytes(b"vtrt")
    (folder / "note.txt").write_text("none")
    return folder


NAMES = ("float.safetensors", "plain.safetensors", "model.onnx", "model.pt2", "script.pt")


@TORCHSCRIPT
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_file_runs(files, name):
    got = bench.compare(
        bench_models.small(), files / name, X, architecture=bench_models.small, **FEW
    )
    assert got.names == ("Sequential", name)
    assert got.runtimes == ("torch", "onnxruntime" if name == "model.onnx" else "torch")
    assert got.agreement.relative < 1e-5 and got.agreement.same_argmax == 1
    assert [t.repeats for t in got.times] == [2 * timing.CALLS] * 2
    assert all(t.images == 3 and t.threads == 1 for t in got.times)
    assert 0 < got.interval[0] <= got.ratio <= got.interval[1]


def test_openvino(files):
    openvino = pytest.importorskip("openvino")
    path = files / "model.onnx"
    got = bench.compare(path, path, X, runtime=("openvino", "onnxruntime"), **FEW)
    assert got.runtimes == ("openvino", "onnxruntime") and got.agreement.relative < 1e-5
    assert got.names == ("model.onnx (A)", "model.onnx (B)")
    openvino.save_model(openvino.Core().read_model(path), files / "m.xml", compress_to_fp16=False)
    got = bench.compare(path, files / "m.xml", X, **FEW)
    assert got.runtimes == ("onnxruntime", "openvino") and got.agreement.relative < 1e-5


def test_a_converted_model_beside_its_float_one():
    model = bench_models.small()
    plan = Plan({"*": Layer(weight=Quant(axis=0), input=Quant(symmetric=False))})
    fast = sparseq.convert(sparseq.calibrate(sparseq.prepare(bench_models.small(), plan), [X]), X)
    model.train()
    got = bench.compare(fast, model, X, names=("INT8", "float"), order="random", **FEW)
    assert model.training
    assert 0 < got.agreement.relative < 0.1
    assert got.verdict.startswith(f"INT8 is {got.ratio:.2f}x as fast as float (95 % interval ")


def test_saved_integers(tmp_path):
    plan = Plan({"*": Layer(weight=Quant(axis=0), input=Quant(symmetric=False))})
    fast = sparseq.convert(sparseq.calibrate(sparseq.prepare(bench_models.small(8), plan), [X]), X)
    sparseq.save(fast, tmp_path / "fast.safetensors")
    build = partial(bench_models.small, width=8)
    got = bench.compare(fast, tmp_path / "fast.safetensors", X, architecture=build, **FEW)
    assert got.agreement == bench.Agreement(0, 0, 1)


@pytest.mark.parametrize("form", [list, tuple, lambda p: dict(zip("ab", p, strict=True))])
def test_several_inputs_and_outputs(form, tmp_path):
    model, inputs = bench_models.pair(), [torch.randn(2, 8), torch.randn(2, 4)]
    path = tmp_path / "pair.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            model, tuple(inputs), path, dynamo=True, input_names=["a", "b"], verbose=False
        )
    got = bench.compare(model, path, form(inputs), **FEW)
    assert got.agreement.relative < 1e-6 and got.times[0].images == 2


def test_the_ratio_follows_the_times(monkeypatch):
    rounds = [[0.010, 0.011, 0.012], [0.020, 0.021, 0.022]]  # a busy machine in the second one
    bursts = {"0": rounds, "1": [[3 * t for t in times] for times in rounds]}
    monkeypatch.setattr(comparison, "alternate", lambda *_, **__: bursts)
    got = bench.compare(bench_models.small(), bench_models.small(), X)
    assert got.ratio == pytest.approx(3) and got.interval == (pytest.approx(3), pytest.approx(3))
    assert "no difference" not in got.verdict and RESAMPLES >= 1000
    text = str(got)
    assert text.startswith("outputs: largest difference 0, relative 0, same arg-max 100.0%\n")
    assert "Sequential (A) is 3.00x as fast as Sequential (B)" in text and "2 rounds" in text
    bursts["1"] = rounds
    assert bench.compare(bench_models.small(), bench_models.small(), X).verdict.endswith(
        "(95 % interval 1.00x to 1.00x): no difference that these rounds show"
    )


def test_agreement_by_hand():
    a = [torch.tensor([[1.0, 2.0], [4.0, 3.0]]), torch.tensor([0.0])]
    b = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0])]
    got = bench.agreement(a, b)
    assert got.largest == 5 and got.same_argmax == 0.5
    assert got.relative == pytest.approx(math.sqrt(27 / 55))
    broken = [a[0], torch.tensor([math.nan])]
    assert math.isnan(bench.agreement(broken, b).largest)
    zero = [torch.zeros(2, 1)]
    assert bench.agreement(zero, zero) == bench.Agreement(0, 0, None)
    assert bench.agreement([torch.ones(2, 1)], zero).relative == math.inf
    with pytest.raises(ValueError, match=r"same shapes, got \[\(2, 2\), \(1,\)\] and \[\(2, 1\)\]"):
        bench.agreement(a, zero)


def test_different_outputs_are_an_error():
    with pytest.raises(ValueError, match="outputs of the same shapes"):
        bench.compare(nn.Linear(4, 3), nn.Linear(4, 2), torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("none.onnx", FileNotFoundError, "path must name a file, got .*none.onnx"),
        ("note.txt", ValueError, r"must end in \.pt, \.pt2"),
        ("state.pt", ValueError, "weights that torch.save pickled do not"),
        ("float.safetensors", ValueError, "holds weights only: name the architecture"),
        ("model.engine", ValueError, "TensorRT engine, which needs a CUDA device"),
    ],
)
def test_files_that_cannot_run(files, name, error, message):
    if name == "model.engine" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(error, match=message):
        bench.compare(bench_models.small(), files / name, X, **FEW)


def test_a_file_of_another_shape_or_model(files):
    model = bench_models.small()
    with pytest.raises(ValueError, match=r"model\.onnx' does not run on this example: "):
        bench.compare(model, files / "model.onnx", X[:1], **FEW)
    with pytest.raises(ValueError, match=r"does not run on this example: the file takes the input"):
        bench.compare(model, files / "model.onnx", [X, X], **FEW)
    other = partial(bench_models.small, width=3)
    for name in ("plain.safetensors", "float.safetensors"):
        with pytest.raises(ValueError, match="does not fit this model"):
            bench.compare(model, files / name, X, architecture=other, **FEW)
    (files / "damaged.safetensors").write_bytes((files / "plain.safetensors").read_bytes()[:99])
    with pytest.raises(ValueError, match=r"damaged\.safetensors"):
        bench.compare(model, files / "damaged.safetensors", X, architecture=other, **FEW)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (({"a": print}, nn.Identity()), TypeError, "callables come in one mapping"),
        ((nn.Identity(),), TypeError, "two models need an example"),
        ((nn.Identity(), nn.Identity()), TypeError, "two models need an example"),
        ((nn.Identity(), 3, X), TypeError, "must be a module, a callable or the path"),
    ],
)
def test_compare_checks_its_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        bench.compare(*arguments)


def test_options_are_checked(files):
    model = bench_models.small()
    with pytest.raises(TypeError, match="warmup and images are for callables"):
        bench.compare(model, model, X, warmup=3)
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        bench.compare(model, model, X, repeats=0)
    with pytest.raises(ValueError, match="runtime must be 'onnxruntime' or 'openvino', got 'x'"):
        bench.compare(model, files / "model.onnx", X, runtime="x")


def test_threads_are_put_back_and_modes_too(files):
    model, before = bench_models.small().train(), torch.get_num_threads()
    bench.compare(model, files / "model.onnx", X, **FEW)
    assert model.training and torch.get_num_threads() == before


def test_a_contender_reads_its_inputs_anew(files):
    """So that one contender can be checked on many inputs."""
    x, model = X.clone(), bench_models.small()
    runtimes = {"onnxruntime": files / "model.onnx", "torch": model}
    for given in runtimes.values():
        with opened("test", given, x, threads=1) as contender:
            for seed in range(2):
                x.copy_(torch.randn(X.shape, generator=torch.Generator().manual_seed(seed)))
                (got,) = contender.outputs()
                torch.testing.assert_close(got, model(x).detach())


def test_the_reason_of_a_runtime_is_one_line():
    where = "Exception from src/inference/src/cpp/infer_request.cpp:104:\n"
    assert child.reason(RuntimeError(where + where + "Check failed\nmore")) == "Check failed"
    assert child.reason(RuntimeError("")) == "RuntimeError('')"


def test_kinds(files):
    assert [kind_of("x", files / name) for name in NAMES] == [
        "safetensors",
        "safetensors",
        "onnx",
        "export",
        "torchscript",
    ]


def test_architectures_by_name():
    pytest.importorskip("torchvision")
    assert isinstance(find_architecture("x", "squeezenet1_0", {"num_classes": 3})(), nn.Module)
    made = find_architecture("x", "bench_models:small", {"width": 2})()
    assert made[0].out_channels == 2
    assert find_architecture("x", bench_models.small) is bench_models.small
    assert find_architecture("x", None) is None
    for name, message in {
        "no_such_network": "must be MODULE:CALLABLE, .* got 'no_such_network'",
        ":": "must be MODULE:CALLABLE",
        "no_such_module:x": "cannot be imported",
        "math:no_such_function": "cannot be imported",
    }.items():
        with pytest.raises(ValueError, match=message):
            find_architecture("x", name)


def test_architectures_for_another_process():
    assert importable("x", None) == (None, {})
    assert importable("x", "timm:y") == ("timm:y", {})
    assert importable("x", bench_models.small) == ("bench_models:small", {})
    build = partial(bench_models.small, width=2)
    assert importable("x", build) == ("bench_models:small", {"width": 2})
    for bad in (lambda: None, partial(bench_models.small, 3), partial(bench_models.small, width=X)):
        with pytest.raises(ValueError, match="architecture must be a name, or a function of a"):
            importable("x", bad)
