"""benchmarks/networks.py runs, small: every engine, checked, timed, in a page."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PEERS = ("torch float32", "torch float32, channels_last", "ONNX Runtime float32",
         "ONNX Runtime INT8", "OpenVINO float32", "OpenVINO INT8")  # fmt: skip


# a process of its own: NNCF changes torch and logging for all that runs beside it
SCRIPT = """
import pathlib, sys, networks
try:
    networks.main(["smoke", "resnet18"], pathlib.Path(sys.argv[1]))
except SystemExit as refusal:
    print(refusal)
networks.main(["smoke"], pathlib.Path(sys.argv[1]))
print(list(networks.OURS))
"""
OURS = ["sparseq INT8", "sparseq INT8, 7-bit weights", "sparseq INT8 2:4",
        "sparseq INT8 2:4, 7-bit weights"]  # fmt: skip


def test_smoke(tmp_path):
    for package in ("onnxruntime", "openvino", "nncf", "torchvision"):
        pytest.importorskip(package)
    paths = [BENCHMARKS, *map(str, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    refusal, *_, ours = done.stdout.splitlines()
    assert refusal.startswith("networks: names must be of small, small encoder, growth, got resnet")
    assert ours == str(OURS)
    found = json.loads(next(tmp_path.glob("networks_*.json")).read_text())
    images, tokens = found["networks"]
    assert [row["engine"] for row in images["rows"]] == [*OURS, *PEERS]
    assert "ONNX Runtime INT8, dynamic" in {row["engine"] for row in tokens["rows"]}
    for network in (images, tokens):
        assert not network["failed"]
        for row in network["rows"]:
            low, high = row["interval_ms"]
            assert 0 < row["min_ms"] <= low <= row["median_ms"] <= high
            limit = 0.2 if row["engine"] in OURS else 1 if row["int8"] else 1e-3
            assert row["relative_error"] < limit  # 8-bit peers may saturate without VNNI
            assert set(row["slower_than"]) == set(OURS)
            assert row["memory"] is None or row["memory"]["model"] > 0, row["memory"]
        held = {row["engine"] for row in network["rows"] if row["memory"]}
        assert {*OURS, "ONNX Runtime INT8", "OpenVINO INT8"} <= held
    for kind, sizes in (("batches", ["1", "2"]), ("areas", ["16", "32"])):
        assert list(found["growth"][kind]["sparseq INT8"]) == sizes
    text = next(tmp_path.glob("networks_*.md")).read_text()
    assert "| small ResNet, 16 x 16, batch 2 | sparseq INT8 |" in text
    assert "## Growth with batch and area" in text and "- cpu: " in text
