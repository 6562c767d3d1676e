"""The benchmarks that train: every stage is built, measured, saved and reported, on noise."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def noise(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(40) % 10
    path = tmp_path / "noise.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    return str(path)


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("cifar10"):
            del sys.modules[name]


STAGES = (
    "80 % unstructured, iterative magnitude",
    "80 % unstructured, iterative magnitude, distilled",
    "2:4, channels permuted, not retrained",
    "2:4, SR-STE",
    "half the MACs, global l2",
    "half the MACs, global l2, distilled",
)


def test_pruning(noise, benchmarks, tmp_path, capsys):
    import cifar10_pruning

    out = tmp_path / "out"
    cifar10_pruning.main([noise, str(out), "--smoke", "--label", "noise", "--stages", *STAGES])
    found = json.loads((out / "cifar10_pruning.json").read_text())["results"]
    assert list(found) == ["float32", *STAGES]
    for name, row in found.items():
        if name.startswith("80 %"):
            assert row["zeros"] == pytest.approx(0.8, abs=0.001), name
        if name.startswith("2:4"):
            assert 0.49 < row["zeros"] < 0.51 and "stem" in row["dense"], name
        if name.startswith("half"):
            assert len(row["speed"]) == 4 and row["megabytes"] < found["float32"]["megabytes"]
    page = (out / "cifar10_pruning.md").read_text()
    assert "20 test images of noise" in page and "| 2:4, SR-STE |" in page
    made = {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    cifar10_pruning.main([noise, str(out), "--smoke", "--stages", "2:4, SR-STE"])  # all there
    assert made == {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    with pytest.raises(SystemExit, match="--stages must be of"):
        cifar10_pruning.main([noise, str(out), "--smoke", "--stages", "3:4"])


def test_distillation(noise, benchmarks, tmp_path, capsys):
    import cifar10_distil

    out = tmp_path / "out"
    arguments = [noise, str(out), "--smoke", "--seeds", "2", "--methods", "alone", "KD"]
    cifar10_distil.main(arguments)
    assert "To reach, a mean gain of 1 point: KD" in capsys.readouterr().out
    found = json.loads((out / "results.json").read_text())
    assert {(row["method"], row["seed"]) for row in found.values()} == {
        (method, seed) for method in ("alone", "KD") for seed in (0, 1)
    }
