"""`bench.environment`, and what importing `sparseq.bench` imports."""

import json
import re
import subprocess
import sys

import torch

from sparseq import bench
from sparseq.bench.environment import commit


def test_environment_is_a_stamp():
    got = bench.environment()
    assert json.loads(json.dumps(got)) == got
    assert got["torch"] == torch.__version__
    assert got["threads"] == str(torch.get_num_threads())
    assert got["cpu"] and got["isa"] and got["sparseq"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", got["date"])
    assert re.fullmatch(r"[0-9a-f]{12}|", got["commit"])


def test_commit_is_empty_outside_a_checkout(tmp_path):
    assert commit(tmp_path) == ""
    (tmp_path / ".git").mkdir()  # not a repository
    assert commit(tmp_path) == ""


def test_import_needs_no_optional_package():
    optional = {
        "sklearn",
        "matplotlib",
        "rich",
        "typer",
        "onnx",
        "onnxruntime",
        "torchvision",
        "openvino",
    }
    code = f"import sys, sparseq.bench; print({optional!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
