import json
import re
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from sparseq import bench


class Sleeper(nn.Module):
    """Takes a known time and notes how it was called."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.calls = []

    def forward(self, x):
        self.calls.append((self.training, torch.is_grad_enabled(), torch.get_num_threads()))
        time.sleep(self.seconds)
        return x


def test_latency_measures_one_call():
    model = Sleeper(0.01)
    got = bench.latency(model, torch.zeros(4, 3), repeats=5, warmup=2)
    assert 10 <= got.median_ms < 40
    assert got.median_ms <= got.p95_ms <= got.p99_ms
    assert got.images == 4 and got.repeats == 5
    assert got.per_image_ms == got.median_ms / 4
    assert got.images_per_second == pytest.approx(4000 / got.median_ms)
    assert len(model.calls) == 2 * (5 + 2)


def test_latency_runs_as_deployed_and_puts_everything_back():
    model = nn.Sequential(Sleeper(0), nn.Dropout()).train()
    model[1].eval()
    before = torch.get_num_threads()
    got = bench.latency(model, torch.zeros(1), repeats=3, warmup=0, threads=1)
    assert set(model[0].calls) == {(False, False, 1)} and got.threads == 1
    assert model.training and model[0].training and not model[1].training
    assert torch.get_num_threads() == before
    assert torch.is_grad_enabled()


def test_modes_are_put_back_after_an_error():
    model = nn.Linear(3, 2).train()
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="shapes"):
        bench.latency(model, torch.zeros(1, 5), threads=1)
    assert model.training and torch.get_num_threads() == before


def test_percentiles_by_hand():
    values = [40.0, 10.0, 30.0, 20.0]
    assert bench._percentile(values, 50) == 25
    assert bench._percentile(values, 95) == pytest.approx(38.5)
    assert bench._percentile([7.0], 99) == 7


def test_compare_interleaves_and_alternates():
    calls = []
    got = bench.compare(
        {name: lambda name=name: calls.append(name) for name in "ab"}, repeats=2, warmup=1
    )
    assert list(got) == ["a", "b"]
    assert "".join(calls) == "bbaa" + "aabb" + "bbaa"


def test_compare_tells_fast_from_slow():
    times = {"slow": 0.004, "fast": 0.001}
    calls = {name: lambda s=seconds: time.sleep(s) for name, seconds in times.items()}
    got = bench.compare(calls, repeats=9, warmup=1)
    assert got["slow"].median_ms > 2 * got["fast"].median_ms


def test_compare_checks_its_arguments():
    with pytest.raises(ValueError, match="calls must name at least one"):
        bench.compare({})
    for argument in ({"repeats": 0}, {"warmup": -1}, {"threads": 0}, {"images": 0}):
        ((name, value),) = argument.items()
        with pytest.raises(ValueError, match=f"{name} must be at least .* got {value}"):
            bench.compare({"a": lambda: None}, **argument)
    with pytest.raises(ValueError, match=r"example must hold an image, got shape \(0, 3\)"):
        bench.latency(nn.Identity(), torch.zeros(0, 3))


def test_accuracy_by_hand():
    batches = [
        (torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0])),
        (torch.tensor([[3.0, 4.0]]), torch.tensor([1])),
    ]
    assert bench.accuracy(nn.Identity(), batches) == pytest.approx(200 / 3)


def test_accuracy_evaluates():
    model = nn.Sequential(nn.Dropout(0.99), nn.BatchNorm1d(2)).train()
    inputs = torch.tensor([[1.0, 0.0]] * 50)
    assert bench.accuracy(model, [(inputs, torch.zeros(50, dtype=torch.int64))]) == 100
    assert model.training and torch.equal(model[1].running_mean, torch.zeros(2))


def test_accuracy_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one image"):
        bench.accuracy(nn.Identity(), [])


def test_size(tmp_path):
    (tmp_path / "a").write_bytes(bytes(2_500_000))
    assert bench.size_mb(tmp_path / "a") == 2.5
    with pytest.raises(FileNotFoundError):
        bench.size_mb(tmp_path / "b")


def test_environment_is_a_stamp():
    got = bench.environment()
    assert json.loads(json.dumps(got)) == got
    assert got["torch"] == torch.__version__
    assert got["threads"] == str(torch.get_num_threads())
    assert got["cpu"] and got["isa"] and got["sparseq"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", got["date"])
    assert re.fullmatch(r"[0-9a-f]{12}|", got["commit"])


def test_commit_is_empty_outside_a_checkout(tmp_path):
    assert bench._commit(tmp_path) == ""
    (tmp_path / ".git").mkdir()  # not a repository
    assert bench._commit(tmp_path) == ""


def test_import_needs_no_optional_package():
    optional = {"sklearn", "matplotlib", "rich", "typer", "onnx", "onnxruntime", "torchvision"}
    code = f"import sys, sparseq.bench; print({optional!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
