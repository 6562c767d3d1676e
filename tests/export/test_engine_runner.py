"""`export.Engine` on a fake of TensorRT's runtime that computes y = 2 x in the CPU's memory."""

import ctypes
import importlib.machinery
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from sparseq import export

LEAST, MOST = (1, 3), (4, 3)
STREAM = 7


class Context:
    """Doubles what is at the input's address; `calls` says what was asked."""

    def __init__(self):
        self.calls, self.shape, self.addresses = [], None, {}

    def set_input_shape(self, name, shape):
        assert name == "x"
        self.shape = shape
        return True

    def get_tensor_shape(self, name):
        return self.shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        self.calls.append((self.shape, stream))
        count = self.shape[0] * self.shape[1]
        x, y = ((ctypes.c_float * count).from_address(self.addresses[n]) for n in ("x", "y"))
        for k in range(count):
            y[k] = 2 * x[k]
        return True


class Deserialised:
    num_io_tensors = 2

    def __init__(self):
        self.context = Context()

    def create_execution_context(self):
        return self.context

    def get_tensor_name(self, index):
        return "xy"[index]

    def get_tensor_dtype(self, name):
        return "float"

    def get_tensor_mode(self, name):
        return "in" if name == "x" else "out"

    def get_tensor_shape(self, name):
        return (-1, 3)

    def get_tensor_profile_shape(self, name, profile):
        assert (name, profile) == ("x", 0)
        return LEAST, (2, 3), MOST


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, data):
        if data != b"an engine":
            self.logger.log("error", "the plan is of another version")
            return None
        return Deserialised()


class Logger:
    Severity = SimpleNamespace(INTERNAL_ERROR="internal", ERROR="error")


def record(engine, launches):
    """In a CUDA graph's place: the launches again, with the shape of when they were recorded."""
    shape = engine._context.shape

    def replay():
        engine._context.shape = shape
        launches()

    return replay


@pytest.fixture
def path(tmp_path, monkeypatch):
    fake = ModuleType("tensorrt")
    fake.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    fake.__version__ = "11.0"
    fake.Runtime, fake.ILogger = Runtime, Logger
    fake.DataType = SimpleNamespace(FLOAT="float", HALF="half")
    fake.TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(export.Engine, "_find_device", lambda self, device: torch.device("cpu"))
    monkeypatch.setattr(export.Engine, "_stream", lambda self: STREAM)
    monkeypatch.setattr(export.Engine, "_record", record)
    (tmp_path / "m.engine").write_bytes(b"an engine")
    return tmp_path / "m.engine"


@pytest.mark.parametrize("graph", [False, True])
def test_tensors_in_and_out(path, graph):
    with export.Engine(path, runtime="tensorrt", cuda_graph=graph) as engine:
        context = engine._context
        for count in (1, 4, 2, 4):
            x = torch.randn(count, 3)
            y = engine(x)
            assert torch.equal(y, 2 * x) and torch.equal(engine(x=x), y)
        assert {stream for _, stream in context.calls} == {STREAM}
        strided = torch.randn(3, 4).t()
        assert torch.equal(engine(strided), 2 * strided)
    with pytest.raises(RuntimeError, match="it is closed"):
        engine(torch.randn(1, 3))


def test_a_recorded_graph_keeps_no_hold_of_results(path):
    engine = export.Engine(path, runtime="tensorrt", cuda_graph=True)
    first = engine(torch.ones(1, 3))
    second = engine(torch.full((1, 3), 5.0))
    assert first.tolist() == [[2, 2, 2]] and second.tolist() == [[10, 10, 10]]
    assert len(engine._graphs) == 1  # one for each shape


def test_ports(path):
    engine = export.Engine(path, runtime="tensorrt")
    port = engine.inputs["x"]
    assert (port.dtype, port.shape, port.least, port.most) == (torch.float32, (-1, 3), LEAST, MOST)
    assert list(engine.outputs) == ["y"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.randn(5, 3),), ValueError, r"must have the shape \(1 to 4, 3\), got \(5, 3\)"),
        ((torch.randn(2, 4),), ValueError, r"must have the shape \(1 to 4, 3\), got \(2, 4\)"),
        ((torch.randn(3),), ValueError, r"got \(3,\)"),
        ((torch.randn(2, 3).half(),), TypeError, "must be torch.float32, got torch.float16"),
        (([1.0],), TypeError, "must be a tensor, got list"),
        ((torch.randn(2, 3, device="meta"),), ValueError, "must be on cpu, got meta"),
        ((), ValueError, r"takes the inputs \['x'\]"),
        ((torch.randn(2, 3),) * 2, ValueError, r"takes the inputs \['x'\], got 2 by position"),
    ],
)
def test_wrong_inputs(path, arguments, error, message):
    engine = export.Engine(path, runtime="tensorrt")
    with pytest.raises(error, match=message):
        engine(*arguments)
    assert engine._context.calls == []


def test_engines_that_cannot_be_loaded(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="path must be a file"):
        export.Engine(tmp_path / "none.engine")
    path.write_bytes(b"something else")
    with pytest.raises(RuntimeError, match=r"cannot load .* the plan is of another version"):
        export.Engine(path, runtime="tensorrt")
    with pytest.raises(ValueError, match="runtime must be one of"):
        export.Engine(path, runtime="tflite")


@pytest.mark.parametrize(
    ("method", "result", "message"),
    [
        ("set_input_shape", False, r"TensorRT refuses \(2, 3\) for input 'x'"),
        ("get_tensor_shape", (-1, 3), "the shape of output 'y' depends on the values"),
        ("execute_async_v3", False, "TensorRT did not run"),
    ],
)
def test_what_fails_in_a_run(path, method, result, message, monkeypatch):
    engine = export.Engine(path, runtime="tensorrt")
    monkeypatch.setattr(Context, method, lambda *_: result)
    with pytest.raises(RuntimeError, match=message):
        engine(torch.randn(2, 3))


def test_no_memory_and_strange_types(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Deserialised, "get_tensor_dtype", lambda self, name: "fp4")
        with pytest.raises(RuntimeError, match="'x' is fp4, which torch has no type for"):
            export.Engine(path, runtime="tensorrt")
    monkeypatch.setattr(Deserialised, "create_execution_context", lambda self: None)
    with pytest.raises(RuntimeError, match="no memory or kernels to run"):
        export.Engine(path, runtime="tensorrt")


def test_several_outputs(path, monkeypatch):
    monkeypatch.setattr(Deserialised, "num_io_tensors", 3)
    monkeypatch.setattr(Deserialised, "get_tensor_name", lambda self, index: "xyz"[index])
    engine = export.Engine(path, runtime="tensorrt")
    x = torch.randn(2, 3)
    results = engine(x)
    assert list(results) == ["y", "z"] and torch.equal(results["y"], 2 * x)
    assert results["z"].data_ptr() == engine._context.addresses["z"]


def test_the_device(path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    engine = object.__new__(export.Engine)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert engine._find_device(None) == torch.device("cuda:1")
    assert engine._find_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match="device must be a CUDA device, got cpu"):
        engine._find_device("cpu")
