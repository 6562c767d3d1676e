"""Hand the best variant over: an ONNX file whose answers ONNX Runtime confirms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

import sparseq
from sparseq import bench
from sparseq.run.data import Dataset
from sparseq.run.exercise import Variant

__all__ = ["Deployment", "deploy"]


@dataclass(frozen=True)
class Deployment:
    """The variant to deploy, as exported.

    Attributes:
        name: the variant's.
        file: name of the ONNX file.
        size_mb: of that file.
        onnxruntime_ms: milliseconds per image in ONNX Runtime, batch 1.
        passed: whether ONNX Runtime gives the model's numbers on the test images.
        verified: what was compared and how close it is, one line.
        kernels: what runs each layer in torch, from :func:`sparseq.explain`.
    """

    name: str
    file: str
    size_mb: float
    onnxruntime_ms: float
    passed: bool
    verified: str
    kernels: str


def deploy(
    variant: Variant, data: Dataset, path: Path, *, threads: int | None = None
) -> Deployment:
    """Export a variant for ONNX Runtime and compare the two on the test images.

    Args:
        variant: what to export.
        data: its test images are compared, one of them is timed.
        path: the ONNX file to write.
        threads: of ONNX Runtime while timing; None takes as many as torch has.

    Returns:
        What was written and how it compares; look at ``passed``.
    """
    from onnxruntime import InferenceSession, SessionOptions

    model, example = variant.deployed, data.example
    sparseq.export.onnx(model, example, path, target="onnxruntime")
    report = sparseq.export.verify(model, path, (images for images, _ in data.test_batches()))
    options = SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: example.contiguous().numpy()}
    times = bench.compare({"onnxruntime": lambda: session.run(None, feed)}, repeats=200)
    return Deployment(
        name=variant.name,
        file=path.name,
        size_mb=bench.size_mb(path),
        onnxruntime_ms=times["onnxruntime"].per_image_ms,
        passed=report.passed,
        verified=f"ONNX Runtime against sparseq on {len(data.x_test):,} test images: {report}",
        kernels=str(sparseq.explain(model)),
    )
