import importlib.metadata
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import sparseq
from sparseq import cli
from sparseq.run import data
from sparseq.run.exercise import VARIANTS


def call(*arguments):
    return CliRunner().invoke(cli.app, list(arguments))


def test_env_says_what_a_bug_report_needs():
    done = call("env")
    assert done.exit_code == 0, done.output
    text = done.output
    assert torch.__version__ in text and importlib.metadata.version("sparseq") in text
    for word in ("torchvision", "onnxruntime", "python", "cpu", "build compiler", "kernels"):
        assert word in text
    for isa in sparseq._C.supported_isas():
        assert isa in text
    for op in sparseq.ops.kernels():
        assert op in text


def test_env_as_a_module_shows_a_lowered_isa():
    environment = os.environ | {"SPARSEQ_ISA": "scalar"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "sparseq", "env"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("isa"))
    assert line.split()[1] == "scalar" and "SPARSEQ_ISA=scalar" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "none.npz"], "none.npz is not a file"),
        (["--data", "mnist"], "data: must be digits, cifar10 or"),
        (["--data", "bad.npz"], "bad.npz is not an .npz file"),
        (["--out", "bad.npz/out"], "bad.npz"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.npz").write_text("no archive")
    done = call("demo", *arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.output


@pytest.mark.parametrize(
    "arguments", [["--epochs", "0"], ["--model", "vgg"], ["--seed", "-1"], ["--threads", "0"]]
)
def test_options_are_checked(arguments):
    done = call("demo", *arguments)
    assert done.exit_code == 2 and arguments[0] in done.stderr


def test_help_lists_both_commands():
    done = call("--help")
    assert done.exit_code == 0 and "env" in done.output and "demo" in done.output


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A whole demo, as a user starts it, on a few of the digits."""
    folder = tmp_path_factory.mktemp("demo")
    digits = data.load("digits")
    few = {"x_train": 320, "y_train": 320, "x_test": 60, "y_test": 60}
    arrays = {name: getattr(digits, name)[:count].numpy() for name, count in few.items()}
    for name in ("x_train", "x_test"):
        arrays[name] = arrays[name].transpose(0, 2, 3, 1)
    np.savez(folder / "few.npz", **arrays)
    command = [sys.executable, "-m", "sparseq", "demo", "--data", "few.npz", "--epochs", "1"]
    done = subprocess.run(
        [*command, "--out", "new/out", "--threads", "2"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "new" / "out", done.stdout


def test_demo_writes_everything_and_leaves_nothing_else(demo):
    folder, _ = demo
    assert {path.name for path in folder.iterdir()} == {
        "report.html",
        "report.md",
        "results.json",
        "charts",
        "best.onnx",
        "models",
    }
    models = {path.name for path in (folder / "models").iterdir()}
    assert models == {f"{name}.safetensors" for name in VARIANTS}


def test_demo_shows_all_rows(demo):
    folder, screen = demo
    results = json.loads((folder / "results.json").read_text())
    assert [row["name"] for row in results["variants"]] == list(VARIANTS)
    first_words = [line.split()[0] for line in screen.splitlines() if line.strip()]
    assert set(VARIANTS) <= set(first_words)
    for row in results["variants"]:
        assert f"| {row['name']} | {row['accuracy']:.2f} |" in (folder / "report.md").read_text()
        assert row["sparsity"] >= 79 if "P" in row["name"] else row["sparsity"] < 20
    assert results["recipe"]["epochs"] == 1 and results["environment"]["threads"] == "2"


def test_demo_s_best_model_is_verified_and_runs(demo):
    folder, screen = demo
    results = json.loads((folder / "results.json").read_text())
    best = results["best"]
    candidates = [row for row in results["variants"] if row["drop"] < results["limit"]]
    assert best["name"] == min(candidates, key=lambda row: row["ms_per_image"])["name"]
    assert best["passed"] and f"Deploy {best['name']}" in screen
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(folder / "best.onnx", providers=["CPUExecutionProvider"])
    digits = data.load(str(folder.parent.parent / "few.npz"))
    inputs = digits.normalise(digits.x_test).contiguous().numpy()
    (logits,) = session.run(None, {session.get_inputs()[0].name: inputs})
    right = 100 * float((logits.argmax(1) == digits.y_test.numpy()).mean())
    row = next(row for row in results["variants"] if row["name"] == best["name"])
    assert right == pytest.approx(row["accuracy"], abs=5)  # 3 near ties of the 60
