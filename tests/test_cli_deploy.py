"""`sparseq export`, `verify`, `inspect`: from a saved model to a checked file."""

import json
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

import sparseq
from sparseq import NM, Layer, Plan, Quant, cli
from sparseq.cli import given
from sparseq.run import data, models

NETWORK = ["--model", "sparseq.run.models:build"]
NETWORK += [x for a in ("name=small", "channels=1", "classes=10") for x in ("-a", a)]


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    images = data.load("digits")
    layer = Layer(weight=Quant(axis=0), input=Quant(symmetric=False), sparsity=NM(2, 4))
    model = sparseq.prepare(models.build("small", 1, 10).eval(), Plan({"*": layer}))
    sparseq.calibrate(model, [images.normalise(images.x_train[:64])])
    path = tmp_path_factory.mktemp("cli") / "model.safetensors"
    sparseq.save(sparseq.convert(model), path)
    return path


@pytest.fixture(scope="module")
def exported(saved):
    path = saved.with_suffix(".onnx")
    done = call("export", saved, *NETWORK, "--data", "digits", "--accuracy", "0.97")
    assert done.exit_code == 0, done.output
    assert "equal; " in done.output and f"wrote {path}" in done.output
    return path


def test_export_on_a_real_test_set(exported):
    metadata = {p.key: p.value for p in onnx.load(exported).metadata_props}
    assert json.loads(metadata["sparseq_accuracy"]) == 0.97
    assert metadata["sparseq_target"] == "onnxruntime"


def test_verify(saved, exported):
    done = call("verify", saved, exported, *NETWORK, "--shape", "1,8,8")
    assert done.exit_code == 0 and done.stdout.startswith("equal; "), done.output


def test_verify_of_another_file_fails(saved, exported, tmp_path):
    proto = onnx.load(exported)
    for tensor in proto.graph.initializer:
        if tensor.name == "blocks.0.conv1.weight_scale":
            scale = onnx.numpy_helper.to_array(tensor) * np.float32(1.5)
            tensor.CopyFrom(onnx.numpy_helper.from_array(scale, tensor.name))
            break
    else:
        raise AssertionError([t.name for t in proto.graph.initializer])
    onnx.save(proto, tmp_path / "other.onnx")
    done = call("verify", saved, tmp_path / "other.onnx", *NETWORK, "--shape", "1,8,8")
    assert done.exit_code == 1 and "DIFFERENT" in done.stdout and "blocks.0.conv1" in done.stdout


def test_options_reach_the_file(saved, tmp_path):
    out = tmp_path / "m.onnx"
    arguments = ["--shape", "1x8x8", "-o", out, "--opset", "17", "--exporter", "torchscript"]
    done = call("export", saved, *NETWORK, *arguments, "--static-batch", "--no-verify")
    assert done.exit_code == 0, done.output
    proto = onnx.load(out)
    assert proto.opset_import[0].version == 17
    assert [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim] == [1, 1, 8, 8]


def test_inspect(saved, exported):
    for path in (saved, exported):
        done = call("inspect", path)
        assert done.exit_code == 0, done.output
        line = next(line for line in done.stdout.splitlines() if "blocks.0.conv1" in line)
        assert (
            "32x32x3x3" in line and "yes" in line and "50.0%" in line and "9,216" not in line[:20]
        )
        assert "…" not in done.stdout
    assert "target: onnxruntime" in done.stdout and "accuracy: 0.97" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "SAVED", "--model", "nothing", "--shape", "1"], "must be MODULE:CALLABLE"),
        (["export", "SAVED", "--model", "no.such:x", "--shape", "1"], "cannot be imported"),
        (["export", "SAVED", "--model", "math:sin", "--shape", "1"], "does not take these"),
        (["export", "SAVED", "--model", "builtins:dict", "--shape", "1"], "must make an nn.Module"),
        (["export", "SAVED", *NETWORK, "-a", "x", "--shape", "1"], "argument: must be KEY=VALUE"),
        (["export", "SAVED", *NETWORK], "give either --shape or --data"),
        (["export", "SAVED", *NETWORK, "--shape", "0,3"], "shape: must be sizes"),
        (["export", "none.safetensors", *NETWORK, "--shape", "1,8,8"], "must name a file"),
        (["export", "SAVED", *NETWORK, "--shape", "1,8,8", "--opset", "9"], "opset must be"),
        (["export", "SAVED", *NETWORK, "--shape", "1,8,8", "-o", "no/m.onnx"], "does not exist"),
        (["verify", "SAVED", "none.onnx", *NETWORK, "--shape", "1,8,8"], "must name a file"),
        (["inspect", "none.onnx"], "must name a file"),
    ],
)
def test_bad_input_is_one_line(saved, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = call(*(saved if a == "SAVED" else a for a in arguments))
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "wanted"), [("512M", 512 << 20), ("2g", 2 << 30), ("1.5GiB", 3 << 29), ("77", 77)]
)
def test_sizes(text, wanted):
    assert given.size(text) == wanted


def test_bad_sizes():
    with pytest.raises(ValueError, match="size: must be a number of bytes"):
        given.size("a lot")


@pytest.mark.skipif(not find_spec("tensorrt_rtx"), reason="tensorrt_rtx is not installed")
def test_engine(tmp_path):
    """Export for TensorRT, build, audit, inspect: the engine holds the file's integers."""
    torch.manual_seed(0)
    images = data.load("digits")
    layer = Layer(weight=Quant(axis=0), input=Quant(), sparsity=NM(2, 4))
    model = sparseq.prepare(models.build("small", 1, 10).eval(), Plan({"*": layer}))
    sparseq.calibrate(model, [images.normalise(images.x_train[:64])])
    fast = sparseq.convert(model)
    sparseq.save(fast, tmp_path / "m.safetensors")
    done = call(
        "export", tmp_path / "m.safetensors", *NETWORK, "--data", "digits", "--target", "tensorrt"
    )
    assert done.exit_code == 0, done.output
    file = tmp_path / "m.onnx"
    done = call(
        "engine", file, "--compute-capability", "8.6", "--batch", "1,4,8", "--workspace", "1G"
    )
    assert done.exit_code == 0, done.output
    assert f"wrote {tmp_path / 'm.engine'}" in done.stdout and "blocks.5.conv2" in done.stdout
    found = {row.name: row for row in sparseq.export.inspect(tmp_path / "m.engine").rows}
    row, weight = found["blocks.5.conv2"], fast.blocks[5].conv2.weight_values
    assert row.shape == tuple(weight.shape) and (row.bits, row.input_bits) == (8, 8)
    assert row.two_of_four and row.zeros == pytest.approx(float((weight == 0).float().mean()))
    assert row.macs == weight.numel() * 4  # 2 x 2 pixels
    done = call("engine", file, "--command", "--batch", "1,4,8")
    assert done.exit_code == 0 and "--maxShapes=input:8x1x8x8" in done.stdout
    (tmp_path / "cut.engine").write_bytes((tmp_path / "m.engine").read_bytes()[:999])
    for arguments, message in (
        (["engine", file, "--compute-capability", "3.0"], "does not know"),
        (["engine", file, "--batch", "4,1,2"], "batch"),
        (["engine", file, "--workspace", "much"], "size: must be"),
        (["engine", tmp_path / "none.onnx"], "none.onnx"),
        (["inspect", tmp_path / "cut.engine"], "is no TensorRT-RTX engine"),
    ):
        done = call(*arguments)
        assert done.exit_code == 2 and message in done.stderr, done.output
        assert done.stderr.strip().count("\n") == 0  # after the progress bar's
