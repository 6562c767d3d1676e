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
        (["--data", "mnist"], "data: must be digits, cifar10, a folder"),
        (["--data", "bad.npz"], "bad.npz is not an .npz file"),
        (["--out", "bad.npz/out"], "bad.npz"),
        (["nix.yaml"], "nix.yaml is not a file, nor one of the ready recipes"),
        (["bad.yaml"], "bad.yaml:3: train.epoch: unknown key (did you mean epochs?), allowed: ep"),
        (["--set", "train.epochs=no"], "--set train.epochs: train.epochs: must be a whole number"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.npz").write_text("no archive")
    (tmp_path / "bad.yaml").write_text("model: small\ntrain:\n  epoch: 3\n")
    done = call("run", *arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.output


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--seed", "-1"], ["--threads", "0"]])
def test_options_are_checked(arguments):
    done = call("run", *arguments)
    assert done.exit_code == 2 and arguments[0] in done.stderr


def test_demo_is_the_old_name_of_run():
    done = call("demo", "--help")
    assert done.exit_code == 0 and "digits" in done.output
    assert "demo" not in call("--help").output


def test_help_lists_both_commands():
    done = call("--help")
    assert done.exit_code == 0 and "env" in done.output and " run " in done.output


RECIPE = """
data: few.npz
variants: [Q, P, Q+P+D]
train: {epochs: 1}
distil: {epochs: 1}
prune: {epochs: 1}
quantise: {epochs: 9, symmetric: true}
repeats: 5
sensitivity: 32
"""
NAMES = ["baseline", "Q", "P", "Q+P+D"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A whole run, as a user starts it, on a few of the digits."""
    folder = tmp_path_factory.mktemp("run")
    digits = data.load("digits")
    few = {"x_train": 320, "y_train": 320, "x_test": 60, "y_test": 60}
    arrays = {name: getattr(digits, name)[:count].numpy() for name, count in few.items()}
    for name in ("x_train", "x_test"):
        arrays[name] = arrays[name].transpose(0, 2, 3, 1)
    np.savez(folder / "few.npz", **arrays)
    (folder / "mine.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "sparseq", "run", "mine.yaml", "--set", "quantise.epochs=1"]
    done = subprocess.run(
        [*command, "--out", "new/out", "--threads", "2", "--seed", "3"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "new" / "out", done.stdout


def test_a_run_writes_everything_and_leaves_nothing_else(ran):
    folder, screen = ran
    engine = {"best.engine"} if "wrote new/out/best.engine" in screen else set()
    assert {path.name for path in folder.iterdir()} == engine | {
        "report.html",
        "report.md",
        "results.json",
        "charts",
        "best.onnx",
        "models",
        "stages",
    }
    models = {path.name for path in (folder / "models").iterdir()}
    assert models == {f"{name}.safetensors" for name in NAMES}
    assert {path.stem for path in (folder / "stages").glob("*.pt")} == {
        f"3-{chain}" for chain in ("baseline", "Q", "P", "D", "DP", "DPQ")
    }


def test_a_run_shows_all_rows(ran):
    folder, screen = ran
    results = json.loads((folder / "results.json").read_text())
    assert [row["name"] for row in results["variants"]] == NAMES
    first_words = [line.split()[0] for line in screen.splitlines() if line.strip()]
    assert set(NAMES) <= set(first_words)
    for row in results["variants"]:
        assert row["sparsity"] >= 79 if "P" in row["name"] else row["sparsity"] < 20
        assert [run["seed"] for run in row["runs"]] == [3]
    assert results["recipe"]["quantise"]["epochs"] == 1 and results["recipe"]["name"] == "mine"
    assert results["environment"]["threads"] == "2"
    assert "fc" in results["sensitivity"]


def test_an_engine_is_there_or_a_reason(ran):
    folder, screen = ran
    best = json.loads((folder / "results.json").read_text())["best"]
    assert best["engine_note"] and f"TensorRT engine: {best['engine_note']}" in screen
    assert (folder / "best.engine").is_file() == (best["engine"] == "best.engine")
    if "tensorrt_rtx" in best["engine_note"]:
        assert best["engine"] == "best.engine"  # its inputs are on symmetric grids


def test_a_dry_run_writes_nothing(ran, tmp_path, monkeypatch):
    monkeypatch.chdir(ran[0].parent.parent)
    done = call("run", "mine.yaml", "--out", str(tmp_path / "out"), "--dry-run")
    assert done.exit_code == 0, done.output
    assert "0-DPQ" in done.output and "training: about" in done.output
    assert not (tmp_path / "out").exists()


def test_the_best_model_is_verified_and_runs(ran):
    folder, screen = ran
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
