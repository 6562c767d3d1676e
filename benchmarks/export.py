"""Exported files in ONNX Runtime, beside float32 and its own quantiser: `make bench ARGS=export`.

224 x 224, batch 1, random weights. "its own INT8" is onnxruntime.quantization's static form (uint8
activations, int8 weights, a scale a channel), which saturates on CPUs without VNNI.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
import torchvision
from harness import Row, run
from peers import static_int8
from torch import nn

import sparseq
from sparseq import NM, Layer, Plan, Quant, export

FOLDER = tempfile.TemporaryDirectory(prefix="sparseq-export-")
INT8 = Layer(weight=Quant(axis=0), input=Quant(symmetric=False))
SPARSE = Layer(weight=Quant(axis=0), input=Quant(symmetric=False), sparsity=NM(2, 4))
NETWORKS = {
    "ResNet-18": torchvision.models.resnet18,
    "MobileNetV2": torchvision.models.mobilenet_v2,
}


def _call(path: Path, x: torch.Tensor, threads: int) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # its threads spin while they wait, which would slow the contender behind it
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    feed = {"input": x.numpy()}
    return lambda: session.run(None, feed)


def _files(name: str, x: torch.Tensor) -> tuple[dict[str, Path], Callable[[], bool]]:
    """The contenders' files, and whether ours hold the models' numbers."""
    torch.manual_seed(0)
    base = NETWORKS[name](num_classes=1000).eval()
    folder = Path(FOLDER.name)
    files = {kind: folder / f"{name} {kind}.onnx" for kind in ("float32", "own", "INT8", "2:4")}
    export.onnx(base, x, files["float32"], dynamic_batch=False, verify=False)
    models: dict[str, nn.Module] = {}
    for kind, layer in (("INT8", INT8), ("2:4", SPARSE)):
        prepared = sparseq.prepare(copy.deepcopy(base), Plan({"*": layer}))
        models[kind] = sparseq.convert(sparseq.calibrate(prepared, [x]))
        export.onnx(models[kind], x, files[kind], dynamic_batch=False, verify=False)
    static_int8(str(files["float32"]), str(files["own"]), [x.numpy()])
    return files, lambda: all(export.verify(m, files[k], [x]).passed for k, m in models.items())


def rows() -> list[Row]:
    found = []
    for name in NETWORKS:
        x = torch.randn(1, 3, 224, 224)
        files, check = _files(name, x)
        for threads in (1, 2):
            calls = {kind: _call(path, x, threads) for kind, path in files.items()}
            peers = {
                "its float32": calls["float32"],
                "its own INT8": calls["own"],
                "ours, 2:4 weights": calls["2:4"],
            }
            label = f"{name} INT8 in ONNX Runtime, threads {threads}"
            found.append(Row(label, calls["INT8"], check, peers, threads=threads, rounds=9))
    return found


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_row(row: Row, benchmark) -> None:  # type: ignore[no-untyped-def]
    run(row, benchmark)
