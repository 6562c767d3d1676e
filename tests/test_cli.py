import importlib.metadata
import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import sparseq
from sparseq import cli


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
    for op, *_ in sparseq._C.kernel_table():
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
