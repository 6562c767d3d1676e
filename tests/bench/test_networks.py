"""benchmarks/networks.py runs, small: every engine, checked, timed, in a page."""

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PEERS = ("torch float32", "torch float32, channels_last", "ONNX Runtime float32",
         "ONNX Runtime INT8", "OpenVINO float32", "OpenVINO INT8")  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_smoke(tmp_path, monkeypatch):
    for package in ("onnxruntime", "openvino", "nncf", "torchvision"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    networks = importlib.import_module("networks")
    networks.main(["smoke"], tmp_path)
    found = json.loads((tmp_path / "networks.json").read_text())
    images, tokens = found["networks"]
    assert [row["engine"] for row in images["rows"]] == [*networks.OURS, *PEERS]
    assert "ONNX Runtime INT8, dynamic" in {row["engine"] for row in tokens["rows"]}
    for network in (images, tokens):
        assert not network["failed"]
        for row in network["rows"]:
            low, high = row["interval_ms"]
            assert 0 < row["min_ms"] <= low <= row["median_ms"] <= high
            assert row["relative_error"] < (0.2 if row["int8"] else 1e-3)
            assert set(row["slower_than"]) == set(networks.OURS)
            assert row["memory"] is None or row["memory"]["model"] > 0, row["memory"]
        held = {row["engine"] for row in network["rows"] if row["memory"]}
        assert {*networks.OURS, "ONNX Runtime INT8", "OpenVINO INT8"} <= held
    for kind, sizes in (("batches", ["1", "2"]), ("areas", ["16", "32"])):
        assert list(found["growth"][kind]["sparseq INT8"]) == sizes
    text = (tmp_path / "networks.md").read_text()
    assert "| small ResNet, 16 x 16, batch 2 | sparseq INT8 |" in text
    assert "## Growth with batch and area" in text and "- cpu: " in text
    with pytest.raises(SystemExit, match=r"names must be of small, .*, growth, got resnet18"):
        networks.main(["smoke", "resnet18"], tmp_path)
