"""Hand the best variant over: an ONNX file whose answers ONNX Runtime confirms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        onnxruntime_ms: milliseconds per image in ONNX Runtime.
        verified: what the comparison with ONNX Runtime said, one line.
        kernels: what runs each layer, from :func:`sparseq.explain`.
    """

    name: str
    file: str
    size_mb: float
    onnxruntime_ms: float
    verified: str
    kernels: str
