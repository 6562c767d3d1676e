"""Hand the best variant over: an ONNX file that ONNX Runtime confirms, an engine where possible."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import sparseq
from sparseq import bench
from sparseq.export.engine.runtime import RUNTIMES, installed
from sparseq.nn import SparseQuantLayer
from sparseq.run.data import Dataset
from sparseq.run.results import Deployment

__all__ = ["deploy"]

_FILE = "best.onnx"


def deploy(name: str, model: nn.Module, data: Dataset, folder: Path, *, engine: bool) -> Deployment:
    """Export a variant for ONNX Runtime and compare the two on the test images.

    Args:
        name: the variant's.
        model: converted.
        data: its test images are compared, one of them is timed.
        folder: where best.onnx and best.engine are written.
        engine: build a TensorRT engine as well, where a TensorRT is installed.

    Returns:
        What was written and how it compares; look at ``passed``.
    """
    from onnxruntime import InferenceSession, SessionOptions

    path, example = folder / _FILE, data.example
    sparseq.export.onnx(model, example, path, target="onnxruntime")
    report = sparseq.export.verify(model, path, (images for images, _ in data.test_batches()))
    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: example.contiguous().numpy()}
    times = bench.compare({"onnxruntime": lambda: session.run(None, feed)}, repeats=200)
    file, note = _engine(model, data, folder) if engine else (None, "not asked for")
    return Deployment(
        name=name,
        file=path.name,
        size_mb=bench.size_mb(path),
        onnxruntime_ms=times["onnxruntime"].per_image_ms,
        passed=report.passed,
        verified=f"ONNX Runtime against sparseq on {len(data.x_test):,} test images: {report}",
        kernels=str(sparseq.explain(model)),
        engine=file,
        engine_note=note,
    )


def _engine(model: nn.Module, data: Dataset, folder: Path) -> tuple[str | None, str]:
    """Name of the engine's file, and what it is; None, and why there is none."""
    runtime = next((name for name in RUNTIMES if installed(name)), None)
    path = folder / "best.engine"
    path.unlink(missing_ok=True)  # of an earlier run, and of another variant perhaps
    if runtime is None:
        return None, "no TensorRT is installed (sparseq[tensorrt] or sparseq[tensorrt-rtx])"
    specs = [m.input_spec for m in model.modules() if isinstance(m, SparseQuantLayer)]
    if any(spec is not None and not spec.symmetric for spec in specs):
        return None, (
            "engines take inputs on symmetric grids only, and these are not: "
            "quantise.symmetric=true in the recipe trains such ones"
        )
    source = folder / "best.tensorrt.onnx"
    try:
        sparseq.export.onnx(model, data.example, source, target="tensorrt")
        audit = sparseq.export.tensorrt(source, path, sparse=True, runtime=runtime)
    except (
        ValueError,
        TypeError,
        sparseq.export.EngineBuildError,
        sparseq.export.EngineAuditError,
    ) as error:
        return None, f"{runtime}: {' '.join(str(error).split())}"
    finally:
        source.unlink(missing_ok=True)
    layers = 0 if audit is None else len(audit.layers)
    return path.name, f"{runtime}, {bench.size_mb(path):.3f} MB, {layers} layers audited"
