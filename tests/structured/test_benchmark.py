"""benchmarks/structured.py runs, small."""

import importlib.util
import json
from pathlib import Path

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
