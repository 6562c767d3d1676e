"""What to do with which layer: frozen dataclasses, checked on construction, to JSON and back."""

from sparseq.spec.channels import CRITERIA, Channels
from sparseq.spec.layer import DTYPES, Layer
from sparseq.spec.plan import Plan
from sparseq.spec.quant import LEARNED, OBSERVERS, RANGE_OBSERVERS, Quant
from sparseq.spec.sparsity import NM, Sparsity, Unstructured

__all__ = [
    "CRITERIA",
    "DTYPES",
    "LEARNED",
    "NM",
    "OBSERVERS",
    "RANGE_OBSERVERS",
    "Channels",
    "Layer",
    "Plan",
    "Quant",
    "Sparsity",
    "Unstructured",
]
