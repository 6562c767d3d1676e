"""benchmarks/structured.py runs, small."""

import importlib.util
import json
from pathlib import Path

import torch

from sparseq.run import data

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "structured.py"


def benchmark():
    spec = importlib.util.spec_from_file_location("structured_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_latency_and_search(tmp_path):
    benchmark().main(["smoke"], tmp_path)
    found = json.loads((tmp_path / "structured.json").read_text())
    assert len(found["latency"]) == 12 and all(r["pruned"] > 0 for r in found["latency"])
    assert all(0.4 < r["macs"] <= 0.5 for r in found["latency"])
    assert found["search"][1]["efficacy"] > found["search"][0]["efficacy"] > 30
    page = (tmp_path / "structured.md").read_text()
    assert "| ResNet-20 | 8 |" in page and "efficacy" in page


def test_accuracy_before_training(tmp_path, monkeypatch):
    """On noise, without an epoch: every stage is built, measured, saved and reported."""
    module = benchmark()
    monkeypatch.setattr(module, "latencies", lambda small: [])
    monkeypatch.setattr(module, "searches", lambda small: [])
    monkeypatch.setattr(module, "EPOCHS", 0)
    monkeypatch.setattr(module, "ESCAPES", 0)
    images = torch.randint(0, 256, (20, 32, 32, 3), dtype=torch.uint8).numpy()
    labels = torch.arange(20).numpy() % 10
    import numpy as np

    np.savez(tmp_path / "x.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert data.load(str(tmp_path / "x.npz")) is not None
    module.main([str(tmp_path / "x.npz"), str(tmp_path / "out")], tmp_path)
    found = json.loads((tmp_path / "structured.json").read_text())["accuracy"]
    assert set(found) == {"dense", *module.SPECS, "2:4", "2:4 permuted"}
    assert all(r["macs"] <= 0.5 for name, r in found.items() if name != "dense")
    assert (tmp_path / "out" / "24_permuted.safetensors").is_file()
