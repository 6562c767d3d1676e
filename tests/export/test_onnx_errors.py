"""What can go wrong in an export: one clear line each, and no file left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import onnx
import pytest
import torch
from export_cases import EXPORTERS, INT8, ROWS, Perceptron, made
from torch import nn

import sparseq
from sparseq import export

both = pytest.mark.parametrize("exporter", EXPORTERS)


@torch.library.custom_op("export_test::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x):
    return torch.empty_like(x)


class Foreign(nn.Module):
    """A module with an op that no exporter knows."""

    def forward(self, x):
        return twice(x)


def text_of(error):
    text = str(error.value)
    assert "\n" not in text
    return text


@both
def test_an_op_without_translation_is_named_with_its_module(exporter, tmp_path, capfd):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Foreign())).eval()
    with pytest.raises(ValueError, match="no ONNX translation") as error:
        export.onnx(model, torch.randn(2, 4), tmp_path / "m.onnx", exporter=exporter)
    assert text_of(error) == (
        "export.onnx: torch cannot export the model: the op export_test::twice in the module 1.1 "
        "has no ONNX translation"
    )
    assert not list(tmp_path.iterdir())
    assert "graph(" not in "".join(capfd.readouterr())  # torch prints its whole graph


@both
def test_an_op_of_the_model_itself(exporter, tmp_path):
    with pytest.raises(ValueError, match="export_test::twice in the model itself has no ONNX"):
        export.onnx(Foreign().eval(), torch.randn(2, 4), tmp_path / "m.onnx", exporter=exporter)
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_traced(tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(ValueError, match="torch cannot export the model") as error:
        export.onnx(Branching(), torch.randn(2, 3), tmp_path / "m.onnx")
    text_of(error)
    with pytest.warns(torch.jit.TracerWarning):  # this exporter takes one branch, and says so
        export.onnx(Branching(), torch.ones(2, 3), tmp_path / "n.onnx", exporter="torchscript")
    assert [p.name for p in tmp_path.iterdir()] == ["n.onnx"]


@both
def test_a_model_of_several_outputs(exporter, tmp_path):
    class Two(nn.Module):
        def forward(self, x):
            return x + 1, x * 2

    for verify in (True, False):
        with pytest.raises(ValueError, match="model must return one tensor, got 2") as error:
            export.onnx(
                Two(), torch.randn(2, 3), tmp_path / "m.onnx", exporter=exporter, verify=verify
            )
        text_of(error)


@both
def test_a_model_that_fails(exporter, tmp_path):
    """Of another input, or of several."""

    class Pair(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(
        ValueError, match=r"torch cannot export the model: .*argument: 'y'"
    ) as error:
        export.onnx(Pair(), torch.randn(2, 3), tmp_path / "m.onnx", exporter=exporter)
    text_of(error)
    with pytest.raises(ValueError, match="torch cannot export the model: ") as error:
        export.onnx(nn.Linear(4, 4), torch.randn(2, 3), tmp_path / "m.onnx", exporter=exporter)
    text_of(error)
    assert not list(tmp_path.iterdir())


def test_bad_arguments(tmp_path):
    model, x = made(Perceptron, ROWS, INT8)
    path = tmp_path / "m.onnx"
    with pytest.raises(ValueError, match=r"target must be one of .*got 'tvm'"):
        export.onnx(model, x, path, target="tvm")
    with pytest.raises(ValueError, match=r"exporter must be one of .*got 'fx'"):
        export.onnx(model, x, path, exporter="fx")
    with pytest.raises(TypeError, match="example must be a tensor"):
        export.onnx(model, [x], path)
    with pytest.raises(TypeError, match="example must be a tensor with a batch dimension"):
        export.onnx(model, torch.tensor(1.0), path)
    with pytest.raises(TypeError, match=r"model must be an nn.Module"):
        export.onnx(x, x, path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        export.onnx(model, x, tmp_path / "missing" / "m.onnx")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="does not exist"):
        export.onnx(model, x, tmp_path / "file" / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_uncalibrated(tmp_path):
    model = sparseq.prepare(Perceptron(), INT8)
    with pytest.raises(ValueError, match="run calibrate"):
        export.onnx(model, torch.randn(ROWS), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@both
def test_no_write_permission(exporter, tmp_path, monkeypatch):
    """Said before the model is traced; the tests may run as root, whom nothing is forbidden."""

    def forbidden(*arguments, **keywords):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))

    monkeypatch.setattr("sparseq.files.tempfile.mkstemp", forbidden)
    monkeypatch.setattr("sparseq.export.to_onnx.trace", None)
    with pytest.raises(PermissionError, match="Permission denied"):
        export.onnx(nn.Linear(4, 4), torch.randn(2, 4), tmp_path / "m.onnx", exporter=exporter)
    assert not list(tmp_path.iterdir())


@both
def test_a_full_disk(exporter, tmp_path, monkeypatch):
    """The half of the file that was written is taken away, and an older file stays."""
    (tmp_path / "m.onnx").write_bytes(b"older")

    def full(path, data):
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        export.onnx(nn.Linear(4, 4), torch.randn(2, 4), tmp_path / "m.onnx", exporter=exporter)
    text_of(error)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"older"


@both
@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages(package, exporter, tmp_path, monkeypatch):
    import importlib

    real = importlib.import_module

    def missing(name):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(name)
        return real(name)

    monkeypatch.setattr("sparseq.export.require.importlib.import_module", missing)
    with pytest.raises(ImportError, match=rf"package {package}: pip install 'sparseq\[export\]'"):
        export.onnx(nn.Linear(4, 4), torch.randn(2, 4), tmp_path / "m.onnx", exporter=exporter)
    assert not list(tmp_path.iterdir())


def test_a_model_too_large_for_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr("sparseq.export.to_onnx.LARGEST", 79)
    with pytest.raises(ValueError, match="smaller than 2 GiB in one ONNX file, got 80 bytes"):
        export.onnx(nn.Linear(4, 4), torch.randn(2, 4), tmp_path / "m.onnx", exporter="torchscript")
    assert not list(tmp_path.iterdir())


def test_a_torch_without_torchscript(tmp_path, monkeypatch):
    monkeypatch.setattr("sparseq.export.symbolics.available", lambda: False)
    monkeypatch.setattr("sparseq.export.trace.available", lambda: False)
    with pytest.raises(ValueError, match="'torchscript' is gone from this torch; take 'dynamo'"):
        export.onnx(nn.Linear(4, 4), torch.randn(2, 4), tmp_path / "m.onnx", exporter="torchscript")
    with pytest.raises(RuntimeError, match="no TorchScript exporter"):
        export.register_symbolics()
    assert not list(tmp_path.iterdir())


def test_corrupt_files(exported, tmp_path):
    case = exported("plain")
    sound = case.path.read_bytes()
    damaged = {
        "empty": b"",
        "text": b"not a model",
        "half": sound[: len(sound) // 2],
        "noise": sound[:200] + bytes(range(256)) + sound[456:],
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        for look in (lambda path: export.verify(case.model, path, [case.x]), export.kernels):
            with pytest.raises(
                ValueError, match=r"is not a sound ONNX file|must have one"
            ) as error:
                look(tmp_path / name)
            text_of(error)
    proto = onnx.load(case.path)
    proto.graph.node[3].op_type = "Nonsense"
    onnx.save(proto, tmp_path / "op")
    with pytest.raises(ValueError, match="is not a sound ONNX file"):
        export.verify(case.model, tmp_path / "op", [case.x])
