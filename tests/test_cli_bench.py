"""`sparseq bench A B`."""

import pytest
import torch
from typer.testing import CliRunner

import sparseq
from sparseq import Layer, Plan, Quant, cli
from sparseq.run import models

NETWORK = "sparseq.run.models:build"
ARGUMENTS = [x for a in ("name=small", "channels=1", "classes=10", "student=true")
             for x in ("-a", a)]  # fmt: skip
FEW = ["--shape", "1,8,8", "--repeats", "2", "--threads", "1"]


def call(*arguments):
    return CliRunner().invoke(cli.app, ["bench", *(str(a) for a in arguments)])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("cli")
    base, x = models.build("small", 1, 10, student=True).eval(), torch.randn(8, 1, 8, 8)
    sparseq.save(base, folder / "float.safetensors")
    plan = Plan({"*": Layer(weight=Quant(axis=0), input=Quant(symmetric=False))})
    fast = sparseq.convert(sparseq.calibrate(sparseq.prepare(base, plan), [x]))
    sparseq.save(fast, folder / "fast.safetensors")
    sparseq.export.onnx(fast, x, folder / "fast.onnx", verify=False)
    return folder


def test_two_files(files):
    saved, onnx = files / "fast.safetensors", files / "fast.onnx"
    done = call(saved, onnx, "--model", NETWORK, *ARGUMENTS, *FEW, "--batch", "3", "--memory")
    assert done.exit_code == 0, done.output
    assert "outputs: largest difference" in done.stdout and "same arg-max" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["fast.safetensors", "torch"] in [row[:2] for row in rows]
    assert ["fast.onnx", "onnxruntime"] in [row[:2] for row in rows]
    assert "fast.safetensors is " in done.stdout and "x as fast as fast.onnx (95 %" in done.stdout
    assert "batch 3, threads 1, 2 rounds in turns" in done.stdout
    assert "memory of fast.onnx: peak " in done.stdout and "…" not in done.stdout


def test_a_network_beside_its_file(files):
    done = call(NETWORK, files / "float.safetensors", "--model", NETWORK, *ARGUMENTS, *FEW)
    assert done.exit_code == 2 and "does not take these arguments" in done.stderr
    done = call(NETWORK, NETWORK, *ARGUMENTS, *FEW, "--order", "random")
    assert done.exit_code == 0, done.output
    assert f"{NETWORK} (A)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.onnx", "FILE"], "must name a file"),
        (["FILE", "FILE"], "name the architecture (--model)"),
        (["none", "FILE"], "must be MODULE:CALLABLE"),
        (["note.engine", "FILE"], "must name a file"),
    ],
)
def test_bad_input_is_one_line(files, arguments, message):
    done = call(*(files / "fast.safetensors" if a == "FILE" else a for a in arguments), *FEW)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1


def test_inputs_are_needed(files):
    done = call(files / "fast.onnx", files / "fast.onnx")
    assert done.exit_code == 2 and "give either --shape or --data" in done.stderr
